"""The pieces that U-Nets are built from, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
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


class ConvBlock(nn.Sequential):
    """Twice: 3 x 3 (x 3) convolution with same padding, norm, activation; then dropout of whole channels.

    `norm="none"` gives the convolutions a bias, which a norm makes needless.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, norm: str, activation: str, dropout: float = 0.0
    ) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                CONV[spatial_dims](channels, out_channels, 3, padding=1, bias=norm == "none"),
                norm_layer(norm, spatial_dims, out_channels),
                activation_layer(activation),
            ]
        if dropout:
            layers.append(DROPOUT[spatial_dims](dropout))
        super().__init__(*layers)


class Up(nn.Module):
    """Double the size and change the channels: transposed 2 x 2 (x 2) convolution, or interpolation and a 1 x 1 (x 1) one."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, upsampling: str) -> None:
        super().__init__()
        if upsampling not in _UPSAMPLINGS:
            raise ValueError(f"upsampling is {upsampling!r}; expected one of {', '.join(_UPSAMPLINGS)}")
        self.mode = {"transposed": None, "nearest": "nearest", "linear": LINEAR_MODE[spatial_dims]}[upsampling]
        kind = CONV_TRANSPOSE if self.mode is None else CONV
        size = 2 if self.mode is None else 1
        self.conv = kind[spatial_dims](in_channels, out_channels, size, stride=size)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, in, *S]` -> `[B, out, *2S]`."""
        if self.mode is None:
            return self.conv(features)
        # Fewer channels first: the 1 x 1 convolution and the interpolation commute, and this order is cheaper.
        align = None if self.mode == "nearest" else False
        return F.interpolate(self.conv(features), scale_factor=2, mode=self.mode, align_corners=align)


def pad_to_multiple(image: Tensor, stride: int) -> Tensor:
    """Pad `[B, C, *S]` with zeros at the far ends to sizes that the stride divides."""
    pads = [amount for size in reversed(image.shape[2:]) for amount in (0, -size % stride)]
    return F.pad(image, pads) if any(pads) else image


def crop(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Undo `pad_to_multiple`."""
    window: list[Any] = [slice(0, s) for s in size]
    return logits[(..., *window)]


def check_spatial_dims(spatial_dims: int) -> None:
    """Refuse anything but 2 and 3."""
    if spatial_dims not in CONV:
        raise ValueError(f"spatial_dims is {spatial_dims}; expected 2 for images or 3 for volumes")


def initialize(network: nn.Module) -> None:
    """He initialisation of convolutions, as their ReLUs want it; biases start at zero.

    Reference:
        He et al., Delving Deep into Rectifiers, ICCV 2015. https://arxiv.org/abs/1502.01852
    """
    for module in network.modules():
        if isinstance(module, (*CONV.values(), *CONV_TRANSPOSE.values())):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # type: ignore[arg-type]
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
