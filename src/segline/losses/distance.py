"""Losses by how far from the truth's boundary a prediction errs, in pixels (voxels).

Distances come from SciPy, on the CPU: one transform takes about 20 ms for 512 x 512 pixels and 0.5 s for 128 x 128 x 128, on one core.
To them ignored pixels are background. A mask that is empty or full has no boundary, and no distances.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segline.losses.loss import Loss, along_classes, observe


class BoundaryLoss(Loss):
    """Mean distance of what is wrong from the truth's boundary, over pixels and classes that count.

        mean of phi (p - t),   phi the signed distance to the boundary of the class: above 0 outside, 0 at its edge, below 0 inside

    Takes two distance transforms for each sample and class. It does not see classes that are absent from a sample, and alone it may
    settle on an empty prediction: add it to another loss, as `loss=dice_boundary` does.

    Departures: the paper leaves out the part without p, which no gradient sees; with it the loss is 0 at the truth, and never negative.
    The paper has one class; here all count, the background of exclusive labels too, unless class_weights say otherwise. It adds the
    loss to generalised Dice, with a weight that starts at 0.01 and grows over epochs; `loss=dice_boundary` adds it to plain Dice, with
    a constant 0.01.

    Args:
        class_weights: Weight of each class in the mean.

    Reference:
        Kervadec et al., Boundary Loss for Highly Unbalanced Segmentation, MIDL 2019. https://arxiv.org/abs/1812.07032

    >>> logits = torch.tensor([[[0.0, -99.0, 99.0, 0.0]]])  # phi is 2, 1, 0, -1: half of a pixel at 2, and half at -1, of 4 pixels
    >>> round(BoundaryLoss()(logits, torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)).item(), 4)
    0.375
    """

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        probs, truth, counts = observe(logits, mask, weight)
        inside, outside = _to_boundary(truth > 0)
        signed = outside - (inside - 1).clamp_min(0)
        return self.mean(signed * (probs - truth), counts * along_classes(self.of_classes(logits), logits))


class HausdorffLoss(Loss):
    """Squared errors, weighed by how far they lie from the boundaries of truth and prediction, after the Hausdorff distance.

        mean of (p - t)^2 (d_p^alpha + d_t^alpha),   d the distance to the boundary of p > 0.5 and of t

    Takes four distance transforms for each sample and class. Its unit is pixels^alpha, so its values are large: add it to another loss
    with a small weight, as `loss=dice_hausdorff` does. The paper has one class; here all count, unless class_weights say otherwise.

    Args:
        class_weights: Weight of each class in the mean.
        alpha: How much more a distant error counts than a near one.

    Reference:
        Karimi and Salcudean, Reducing the Hausdorff Distance, IEEE TMI 2020. https://arxiv.org/abs/1904.10030

    >>> logits = torch.tensor([[[0.0, -99.0, 99.0, 99.0]]])  # both boundaries are 2 pixels from the first, which errs by 0.5
    >>> round(HausdorffLoss()(logits, torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)).item(), 4)  # 0.25 * (4 + 4) / 4
    0.5
    """

    def __init__(self, class_weights: Sequence[float] | None = None, alpha: float = 2.0) -> None:
        super().__init__(class_weights)
        self.alpha = alpha

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        probs, truth, counts = observe(logits, mask, weight)
        distances = [sum(_to_boundary(v)) ** self.alpha for v in ((probs > 0.5) & (counts > 0), truth > 0)]
        weights = counts * along_classes(self.of_classes(logits), logits)
        return self.mean((probs - truth) ** 2 * (distances[0] + distances[1]), weights)


def _to_boundary(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each pixel inside of a mask to the nearest outside, 0 for those outside, and the other way round; masks `[B, K, *S]`."""
    planes = masks.flatten(0, 1).cpu().numpy()
    distances = np.zeros((2, *planes.shape), np.float32)
    for index, plane in enumerate(planes):
        if plane.any() and not plane.all():
            distances[0, index] = ndimage.distance_transform_edt(plane)
            distances[1, index] = ndimage.distance_transform_edt(~plane)
    inside, outside = torch.from_numpy(distances).to(masks.device).view(2, *masks.shape)
    return inside, outside
