"""What all losses share: label schemes, weights of classes and pixels, and sums over all processes.

All of them: `forward(logits [B, K, *S], mask, weight=None [B, *S]) -> scalar`, computed in float32, for exclusive and overlapping labels,
2D and 3D. Ignored pixels (255) and those of weight 0 count in neither value nor gradient; where nothing counts the loss is 0, and so is
its gradient. `class_weights` weigh a class's share.

In training, several processes give the loss of their joint batch, each the same: what a loss divides by is summed over all of them.
Gradients that are then averaged, as data-parallel training does, are those of one process with all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segline.labels import IGNORE_INDEX

EXCLUSIVE, OVERLAPPING = frozenset({"exclusive"}), frozenset({"overlapping"})
#: Divisors that are smaller belong to something that nothing counts in.
_LEAST = 1e-8


class Loss(nn.Module):
    """A loss with the label schemes that it takes, whether it takes weights of pixels, and weights of classes."""

    schemes: frozenset[str] = EXCLUSIVE | OVERLAPPING
    weighs_pixels = True
    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", None, persistent=False)
        if class_weights is not None:
            self.weigh(class_weights)

    def weigh(self, class_weights: Sequence[float]) -> None:
        """Set the weight of each class where none is set, here and in the losses inside."""
        if self.class_weights is None:
            self.class_weights = torch.tensor(class_weights, dtype=torch.float32)
        for inner in self.children():
            if isinstance(inner, Loss):
                inner.weigh(class_weights)

    def forward(self, logits: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of a batch; in training, of the batches of all processes, which all have to call it."""
        scheme = "exclusive" if mask.ndim == logits.ndim - 1 else "overlapping"
        if scheme not in self.schemes:
            raise ValueError(f"{type(self).__name__} does not take {scheme} labels; set loss=dice_ce, which takes both")
        with torch.autocast(logits.device.type, enabled=False):
            return self.compute(logits.float(), mask, weight)

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits and a mask of a scheme that is taken."""
        raise TypeError(f"{type(self).__name__} lacks compute()")

    def of_classes(self, logits: Tensor) -> Tensor:
        """Weight of each class `[K]`, of anything `[N, K, ...]`."""
        if self.class_weights is None:
            return logits.new_ones(logits.shape[1])
        if len(self.class_weights) != logits.shape[1]:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} values, but there are {logits.shape[1]} classes; give one for each"
            )
        return self.class_weights.to(logits)

    def of_pixels(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """Weight of each pixel by its class `[B, *S]` or, of overlapping labels, of each pixel and class `[B, K, *S]`."""
        valid, classes = mask != IGNORE_INDEX, self.of_classes(logits)
        if mask.ndim == logits.ndim:
            weights = valid * along_classes(classes, logits)
            return weights if weight is None else weights * weight[:, None]
        weights = classes[mask.where(valid, 0)] * valid
        return weights if weight is None else weights * weight

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean over all processes, 0 where nothing counts; weights are as many as values, or broadcast to them."""
        weights = weights.expand_as(values)
        total, count = self.total(torch.stack([(values * weights).sum(), weights.sum()]))
        return ratio(total, count)

    def total(self, sums: Tensor) -> Tensor:
        """Sums of all processes in training. In evaluation the own ones: there, processes take different numbers of steps."""
        return _Total.apply(sums) if self.training and processes() > 1 else sums


class _Total(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient)


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def along_classes(weights: Tensor, logits: Tensor) -> Tensor:
    """Weights `[K]`, shaped for `[B, K, *S]`."""
    return weights.view(1, -1, *[1] * (logits.ndim - 2))


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, 0 where `whole` is 0: nothing counts there."""
    return part / whole.clamp_min(_LEAST) * (whole > 0)


def observe(logits: Tensor, mask: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and 0/1 truth `[B, K, *S]`, and how much each pixel counts `[B, 1 or K, *S]`; truth is 0 where it counts nothing."""
    valid = mask != IGNORE_INDEX
    if mask.ndim == logits.ndim - 1:
        mask, valid = mask.where(valid, 0)[:, None], valid[:, None]
        probs, truth = logits.softmax(1), torch.zeros_like(logits).scatter_(1, mask, valid.to(logits))
    else:
        probs, truth = logits.sigmoid(), (mask == 1).to(logits)
    counts = valid.to(logits) if weight is None else valid * weight[:, None]
    return probs, truth * (counts > 0), counts
