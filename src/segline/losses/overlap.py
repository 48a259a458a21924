"""Losses by how far prediction and truth overlap: Dice, generalised Dice, Jaccard, Tversky, focal Tversky, Lovász.

Written with sums over pixels of p t (both), p (predicted) and t (true), each pixel weighed. A class counts where it occurs in the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segline.losses.loss import Loss, observe, ratio


class OverlapLoss(Loss):
    """What these losses share: sums of each class over the batch or over each case, and the mean over the classes that occur.

    So a batch without a class (with `per_case`, a sample) says nothing of it, and what is invented there costs nothing: of overlapping
    labels that are rare, add a loss of pixels, as `loss=dice_ce` does.

    Departures from most of the papers: classes that do not occur are left out; sums are over the batch unless `per_case`; the
    background of exclusive labels counts as any class, unless class_weights say otherwise; p and t are not squared, unless
    `DiceLoss` is told to.

    Args:
        class_weights: Weight of each class in the mean.
        smooth: Added to numerator and denominator, in pixels (voxels); keeps tiny objects from steering the batch.
        per_case: Each sample is a case of its own, and the mean is over the classes of all cases; else the batch is seen as one image.
    """

    def __init__(
        self, class_weights: Sequence[float] | None = None, smooth: float = 1.0, per_case: bool = False
    ) -> None:
        super().__init__(class_weights)
        self.smooth, self.per_case = smooth, per_case

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        probs, truth, counts = observe(logits, mask, weight)
        both, predicted, true = (
            (v * counts).flatten(2).sum(2) for v in (probs * truth, self.size(probs), self.size(truth))
        )
        sums = torch.stack([both, predicted, true])
        if not self.per_case:
            sums = self.total(sums.sum(1, keepdim=True))
        losses, weights = self.losses(*sums.unbind())
        if self.per_case:
            return self.mean(losses, weights)
        return ratio((losses * weights).sum(), weights.sum())

    def size(self, values: Tensor) -> Tensor:
        """What predicted and true sums are of."""
        return values

    def losses(self, both: Tensor, predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each case and class, and its weight in the mean; of sums `[N, K]`."""
        return 1 - self.score(both, predicted, true), (true > 0) * self.of_classes(true)

    def score(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Overlap from 0 to 1."""
        raise TypeError(f"{type(self).__name__} lacks score()")


class DiceLoss(OverlapLoss):
    """One minus the soft Dice coefficient.

        1 - (2 both + smooth) / (predicted + true + smooth)

    Args:
        class_weights: Weight of each class's Dice in the mean.
        smooth: As in `OverlapLoss`.
        per_case: As in `OverlapLoss`.
        squared: Sums of p^2 and t^2 in the denominator, as in the paper.

    Reference:
        Milletari et al., V-Net, 3DV 2016. https://arxiv.org/abs/1606.04797

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    >>> round(DiceLoss(smooth=0.0)(logits, torch.tensor([[0, 1]])).item(), 4)  # 2 * 0.5 / (1 + 1) for both classes
    0.5
    >>> round(DiceLoss(smooth=0.0, squared=True)(logits, torch.tensor([[0, 1]])).item(), 4)  # 2 * 0.5 / (0.5 + 1)
    0.3333
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        smooth: float = 1.0,
        per_case: bool = False,
        squared: bool = False,
    ) -> None:
        super().__init__(class_weights, smooth, per_case)
        self.squared = squared

    def size(self, values: Tensor) -> Tensor:
        """What predicted and true sums are of."""
        return values**2 if self.squared else values

    def score(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Overlap from 0 to 1."""
        return ratio(2 * both + self.smooth, predicted + true + self.smooth)


class GeneralizedDiceLoss(OverlapLoss):
    """One minus a Dice coefficient over all classes together, each weighed by the inverse square of its size.

        1 - 2 sum_k w_k both_k / sum_k w_k (predicted_k + true_k),   w_k = 1 / true_k^2

    Departures: a class that does not occur has no weight, where the formula gives it an infinite one.

    Args:
        class_weights: Further weight of each class, a factor of w_k.
        per_case: As in `OverlapLoss`.

    Reference:
        Sudre et al., Generalised Dice Overlap, DLMIA 2017. https://arxiv.org/abs/1707.03237

    >>> logits, mask = torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]])
    >>> round(GeneralizedDiceLoss()(logits, mask).item(), 4)  # both 1.5 and 0.5, sums 5 and 3, weights 1/9 and 1: 1 - 2 * 2/3 / (32/9)
    0.625
    """

    def __init__(self, class_weights: Sequence[float] | None = None, per_case: bool = False) -> None:
        super().__init__(class_weights, 0.0, per_case)

    def losses(self, both: Tensor, predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each case, and 1 where any class counts; of sums `[N, K]`."""
        # In units of the smallest class, so that no weight comes near what float32 holds.
        least = true.where(true > 0, torch.inf).amin(1, keepdim=True)
        weights = self.of_classes(true) * torch.where(true > 0, least / true, 0.0) ** 2
        loss = 1 - ratio(2 * (weights * both).sum(1), (weights * (predicted + true)).sum(1))
        return loss, (weights.sum(1) > 0).to(loss)


