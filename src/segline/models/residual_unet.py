"""U-Net with a residual encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from segline.models.blocks import (
    AVG_POOL,
    CONV,
    CONV_TRANSPOSE,
    activation_layer,
    along_axes,
    check_channels,
    check_spatial_dims,
    conv_norm,
    crop,
    initialize,
    pad_to_multiple,
)


class ResidualBlock(nn.Module):
    """Two convolutions with norm, the first one with stride and activation, and what went in added before the last activation.

        act(norm(conv(act(norm(conv(x))))) + skip(x))

    `skip` averages over the stride and, where the width changes, goes on with a 1 x 1 convolution and norm (ResNet-D).

    Reference:
        He et al., Bag of Tricks for Image Classification, CVPR 2019. https://arxiv.org/abs/1812.01187
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        size: Sequence[int],
        stride: Sequence[int],
        norm: str,
        activation: str,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(spatial_dims, in_channels, out_channels, size, norm, stride, bias=True),
            activation_layer(activation),
            *conv_norm(spatial_dims, out_channels, out_channels, size, norm, bias=True),
        )
        self.skip = nn.Sequential()
        if max(stride) > 1:
            self.skip.append(AVG_POOL[spatial_dims](stride))
        if in_channels != out_channels:
            self.skip.extend(conv_norm(spatial_dims, in_channels, out_channels, 1, norm))
        self.activation = activation_layer(activation)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, in, *S]` -> `[B, out, *S / stride]`."""
        return self.activation(self.body(features) + self.skip(features))

    def start_as_skip(self) -> None:
        """Let the last layer before the sum begin with zeros, so that a deep encoder starts as a shallow one."""
        *_, last = (layer for layer in self.body if hasattr(layer, "weight"))
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]


class ResidualUNet(nn.Module):
    """nnU-Net's ResEnc: a U-Net with an encoder of residual blocks and a light decoder, whose coarser stages are trained, too.

    nnU-Net fits the number of stages, kernels and strides to the data, and has `channels=[32, 64, 128, 256, 320, 320]` for most volumes;
    for images widths grow up to 512.

    Args:
        channels: Width of each stage, from the image's resolution down.
        num_blocks: Residual blocks of each stage of the encoder; None: 1, 3, 4, 6, 6, ... as in the paper. The decoder has one
            convolution a stage.
        kernel_sizes: Of each stage: one odd number or one for each axis, such as [1, 3, 3] for thick slices; None: 3.
        strides: Of each stage, by the one before it: one number or one for each axis; the first is 1. None: 1, then 2.
        norm: batch, instance or none.
        activation: relu or leaky_relu.
        heads: Whether the stages of the decoder have heads (deep supervision), all but the coarsest; else the finest alone. In
            training the logits of all are returned in their own resolutions, finest first, of which each next one counts half.

    Shape:
        `[B, in_channels, *S]` -> `[B, num_classes, *S]`, any size: padded to multiples of each axis' total stride and cropped inside.
        Coarser logits are of the size of the image divided by their stride, rounded up.

    Raises:
        ValueError: An option that does not exist, no stage, or lists that do not fit the stages.

    Reference:
        Isensee et al., nnU-Net Revisited, MICCAI 2024. https://arxiv.org/abs/2404.09556. Departure: the decoder's coarsest head,
        which nnU-Net has and weighs by 0, is left out.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256),
        num_blocks: Sequence[int] | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        strides: Sequence[int | Sequence[int]] | None = None,
        norm: str = "instance",
        activation: str = "leaky_relu",
        heads: bool = True,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels(channels)
        blocks, sizes, steps = _stages(spatial_dims, len(channels), num_blocks, kernel_sizes, strides)
        #: Pixels of the image along each axis for one of each stage.
        self.strides = list(accumulate(steps, lambda total, step: [t * s for t, s in zip(total, step, strict=True)]))
        self.stride = math.lcm(*self.strides[-1])
        block = partial(ResidualBlock, spatial_dims, norm=norm, activation=activation)

        def stage(inside: int, level: int) -> nn.Sequential:
            width, size = channels[level], sizes[level]
            rest = (block(width, width, size, steps[0]) for _ in range(blocks[level] - 1))
            return nn.Sequential(block(inside, width, size, steps[level]), *rest)

        def conv(inside: int, level: int) -> nn.Sequential:
            layers = conv_norm(spatial_dims, inside, channels[level], sizes[level], norm, bias=True)
            return nn.Sequential(*layers, activation_layer(activation))

        pairs, up = list(pairwise(channels)), CONV_TRANSPOSE[spatial_dims]
        self.stem = conv(in_channels, 0)
        self.down = nn.ModuleList(stage(channels[max(level - 1, 0)], level) for level in range(len(channels)))
        self.up = nn.ModuleList(
            up(coarse, fine, step, step) for (fine, coarse), step in zip(pairs, steps[1:], strict=True)
        )
        self.merge = nn.ModuleList(conv(2 * fine, level) for level, (fine, _) in enumerate(pairs))
        headed = channels[: max(1, len(channels) - 2)] if heads else channels[:1]
        self.heads = nn.ModuleList(CONV[spatial_dims](width, num_classes, 1) for width in headed)
        initialize(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.start_as_skip()

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image; in training those of all heads, if there are several."""
        features = self.stem(pad_to_multiple(image, self.strides[-1]))
        skips = []
        for stage in self.down:
            features = stage(features)
            skips.append(features)
        decoded = [skips.pop()]
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(skips), strict=True):
            decoded.insert(0, merge(torch.cat([up(decoded[0]), skip], dim=1)))
        asked = range(len(self.heads) if self.training else 1)
        outputs = [self._score(decoded[level], level, image.shape[2:]) for level in asked]
        return outputs if len(outputs) > 1 else outputs[0]

    def _score(self, features: Tensor, level: int, size: Sequence[int]) -> Tensor:
        """Logits of a stage, of the pixels that an image of this size reaches."""
        reached = [(s + step - 1) // step for s, step in zip(size, self.strides[level], strict=True)]
        return crop(self.heads[level](features), reached)


def _stages(
    spatial_dims: int,
    number: int,
    num_blocks: Sequence[int] | None,
    kernel_sizes: Sequence[int | Sequence[int]] | None,
    strides: Sequence[int | Sequence[int]] | None,
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Blocks, sizes of kernels and strides of each stage.

    Raises:
        ValueError: They are of another number of stages, or not what can stand there.
    """
    usual = {
        "num_blocks": [(1, 3, 4, 6)[min(stage, 3)] for stage in range(number)],
        "kernel_sizes": [3] * number,
        "strides": [1, *[2] * (number - 1)],
    }
    given = {"num_blocks": num_blocks, "kernel_sizes": kernel_sizes, "strides": strides}
    values = {}
    for name, value in given.items():
        dims = 1 if name == "num_blocks" else spatial_dims
        values[name] = [along_axes(v, dims) for v in (usual[name] if value is None else value)]
        if len(values[name]) != number or any(len(v) != dims or min(v) < 1 for v in values[name]):
            each = "" if dims == 1 else f" or {dims}, one for each axis"
            raise ValueError(
                f"{name} is {value}; expected a number{each}, for each of the {number} stages, such as {usual[name]}"
            )
    if any(size % 2 == 0 for sizes in values["kernel_sizes"] for size in sizes):
        raise ValueError(f"kernel_sizes is {kernel_sizes}; expected odd numbers, so that a kernel has a middle")
    if max(values["strides"][0]) > 1:
        raise ValueError(f"strides is {strides}; expected 1 first, as the first stage has the image's resolution")
    return [count for (count,) in values["num_blocks"]], values["kernel_sizes"], values["strides"]
