"""Losses by the centre lines of tubes: vessels, roads, neurites."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from segline.losses.loss import Loss, observe, ratio


class ClDiceLoss(Loss):
    """One minus the centre-line Dice: how much of the skeleton of prediction and truth lies in the other one, whatever a tube's width.

        1 - 2 precision sensitivity / (precision + sensitivity)
        precision = (sum s_p t + smooth) / (sum s_p + smooth),   sensitivity = (sum s_t p + smooth) / (sum s_t + smooth)

    s is the soft skeleton: what an opening takes away, collected while the mask is eroded again and again. Sums are over the batch, and
    the mean is over the classes that occur. It does not see a tube's width: add it to another loss, as `loss=dice_cldice` does.

    Departures: the paper has one class; here all count, the background of exclusive labels too, unless class_weights say otherwise.
    Erosion looks at face neighbours, and dilation at all around, as in the authors' code. To the skeleton, ignored pixels are background.

    Args:
        class_weights: Weight of each class in the mean.
        iterations: Erosions, at least as many as the widest tube's radius in pixels (the paper: 5 to 25); each costs time and memory.
        smooth: In pixels of a skeleton.

    Raises:
        ValueError: Iterations below 0.

    Reference:
        Shit et al., clDice, CVPR 2021. https://arxiv.org/abs/2003.07311

    >>> mask = torch.zeros(1, 1, 3, 7, dtype=torch.uint8)
    >>> mask[..., 1, 1:6] = 1  # a line of 5 pixels
    >>> logits = torch.where(mask == 1, 99.0, -99.0)
    >>> logits[..., 1, 3] = -99.0  # broken: precision 1, sensitivity 4/5
    >>> round(ClDiceLoss(smooth=0.0)(logits, mask).item(), 4)
    0.1111
    """

    def __init__(self, class_weights: Sequence[float] | None = None, iterations: int = 5, smooth: float = 1.0) -> None:
        super().__init__(class_weights)
        if iterations < 0:
            raise ValueError(f"loss.iterations is {iterations}; expected 0 or more, such as 5")
        self.iterations, self.smooth = iterations, smooth

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        probs, truth, counts = observe(logits, mask, weight)
        probs = probs * (counts > 0)
        of_probs, of_truth = (skeletonize(v, self.iterations) for v in (probs, truth))
        axes = [0, *range(2, logits.ndim)]
        parts = (of_probs * truth, of_probs, of_truth * probs, of_truth, truth)
        predicted_in, predicted, true_in, true, size = self.total(torch.stack([(v * counts).sum(axes) for v in parts]))
        precision = ratio(predicted_in + self.smooth, predicted + self.smooth)
        sensitivity = ratio(true_in + self.smooth, true + self.smooth)
        cldice = ratio(2 * precision * sensitivity, precision + sensitivity)
        weights = (size > 0) * self.of_classes(logits)
        return ratio(((1 - cldice) * weights).sum(), weights.sum())


def skeletonize(masks: Tensor, iterations: int) -> Tensor:
    """Soft skeletons of masks `[B, K, *S]` in 2D or 3D, each value from 0 to 1.

    >>> bar = torch.zeros(1, 1, 5, 9)
    >>> bar[..., 1:4, 1:8] = 1
    >>> skeletonize(bar, 3)[0, 0, 2].int().tolist()
    [0, 0, 1, 1, 1, 1, 1, 0, 0]
    """
    pool = F.max_pool2d if masks.ndim == 4 else F.max_pool3d
    dims = masks.ndim - 2
    crosses = [tuple(3 if axis == other else 1 for other in range(dims)) for axis in range(dims)]
    skeleton = torch.zeros_like(masks)
    for _ in range(iterations + 1):
        lines = [-pool(-masks, cross, 1, tuple(k // 2 for k in cross)) for cross in crosses]
        eroded = reduce(torch.minimum, lines)
        skeleton = skeleton + (1 - skeleton) * F.relu(masks - pool(eroded, 3, 1, 1))
        masks = eroded
    return skeleton
