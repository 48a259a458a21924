"""The pieces that U-Nets are built from, in 2D and 3D."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL: dict[int, type[nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
DROPOUT: dict[int, type[nn.Module]] = {2: nn.Dropout2d, 3: nn.Dropout3d}
LINEAR_MODE = {2: "bilinear", 3: "trilinear"}
_NORMS: dict[str, dict[int, type[nn.Module]]] = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}
_ACTIVATIONS = ("relu", "leaky_relu")
_UPSAMPLINGS = ("transposed", "nearest", "linear")


def norm_layer(norm: str, spatial_dims: int, channels: int) -> nn.Module:
    """A norm by name: batch, instance (with weights), or none."""
    if norm == "none":
        return nn.Identity()
    if norm not in _NORMS:
        raise ValueError(f"norm is {norm!r}; expected one of {', '.join([*_NORMS, 'none'])}")
    kind = _NORMS[norm][spatial_dims]
    return kind(channels, affine=True) if norm == "instance" else kind(channels)


def activation_layer(activation: str) -> nn.Module:
    """An activation by name."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; expected one of {', '.join(_ACTIVATIONS)}")
    return nn.ReLU(inplace=True) if activation == "relu" else nn.LeakyReLU(0.01, inplace=True)


def conv_norm(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    size: int | Sequence[int],
    norm: str,
    stride: int | Sequence[int] = 1,
    bias: bool = False,
) -> list[nn.Module]:
    """A convolution with same padding (odd sizes) and its norm; without a norm, which would undo it, always with a bias."""
    padding = [s // 2 for s in along_axes(size, spatial_dims)]
    kind = CONV[spatial_dims]
    conv = kind(in_channels, out_channels, size, stride=stride, padding=padding, bias=bias or norm == "none")
    return [conv, norm_layer(norm, spatial_dims, out_channels)]


class ConvBlock(nn.Sequential):
    """Twice: 3 x 3 (x 3) convolution with same padding, norm, activation; then dropout of whole channels."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, norm: str, activation: str, dropout: float = 0.0
    ) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [*conv_norm(spatial_dims, channels, out_channels, 3, norm), activation_layer(activation)]
        if dropout:
            layers.append(DROPOUT[spatial_dims](dropout))
        super().__init__(*layers)


class Up(nn.Module):
    """Double the size: transposed 2 x 2 (x 2) convolution to `out_channels`, or interpolation, which leaves the channels.

    What follows convolves anyway, so that an interpolation has no convolution of its own.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, upsampling: str) -> None:
        super().__init__()
        if upsampling not in _UPSAMPLINGS:
            raise ValueError(f"upsampling is {upsampling!r}; expected one of {', '.join(_UPSAMPLINGS)}")
        transposed = upsampling == "transposed"
        self.out_channels = out_channels if transposed else in_channels
        self.layer: nn.Module = (
            CONV_TRANSPOSE[spatial_dims](in_channels, out_channels, 2, stride=2)
            if transposed
            else nn.Upsample(scale_factor=2, mode="nearest" if upsampling == "nearest" else LINEAR_MODE[spatial_dims])
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[B, in, *S]` -> `[B, out, *2S]`."""
        return self.layer(features)


def pointwise(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1 x 1 convolution of `[B, in, H, W]` as a matrix product, for scores of very wide features.

    As a convolution it makes oneDNN 3.13 write beyond its memory on CPUs with matrix units (AMX): in the backward pass of bfloat16, from
    4096 channels to fewer than 16.
    """
    return F.linear(features.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


class PointwiseConv2d(nn.Conv2d):
    """1 x 1 convolution by `pointwise`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, in, H, W]` -> `[B, out, H, W]`."""
        return pointwise(features, self.weight, self.bias)


def along_axes(size: int | Sequence[int], spatial_dims: int) -> list[int]:
    """A size of all axes, or of each one, as a list."""
    return [size] * spatial_dims if isinstance(size, int) else list(size)


def pad_to_multiple(image: Tensor, stride: int | Sequence[int]) -> Tensor:
    """Pad `[B, C, *S]` with zeros at the far ends to sizes that the stride divides, and to two strides along one axis at least.

    A map of a single position has no spread, and so no norm. The stride is that of all axes, or a list of one for each.
    """
    shape, strides = image.shape[2:], along_axes(stride, image.ndim - 2)
    counts: list[Any] = [(size + step - 1) // step for size, step in zip(shape, strides, strict=True)]
    # No comparisons: an export follows one branch only, and has to hold for every size.
    counts[-1] = torch.sym_max(counts[-1], 3 - functools.reduce(torch.sym_max, counts))
    rests = [count * step - size for size, step, count in zip(shape, strides, counts, strict=True)]
    pads = [amount for rest in reversed(rests) for amount in (0, rest)]
    return F.pad(image, pads) if torch.compiler.is_exporting() or any(pads) else image


def crop(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Undo `pad_to_multiple`."""
    window: list[Any] = [slice(0, s) for s in size]
    return logits[(..., *window)]


def check_spatial_dims(spatial_dims: int) -> None:
    """Refuse anything but 2 and 3."""
    if spatial_dims not in CONV:
        raise ValueError(f"spatial_dims is {spatial_dims}; expected 2 for images or 3 for volumes")


def check_channels(
    channels: Sequence[int], least: int = 1, name: str = "channels", usual: Sequence[int] | None = None
) -> None:
    """Refuse networks without a level, with one that is narrower than it can be, or of another number than the usual widths."""
    if not channels or min(channels) < least:
        raise ValueError(
            f"{name} is {list(channels) or 'empty'}; expected the width of each level, {least} or more, such as [32, 64, 128, 256]"
        )
    if usual is not None and len(channels) != len(usual):
        raise ValueError(f"{name} is {list(channels)}; expected {len(usual)} widths, such as {list(usual)}")


def level_block(
    spatial_dims: int, channels: Sequence[int], norm: str, activation: str, dropout: float
) -> Callable[[int, int], ConvBlock]:
    """Makes the block of a level from its number of input channels and its index; dropout stands in the two coarsest."""

    def block(in_channels: int, level: int) -> ConvBlock:
        deep = level >= len(channels) - 2
        return ConvBlock(spatial_dims, in_channels, channels[level], norm, activation, dropout if deep else 0.0)

    return block


def initialize(network: nn.Module) -> None:
    """He initialisation of convolutions, as their ReLUs want it; biases start at zero.

    Transposed ones, of whose kernel each pixel meets a part only, are drawn as torch counts their inputs, by those that go out.

    Reference:
        He et al., Delving Deep into Rectifiers, ICCV 2015. https://arxiv.org/abs/1502.01852
    """
    for module in network.modules():
        if isinstance(module, (*CONV.values(), *CONV_TRANSPOSE.values())):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # type: ignore[arg-type]
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
