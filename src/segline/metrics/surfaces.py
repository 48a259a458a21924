"""How far the surfaces of two masks lie apart, and how much of them agrees.

The surface of a mask is its edge pixels: those with a face neighbour (4 in 2D, 6 in 3D) that is not in the mask; beyond the image
lies no mask. Where `valid` is False neither mask is known: such pixels are no edge, nor do they make one of their neighbours, so that
a mask that runs into them has no surface there. A surface hidden under them is missing; distances lead to the nearest one that shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, inf, nan

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

#: Masks, and where they count, of one shape.
_Masks = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]


def measure_surfaces(
    pred: NDArray[np.bool_],
    true: NDArray[np.bool_],
    spacing: Sequence[float],
    tolerance: float,
    width: int | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """All metrics of this file for one class of one case: `hd95`, `assd`, `surface_dice` and `boundary_iou`.

    nan where neither mask has a surface: leave it out of means. Where only one has, `hd95` and `assd` are inf: count such cases, a
    mean over the others says nothing of them.

    Args:
        pred: Where the prediction has the class, `[*S]` of 2 or 3 axes.
        true: Where it is, `[*S]`.
        spacing: Size of a pixel along each axis, in mm or m; ones give distances in pixels.
        tolerance: Distance up to which surfaces agree, in the unit of `spacing`; usually what two raters differ by.
        width: Of the band of `boundary_iou`, in pixels; by default `boundary_width`.
        valid: Which pixels count, `[*S]`; all by default.

    Raises:
        ValueError: Shapes that differ, masks that are not bool, a spacing of other rank, a negative tolerance or a width below 1.
    """
    width = boundary_width(pred.shape) if width is None else width
    pred, true, valid = _crop(pred, true, valid, width)
    distances = surface_distances(pred, true, spacing, valid)
    return {
        "hd95": hausdorff95(*distances),
        "assd": mean_surface_distance(*distances),
        "surface_dice": surface_dice(*distances, tolerance),
        "boundary_iou": boundary_iou(pred, true, width, valid),
    }


def surface_distances(
    pred: NDArray[np.bool_],
    true: NDArray[np.bool_],
    spacing: Sequence[float],
    valid: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance from each edge pixel of `pred` to the nearest of `true`, and from each of `true` to the nearest of `pred`.

    All inf where the other mask has no edge, of length 0 where the mask itself has none. Arguments as in `measure_surfaces`.

    Raises:
        ValueError: Shapes that differ, masks that are not bool, or a spacing of other rank.

    >>> row = np.zeros((1, 9), bool)
    >>> pred, true = row.copy(), row.copy()
    >>> pred[0, 1], true[0, 4:6] = True, True
    >>> [distances.tolist() for distances in surface_distances(pred, true, (2, 2))]
    [[6.0], [6.0, 8.0]]
    """
    if len(spacing) != pred.ndim:
        raise ValueError(
            f"spacing is {list(spacing)} but a mask has {pred.ndim} axes; give one size of a pixel for each"
        )
    pred, true, valid = _crop(pred, true, valid, 1)
    pred_edges, true_edges = _edges(pred, valid), _edges(true, valid)
    return _distances(pred_edges, true_edges, spacing), _distances(true_edges, pred_edges, spacing)


def hausdorff95(to_true: NDArray[np.float64], to_pred: NDArray[np.float64]) -> float:
    """Hausdorff distance without the farthest 5 %: the larger of the 95th percentiles of both `surface_distances`.

    nan where neither mask has a surface, inf where only one has (MONAI: nan). MONAI takes the larger one, too; MedPy takes the percentile
    of both arrays together, which forgives a small surface that lies far from a large one.

    Reference: Taha and Hanbury, Metrics for evaluating 3D medical image segmentation, BMC Medical Imaging 2015.
    """
    if len(to_true) == 0 or len(to_pred) == 0:
        return nan if len(to_true) == len(to_pred) else inf
    return float(max(np.percentile(to_true, 95), np.percentile(to_pred, 95)))


def mean_surface_distance(to_true: NDArray[np.float64], to_pred: NDArray[np.float64]) -> float:
    """Average symmetric surface distance (ASSD): the mean over all edge pixels of both masks.

    nan where neither mask has a surface, inf where only one has. Takes what `surface_distances` gives.

    Reference: Heimann et al., Comparison and Evaluation of Methods for Liver Segmentation From CT Datasets, IEEE TMI 2009.
    """
    together = np.concatenate([to_true, to_pred])
    return float(together.mean()) if len(together) else nan


