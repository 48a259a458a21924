"""How far a pixel's logits look: what can reach them at all, and what does."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segline.inference.tiled import Network

#: Pixels to each side up to which a field is looked for, by the number of axes.
FARTHEST = {2: 2048, 3: 256}
#: Share of the gradient that the effective field holds: what lies within two deviations of a normal distribution.
SHARE = 0.9545


def theoretical_field(
    network: Network, in_channels: int, center: Sequence[int], stride: int
) -> list[tuple[int, int]] | None:
    """How many pixels before and behind it along each axis can reach a pixel's logits; None for more than `FARTHEST`.

    Everything beyond a place is made nan, and the last place that leaves the logits finite is found by halving: a gradient would miss what
    a maximum or a ReLU happens to hide.

    Args:
        network: In float32.
        in_channels: Bands of its images.
        center: The pixel. Of its place only what is left by the stride matters, for where it lies in the cells of coarse maps.
        stride: Total stride of the network, or a multiple of it.
    """
    sides = [_along(network, in_channels, list(center), stride, axis) for axis in range(len(center))]
    return None if None in sides else [side for side in sides if side is not None]


def _along(network: Network, in_channels: int, center: Sequence[int], stride: int, axis: int) -> tuple[int, int] | None:
    reach = 4 * stride
    while reach <= FARTHEST[len(center)]:
        size = [max(stride, 16)] * len(center)  # thin: the field along one axis does not depend on the others
        size[axis] = 2 * reach + stride
        probe = _Probe(network, (1, in_channels, *size), axis + 2, reach + center[axis] % stride)
        if not probe.is_reached(0, stride) and not probe.is_reached(size[axis] - stride, size[axis]):
            return probe.sides()
        reach *= 2
    return None


@dataclass(frozen=True)
class _Probe:
    """An image with nan at some places along an axis, and a pixel whose logits turn nan when it can see them."""

    network: Network
    shape: tuple[int, ...]
    axis: int
    pixel: int

    def is_reached(self, start: int, stop: int) -> bool:
        """Whether the logits depend on the places from `start` to `stop`."""
        image = np.zeros(self.shape, np.float32)
        np.moveaxis(image, self.axis, 0)[start:stop] = np.nan
        return bool(np.isnan(np.moveaxis(self.network(image), self.axis, 0)[self.pixel]).any())

    def sides(self) -> tuple[int, int]:
        """How many places before and behind the pixel reach it."""
        length = self.shape[self.axis]
        before = bisect_left(range(1, self.pixel + 1), True, key=lambda d: not self.is_reached(0, self.pixel - d + 1))
        behind = bisect_left(
            range(1, length - self.pixel), True, key=lambda d: not self.is_reached(self.pixel + d, length)
        )
        return before, behind


@dataclass(frozen=True)
class EffectiveField:
    """What a pixel's logits depend on, by how much.

    Args:
        share: Of the gradient, `[*S]`; its sum is 1.
        center: The pixel.
    """

    share: NDArray[np.float64]
    center: tuple[int, ...]

    @property
    def side(self) -> int:
        """Side of the smallest square (cube) around the pixel that holds 95.45 % of the gradient; it may reach beyond the image."""
        distance = np.max(
            np.meshgrid(
                *[np.abs(np.arange(n) - c) for n, c in zip(self.share.shape, self.center, strict=True)], indexing="ij"
            ),
            axis=0,
        )
        held = np.cumsum(np.bincount(distance.ravel(), self.share.ravel()))
        return 2 * int(np.searchsorted(held, SHARE * held[-1])) + 1

    @property
    def luo_side(self) -> float:
        """The size of Luo et al.: side of a square (cube) of as many pixels as have more than 4.55 % of the central pixel's gradient."""
        count = int((self.share > (1 - SHARE) * self.share[self.center]).sum())
        return float(count ** (1 / self.share.ndim))


def effective_field(network: nn.Module, image: Tensor, num_random: int = 4) -> EffectiveField:
    """The size of the gradient of the central pixel's largest logit, summed over bands: a mean over an image and random ones.

    Each image counts the same. Random ones are of normal noise, which is what normalised images are like in mean and deviation.

    Args:
        network: In evaluation mode.
        image: `[1, C, *S]`, normalised.
        num_random: How many of them.

    Reference:
        Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, NeurIPS 2016.
        https://arxiv.org/abs/1701.04128. Departures: sizes of gradients are averaged, not gradients; of the logits it is the largest.
    """
    center = tuple(size // 2 for size in image.shape[2:])
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(image.shape, generator=generator).to(image) for _ in range(num_random)]
    total = torch.zeros(image.shape[2:], dtype=torch.float64)
    for one in (image, *noise):
        pixels = one.clone().requires_grad_()
        with torch.enable_grad():
            largest = network(pixels)[(0, slice(None), *center)].max()
            (gradient,) = torch.autograd.grad(largest, pixels)
        size = gradient[0].abs().sum(0).double().cpu()
        total += size / size.sum().clamp_min(torch.finfo(torch.float32).tiny)
    total /= total.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return EffectiveField(total.numpy(), center)
