"""Losses made of losses: weighted sums, and deep supervision around any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.losses.entropy import BCELoss, CrossEntropyLoss
from segline.losses.loss import Loss
from segline.losses.overlap import DiceLoss


class WeightedSum(Loss):
    """Any losses, weighed and added. It takes the label schemes that all of them take.

        sum_n weights_n losses_n

    Args:
        class_weights: Of those losses that have none of their own.
        losses: By a name each.
        weights: By the same names.

    Raises:
        ValueError: Names that differ, or losses without a scheme in common.

    >>> mask = torch.zeros(1, 1, dtype=torch.long)  # cross-entropy is 0.6931, Dice loss 1 - 2 * 0.5 / 1.5
    >>> both = WeightedSum(losses={"ce": CrossEntropyLoss(), "dice": DiceLoss(smooth=0.0)}, weights={"ce": 1.0, "dice": 0.5})
    >>> round(both(torch.zeros(1, 2, 1), mask).item(), 4)
    0.8598
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        *,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        if not losses or set(losses) != set(weights):
            raise ValueError(
                f"loss.weights names {sorted(weights)}, but loss.losses {sorted(losses)}; name at least one, and give each its weight"
            )
        self.losses = cast(Mapping[str, Loss], nn.ModuleDict(losses))
        self.weights = weights
        self.schemes = frozenset.intersection(*(loss.schemes for loss in losses.values()))
        if not self.schemes:
            takes = "; ".join(f"{name}: {', '.join(loss.schemes)}" for name, loss in losses.items())
            raise ValueError(
                f"loss.losses take no label scheme in common ({takes}); set loss=dice_ce, which takes both"
            )
        if class_weights is not None:
            self.weigh(class_weights)

    def weigh(self, class_weights: Sequence[float]) -> None:
        """Set the weight of each class in the losses that have none."""
        for loss in self.losses.values():
            loss.weigh(class_weights)

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        return torch.stack(
            [self.weights[name] * loss.compute(logits, mask, weight) for name, loss in self.losses.items()]
        ).sum()


class DiceCELoss(Loss):
    """Dice plus cross-entropy: of softmax for exclusive labels, of sigmoids for overlapping ones.

        cross-entropy + dice_weight (1 - mean over classes of the soft Dice coefficient)

    Args:
        class_weights: Weight of each class in both parts.
        smooth: As in `DiceLoss`.
        dice_weight: Weight of the Dice part; that of the cross-entropy is 1.

    Reference:
        Isensee et al., nnU-Net, Nature Methods 2021. https://doi.org/10.1038/s41592-020-01008-z
        Departures, as of all `OverlapLoss`: the background counts, too, smooth is a pixel, and classes that do not occur are left out.

    >>> loss = DiceCELoss(smooth=0.0)(torch.zeros(1, 2, 1), torch.zeros(1, 1, dtype=torch.long))
    >>> round(loss.item(), 4)  # 0.6931 + 1 - 2 * 0.5 / 1.5
    1.0265
    """

    def __init__(
        self, class_weights: Sequence[float] | None = None, smooth: float = 1.0, dice_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.dice, self.dice_weight = DiceLoss(None, smooth), dice_weight
        self.exclusive, self.overlapping = CrossEntropyLoss(), BCELoss()
        if class_weights is not None:
            self.weigh(class_weights)

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        entropy = self.exclusive if mask.ndim == logits.ndim - 1 else self.overlapping
        return entropy.compute(logits, mask, weight) + self.dice_weight * self.dice.compute(logits, mask, weight)


class DeepSupervision(nn.Module):
    """A loss on each of a network's outputs, weighed and added; of a single output the loss itself.

        sum_k w_k loss(outputs_k, mask at the size of outputs_k)

    Masks of coarser outputs are those of the pixels nearest to their centres, if their sizes divide the image's; else a mask is
    stretched by less than one pixel of the output, which is more than the image then. Losses that measure distances (boundary, Hausdorff,
    clDice) do so in pixels of each output.

    Args:
        loss: On one output.
        weights: Of each output, finest first; None: each next one half of the one before, 1 together (nnU-Net's).

    Reference:
        Lee et al., Deeply-Supervised Nets, AISTATS 2015. https://arxiv.org/abs/1409.5185

    >>> even, right = torch.zeros(1, 2, 4, 4), torch.tensor([9.0, -9.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    >>> mask = torch.zeros(1, 4, 4, dtype=torch.long)
    >>> round(DeepSupervision(CrossEntropyLoss())([even, right], mask).item(), 4)  # 2/3 * 0.6931 + 1/3 * 0
    0.4621
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss, self.weights = loss, weights

    def forward(self, outputs: Tensor | Sequence[Tensor], mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of a batch; `outputs` are logits `[B, K, *S]`, or several of them, finest first."""
        if isinstance(outputs, Tensor):
            loss: Tensor = self.loss(outputs, mask, weight)
            return loss
        halves = [0.5**k for k in range(len(outputs))]
        weights = self.weights or [half / sum(halves) for half in halves]
        losses = []
        for share, logits in zip(weights, outputs, strict=True):
            truth, pixels = (None if v is None else _nearest(v, logits.shape[2:]) for v in (mask, weight))
            losses.append(share * self.loss(logits, truth, pixels))
        return torch.stack(losses).sum()


def _nearest(values: Tensor, size: Sequence[int]) -> Tensor:
    """`[B, *S]` or `[B, K, *S]` at another size, of the nearest pixels."""
    if values.shape[-len(size) :] == torch.Size(size):
        return values
    planes = values.flatten(0, -len(size) - 1)[:, None].float()  # of ids, which float32 holds
    near = F.interpolate(planes, size=tuple(size), mode="nearest-exact")
    return near.to(values.dtype).view(*values.shape[: -len(size)], *size)
