"""Patch classifiers: a network that looks at the window around a pixel and names its centre, at every pixel in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.models.blocks import pointwise
from segline.models.valid import mirror

#: Which maps of S2 each map of C3 sees (LeCun et al. 1998, table I).
_LENET5_TABLE = (
    *("012", "123", "234", "345", "045", "015"),
    *("0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235", "012345"),
)


class Conv(nn.Conv2d):
    """A valid convolution whose stride is given with each call, because in dense form it is left out.

    Attributes:
        extent: Edge of its window.
        step: Its stride in patch form.
    """

    def __init__(self, inside: int, outside: int, size: int, step: int = 1, groups: int = 1) -> None:
        super().__init__(inside, outside, size, groups=groups)
        self.extent, self.step = size, step

    def forward(self, features: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        """`[B, inside, H, W]` -> `[B, outside, h, w]`."""
        return F.conv2d(features, self.kernel(), self.bias, stride, 0, dilation, self.groups)

    def kernel(self) -> Tensor:
        """Its weights."""
        return self.weight


class TableConv(Conv):
    """A convolution between some pairs of maps only.

    Args:
        table: For each map that goes out, the numbers of those that it sees.
    """

    connected: Tensor

    def __init__(self, inside: int, size: int, table: Sequence[str]) -> None:
        super().__init__(inside, len(table), size)
        connected = torch.tensor([[float(str(k) in seen) for k in range(inside)] for seen in table])
        self.register_buffer("connected", connected[:, :, None, None], persistent=False)

    def kernel(self) -> Tensor:
        """Its weights, 0 where maps are not connected."""
        return self.weight * self.connected


class Scores(Conv):
    """The last layer, a window of one pixel."""

    def forward(self, features: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        return pointwise(features, self.weight, self.bias)


class Subsampling(Conv):
    """The sum of 2 x 2 values, times one weight of the map, and a bias: it starts as their mean."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, step=2, groups=channels)
        self.extent = 2

    def kernel(self) -> Tensor:
        """The one weight, four times."""
        return self.weight.expand(-1, -1, 2, 2)


