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
    Up,
    activation_layer,
    check_channels,
    check_spatial_dims,
    conv_norm,
    crop,
    initialize,
    level_block,
    pad_to_multiple,
)


class AttentionGate(nn.Module):
    """Additive attention on a grid: a coarser signal says where a skip's features matter.

        q = psi(relu(theta * skip + phi * gate));  skip -> out(up(sigmoid(q)) * skip)

    `theta` strides the skip onto the gate's grid; the map is up-sampled back to the skip's. `out` is two 1 x 1 convolutions with
    norm, the second one with activation, as in the authors' code.

    Reference:
        Oktay et al., Attention U-Net, MIDL 2018, eq. 1 and 2. https://arxiv.org/abs/1804.03999
    """

    def __init__(self, spatial_dims: int, skip_channels: int, gate_channels: int, norm: str, activation: str) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        self.mode = LINEAR_MODE[spatial_dims]
        self.theta = conv(skip_channels, skip_channels, 2, stride=2, bias=False)
        self.phi = conv(gate_channels, skip_channels, 1)
        self.psi = conv(skip_channels, 1, 1)
        self.out = nn.Sequential(
            *conv_norm(spatial_dims, skip_channels, skip_channels, 1, norm),
            *conv_norm(spatial_dims, skip_channels, skip_channels, 1, norm),
            activation_layer(activation),
        )

    def forward(self, skip: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """The gated skip and the map in 0..1, `[B, 1, *S]`; `skip` is `[B, C, *S]`, `gate` `[B, G, *S/2]`."""
        coarse = torch.sigmoid(self.psi(F.relu(self.theta(skip) + self.phi(gate))))
        attention = F.interpolate(coarse, size=skip.shape[2:], mode=self.mode, align_corners=False)
        return self.out(attention * skip), attention


class AttentionUNet(nn.Module):
    """U-Net whose coarser skips pass attention gates; the finest skip is not gated, as in the paper.

    The authors' network is `channels=[16, 32, 64, 128, 256] upsampling=linear heads=true`.

    Args:
        channels: Width of each level, from the image's resolution down; their number is the depth.
        norm: batch, instance or none.
        activation: relu or leaky_relu.
        dropout: Share of channels dropped after each block of the two coarsest levels.
        upsampling: transposed, nearest or linear.
        num_gates: How many skips are gated, from the coarsest up (the paper: 3); fewer where there are fewer below the finest.
        heads: Whether each level of the decoder has a 1 x 1 head, and a last 1 x 1 convolution joins their up-sampled scores (the
            authors' deep supervision); else the finest alone has one.

    Shape:
        `[B, in_channels, *S]` -> `[B, num_classes, *S]`, any size: padded to a multiple of `stride` and cropped inside.

    Raises:
        ValueError: An option that does not exist, no level, or less than no gate.

    Reference:
        Oktay et al., Attention U-Net, MIDL 2018. https://arxiv.org/abs/1804.03999. Departure: convolutions have no bias where a
        norm follows, which would undo it.
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
        heads: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels(channels)
        if num_gates < 0:
            raise ValueError(f"num_gates is {num_gates}; expected how many skips are gated, 0 or more")
        if num_gates and len(channels) < 3:
            raise ValueError(
                f"channels is {list(channels)}, which leaves no skip to be gated, for the finest never is; expected three widths or "
                "more (num_gates=0 is a plain U-Net)"
            )
        self.stride, self.mode = 2 ** (len(channels) - 1), LINEAR_MODE[spatial_dims]
        self.pool = MAX_POOL[spatial_dims](2)
        block = level_block(spatial_dims, channels, norm, activation, dropout)
        levels = range(len(channels))
        gated = list(levels[1:-1])[-num_gates:] if num_gates else []
        self.down = nn.ModuleList(block(in_channels if level == 0 else channels[level - 1], level) for level in levels)
        self.gating = nn.Sequential()
        if gated:
            coarsest = channels[-1]
            self.gating.extend([*conv_norm(spatial_dims, coarsest, coarsest, 1, norm), activation_layer(activation)])
        self.gates = nn.ModuleDict(
            {
                str(level): AttentionGate(spatial_dims, channels[level], channels[level + 1], norm, activation)
                for level in gated
            }
        )
        ups = [Up(spatial_dims, channels[level + 1], channels[level], upsampling) for level in levels[:-1]]
        self.up = nn.ModuleList(ups)
        self.merge = nn.ModuleList(block(channels[level] + up.out_channels, level) for level, up in enumerate(ups))
        headed = channels[:-1] if heads and len(channels) > 1 else channels[:1]
        self.heads = nn.ModuleList(CONV[spatial_dims](width, num_classes, 1) for width in headed)
        self.join = CONV[spatial_dims](len(headed) * num_classes, num_classes, 1) if heads else nn.Identity()
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
        gate, maps, decoded = self.gating(skips.pop()), [], [features]
        for level in reversed(range(len(skips))):
            skip = skips[level]
            if str(level) in self.gates:
                skip, attention = cast(AttentionGate, self.gates[str(level)])(skip, gate)
                maps.append(attention)
            features = gate = self.merge[level](torch.cat([skip, self.up[level](features)], dim=1))
            decoded.insert(0, features)
        return crop(self._score(decoded), image.shape[2:]), maps

    def _score(self, decoded: list[Tensor]) -> Tensor:
        """Logits of the decoder's features, finest first."""
        finest, *coarser = (head(features) for head, features in zip(self.heads, decoded, strict=False))
        size = finest.shape[2:]
        scores = [F.interpolate(score, size=size, mode=self.mode, align_corners=False) for score in coarser]
        return self.join(torch.cat([finest, *scores], dim=1) if scores else finest)
