"""U-Net as it was published in 2015."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from segline.models.blocks import check_channels
from segline.models.valid import ValidUNet


class UNet2015(ValidUNet):
    """U-Net to the letter: valid convolutions, 572 x 572 pixels in and 388 x 388 out, no normalisation.

    Args:
        channels: Width of each level, from the image's resolution down.
        dropout: Share of values dropped at the end of the contracting path, behind each of its two coarsest levels. The paper names
            the place and not the share; it is that of the authors' Caffe model.

    Shape:
        `[B, in_channels, H, W]` -> `[B, num_classes, H, W]`, any size: what goes in is mirrored by 92 pixels on each side, be it
        an image or a window of one. Small windows cost the most: of 128 x 128 pixels 316 x 316 are computed.

    Raises:
        ValueError: Volumes, or no level.

    Reference:
        Ronneberger et al., U-Net, MICCAI 2015. https://arxiv.org/abs/1505.04597
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        dropout: float = 0.5,
    ) -> None:
        if spatial_dims != 2:
            raise ValueError("the U-Net of 2015 takes images only; for volumes set model=unet3d")
        check_channels(channels)

        def block(inside: int, outside: int) -> nn.Sequential:
            convs = nn.Conv2d(inside, outside, 3), nn.Conv2d(outside, outside, 3)
            return nn.Sequential(convs[0], nn.ReLU(inplace=True), convs[1], nn.ReLU(inplace=True))

        down = [block(*widths) for widths in zip([in_channels, *channels], channels, strict=False)]
        for deep in down[-2:]:
            deep.append(nn.Dropout(dropout))
        up = [nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(channels)]
        merge = [block(2 * fine, fine) for fine in channels[:-1]]
        super().__init__(down, nn.MaxPool2d(2), up, merge, nn.Conv2d(channels[0], num_classes, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # Of the up-convolution each value comes from one position of its kernel.
                incoming = module.in_channels * (
                    1 if isinstance(module, nn.ConvTranspose2d) else module.weight[0, 0].numel()
                )
                nn.init.normal_(module.weight, std=math.sqrt(2 / incoming))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
