"""UNETR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from segline.models.blocks import (
    CONV,
    CONV_TRANSPOSE,
    activation_layer,
    check_channels,
    check_spatial_dims,
    crop,
    initialize,
    pad_to_multiple,
)
from segline.models.transformer import VisionTransformer

_INSTANCE_NORM: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def _conv_norm(spatial_dims: int, in_channels: int, out_channels: int, size: int) -> list[nn.Module]:
    """A convolution without bias and its norm, which has no weights."""
    conv = CONV[spatial_dims](in_channels, out_channels, size, padding=size // 2, bias=False)
    return [conv, _INSTANCE_NORM[spatial_dims](out_channels)]


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3 (x 3) with instance norm, which add to what they see."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_conv_norm(spatial_dims, in_channels, out_channels, 3),
            activation_layer("leaky_relu"),
            *_conv_norm(spatial_dims, out_channels, out_channels, 3),
        )
        self.shortcut = nn.Sequential()
        if in_channels != out_channels:
            self.shortcut.extend(_conv_norm(spatial_dims, in_channels, out_channels, 1))
        self.activation = activation_layer("leaky_relu")

    def forward(self, features: Tensor) -> Tensor:
        """`[B, in, *S]` -> `[B, out, *S]`."""
        return self.activation(self.residual(features) + self.shortcut(features))


class UNETR(nn.Module):
    """Vision transformer on patches of 16 x 16 (x 16), whose layers are the skips of a convolutional decoder.

    The image itself and what the transformer has made of it after a quarter, a half and three quarters of its layers (z3, z6, z9),
    up-sampled by transposed convolutions, join the decoder, which starts from the last layer (z12).

    Args:
        channels: Width of the decoder at the image's resolution, a half, a quarter and an eighth of it.
        embed_dim: Width of a token.
        num_heads: Heads of each attention, which share the width.
        num_layers: Attentions with their perceptrons, a multiple of 4.
        mlp_ratio: Width of a perceptron's hidden layer, in units of `embed_dim`.
        dropout: Share of values dropped behind the embedding and each layer of a perceptron.
        image_size: Pixels along each axis of the images that the position embedding is made for; for others it is interpolated.

    Shape:
        `[B, in_channels, *S]` -> `[B, num_classes, *S]`, any size: padded to a multiple of `stride` and cropped inside.

    Raises:
        ValueError: Other numbers of levels or layers, or a width that the heads cannot share.

    Reference:
        Hatamizadeh et al., UNETR, WACV 2022. https://arxiv.org/abs/2103.10504, and the authors' code (in MONAI) for what the paper leaves
        open: residual blocks, instance norm without weights, no biases of queries, keys and values. That code takes z4, z7 and z10; this
        network takes what the paper says. Departures: images, too; other sizes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int] = (16, 32, 64, 128),
        embed_dim: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        image_size: int = 96,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels(channels, usual=[16, 32, 64, 128])
        if num_layers < 4 or num_layers % 4:
            raise ValueError(
                f"num_layers is {num_layers}; expected a multiple of 4, as each quarter of them has a skip"
            )
        self.stride = 16
        self.transformer = VisionTransformer(
            spatial_dims,
            in_channels,
            patch_size=self.stride,
            grid_size=math.ceil(image_size / self.stride),
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            bias=False,
            eps=1e-5,
        )

        def double(inside: int, outside: int) -> nn.Module:
            return CONV_TRANSPOSE[spatial_dims](inside, outside, 2, stride=2, bias=False)

        self.skips = nn.ModuleList([ResidualBlock(spatial_dims, in_channels, channels[0])])
        for level, width in enumerate(channels[1:], 1):
            path = nn.Sequential(double(embed_dim, width))
            for _ in range(3 - level):
                path.extend([double(width, width), ResidualBlock(spatial_dims, width, width)])
            self.skips.append(path)
        self.up = nn.ModuleList(double(coarse, fine) for fine, coarse in pairwise([*channels, embed_dim]))
        self.merge = nn.ModuleList(ResidualBlock(spatial_dims, 2 * width, width) for width in channels)
        self.head = CONV[spatial_dims](channels[0], num_classes, 1)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        padded = pad_to_multiple(image, self.stride)
        outputs: list[Tensor] = self.transformer(padded)
        quarter = len(outputs) // 4
        *inside, features = [padded, *outputs[quarter - 1 :: quarter]]
        for level in reversed(range(4)):
            skip = self.skips[level](inside[level])
            features = self.merge[level](torch.cat([self.up[level](features), skip], dim=1))
        return crop(self.head(features), image.shape[2:])
