"""How far a pixel's logits look in effect: what moves them, of all that can reach them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

#: Share of the gradient that the effective field holds: what lies within two deviations of a normal distribution.
SHARE = 0.9545


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
