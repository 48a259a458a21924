"""TransUNet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.models.blocks import (
    ConvBlock,
    activation_layer,
    check_channels,
    conv_norm,
    crop,
    initialize,
    pad_to_multiple,
)
from segline.models.transformer import VisionTransformer

#: Blocks in each stage of the ResNet.
_NUM_BLOCKS = (3, 4, 9)


class StandardizedConv2d(nn.Conv2d):
    """Convolution with same padding, without bias, whose filters are shifted and scaled to mean 0 and variance 1.

    Reference:
        Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019.
        https://arxiv.org/abs/1903.10520
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return F.conv2d(features, weight, stride=self.stride, padding=self.padding)


def _conv_norm(in_channels: int, out_channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution and its norm, of 32 groups of channels, or fewer where 32 does not divide them."""
    groups = math.gcd(32, out_channels)
    return [StandardizedConv2d(in_channels, out_channels, size, stride), nn.GroupNorm(groups, out_channels, eps=1e-6)]


class Bottleneck(nn.Module):
    """Block of a ResNet: convolutions of 1 x 1, 3 x 3 and 1 x 1, which add to what they see; four times `channels` come out.

    Shape:
        `[B, in_channels, H, W]` -> `[B, 4 * channels, H / stride, W / stride]`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_conv_norm(in_channels, channels, 1),
            nn.ReLU(inplace=True),
            *_conv_norm(channels, channels, 3, stride),
            nn.ReLU(inplace=True),
            *_conv_norm(channels, 4 * channels, 1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or in_channels != 4 * channels:
            self.shortcut.append(StandardizedConv2d(in_channels, 4 * channels, 1, stride))
            self.shortcut.append(
                nn.GroupNorm(4 * channels, 4 * channels)
            )  # each channel for itself, as in the authors' code

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.residual(features) + self.shortcut(features))


class ResNet(nn.Module):
    """Root and three stages of a ResNet-50, with group norm and standardised filters (BiT's "v2").

    Args:
        channels: Width of the bottlenecks in each stage; the root has the first one.

    Shape:
        `[B, in_channels, H, W]` of multiples of 16 -> features at 1/2, 1/4, 1/8 and 1/16, of `out_channels`.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.root = nn.Sequential(*_conv_norm(in_channels, channels[0], 7, stride=2), nn.ReLU(inplace=True))
        self.out_channels = [channels[0], *(4 * width for width in channels)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                Bottleneck(self.out_channels[stage], width, stride=2 if stage else 1),
                *(Bottleneck(4 * width, width, stride=1) for _ in range(_NUM_BLOCKS[stage] - 1)),
            )
            for stage, width in enumerate(channels)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        half = self.root(image)
        quarter = self.stages[0](F.max_pool2d(half, 3, stride=2))
        eighth = self.stages[1](quarter)
        # Pooling without padding leaves a quarter less one.
        return [half, F.pad(quarter, (0, 1, 0, 1)), eighth, self.stages[2](eighth)]


class TransUNet(nn.Module):
    """ResNet whose coarsest features pass a vision transformer, and a decoder with skips from the ResNet (R50-ViT-B_16).

    Args:
        channels: Width of the bottlenecks in each stage of the ResNet, at 1/4, 1/8 and 1/16 of the resolution; four times as much
            comes out of a stage. The root, at 1/2, has the first one.
        decoder_channels: Width of each level of the decoder, from 1/16 of the resolution up to the image's.
        embed_dim: Width of a token.
        num_heads: Heads of each attention, which share the width.
        num_layers: Attentions with their perceptrons.
        mlp_ratio: Width of a perceptron's hidden layer, in units of `embed_dim`.
        dropout: Share of values dropped behind the embedding and each layer of a perceptron.
        image_size: Pixels along each axis of the images that the position embedding is made for; for others it is interpolated.

    Shape:
        `[B, in_channels, H, W]` -> `[B, num_classes, H, W]`, any size: padded to a multiple of `stride` and cropped inside.

    Raises:
        ValueError: Volumes, other numbers of levels, no layer or head, or a width that the heads cannot share.

    Reference:
        Chen et al., TransUNet, 2021. https://arxiv.org/abs/2102.04306, and the authors' code for what the paper leaves open. Departures:
        it starts at random, not from ImageNet's weights; other sizes and numbers of bands; no bias of keys, which is without effect.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (64, 128, 256),
        decoder_channels: Sequence[int] = (512, 256, 128, 64, 16),
        embed_dim: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError("TransUNet takes images only; for volumes set model=unetr")
        check_channels(channels, usual=[64, 128, 256])
        check_channels(decoder_channels, name="decoder_channels", usual=[512, 256, 128, 64, 16])
        self.stride = 16
        self.resnet = ResNet(in_channels, channels)
        *skips, deepest = self.resnet.out_channels
        self.transformer = VisionTransformer(
            2,
            deepest,
            patch_size=1,
            grid_size=math.ceil(image_size / self.stride),
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            bias=True,
            eps=1e-6,
        )
        coarsest = decoder_channels[0]
        self.bottom = nn.Sequential(*conv_norm(2, embed_dim, coarsest, 3, "batch"), activation_layer("relu"))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.merge = nn.ModuleList(
            ConvBlock(2, coarse + skip, fine, "batch", "relu")
            for coarse, skip, fine in zip(decoder_channels, [*reversed(skips), 0], decoder_channels[1:], strict=False)
        )
        self.head = nn.Conv2d(decoder_channels[-1], num_classes, 3, padding=1)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        *skips, deepest = self.resnet(pad_to_multiple(image, self.stride))
        features = self.bottom(self.transformer(deepest)[-1])
        for merge, skip in zip(self.merge, reversed(skips), strict=False):
            features = merge(torch.cat([self.up(features), skip], dim=1))
        return crop(self.head(self.merge[-1](self.up(features))), image.shape[2:])
