"""Losses on logits, for exclusive and overlapping labels, 2D and 3D.

All of them: `forward(logits [B, K, *S], mask, weight=None [B, *S]) -> scalar`, computed in float32. Ignored pixels (255) count in
neither value nor gradient; where all are ignored the loss is 0, and so is its gradient. `class_weights` weigh a class's share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.labels import IGNORE_INDEX

_EXCLUSIVE, _OVERLAPPING = frozenset({"exclusive"}), frozenset({"overlapping"})


class Loss(nn.Module):
    """What all losses share: which label schemes they take, and weights of classes."""

    schemes: frozenset[str] = _EXCLUSIVE | _OVERLAPPING
    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.register_buffer(
            "class_weights",
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32),
            persistent=False,
        )

    def forward(self, logits: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        scheme = "exclusive" if mask.ndim == logits.ndim - 1 else "overlapping"
        if scheme not in self.schemes:
            raise ValueError(f"{type(self).__name__} does not take {scheme} labels; set loss=dice_ce, which takes both")
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} values, but there are {logits.shape[1]} classes; give one for each"
            )
        with torch.autocast(logits.device.type, enabled=False):
            return self.compute(logits.float(), mask, weight)

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits and a mask of a scheme that is taken."""
        raise TypeError(f"{type(self).__name__} lacks compute()")

    def per_class(self, logits: Tensor) -> Tensor:
        """Weight of each class, shaped for `[B, K, *S]`."""
        weights = logits.new_ones(logits.shape[1]) if self.class_weights is None else self.class_weights
        return weights.view(1, -1, *[1] * (logits.ndim - 2))

    def per_pixel(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """Weight of each pixel by its class `[B, *S]` or, of overlapping labels, of each pixel and class `[B, K, *S]`."""
        valid = mask != IGNORE_INDEX
        if mask.ndim == logits.ndim:
            weights = valid * self.per_class(logits)
            return weights if weight is None else weights * weight[:, None]
        weights = valid.float() if self.class_weights is None else self.class_weights[mask.where(valid, 0)] * valid
        return weights if weight is None else weights * weight


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy, averaged over the pixels that count, each weighed by its class and its own weight.

        sum_i w_i (-log softmax(logits)_i[mask_i]) / sum_i w_i

    >>> round(CrossEntropyLoss()(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[1]])).item(), 4)
    0.6931
    """

    schemes = _EXCLUSIVE

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        pixels = F.cross_entropy(logits, mask, ignore_index=IGNORE_INDEX, reduction="none")
        return _mean(pixels, self.per_pixel(logits, mask, weight))


class BCELoss(Loss):
    """Sigmoid cross-entropy of each class, averaged over pixels and classes that count.

    >>> round(BCELoss()(torch.tensor([[[0.0]]]), torch.tensor([[[1]]], dtype=torch.uint8)).item(), 4)
    0.6931
    """

    schemes = _OVERLAPPING

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        pixels = F.binary_cross_entropy_with_logits(logits, (mask == 1).float(), reduction="none")
        return _mean(pixels, self.per_pixel(logits, mask, weight))


class DiceLoss(Loss):
    """One minus the soft Dice coefficient over the batch, averaged over the classes that occur in it.

        1 - (2 sum p t + smooth) / (sum p + sum t + smooth)

    Args:
        class_weights: Weight of each class's Dice in the mean.
        smooth: In pixels (voxels); keeps tiny objects from steering the batch.

    Reference:
        Milletari et al., V-Net, 3DV 2016 (there with squares in the denominator). https://arxiv.org/abs/1606.04797

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    >>> round(DiceLoss(smooth=0.0)(logits, torch.tensor([[0, 1]])).item(), 4)  # 2 * 0.5 / (1 + 1) for both classes
    0.5
    """

    def __init__(self, class_weights: Sequence[float] | None = None, smooth: float = 1.0) -> None:
        super().__init__(class_weights)
        self.smooth = smooth

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        probs, target, valid = _one_hot(logits, mask)
        valid = valid if weight is None else valid * weight[:, None]
        axes = [0, *range(2, logits.ndim)]
        both, predicted, true = ((v * valid).sum(axes) for v in (probs * target, probs, target))
        dice = (2 * both + self.smooth) / (predicted + true + self.smooth).clamp_min(1e-8)
        weights = (true > 0).float() * self.per_class(logits).flatten()
        return ((1 - dice) * weights).sum() / weights.sum().clamp_min(1e-8)


class DiceCELoss(Loss):
    """Dice plus cross-entropy: of softmax for exclusive labels, of sigmoids for overlapping ones.

    Args:
        class_weights: Weight of each class in both parts.
        smooth: As in `DiceLoss`.
        dice_weight: Weight of the Dice part; that of the cross-entropy is 1.

    Reference:
        Isensee et al., nnU-Net, Nature Methods 2021. https://doi.org/10.1038/s41592-020-01008-z
    """

    def __init__(
        self, class_weights: Sequence[float] | None = None, smooth: float = 1.0, dice_weight: float = 1.0
    ) -> None:
        super().__init__(class_weights)
        self.dice, self.dice_weight = DiceLoss(class_weights, smooth), dice_weight
        self.exclusive, self.overlapping = CrossEntropyLoss(class_weights), BCELoss(class_weights)

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        entropy = self.exclusive if mask.ndim == logits.ndim - 1 else self.overlapping
        return entropy.compute(logits, mask, weight) + self.dice_weight * self.dice.compute(logits, mask, weight)


class FocalLoss(Loss):
    """Cross-entropy that looks away from pixels that are right already: softmax for exclusive labels, sigmoids for overlapping ones.

        mean of (1 - p)^gamma (-log p), p the probability of the truth

    Args:
        class_weights: The paper's alpha, for each class.
        gamma: How fast right pixels fade; 0 is cross-entropy.

    Reference:
        Lin et al., Focal Loss, ICCV 2017. https://arxiv.org/abs/1708.02002

    >>> round(FocalLoss(gamma=2.0)(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[1]])).item(), 4)  # 0.25 * 0.6931
    0.1733
    """

    def __init__(self, class_weights: Sequence[float] | None = None, gamma: float = 2.0) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        if mask.ndim == logits.ndim - 1:
            entropy = F.cross_entropy(logits, mask, ignore_index=IGNORE_INDEX, reduction="none")
        else:
            entropy = F.binary_cross_entropy_with_logits(logits, (mask == 1).float(), reduction="none")
        # -expm1(-e) is 1 - p without the cancellation where p is nearly 1.
        return _mean(
            (-torch.expm1(-entropy)).clamp_min(1e-12) ** self.gamma * entropy, self.per_pixel(logits, mask, weight)
        )


class MSELoss(Loss):
    """Mean squared difference between probabilities and 0/1 truth, over pixels and classes that count (the Brier score over K).

    >>> MSELoss()(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[1]])).item()
    0.25
    """

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        probs, target, valid = _one_hot(logits, mask)
        valid = valid if weight is None else valid * weight[:, None]
        return _mean((probs - target) ** 2, valid * self.per_class(logits))


class DeepSupervision(nn.Module):
    """A loss on each of a network's outputs, weighed and added; of a single output the loss itself.

        sum_k w_k loss(outputs_k, mask at the size of outputs_k)

    Masks of coarser outputs are those of the pixels nearest to their centres.

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


def _one_hot(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, 0/1 truth and 0/1 validity, each broadcastable to `[B, K, *S]`."""
    valid = mask != IGNORE_INDEX
    if mask.ndim == logits.ndim - 1:
        target = torch.zeros_like(logits).scatter_(1, mask.where(valid, 0)[:, None], 1.0)
        return logits.softmax(1), target, valid[:, None].float()
    return logits.sigmoid(), (mask == 1).float(), valid.float()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean, 0 where nothing counts."""
    weights = weights.expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(1e-8)
