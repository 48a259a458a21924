"""Objects found, missed and invented: lesion-, cell- or building-wise, whatever their size."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one class, of a case or of many: they add up with `+`.

    Args:
        tp: Objects of the truth that were found, each by one of the prediction.
        fp: Objects of the prediction that match none.
        fn: Objects of the truth that were missed.
        iou_sum: Sum of the IoU of the matches.
        sizes: Counted pixels of each object of the truth, `[tp + fn]`, in the order of their labels or instance numbers.
        found: Whether each of them was found, `[tp + fn]`.
    """

    tp: int
    fp: int
    fn: int
    iou_sum: float
    sizes: NDArray[np.int64]
    found: NDArray[np.bool_]

    @property
    def precision(self) -> float:
        """Share of the predicted objects that are there; nan where nothing was predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the objects that were found; nan where there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; nan where there is no object in truth and prediction, 0 where none matches."""
        return _ratio(self.tp, self.tp + (self.fp + self.fn) / 2)

    @property
    def pq(self) -> float:
        """Panoptic quality: `f1` times the mean IoU of the matches; nan where `f1` is.

        Reference: Kirillov et al., Panoptic Segmentation, CVPR 2019, arXiv:1801.00868. There, an unmatched object that lies mostly
        in ignored pixels is no false positive. Here, the part of it that counts is one: what lies in ignored pixels changes nothing.
        """
        return _ratio(self.iou_sum, self.tp + (self.fp + self.fn) / 2)

    def __add__(self, other: Objects) -> Objects:
        sizes, found = np.concatenate([self.sizes, other.sizes]), np.concatenate([self.found, other.found])
        return Objects(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum, sizes, found
        )


def count_objects(
    pred: NDArray[np.bool_],
    true: NDArray[np.bool_],
    valid: NDArray[np.bool_] | None = None,
    instances: NDArray[np.integer] | None = None,
    least_iou: float = 0.5,
    least_pixels: int = 1,
) -> Objects:
    """Match the objects of two masks one to one, and count them.

    An object is a connected component of the pixels that count, with neighbours over corners (8 in 2D, 26 in 3D). So an object that
    lies entirely in ignored pixels is none, and one that they cut through is two. From `least_iou` 0.5 on an object can match only
    one other. Below, as many as possible are matched and, of all such matchings, that with the largest sum of IoU is taken: the rule
    of StarDist's `matching`.

    Args:
        pred: Where the prediction has the class, `[*S]` of any rank.
        true: Where it is, `[*S]`.
        valid: Which pixels count, `[*S]`; all by default.
        instances: Number of the object at each pixel of `true`, `[*S]` from 1, where they are known: objects of the truth may then
            touch or have several parts. The prediction's are connected components all the same.
        least_iou: A match has a larger IoU than this; 0 takes any overlap.
        least_pixels: Objects of fewer counted pixels are noise: on both sides they are left out before the matching.

    Raises:
        ValueError: Shapes that differ, masks that are not bool, a `least_iou` outside of [0, 1), or pixels of `true` that count but
            have no instance number.

    >>> pred, true = np.array([[1, 1, 0, 0, 0, 1]], bool), np.array([[1, 1, 1, 0, 0, 0]], bool)
    >>> objects = count_objects(pred, true)
    >>> objects.tp, objects.fp, objects.fn, round(objects.pq, 2)
    (1, 1, 0, 0.44)
    """
    _check(pred, true, valid, instances, least_iou)
    if valid is not None:
        pred, true = pred & valid, true & valid
    pred_labels = _components(pred)
    true_labels = _components(true) if instances is None else _renumber(instances, true)
    pred_sizes, true_sizes = np.bincount(pred_labels[pred]), np.bincount(true_labels[true])  # of 0 there is none
    p, t, overlap = _overlaps(pred_labels, true_labels)
    iou = overlap / (pred_sizes[p] + true_sizes[t] - overlap)
    matched = (iou > least_iou) & (pred_sizes[p] >= least_pixels) & (true_sizes[t] >= least_pixels)
    p, t, iou = p[matched], t[matched], iou[matched]
    if least_iou < 0.5:
        kept = _one_to_one(p, t, iou)
        t, iou = t[kept], iou[kept]
    big = np.flatnonzero(true_sizes[1:] >= least_pixels) + 1
    num_pred = int(np.count_nonzero(pred_sizes[1:] >= least_pixels))
    return Objects(len(t), num_pred - len(t), len(big) - len(t), float(iou.sum()), true_sizes[big], np.isin(big, t))


