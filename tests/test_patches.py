"""The benchmark of patches counts what is computed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

FILE = Path(__file__).parents[1] / "benchmarks" / "patches.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("patches", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


patches = load()


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (3, 1, 1), (1, 4, 1), (2, 3, 2)])
def test_multiply_adds_are_those_of_each_value_that_comes_out(stride: int, dilation: int, groups: int) -> None:
    with torch.device("meta"):
        conv = nn.Conv2d(6, 4, 5, stride=stride, dilation=dilation, groups=groups)
    out = (40 - 4 * dilation - 1) // stride + 1
    assert patches.multiply_adds(conv, (3, 6, 40, 40)) == 3 * out**2 * 4 * 25 * 6 // groups


def test_ciresans_network_is_more_than_a_hundred_times_cheaper_in_dense_form() -> None:
    dense, windows = patches.count("ciresan", 256)
    kernels = [16 * 1 * 48, 25 * 48 * 48, 16 * 48 * 48, 16 * 48 * 48, 9 * 48 * 200, 200 * 2]
    # Sizes of the maps that come out: of a window they are the paper's, of the image what it is mirrored to, less what is lost.
    assert windows == 256**2 * sum(n**2 * k for n, k in zip([92, 42, 18, 6, 1, 1], kernels, strict=True))
    assert dense == sum(n**2 * k for n, k in zip([347, 338, 324, 296, 256, 256], kernels, strict=True))
    assert windows > 100 * dense


@pytest.mark.parametrize(("architecture", "ratio"), [("lenet5", 6), ("alexnet", 16), ("vgg16", 200)])
def test_the_others_gain_what_their_windows_share(architecture: str, ratio: int) -> None:
    dense, windows = patches.count(architecture, 256)
    assert windows > ratio * dense
