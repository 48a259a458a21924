"""Receptive fields, against sums of kernels and against every pixel tried by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segline.inference.field import measure_field, measure_margin, measure_sides
from segline.inference.network import on_arrays
from segline.inference.tiled import Network
from segline.models.attention_unet import AttentionUNet
from segline.models.multiscale import MultiScale
from segline.models.unet import UNet
from segline.models.unet_2015 import UNet2015


def call(network: nn.Module) -> Network:
    return on_arrays(network.eval(), torch.device("cpu"), "32-true")


class Behind(nn.Module):
    """Looks at the seven pixels behind each, and not before it."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.pad(image, (0, 7)).unfold(-1, 8, 1).sum(-1)


@pytest.mark.parametrize(
    ("network", "field"),
    [
        (nn.Conv2d(1, 1, 1), [1, 1]),
        (nn.Conv2d(1, 1, (3, 5), padding=(1, 2)), [3, 5]),
        (nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=4, dilation=4) for _ in range(2)]), [17, 17]),
        (nn.Conv3d(1, 1, (1, 3, 7), padding=(0, 1, 3)), [1, 3, 7]),
        (Behind(), [1, 8]),
    ],
)
def test_fields_of_convolutions_are_the_sums_of_their_kernels(network: nn.Module, field: list[int]) -> None:
    assert measure_field(call(network), 1, len(field), stride=1) == field


def test_a_margin_is_as_wide_as_the_side_that_is_looked_at_further() -> None:
    assert measure_margin(call(Behind()), 1, 2, stride=1) == [0, 7]


def test_each_side_is_told_from_the_other() -> None:
    sides = measure_sides(
        call(nn.Sequential(Behind(), nn.ConstantPad2d((0, 0, 2, 0), 0), nn.MaxPool2d((3, 1), 1))), 1, 2, stride=1
    )
    assert sides is not None
    assert [(before.tolist(), behind.tolist()) for before, behind in sides] == [([2], [0]), ([0], [7])]


@pytest.mark.parametrize("kind", [UNet, AttentionUNet, UNet2015])
def test_each_place_in_a_cell_looks_as_far_as_single_pixels_show_one_by_one(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind(1, 2, channels=[2, 3, 4]).eval()
    sides = measure_sides(call(network), 1, 2, stride=4)
    assert sides is not None
    images = np.zeros((88, 1, 88, 16), np.float32)
    images[np.arange(88), ..., np.arange(88), :] = np.nan
    seen = np.isnan(call(network)(images)).any((1, 3))  # [row, output]
    before, behind = sides[0]
    for center in range(40, 44):
        reached = np.flatnonzero(seen[:, center])
        assert 0 < reached[0] < reached[-1] < 87
        assert (before[center % 4], behind[center % 4]) == (center - reached[0], reached[-1] - center)


def by_hand(network: nn.Module, inside: slice, length: int) -> int:
    """The widest field of outputs inside a row of pixels, each of which is made nan in turn."""
    images = np.zeros((length, 1, 8, length), np.float32)
    images[np.arange(length), ..., np.arange(length)] = np.nan
    seen = np.isnan(call(network)(images)[:, 0]).any(1)  # [pixel, output]
    return max(int(np.ptp(np.flatnonzero(seen[:, output]))) + 1 for output in range(length)[inside])


@pytest.mark.parametrize("down", [nn.MaxPool2d(4), nn.Conv2d(1, 1, 3, stride=4, padding=1), nn.Conv2d(1, 1, 6, 4, 1)])
def test_the_field_is_that_of_the_output_that_looks_furthest(down: nn.Module) -> None:
    first, middle, last = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))
    network = nn.Sequential(first, down, middle, nn.Upsample(scale_factor=4), last)
    assert measure_field(call(network), 1, 2, stride=4) == [by_hand(network, slice(40, 56), 96)] * 2


def of_a_unet(levels: int) -> int:
    """Widest field of a U-Net with two 3 x 3 convolutions a level: cells that are seen, from the finest level down and back up."""
    cells = 1 + 4
    for _ in range(levels - 1):
        cells = cells // 2 + 1 + 4  # of half the size, where they don't begin with a whole one
    for _ in range(levels - 1):
        cells = 2 * cells + 4
    return cells


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_the_field_of_a_unet_is_that_of_its_levels(levels: int) -> None:
    assert [of_a_unet(levels) for levels in (4, 5)] == [100, 204]
    network = UNet(1, 1, channels=[2] * levels)
    assert measure_field(call(network), 1, 2, network.stride) == [of_a_unet(levels)] * 2
    # In the middle of a cell less is seen: a margin of half of this and a cell, at most, to whole cells.
    half = of_a_unet(levels) / 2 + network.stride
    assert max(measure_margin(call(network), 1, 2, network.stride)) <= math.ceil(half / network.stride) * network.stride


@pytest.mark.slow
def test_the_field_of_the_unet_of_2015_is_204_pixels() -> None:
    network = UNet2015(1, 1, channels=[2] * 5)
    assert measure_field(call(network), 1, 2, network.stride) == [204, 204]


def test_mirrored_borders_do_not_widen_the_field() -> None:
    network = MultiScale(1, 1, channels=[2] * 8, hidden_channels=[2])
    assert measure_field(call(network), 1, 2, network.stride) == [51, 51]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_that_looks_at_everything_has_no_field(dims: int) -> None:
    network = UNet(1, 1, spatial_dims=dims, channels=[2, 2], norm="instance")
    assert measure_field(call(network), 1, dims, network.stride) is None
