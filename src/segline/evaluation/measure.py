"""What is measured of one whole case: surfaces, sizes, objects, and errors near and far from boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segline.io.area import is_in_degrees, row_areas
from segline.io.source import Geometry
from segline.labels import IGNORE_INDEX, Labels
from segline.metrics.objects import Objects, count_objects
from segline.metrics.surfaces import measure_surfaces

#: Of the Earth's mean meridian.
_METRES_A_DEGREE = 111_132.95
#: Distances from the boundary, in pixels, up to which errors are counted apart; what lies farther is the last part.
DISTANCES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Scale:
    """How large a pixel is.

    Args:
        spacing: Of pixels along each axis, in `unit`.
        unit: `mm` of volumes, `m` of scenes that lie on the Earth, `px` of all else.
        sizes: Area or volume of a pixel in `unit` squared or cubed, for each index of the first axis.
    """

    spacing: tuple[float, ...]
    unit: str
    sizes: NDArray[np.float64]

    @classmethod
    def of(cls, geometry: Geometry, shape: Sequence[int]) -> Scale:
        """The scale of a source.

        >>> Scale.of(Geometry(), (4, 6)).unit
        'px'
        """
        if len(shape) == 3 and geometry.spacing:
            return cls(geometry.spacing, "mm", np.full(shape[0], float(np.prod(geometry.spacing))))
        areas = row_areas(geometry, shape) if len(shape) == 2 else None
        if areas is not None and geometry.spacing:
            down, across = geometry.spacing
            if is_in_degrees(geometry):
                down *= _METRES_A_DEGREE  # of a meridian, to 0.6 %
                return cls((down, float(areas.mean()) / down), "m", areas)
            # Maps show shapes as they are, but for their scale.
            scale = float(np.sqrt(areas.mean() / (down * across)))
            return cls((down * scale, across * scale), "m", areas)
        return cls((1.0,) * len(shape), "px", np.ones(shape[0]))

    @property
    def size_unit(self) -> str:
        """Of areas and volumes."""
        return self.unit if self.unit == "px" else {2: f"{self.unit}²", 3: f"{self.unit}³"}[len(self.spacing)]

    @property
    def pixel(self) -> float:
        """The longest side of a pixel: a distance that no mask on this grid can resolve."""
        return max(self.spacing)


@dataclass
class CaseMeasures:
    """What was measured of a case besides its counts.

    Args:
        row: For the table of cases: `hd95/<class>`, `size_true/<class>` and so on; None where there is no value.
        objects: Of each class.
        near: Wrong and all counted pixels of each part by distance from the boundary, `[parts, 2]`.
    """

    row: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, Objects] = field(default_factory=dict)
    near: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(DISTANCES) + 1, 2), np.int64))


def measure_case(
    pred: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    labels: Labels,
    scale: Scale,
    tolerance: float | None,
    least_iou: float,
    instances: NDArray[np.int32] | None = None,
) -> CaseMeasures:
    """Measure a decision against the truth, both as labels code masks.

    Args:
        pred: `[*S]`, or `[K, *S]` for overlapping labels.
        mask: Of the same shape.
        labels: Their meaning.
        scale: Size of a pixel.
        tolerance: Of surface Dice, in the unit of the scale; None: the longest side of a pixel.
        least_iou: Of an object and what finds it.
        instances: Number of the object at each pixel of the truth, where it is known which touching objects are two.
    """
    measures = CaseMeasures()
    for k in labels.shown:
        name = labels.names[k]
        valid = (mask if labels.exclusive else mask[k]) != IGNORE_INDEX
        said, true = labels.of_class(pred, k) & valid, labels.of_class(mask, k)
        surfaces = measure_surfaces(
            said,
            true,
            scale.spacing,
            scale.pixel if tolerance is None else tolerance,
            valid=valid,
        )
        # One foreground class: its objects are those that are numbered.
        own = instances if len(labels.shown) == 1 else None
        found = count_objects(said, true, valid, own, least_iou)
        measures.objects[name] = found
        values = {
            **surfaces,
            "objects_tp": found.tp,
            "objects_fp": found.fp,
            "objects_fn": found.fn,
        }
        measures.row |= {f"{key}/{name}": None if value != value else value for key, value in values.items()}
    measures.near = errors_by_distance(pred, mask, labels)
    return measures


def sizes_of(
    pred: NDArray[np.uint8], mask: NDArray[np.uint8], labels: Labels, scale: Scale, rows: slice
) -> dict[str, float]:
    """Area or volume of each class in a part of a case, `size_true/<class>` and `size_pred/<class>`: parts add up.

    Args:
        pred: Decision of the part.
        mask: Its truth.
        labels: Their meaning.
        scale: Of the whole case.
        rows: Where the part lies along the first axis.
    """
    sizes = {}
    for k in labels.shown:
        valid = (mask if labels.exclusive else mask[k]) != IGNORE_INDEX
        for kind, of_class in (("true", labels.of_class(mask, k)), ("pred", labels.of_class(pred, k) & valid)):
            counts = of_class.reshape(len(of_class), -1).sum(1)
            sizes[f"size_{kind}/{labels.names[k]}"] = float(counts @ scale.sizes[rows])
    return sizes


def errors_by_distance(pred: NDArray[np.uint8], mask: NDArray[np.uint8], labels: Labels) -> NDArray[np.int64]:
    """Wrong and counted pixels by how far the boundary of the truth is, `[parts, 2]`; distances by the chessboard, as kings go.

    A boundary runs between pixels of different classes; those that count nowhere make none.
    """
    counted = labels.counted(mask)
    wrong = (pred != mask) & (mask != IGNORE_INDEX)
    if not labels.exclusive:
        wrong = wrong.any(0)
    near = np.zeros((len(DISTANCES) + 1, 2), np.int64)
    before = np.zeros(counted.shape, bool)
    for part, distance in enumerate(DISTANCES):
        within = _near_boundary(mask, distance, labels) & counted
        ring = within & ~before
        near[part] = (wrong & ring).sum(), ring.sum()
        before = within
    far = counted & ~before
    near[-1] = (wrong & far).sum(), far.sum()
    return near


def _near_boundary(mask: NDArray[np.uint8], distance: int, labels: Labels) -> NDArray[np.bool_]:
    """Where a window of so many pixels to each side sees two classes."""
    size = 2 * distance + 1
    seen = np.zeros(mask.shape if labels.exclusive else mask.shape[1:], bool)
    for plane in [mask] if labels.exclusive else mask:
        # Ignored pixels, 255, are the largest value; as the least they must not count either.
        largest = ndimage.maximum_filter(np.where(plane == IGNORE_INDEX, 0, plane), size, mode="nearest")
        least = ndimage.minimum_filter(plane, size, mode="nearest")
        seen |= largest > least
    return seen
