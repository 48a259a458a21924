"""Pathways at several resolutions, side by side: DeepMedic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segline.models.blocks import AVG_POOL, CONV, check_channels, check_spatial_dims, crop, initialize, norm_layer
from segline.models.valid import mirror


class MultiScale(nn.Module):
    """DeepMedic: the same valid 3 x 3 (x 3) convolutions on the image and on averages of its blocks, then on both together 1 x 1 ones.

    Nothing is pooled away on the image's own pathway, and a coarse one looks as many times further as its factor: with the defaults
    17 and 51 pixels along each axis (`fields_of_view`). What goes in is
    mirrored as far as the network sees beyond it, so that all of it comes out.

    Args:
        channels: Width of each 3 x 3 convolution of a pathway; their number is its depth.
        hidden_channels: Width of each 1 x 1 convolution behind the pathways.
        factors: How many pixels wide the blocks of each coarse pathway are.
        dropout: Share of values dropped behind each 1 x 1 convolution.

    Shape:
        `[B, in_channels, *S]` -> `[B, num_classes, *S]`, any size: mirrored by `len(channels)` blocks of the coarsest pathway (24
        pixels) on each side. The blocks lie on a grid from the image's first pixel; what a coarse pathway says is the same for all
        pixels of a block. So tiles give what the whole image gives if they begin at multiples of `stride`.

    Raises:
        ValueError: No convolution in the pathways, a factor that is none, or another number of dimensions.

    Reference:
        Kamnitsas et al., Efficient Multi-Scale 3D CNN with Fully Connected CRF for Accurate Brain Lesion Segmentation, Medical Image
        Analysis 36, 2017. https://arxiv.org/abs/1603.05959, without the CRF. Departures: blocks are averaged, where the authors' code
        takes one voxel of each and the paper says no more than down-sampled; what is seen around a block is centred on its middle,
        as the paper's two inputs are, where that code centres it on the block's first voxel; convolutions have no bias where a norm
        follows, which would undo it. Dropout's places and the PReLUs' first slope of 0.01 are those of the authors' code. For images
        it is the same with 3 x 3 convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50),
        hidden_channels: Sequence[int] = (150, 150),
        factors: Sequence[int] = (3,),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels(channels)
        check_channels(hidden_channels, name="hidden_channels")
        if not factors or min(factors) < 2:
            raise ValueError(f"factors is {list(factors)}; expected one coarse pathway or more, such as [3] or [3, 5]")
        self.stride = math.lcm(*factors)
        self.factors = (1, *factors)
        #: Positions that a pathway loses at each border, one by each convolution.
        self.context = len(channels)

        def layers(inside: int, outside: int, size: int) -> list[nn.Module]:
            conv = CONV[spatial_dims](inside, outside, size, bias=False)
            return [conv, norm_layer("batch", spatial_dims, outside), nn.PReLU(outside, 0.01)]

        self.paths = nn.ModuleList()
        for factor in self.factors:
            path = nn.Sequential(AVG_POOL[spatial_dims](factor))
            for widths in zip([in_channels, *channels], channels, strict=False):
                path.extend(layers(*widths, size=3))
            self.paths.append(path)
        self.hidden, width = nn.Sequential(), len(self.factors) * channels[-1]
        for wide in hidden_channels:
            self.hidden.extend([*layers(width, wide, size=1), nn.Dropout(dropout)])
            width = wide
        self.head = CONV[spatial_dims](width, num_classes, 1)
        initialize(self)

    @property
    def fields_of_view(self) -> dict[int, int]:
        """By its factor, how many pixels wide is what a pathway looks at for one of its outputs."""
        return {factor: factor * (2 * self.context + 1) for factor in self.factors}

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        seen = [self._along(image, factor, path) for factor, path in zip(self.factors, self.paths, strict=True)]
        logits: Tensor = self.head(self.hidden(torch.cat(seen, dim=1)))
        return logits

    def _along(self, image: Tensor, factor: int, path: nn.Module) -> Tensor:
        """The features of a pathway, as large as the image."""
        size, around = image.shape[2:], self.context * factor
        # Up to whole blocks. Nothing negative is divided, which exports round to zero.
        rest = [(s + factor - 1) // factor * factor - s for s in size]
        features: Tensor = path(mirror(image, around, [around + r for r in rest]))
        for axis in range(2, image.ndim):
            features = features.repeat_interleave(factor, dim=axis)
        return crop(features, size)
