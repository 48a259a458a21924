"""3D U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from segline.models.blocks import check_channels, initialize
from segline.models.valid import ValidUNet


class UNet3D(ValidUNet):
    """3D U-Net to the letter: valid convolutions, 132 x 132 x 116 voxels in and 44 x 44 x 28 out, channels doubled before pooling.

    Args:
        channels: Width of each level, from the volume's resolution down; the first convolution of a level has half of it.

    Shape:
        `[B, in_channels, D, H, W]` -> `[B, num_classes, D, H, W]`, any size: what goes in is mirrored by 44 voxels on each side,
        be it a volume or a window of one. Small windows cost the most: of 32 x 32 x 32 voxels 124 x 124 x 124 are computed.

    Raises:
        ValueError: Images, or no level.

    Reference:
        Çiçek et al., 3D U-Net, MICCAI 2016. https://arxiv.org/abs/1606.06650. It names no initialisation; this one is He's.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        if spatial_dims != 3:
            raise ValueError("the 3D U-Net takes volumes only; for images set model=unet_2015 or model=unet")
        check_channels(channels, least=2)

        def block(*widths: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for inside, outside in pairwise(widths):
                layers += [nn.Conv3d(inside, outside, 3), nn.BatchNorm3d(outside), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        down = [
            block(coarse, width // 2, width) for coarse, width in zip([in_channels, *channels], channels, strict=False)
        ]
        pairs = list(pairwise(channels))
        up = [nn.ConvTranspose3d(coarse, coarse, 2, stride=2, bias=False) for _, coarse in pairs]
        merge = [block(fine + coarse, fine, fine) for fine, coarse in pairs]
        super().__init__(down, nn.MaxPool3d(2), up, merge, nn.Conv3d(channels[0], num_classes, 1))
        initialize(self)
