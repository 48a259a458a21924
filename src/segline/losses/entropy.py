"""Losses that are means over pixels: cross-entropies, focal loss, hardest pixels only, squared differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segline.labels import IGNORE_INDEX
from segline.losses.loss import EXCLUSIVE, OVERLAPPING, Loss, along_classes, observe, ratio


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy, averaged over the pixels that count, each weighed by its class and its own weight.

        sum_i w_i (-log softmax(logits)_i[mask_i]) / sum_i w_i

    Args:
        class_weights: Weight of a pixel of each class.
        label_smoothing: Share of the truth that is spread evenly over all classes. With class weights, the spread part of each class
            has that class's weight, and the divisor stays the sum of w_i, as in `torch.nn.CrossEntropyLoss`.

    Reference:
        Szegedy et al., Rethinking the Inception Architecture, CVPR 2016 (label smoothing). https://arxiv.org/abs/1512.00567

    >>> round(CrossEntropyLoss()(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[1]])).item(), 4)
    0.6931
    >>> logits = torch.tensor([[[2.0], [0.0]]])  # -log p is 0.1269 and 2.1269
    >>> round(CrossEntropyLoss(label_smoothing=0.2)(logits, torch.tensor([[0]])).item(), 4)  # 0.9 * 0.1269 + 0.1 * 2.1269
    0.3269
    """

    schemes = EXCLUSIVE

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"loss.label_smoothing is {label_smoothing}; expected a share from 0 to 1")
        self.label_smoothing = label_smoothing

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        entropy = F.cross_entropy(
            logits,
            mask,
            self.of_classes(logits),
            ignore_index=IGNORE_INDEX,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        entropy = entropy if weight is None else entropy * weight
        total, count = self.total(torch.stack([entropy.sum(), self.of_pixels(logits, mask, weight).sum()]))
        return ratio(total, count)


class BCELoss(Loss):
    """Sigmoid cross-entropy of each class, averaged over pixels and classes that count.

        sum_ik w_ik (-t_ik log p_ik - (1 - t_ik) log(1 - p_ik)) / sum_ik w_ik,   p = sigmoid(logits)

    Reference:
        Cox, The Regression Analysis of Binary Sequences, Journal of the Royal Statistical Society B 20, 1958.
        https://doi.org/10.1111/j.2517-6161.1958.tb00292.x

    >>> round(BCELoss()(torch.tensor([[[0.0]]]), torch.tensor([[[1]]], dtype=torch.uint8)).item(), 4)
    0.6931
    """

    schemes = OVERLAPPING

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        return self.mean(_entropy(logits, mask), self.of_pixels(logits, mask, weight))


class FocalLoss(Loss):
    """Cross-entropy that looks away from pixels that are right already: softmax for exclusive labels, sigmoids for overlapping ones.

        mean of a (1 - p)^gamma (-log p), p the probability of the truth, a its balance: 1, or alpha and 1 - alpha

    Args:
        class_weights: Of each class; only their ratios count, as the mean is a weighted one. For exclusive labels they are the paper's
            alpha but for a factor.
        gamma: How fast right pixels fade, 0 or more; 0 is cross-entropy.
        alpha: Overlapping labels only: where a class is, the loss is multiplied by it, elsewhere by 1 - alpha (the paper: 0.25); the
            mean is not divided by that. None multiplies by nothing.

    Raises:
        ValueError: A negative gamma, by which right pixels would count most, no share as alpha, or one for exclusive labels.

    Reference:
        Lin et al., Focal Loss, ICCV 2017. https://arxiv.org/abs/1708.02002. Departure: a mean over all pixels, where the paper divides
        by the number of objects.

    >>> round(FocalLoss(gamma=2.0)(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[1]])).item(), 4)  # 0.25 * 0.6931
    0.1733
    >>> round(FocalLoss(alpha=0.25)(torch.tensor([[[0.0]]]), torch.tensor([[[1]]], dtype=torch.uint8)).item(), 4)  # a quarter of it
    0.0433
    """

    def __init__(
        self, class_weights: Sequence[float] | None = None, gamma: float = 2.0, alpha: float | None = None
    ) -> None:
        super().__init__(class_weights)
        if gamma < 0:
            raise ValueError(f"loss.gamma is {gamma}; expected 0 (cross-entropy) or more, such as 2")
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"loss.alpha is {alpha}; expected a share from 0 to 1, such as 0.25, or null")
        self.gamma, self.alpha = gamma, alpha

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        entropy = _entropy(logits, mask)
        # -expm1(-e) is 1 - p without the cancellation where p is nearly 1.
        wrong = (-torch.expm1(-entropy)).clamp_min(1e-12)
        if self.alpha is not None:
            if mask.ndim < logits.ndim:
                raise ValueError(
                    f"loss.alpha is {self.alpha}, but labels are exclusive; set loss.alpha=null and balance them by class_weights"
                )
            entropy = entropy * torch.where(mask == 1, self.alpha, 1 - self.alpha)
        return self.mean(wrong**self.gamma * entropy, self.of_pixels(logits, mask, weight))


