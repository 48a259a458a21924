"""U-Net++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segline.models.blocks import (
    CONV,
    MAX_POOL,
    Up,
    check_channels,
    check_spatial_dims,
    crop,
    initialize,
    level_block,
    pad_to_multiple,
)


class UNetPlusPlus(nn.Module):
    """Nested U-Nets of every depth that share an encoder, each with a head of the image's resolution.

        x[i, 0] = block(pool(x[i - 1, 0]));  x[i, j] = block(cat(x[i, 0], ..., x[i, j - 1], up(x[i + 1, j - 1])))

    Head j looks at x[0, j]. In training all are returned, the deepest first, for a loss on each with equal weights; in evaluation
    their mean, or one of them, for which the deeper levels are not computed (the paper's pruning). The authors' network is
    `channels=[32, 64, 128, 256, 512] norm=none`.

    Args:
        channels: Width of each level, from the image's resolution down.
        norm: batch, instance or none.
        activation: relu or leaky_relu.
        dropout: Share of channels dropped after each block of the two coarsest levels.
        upsampling: transposed, nearest or linear.
        heads: Whether each depth has a head (the authors' deep supervision); else the deepest alone.
        depth: Whose head answers in evaluation, from 1 up to the number of levels below the finest; None: the mean of all.

    Shape:
        `[B, in_channels, *S]` -> `[B, num_classes, *S]`, any size: padded to a multiple of `stride` and cropped inside.

    Raises:
        ValueError: An option that does not exist, or no level.

    Reference:
        Zhou et al., UNet++, DLMIA 2018. https://arxiv.org/abs/1807.10165. Departures: normalisation and widths by choice; logits are
        averaged, not probabilities.
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
        heads: bool = True,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels(channels)
        deepest = len(channels) - 1
        if depth is not None and not (heads and 1 <= depth <= deepest):
            there = f"1 to {deepest}" if heads and deepest else "null, as there are no heads to choose from"
            raise ValueError(f"depth is {depth}; expected {there}")
        self.stride, self.depth, self.deepest = 2**deepest, depth, deepest
        self.pool = MAX_POOL[spatial_dims](2)
        block = level_block(spatial_dims, channels, norm, activation, dropout)
        self.up, self.nodes = nn.ModuleDict(), nn.ModuleDict()
        for level, width in enumerate(channels):
            self.nodes[f"{level}_0"] = block(channels[level - 1] if level else in_channels, level)
            for j in range(1, len(channels) - level):
                up = self.up[f"{level}_{j}"] = Up(spatial_dims, channels[level + 1], width, upsampling)
                self.nodes[f"{level}_{j}"] = block(j * width + up.out_channels, level)
        headed = range(min(1, deepest), deepest + 1) if heads else [deepest]
        self.heads = nn.ModuleDict({str(j): CONV[spatial_dims](channels[0], num_classes, 1) for j in headed})
        #: Of the outputs in training.
        self.output_weights = [1 / len(self.heads)] * len(self.heads)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image; in training those of all heads, if there are several."""
        depth = self.deepest if self.training or self.depth is None else self.depth
        finest = self._finest(pad_to_multiple(image, self.stride), depth)
        asked = self.heads if self.training or self.depth is None else [str(self.depth)]
        outputs = [crop(self.heads[j](finest[int(j)]), image.shape[2:]) for j in asked]
        outputs.reverse()
        if len(outputs) == 1:
            return outputs[0]
        return outputs if self.training else torch.stack(outputs).mean(0)

    def _finest(self, image: Tensor, depth: int) -> list[Tensor]:
        """Features of the image's resolution, of the nested U-Nets from no depth up to this one."""
        columns: list[list[Tensor]] = []  # x[i, j] for each j, finest first
        for j in range(depth + 1):
            column: list[Tensor] = []
            for level in range(depth + 1 - j):
                if j == 0:
                    inside = self.pool(column[-1]) if level else image
                else:
                    before = [columns[k][level] for k in range(j)]
                    inside = torch.cat([*before, self.up[f"{level}_{j}"](columns[j - 1][level + 1])], dim=1)
                column.append(self.nodes[f"{level}_{j}"](inside))
            columns.append(column)
        return [column[0] for column in columns]