def _ratio(part: float, total: float) -> float:
    return part / total if total else nan


def _check(
    pred: NDArray[np.bool_],
    true: NDArray[np.bool_],
    valid: NDArray[np.bool_] | None,
    instances: NDArray[np.integer] | None,
    least_iou: float,
) -> None:
    for name, mask in (("pred", pred), ("true", true), ("valid", valid)):
        if mask is not None and (mask.shape != true.shape or mask.dtype != bool):
            raise ValueError(
                f"{name} is {mask.dtype} {list(mask.shape)}; expected bool {list(true.shape)}, as Labels.of_class gives"
            )
    if instances is not None and instances.shape != true.shape:
        raise ValueError(f"instances has the shape {list(instances.shape)}; expected that of true, {list(true.shape)}")
    if not 0 <= least_iou < 1:
        raise ValueError(f"least_iou is {least_iou}; expected 0 to less than 1, such as 0.5")


def _components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Connected components, numbered from 1; 0 outside of the mask."""
    labels: NDArray[np.int32] = np.empty(mask.shape, np.int32)
    ndimage.label(mask, np.ones((3,) * mask.ndim), output=labels)
    return labels


def _renumber(instances: NDArray[np.integer], true: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Instance numbers within the mask as 1, 2, ... without gaps; 0 outside of the mask."""
    numbers = instances[true]
    if nameless := np.count_nonzero(numbers < 1):
        raise ValueError(
            f"{nameless} pixels of true have no instance number; number its objects from 1, or leave instances out"
        )
    labels = np.zeros(true.shape, np.int64)
    labels[true] = np.unique(numbers, return_inverse=True)[1] + 1
    return labels


def _overlaps(
    pred_labels: NDArray[np.int32], true_labels: NDArray[np.int32] | NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Labels of the pairs of objects that share pixels, and how many: three arrays of the number of pairs."""
    both = (pred_labels > 0) & (true_labels > 0)
    shared = true_labels[both].astype(np.int64)
    base = shared.max(initial=0) + 1  # each pair as one number
    pairs, overlap = np.unique(pred_labels[both] * base + shared, return_counts=True)
    return pairs // base, pairs % base, overlap


def _one_to_one(p: NDArray[np.int64], t: NDArray[np.int64], iou: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pairs make the matching with the most pairs and, of those, with the largest sum of IoU.

    A dense assignment of 10,000 to 10,000 objects takes 800 MB, and the sparse one needs a partner for everyone. So an object without
    a match goes with a stand-in of its own, and the stand-ins of a matched pair go with each other.
    """
    p, t = np.unique(p, return_inverse=True)[1], np.unique(t, return_inverse=True)[1]
    if not len(p):
        return np.zeros(0, bool)
    n, m = int(p.max()) + 1, int(t.max()) + 1
    rows = np.concatenate([p, n + t, np.arange(n), n + np.arange(m)])
    columns = np.concatenate([t, m + p, m + np.arange(n), np.arange(m)])
    # All sums of IoU together weigh less than one pair.
    weights = np.concatenate([2 + iou / (2 * min(n, m)), np.ones(len(p) + n + m)])
    graph = sparse.csr_array((weights, (rows, columns)), shape=(n + m, n + m))
    partner = min_weight_full_bipartite_matching(graph, maximize=True)[1]
    return partner[p] == t