class MaxPool(nn.Module):
    """The largest of size x size values; see `Conv` for its stride."""

    def __init__(self, size: int, step: int) -> None:
        super().__init__()
        self.extent, self.step = size, step

    def forward(self, features: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, h, w]`."""
        return F.max_pool2d(features, self.extent, stride, 0, dilation)


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 x), which is 1 at 1 and keeps the spread of its input.

    Reference:
        LeCun et al., Efficient BackProp, 1998, section 4.4.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Any shape."""
        return 1.7159 * torch.tanh(features * (2 / 3))


class ResponseNorm(nn.LocalResponseNorm):
    """AlexNet's, in float32: in float16 squares of values above 255 are infinite, and all that is divided by them 0."""

    def forward(self, features: Tensor) -> Tensor:
        """Of the features' type."""
        return super().forward(features.float()).to(features.dtype)


def _lenet5(bands: int, widths: Sequence[int]) -> list[nn.Module]:
    c1, c3, c5, f6 = widths
    second = TableConv(c1, 5, _LENET5_TABLE) if (c1, c3) == (6, 16) else Conv(c1, c3, 5)
    layers = [Conv(bands, c1, 5), Subsampling(c1), second, Subsampling(c3), Conv(c3, c5, 5), Conv(c5, f6, 1)]
    return [module for layer in layers for module in (layer, ScaledTanh())]


def _ciresan(bands: int, widths: Sequence[int]) -> list[nn.Module]:
    inside, layers = bands, []
    for size, width in zip((4, 5, 4, 4), widths, strict=False):
        layers += [Conv(inside, width, size), ScaledTanh(), MaxPool(2, 2)]
        inside = width
    return [*layers, Conv(inside, widths[-1], 3), ScaledTanh()]


def _alexnet(bands: int, widths: Sequence[int]) -> list[nn.Module]:
    c1, c2, c3, c4, c5, f6, f7 = widths

    def norm() -> nn.Module:
        return ResponseNorm(5, alpha=5e-4, beta=0.75, k=2)  # torch takes the mean of 5 maps, the paper the sum

    return [
        *[Conv(bands, c1, 11, step=4), nn.ReLU(inplace=True), norm(), MaxPool(3, 2)],
        *[Conv(c1, c2, 5, groups=2), nn.ReLU(inplace=True), norm(), MaxPool(3, 2)],
        *[Conv(c2, c3, 3), nn.ReLU(inplace=True)],
        *[Conv(c3, c4, 3, groups=2), nn.ReLU(inplace=True)],
        *[Conv(c4, c5, 3, groups=2), nn.ReLU(inplace=True), MaxPool(3, 2)],
        *_fully_connected(c5, 6, (f6, f7)),
    ]


def _vgg16(bands: int, widths: Sequence[int]) -> list[nn.Module]:
    inside, layers = bands, []
    for level, width in enumerate(widths[:-2]):
        layers += [Conv(inside, width, 3), nn.ReLU(inplace=True)]
        layers += [MaxPool(2, 2)] if level in (1, 3, 6, 9, 12) else []
        inside = width
    return [*layers, *_fully_connected(inside, 7, widths[-2:])]


def _fully_connected(inside: int, size: int, widths: Sequence[int]) -> list[nn.Module]:
    """Two hidden layers with dropout, the first one as a kernel of the last map's size."""
    sizes = zip([inside, *widths], widths, (size, 1), strict=False)
    return [module for i, o, n in sizes for module in (Conv(i, o, n), nn.ReLU(inplace=True), nn.Dropout(0.5))]


#: Layers up to the last hidden one, and the paper's widths.
_ARCHITECTURES: dict[str, tuple[Callable[[int, Sequence[int]], list[nn.Module]], list[int]]] = {
    "ciresan": (_ciresan, [48, 48, 48, 48, 200]),
    "lenet5": (_lenet5, [6, 16, 120, 84]),
    "alexnet": (_alexnet, [96, 256, 384, 384, 256, 4096, 4096]),
    "vgg16": (_vgg16, [64, 64, 128, 128, *3 * [256], *6 * [512], 4096, 4096]),
}


class PatchClassifier(nn.Module):
    """Classifies the window around each pixel, for all pixels at once: what neighbouring windows share is computed once.

    Fully connected layers are kernels of the size of the map before them. Strides are left out, and all that is behind one is
    dilated by it: so each pixel gets to the last number what a sliding window of the same weights gives it, which is `patches`.

    Args:
        architecture: ciresan (window 95; network N4 of the winners of ISBI 2012), lenet5 (32), alexnet (355) or vgg16 (404).
        channels: Width of each layer, convolutions and then the hidden fully connected ones; None for the paper's.

    Shape:
        `[B, in_channels, H, W]` -> `[B, num_classes, H, W]`, any size: mirrored by half a window at the borders. The centre of a
        window of w pixels is its pixel w // 2, counted from 0: of 32 the right lower one of the four in the middle.

    Attributes:
        window: Edge of the window, in pixels.

    Raises:
        ValueError: An architecture that does not exist, volumes, or another number of widths.

    Reference:
        Cireşan et al., Deep Neural Networks Segment Neuronal Membranes in Electron Microscopy Images, NIPS 2012.
        LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 1998.
        Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012.
        Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015. https://arxiv.org/abs/1409.1556.
        The dense form: Giusti et al., Fast Image Scanning, ICIP 2013, https://arxiv.org/abs/1302.1700; as dilation: Li et al.,
        Highly Efficient Forward and Backward Propagation, 2014, https://arxiv.org/abs/1412.4526.

        Departures: weights start by LeCun's (tanh) or He's rule (ReLU). ciresan: one network, not the mean of four, and windows
        without foveation; its activation is the scaled tanh of ZNN's rebuild, https://github.com/seung-lab/znn-release. lenet5: a
        linear layer instead of distances to drawings of the characters; its table between S2 and C3 is for the paper's widths,
        others are fully connected. alexnet and vgg16: no padding, so that windows are larger by what is lost at the borders.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        architecture: str = "ciresan",
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if architecture not in _ARCHITECTURES:
            raise ValueError(f"architecture is {architecture!r}; expected one of {', '.join(_ARCHITECTURES)}")
        if spatial_dims != 2:
            raise ValueError("patch classifiers take images only; for volumes set model=unet")
        make, widths = _ARCHITECTURES[architecture]
        chosen = list(channels) if channels is not None else widths
        even = architecture == "alexnet"  # its maps are halved into two groups
        if len(chosen) != len(widths) or min(chosen) < 1 or (even and any(width % 2 for width in chosen)):
            raise ValueError(
                f"channels is {chosen}; expected {len(widths)}{' even' if even else ''} widths for {architecture}, "
                f"such as the paper's {widths}, which null stands for"
            )
        hidden = make(in_channels, chosen)
        self.layers = nn.ModuleList([*hidden, Scores(chosen[-1], num_classes, 1)])
        self.stride, self.window = 1, 1
        for layer in reversed(self.layers):
            if isinstance(layer, Conv | MaxPool):
                self.window = (self.window - 1) * layer.step + layer.extent
        self._initialize("relu" if any(isinstance(layer, nn.ReLU) for layer in hidden) else "linear")

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        before = self.window // 2
        return self._run(mirror(image, before, [self.window - 1 - before] * 2), dense=True)

    def patches(self, windows: Tensor) -> Tensor:
        """Logits of the centres of windows cut out by hand, `[N, in_channels, w, w]` -> `[N, num_classes]`.

        Real strides and poolings, one window at a time: what the papers did, and far more work for a whole image.

        Raises:
            ValueError: Windows of another size.
        """
        if windows.shape[2:] != (self.window, self.window):
            raise ValueError(
                f"windows are {' x '.join(map(str, windows.shape[2:]))}; expected {self.window} x {self.window}"
            )
        return self._run(windows, dense=False).flatten(1)

    def _run(self, features: Tensor, dense: bool) -> Tensor:
        dilation = 1
        for layer in self.layers:
            if isinstance(layer, Conv | MaxPool):
                features = layer(features, 1 if dense else layer.step, dilation)
                dilation *= layer.step if dense else 1
            else:
                features = layer(features)
        return features

    def _initialize(self, nonlinearity: str) -> None:
        """A spread that keeps that of the values."""
        for layer in self.layers:
            if isinstance(layer, Subsampling):
                nn.init.constant_(layer.weight, 1 / 4)
            elif isinstance(layer, Conv):
                nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)  # type: ignore[arg-type]
            if isinstance(layer, Conv) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
