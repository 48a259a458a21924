"""Attention U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.models.blocks import (
    CONV,
    LINEAR_MODE,
    MAX_POOL,
    ConvBlock,
    Up,
    check_spatial_dims,
    crop,
    initialize,
    norm_layer,
    pad_to_multiple,
)


class AttentionGate(nn.Module):
    """Additive attention on a grid: a coarser signal says where a skip's features matter.

        q = psi(relu(theta * skip + phi * gate));  skip -> W * (up(sigmoid(q)) * skip)

    `theta` strides the skip onto the gate's grid; the map is up-sampled back to the skip's.

    Reference:
        Oktay et al., Attention U-Net, MIDL 2018, eq. 1 and 2. https://arxiv.org/abs/1804.03999
    """

    def __init__(self, spatial_dims: int, skip_channels: int, gate_channels: int, norm: str) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        self.mode = LINEAR_MODE[spatial_dims]
        self.theta = conv(skip_channels, skip_channels, 2, stride=2, bias=False)
        self.phi = conv(gate_channels, skip_channels, 1)
        self.psi = conv(skip_channels, 1, 1)
        self.out = nn.Sequential(conv(skip_channels, skip_channels, 1), norm_layer(norm, spatial_dims, skip_channels))

    def attention(self, skip: Tensor, gate: Tensor) -> Tensor:
        """The map in 0..1 on the skip's grid, `[B, 1, *S]`; `skip` is `[B, C, *S]`, `gate` `[B, G, *S/2]`."""
        coarse = torch.sigmoid(self.psi(F.relu(self.theta(skip) + self.phi(gate))))
        return F.interpolate(coarse, size=skip.shape[2:], mode=self.mode, align_corners=False)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """The gated skip, of the skip's shape."""
        return self.out(self.attention(skip, gate) * skip)


class AttentionUNet(nn.Module):
    """U-Net whose coarser skips pass attention gates; the finest skip is not gated, as in the paper.

    Args:
        channels: Width of each level, from the image's resolution down; their number is the depth.
        norm: batch, instance or none.
        activation: relu or leaky_relu.
        dropout: Share of channels dropped after each block of the two coarsest levels.
        upsampling: transposed, nearest or linear (both with a 1 x 1 convolution).
        num_gates: How many skips are gated, from the coarsest up (the paper: 3); fewer where there are fewer below the finest.

    Shape:
        `[B, in_channels, *S]` -> `[B, num_classes, *S]`, any size: padded to a multiple of `stride` and cropped inside.

    Raises:
        ValueError: An option that does not exist, or no level.

    Reference:
        Oktay et al., Attention U-Net, MIDL 2018. https://arxiv.org/abs/1804.03999. Departures: the gating signal is the coarser
        level's features themselves, without a convolution of its own before; no deep supervision.
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
        num_gates: int = 3,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if not channels:
            raise ValueError("channels is empty; expected the width of each level, such as [32, 64, 128, 256]")
        self.stride = 2 ** (len(channels) - 1)
        self.pool = MAX_POOL[spatial_dims](2)

        def block(inside: int, level: int) -> ConvBlock:
            deep = level >= len(channels) - 2
            return ConvBlock(spatial_dims, inside, channels[level], norm, activation, dropout if deep else 0.0)

        levels = range(len(channels))
        gated = list(levels[1:-1])[-num_gates:] if num_gates else []
        self.down = nn.ModuleList(block(in_channels if level == 0 else channels[level - 1], level) for level in levels)
        self.gates = nn.ModuleDict(
            {str(level): AttentionGate(spatial_dims, channels[level], channels[level + 1], norm) for level in gated}
        )
        self.up = nn.ModuleList(
            Up(spatial_dims, channels[level + 1], channels[level], upsampling) for level in levels[:-1]
        )
        self.merge = nn.ModuleList(block(2 * channels[level], level) for level in levels[:-1])
        self.head = CONV[spatial_dims](channels[0], num_classes, 1)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        return self._run(image)[0]

    def attention_maps(self, image: Tensor) -> list[Tensor]:
        """The gates' maps in 0..1, coarsest first, each `[B, 1, *S]` of its level of the padded image."""
        return self._run(image)[1]

    def _run(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = pad_to_multiple(image, self.stride)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            features = block(self.pool(features) if level else features)
            skips.append(features)
        maps = []
        for level in reversed(range(len(skips) - 1)):
            skip = skips[level]
            if str(level) in self.gates:
                gate = cast(AttentionGate, self.gates[str(level)])
                attention = gate.attention(skip, features)
                maps.append(attention)
                skip = gate.out(attention * skip)
            features = self.merge[level](torch.cat([skip, self.up[level](features)], dim=1))
        return crop(self.head(features), image.shape[2:]), maps