class JaccardLoss(OverlapLoss):
    """One minus the soft Jaccard index (intersection over union).

        1 - (both + smooth) / (predicted + true - both + smooth)

    Reference:
        Rahman and Wang, Optimizing Intersection-Over-Union in Deep Neural Networks, ISVC 2016.
        https://doi.org/10.1007/978-3-319-50835-1_22

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    >>> round(JaccardLoss(smooth=0.0)(logits, torch.tensor([[0, 1]])).item(), 4)  # 0.5 / (1 + 1 - 0.5) for both classes
    0.6667
    """

    def score(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Overlap from 0 to 1."""
        return ratio(both + self.smooth, predicted + true - both + self.smooth)


class TverskyLoss(OverlapLoss):
    """One minus the Tversky index: false positives and false negatives weighed apart.

        1 - (both + smooth) / (both + alpha (predicted - both) + beta (true - both) + smooth)

    Args:
        class_weights: Weight of each class in the mean.
        smooth: As in `OverlapLoss`.
        per_case: As in `OverlapLoss`.
        alpha: Weight of false positives; 0.5 with beta 0.5 is Dice, 1 with 1 is Jaccard.
        beta: Weight of false negatives; above alpha, more of small objects is found.

    Reference:
        Salehi et al., Tversky Loss Function for Image Segmentation, MLMI 2017 (0.3 and 0.7). https://arxiv.org/abs/1706.05721

    >>> logits = torch.tensor([[[0.0, 0.0, 0.0]]])
    >>> mask = torch.tensor([[[1, 0, 0]]], dtype=torch.uint8)
    >>> round(TverskyLoss(smooth=0.0)(logits, mask).item(), 4)  # 0.5 / (0.5 + 0.3 * 1 + 0.7 * 0.5)
    0.5652
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        smooth: float = 1.0,
        per_case: bool = False,
        alpha: float = 0.3,
        beta: float = 0.7,
    ) -> None:
        super().__init__(class_weights, smooth, per_case)
        self.alpha, self.beta = alpha, beta

    def score(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Overlap from 0 to 1."""
        wrong = self.alpha * (predicted - both) + self.beta * (true - both)
        return ratio(both + self.smooth, both + wrong + self.smooth)


class FocalTverskyLoss(TverskyLoss):
    """Tversky loss of each class to the power of 1 / gamma.

        (1 - Tversky index)^(1 / gamma)

    Args:
        class_weights: Weight of each class in the mean.
        smooth: As in `OverlapLoss`.
        per_case: As in `OverlapLoss`.
        alpha: Weight of false positives, as in `TverskyLoss`; the paper swaps the two letters.
        beta: Weight of false negatives.
        gamma: Above 1 the slope is the steeper the nearer a class is to right; 1 is Tversky.

    Raises:
        ValueError: A gamma of 0 or less.

    Reference:
        Abraham and Khan, A Novel Focal Tversky Loss Function, ISBI 2019 (gamma 4/3). https://arxiv.org/abs/1810.07842

    >>> logits = torch.tensor([[[0.0, 0.0, 0.0]]])
    >>> mask = torch.tensor([[[1, 0, 0]]], dtype=torch.uint8)
    >>> round(FocalTverskyLoss(smooth=0.0)(logits, mask).item(), 4)  # 0.5652 ** 0.75
    0.6519
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        smooth: float = 1.0,
        per_case: bool = False,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 4 / 3,
    ) -> None:
        super().__init__(class_weights, smooth, per_case, alpha, beta)
        if gamma <= 0:
            raise ValueError(f"loss.gamma is {gamma}; expected a number above 0, such as 1.33")
        self.gamma = gamma

    def losses(self, both: Tensor, predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each case and class, and its weight in the mean; of sums `[N, K]`."""
        losses, weights = super().losses(both, predicted, true)
        # At 0 the slope of the power is infinite.
        return losses.clamp_min(1e-7) ** (1 / self.gamma), weights


class LovaszLoss(Loss):
    """The Jaccard loss of each sample, made convex: Lovász-softmax for exclusive labels, Lovász hinge for overlapping ones.

        mean over samples and their classes of sum_i e_i (J_i - J_(i-1))

    Errors e of a class's pixels are sorted downwards, and J_i is the Jaccard loss if the first i pixels are wrong and all others right.
    For exclusive labels e = |t - p|, and the classes that occur in a sample count. For overlapping ones e = max(0, 1 - logit) where the
    class is and max(0, 1 + logit) where it is not, and all classes count: of one that is absent, the largest error.

    Args:
        class_weights: Weight of each class in the mean.

    Reference:
        Berman et al., The Lovász-Softmax Loss, CVPR 2018. https://arxiv.org/abs/1705.08790

    >>> logits = torch.tensor([[[1.0, -0.5, -1.0]]])  # errors 0, 1.5 (missed) and 0; one of two pixels missed: J is 1/2
    >>> round(LovaszLoss()(logits, torch.tensor([[[1, 1, 0]]], dtype=torch.uint8)).item(), 4)
    0.75
    """

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        exclusive = mask.ndim == logits.ndim - 1
        probs, truth, counts = observe(logits, mask, weight)
        errors = (truth - probs).abs() if exclusive else (1 - logits * (2 * truth - 1)).relu()
        truth, counts = truth.flatten(2), counts.expand_as(logits).flatten(2)
        errors, order = errors.flatten(2).sort(2, descending=True)
        steps = _jaccard_steps(truth.gather(2, order), counts.gather(2, order))
        occurs = ((truth if exclusive else counts) > 0).any(2)
        weights = occurs * self.of_classes(logits)
        samples = ratio(((errors * steps).sum(2) * weights).sum(1), weights.sum(1))
        return self.mean(samples, (weights.sum(1) > 0).to(samples))


def _jaccard_steps(truth: Tensor, counts: Tensor) -> Tensor:
    """By how much the Jaccard loss grows as pixels `[B, K, N]`, each counting so much, turn wrong one after the other."""
    true = truth * counts
    both = (true.sum(2, keepdim=True) - true.cumsum(2)).clamp_min(0)  # what is left of the intersection
    union = true.sum(2, keepdim=True) + (counts - true).cumsum(2)
    # A difference of neighbours J_i - J_(i-1) would cancel to noise in float32: a million pixels have steps of 1e-6. A false
    # positive takes as much off as the index has left, and that of two empty sets is 1.
    before = union - (counts - true)
    left = torch.where(before > 0, both / before.clamp_min(1e-8), 1.0)
    return counts * torch.where(truth > 0, 1.0, left) / union.clamp_min(1e-8)
