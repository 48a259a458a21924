"""U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segline.models.blocks import (
    CONV,
    MAX_POOL,
    Up,
    check_channels,
    check_spatial_dims,
    crop,
    initialize,
    level_block,
    pad_to_multiple,
)


class UNet(nn.Module):
    """Encoder and decoder with skips, in today's form: same padding, so that the logits have the image's size.

    Args:
        channels: Width of each level, from the image's resolution down; their number is the depth.
        norm: batch, instance or none.
        activation: relu or leaky_relu.
        dropout: Share of channels dropped after each block of the two coarsest levels.
        upsampling: transposed, nearest or linear.

    Shape:
        `[B, in_channels, *S]` -> `[B, num_classes, *S]`, any size: padded to a multiple of `stride` and cropped inside.

    Raises:
        ValueError: An option that does not exist, or no level.

    Reference:
        Ronneberger et al., U-Net, MICCAI 2015. https://arxiv.org/abs/1505.04597. Departures: same padding instead of valid
        convolutions, normalisation, widths by choice.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256),
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        upsampling: str = "transposed",
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels(channels)
        self.stride = 2 ** (len(channels) - 1)
        self.pool = MAX_POOL[spatial_dims](2)
        block = level_block(spatial_dims, channels, norm, activation, dropout)
        levels = range(len(channels))
        self.down = nn.ModuleList(block(in_channels if level == 0 else channels[level - 1], level) for level in levels)
        ups = [Up(spatial_dims, channels[level + 1], channels[level], upsampling) for level in levels[:-1]]
        self.up = nn.ModuleList(ups)
        self.merge = nn.ModuleList(block(channels[level] + up.out_channels, level) for level, up in enumerate(ups))
        self.head = CONV[spatial_dims](channels[0], num_classes, 1)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        features = pad_to_multiple(image, self.stride)
        skips = []
        for level, block in enumerate(self.down):
            features = block(self.pool(features) if level else features)
            skips.append(features)
        skips.pop()
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(skips), strict=True):
            features = merge(torch.cat([skip, up(features)], dim=1))
        return crop(self.head(features), image.shape[2:])