def surface_dice(to_true: NDArray[np.float64], to_pred: NDArray[np.float64], tolerance: float) -> float:
    """Normalised surface Dice: the share of edge pixels of both masks that lie within `tolerance` of the other one's.

    nan where neither mask has a surface, 0 where only one has. Takes what `surface_distances` gives. The paper weighs edges by their area;
    here, as in MONAI, each counts one.

    Reference: Nikolov et al., Clinically Applicable Segmentation of Head and Neck Anatomy, JMIR 2021, arXiv:1809.04430.

    Raises:
        ValueError: A negative tolerance.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; expected 0 or more, in the unit of the spacing")
    together = np.concatenate([to_true, to_pred])
    # Three pixels of 0.1 mm are 0.30000000000000004 mm, and still within 0.3 mm.
    within = together <= tolerance * (1 + 1e-6)
    return float(within.mean()) if len(together) else nan


def boundary_iou(
    pred: NDArray[np.bool_], true: NDArray[np.bool_], width: int, valid: NDArray[np.bool_] | None = None
) -> float:
    """IoU of the inner boundary bands: of each mask the pixels at most `width` from one outside of it.

    `width` counts pixels along the axes and diagonals alike (chessboard distance), as the authors' code does. nan where neither mask has a
    boundary, 0 where only one has. Other arguments as in `measure_surfaces`.

    Reference: Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021, arXiv:2103.16562.

    Raises:
        ValueError: Shapes that differ, masks that are not bool, or a width below 1.
    """
    if width < 1:
        raise ValueError(f"width is {width}; expected 1 pixel or more, such as boundary_width(shape)")
    pred, true, valid = _crop(pred, true, valid, width)
    pred_band, true_band = _band(pred, valid, width), _band(true, valid, width)
    union = np.count_nonzero(pred_band | true_band)
    return float(np.count_nonzero(pred_band & true_band) / union) if union else nan


def boundary_width(shape: Sequence[int]) -> int:
    """The paper's width of the band of `boundary_iou`: 2 % of the image's diagonal, at least 1 pixel.

    >>> boundary_width((1024, 2048))
    46
    """
    return max(1, round(0.02 * hypot(*shape)))


def _crop(pred: NDArray[np.bool_], true: NDArray[np.bool_], valid: NDArray[np.bool_] | None, margin: int) -> _Masks:
    """What counts of both masks, and where it does, in their common bounding box with a margin of some pixels.

    The margin shows what lies around the masks: unlike the end of the box, it may be ignored.
    """
    for name, mask in (("pred", pred), ("true", true), ("valid", valid)):
        if mask is not None and (mask.shape != true.shape or mask.dtype != bool):
            raise ValueError(
                f"{name} is {mask.dtype} {list(mask.shape)}; expected bool {list(true.shape)}, as Labels.of_class gives"
            )
    found = pred | true
    if valid is not None:
        found &= valid
    box = _bounding_box(found, margin)
    pred, true = pred[box], true[box]
    inside: NDArray[np.bool_] = np.ones(true.shape, bool) if valid is None else valid[box]
    return pred & inside, true & inside, inside


def _bounding_box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    box: list[slice] = []
    for axis, size in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        start, stop = (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)
        box.append(slice(max(start - margin, 0), min(stop + margin, size)))
        mask = mask[(slice(None),) * axis + (slice(start, stop),)]  # the next axes have less to look at
    return tuple(box)


def _edges(mask: NDArray[np.bool_], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~ndimage.binary_erosion(mask | ~valid)


def _band(mask: NDArray[np.bool_], valid: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    # A minimum over a square is one along each axis, at a cost that does not grow with the width.
    filled = (mask | ~valid).view(np.uint8)
    core = ndimage.minimum_filter(filled, 2 * width + 1, mode="constant", cval=0)
    return mask & (core == 0)


def _distances(start: NDArray[np.bool_], end: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Distance from each pixel of `start` to the nearest of `end`."""
    if not end.any():
        return np.full(np.count_nonzero(start), inf)
    # A tree of edge pixels costs as much as there are of them. A distance transform costs the volume between them, and one wrong voxel
    # in a corner makes that the whole image: 20 s where the tree takes 4, for 512 x 512 x 100 voxels.
    tree = KDTree(np.argwhere(end) * spacing, balanced_tree=False)
    distances: NDArray[np.float64] = np.asarray(tree.query(np.argwhere(start) * spacing)[0])
    return distances