class TopKLoss(Loss):
    """Cross-entropy of each sample's hardest pixels only: top-k, and online hard example mining (OHEM).

        mean over samples of (sum_i w_i (-log p_i) / sum_i w_i), i the pixels of the sample that are kept

    The hardest `fraction` of a sample's pixels is kept, and every pixel whose truth is less probable than `threshold`. Of overlapping
    labels each class of a pixel counts by itself.

    Departures: ranks are within a sample, not within a batch, so that the loss is a mean over samples (of those that count), whoever
    shares their batch. Pixels as hard as the last that is kept are kept, too.

    Args:
        class_weights: Weight of a pixel of each class, among those that are kept.
        fraction: Share of the pixels that count which is always kept, above 0.
        threshold: Probability of the truth below which a pixel is kept in any case; 0 leaves top-k, 1 is plain cross-entropy.

    Reference:
        Wu et al., Bridging Category-level and Instance-level Semantic Image Segmentation, 2016. https://arxiv.org/abs/1605.06885
        Shrivastava et al., Training Region-based Object Detectors with OHEM, CVPR 2016. https://arxiv.org/abs/1604.03540

    >>> logits = torch.tensor([[[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]]])  # -log p is 0.6931, 0.3133, 0.1269, 0.0486
    >>> mask = torch.zeros(1, 4, dtype=torch.long)
    >>> round(TopKLoss(fraction=0.5)(logits, mask).item(), 4)  # (0.6931 + 0.3133) / 2
    0.5032
    >>> round(TopKLoss(fraction=0.25, threshold=0.9)(logits, mask).item(), 4)  # p is 0.5, 0.7311, 0.8808, 0.9526
    0.3778
    """

    def __init__(
        self, class_weights: Sequence[float] | None = None, fraction: float = 0.1, threshold: float = 0.0
    ) -> None:
        super().__init__(class_weights)
        if not 0 < fraction <= 1 or not 0 <= threshold <= 1:
            raise ValueError(
                f"loss.fraction is {fraction} and loss.threshold {threshold}; expected a share above 0 and up to 1, and a probability"
            )
        self.fraction = fraction
        self.bar = -math.log(threshold) if threshold else math.inf

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        entropy = _entropy(logits, mask).flatten(1)
        weights = self.of_pixels(logits, mask, weight).flatten(1)
        weights = weights * self._hard(entropy.detach().where(weights > 0, -1.0))
        counts = weights.sum(1)
        return self.mean(ratio((entropy * weights).sum(1), counts), (counts > 0).to(logits))

    def _hard(self, entropy: Tensor) -> Tensor:
        """Which pixels `[B, N]` are kept by their entropy, -1 where one doesn't count."""
        most = math.ceil(self.fraction * entropy.shape[1])
        kept = (self.fraction * (entropy >= 0).sum(1, keepdim=True)).ceil().long().clamp(1, most)
        last = entropy.topk(most, 1).values.gather(1, kept - 1)
        return entropy >= last.clamp_max(self.bar)


class MSELoss(Loss):
    """Mean squared difference between probabilities and 0/1 truth, over pixels and classes that count (the Brier score over K).

        sum_ik w_ik (p_ik - t_ik)^2 / sum_ik w_ik

    Reference:
        Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review 78, 1950.
        https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2

    >>> MSELoss()(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[1]])).item()
    0.25
    """

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        probs, truth, counts = observe(logits, mask, weight)
        return self.mean((probs - truth) ** 2, counts * along_classes(self.of_classes(logits), logits))


def _entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """-log of the truth's probability: of each pixel `[B, *S]` or, of overlapping labels, of each class, too, `[B, K, *S]`."""
    if mask.ndim == logits.ndim - 1:
        return F.cross_entropy(logits, mask, ignore_index=IGNORE_INDEX, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, (mask == 1).to(logits), reduction="none")
