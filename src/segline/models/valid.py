"""U-Nets of valid convolutions: their output is smaller than what they see, so that an image is mirrored around its borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segline.models.blocks import crop


class ValidUNet(nn.Module):
    """Encoder and decoder of valid 3 x 3 (x 3) convolutions, two a level, with skips cropped to what is left of them.

    What goes in is mirrored as far as the network sees beyond it, and on to a size that it takes: any size goes in, and every pixel
    of it comes out. `valid` is the network without that, for windows that are cut with their surroundings (the overlap-tile strategy).

    Args:
        down: Two convolutions for each level of the encoder, finest first.
        pool: Halves the size.
        up: Doubles the size, for each level but the coarsest.
        merge: Two convolutions behind each of `up` and its skip.
        head: Logits of the finest features.

    Shape:
        `[B, in_channels, *S]` -> `[B, num_classes, *S]`, any size.
    """

    def __init__(
        self,
        down: Sequence[nn.Module],
        pool: nn.Module,
        up: Sequence[nn.Module],
        merge: Sequence[nn.Module],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(down) - 1)
        #: Pixels that are lost at each border: 2 by the two convolutions of a level, each way, in units of that level.
        self.context = 6 * self.stride - 4
        self.down, self.pool, self.up = nn.ModuleList(down), pool, nn.ModuleList(up)
        self.merge, self.head = nn.ModuleList(merge), head

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image, as large as it is."""
        size = image.shape[2:]
        # What comes out is 4 more than a multiple of the stride. Nothing negative is divided, which exports round to zero.
        multiples = [(s + 5 * self.stride - 5) // self.stride - 4 for s in size]
        rest = [count * self.stride + 4 - s for count, s in zip(multiples, size, strict=True)]
        return crop(self.valid(mirror(image, self.context, [self.context + r for r in rest])), size)

    def valid(self, image: Tensor) -> Tensor:
        """Logits of the inside of an image, smaller by twice the context: its sizes are 4 more than a multiple of the stride then."""
        features, skips = image, []
        for level, block in enumerate(self.down):
            features = block(self.pool(features) if level else features)
            skips.append(features)
        skips.pop()
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(skips), strict=True):
            features = up(features)
            features = merge(torch.cat([center_crop(skip, features.shape[2:]), features], dim=1))
        logits: Tensor = self.head(features)
        return logits


def mirror(image: Tensor, before: int, after: Sequence[int]) -> Tensor:
    """Pad `[B, C, *S]` by reflection, repeated where an image is smaller than that, as `numpy.pad(mode="reflect")` does.

    Args:
        image: Of any size; of one pixel copies are made.
        before: Pixels before each axis.
        after: Pixels behind each axis.
    """
    for axis, behind in enumerate(after, 2):
        size = image.shape[axis]
        place = torch.arange(-before, size + behind, device=image.device)
        # Forth and back; without comparisons and numbers of Python's, of which an export would make constants.
        period = torch.full_like(place, torch.sym_max(2 * size - 2, 1))
        place = (size - 1) - ((size - 1) - place.remainder(period)).abs()
        image = image.index_select(axis, place)
    return image


def center_crop(features: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of `[B, C, *S]`."""
    starts = [(have - want) // 2 for have, want in zip(features.shape[2:], size, strict=True)]
    window: list[Any] = [slice(start, start + want) for start, want in zip(starts, size, strict=True)]
    return features[(..., *window)]
