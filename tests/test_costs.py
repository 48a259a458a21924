"""What networks cost, against closed forms and counts by hand."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from torch import Tensor, nn

from segline import costs
from segline.config import CONF_DIR, networks
from segline.costs import Costs, Workload, count_flops, count_kept, measure_costs, median_seconds, print_costs
from segline.models.unet import UNet

SRC = Path(__file__).resolve().parents[1] / "src"
CPU = torch.device("cpu")
WORKLOAD = Workload([16, 24], in_channels=3, num_classes=2, batch_size=2, repeats=1, device=CPU, precision="32-true")


def test_operations_are_those_of_the_convolutions() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, (1, 5), stride=2))
    first = 2 * 3 * 8 * 9 * 16 * 24
    second = 2 * 8 * 2 * 5 * 8 * 10
    assert count_flops(network, torch.randn(1, 3, 16, 24)) == first + second


def chain(inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("inplace", [False, True])
def test_kept_are_the_inputs_that_gradients_need_once_each(inplace: bool) -> None:
    network, images = chain(inplace), torch.randn(2, 3, 8, 8)
    pixels = 2 * 8 * 8
    # The image for the first convolution; what the ReLU says, for it and for the second one; what is squared.
    expected = 4 * pixels * (3 + 4 + 2)
    assert count_kept(lambda: network(images).square().sum(), network.parameters()) == expected


def test_views_of_one_memory_and_weights_in_low_precision_do_not_count_anew() -> None:
    network, images, pixels = chain(), torch.randn(2, 3, 8, 8), 2 * 8 * 8

    def halves() -> Tensor:
        left, right = images.chunk(2, dim=3)
        return network(left).sum() + network(right).sum()

    assert count_kept(halves, network.parameters()) == 4 * pixels * (3 + 4)

    def low() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(images).sum()  # type: ignore[no-any-return]

    assert count_kept(low, network.parameters()) == 2 * pixels * (3 + 4)


def test_a_network_is_measured_as_it_is_trained_and_asked() -> None:
    network = UNet(3, 2, channels=[4, 6])
    before = [p.clone() for p in network.parameters()]
    found = measure_costs(network, WORKLOAD)
    assert found.weights == sum(p.numel() for p in before)
    assert found.field == [
        18,
        18,
    ]  # 5 pixels lie in 3 cells; 7 with those around, which are 14 pixels; with 2 each way 18
    assert min(found.training, found.prediction) > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert found.flops == count_flops(network, torch.randn(1, 3, 16, 24))  # of one image, whatever the batch


def test_the_first_call_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    calls = iter([100.0, 3.0, 1.0, 2.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: seconds[0])

    def call() -> None:
        seconds[0] += next(calls)

    assert median_seconds(call, Workload([1, 1], 1, 1, 1, 3, CPU, "")) == 2


@pytest.mark.parametrize(("field", "said"), [(None, "whole image"), ([51, 51], "51"), ([5, 204, 204], "5 x 204 x 204")])
def test_numbers_are_in_the_units_of_the_columns(field: Any, said: str) -> None:
    row = Costs(1_234_567, 45_670_000_000, field, 89_400_000, 0.1234, 0.0056)
    assert row.cells() == ["1.23", "45.7", said, "89", "123", "6"]


def test_those_that_refuse_are_named_and_the_others_come(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(error: Exception) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            raise error

        return make

    makers = {"flat": refuse(ValueError("volumes only\nand more")), "conv": lambda: nn.Conv2d(3, 2, 1), "thin": chain}
    print_costs({**makers, "bands": lambda: nn.Conv2d(4, 2, 1)}, WORKLOAD)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("2 images of 16 x 24 pixels, 3 bands, 2 classes; 32-true on a CPU")
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["Network", "-------", "conv", "thin"]
    assert [line.split("|")[4].strip() for line in lines[4:6]] == ["1", "3"]
    assert lines[7:9] == ["Not measured:", "- flat: volumes only"]
    assert lines[9].startswith("- bands: ")
    assert "thin" in shown.err  # how far it is


def test_without_a_name_there_are_all_and_arguments_reach_each() -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        every = networks([], in_channels=1, num_classes=3, spatial_dims=3)
        some = networks(["model=unet,unet_2015", "model.channels=[2,4]"], in_channels=1, num_classes=3, spatial_dims=3)
        assert set(every) == {file.stem for file in (CONF_DIR / "model").glob("*.yaml")}
        assert list(some) == ["unet", "unet_2015"]
        network = some["unet"]()
        assert network(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 3, 4, 4, 4)
        assert network.stride == 2
        with pytest.raises(ValueError, match=r"^the U-Net of 2015 takes images only"):
            some["unet_2015"]()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SRC / "models.py", *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_that_takes_what_is_asked(tmp_path: Path) -> None:
    done = run("model=unet,unet3d,unet_2015", "model.channels=[4,6]", "model.norm=none", "size=[16,16]", "trainer=cpu")
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines() if "|" in line][2:] == ["unet"]
    assert "- unet3d: Could not override 'model.norm'" in done.stdout
    assert "- unet_2015: Could not override 'model.norm'" in done.stdout
    done = run(
        "model=attention_unet,unet_2015", "model.channels=[4,6,8]", "size=[8,16,16]", "in_channels=1", "repeats=1"
    )
    assert "| attention_unet |" in done.stdout
    assert "- unet_2015: the U-Net of 2015 takes images only" in done.stdout
    assert "attention_unet" in done.stderr
    assert list(tmp_path.iterdir()) == []  # the working folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=unet,attention_unett"], "Did you mean attention_unet"),
        (["size=64"], "size is 64; expected pixels along two axes"),
        (["size=[64]"], "size is [64]; expected"),
        (["batch_size=0"], "batch_size and repeats are [3, 2, 0, 5]; expected numbers from 1"),
        (["bands=3"], "there is no 'bands' to override"),
    ],
)
def test_what_is_wrong_is_said_at_once(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
