"""The pieces of several networks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from segline.models.blocks import PointwiseConv2d

SRC = Path(__file__).parents[2] / "src"
#: What FCN and the VGG16 of patches end in, trained a few steps on few maps of scores.
WIDE = """
import torch
from segline.models.blocks import PointwiseConv2d

for size in (8, 9, 16):
    layer, features = PointwiseConv2d(4096, 2), torch.randn(1, 4096, size, size).to(memory_format=torch.channels_last)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            scores = layer(features.requires_grad_())
        scores.float().square().sum().backward()
"""


def test_a_matrix_product_is_a_convolution_of_one_pixel() -> None:
    torch.manual_seed(0)
    layer, image = PointwiseConv2d(5, 3).double(), torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(image, layer.weight, layer.bias)
    torch.testing.assert_close(layer(image), expected)
    given = [image, layer.weight, layer.bias]
    grads = torch.autograd.grad(layer(image).square().sum(), given)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), given))


@pytest.mark.slow
def test_scores_of_very_wide_features_are_trained_in_bfloat16() -> None:
    """In a process of its own, for on a CPU with AMX a plain convolution of this kind ends it."""
    done = subprocess.run(
        [sys.executable, "-c", WIDE], env={**os.environ, "PYTHONPATH": str(SRC)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
