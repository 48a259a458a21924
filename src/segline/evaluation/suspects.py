"""Places where a network is sure of one class and the label says another: wrong labels are found there, and blind spots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segline.io.source import Window
from segline.labels import IGNORE_INDEX, Labels

#: Probability from which on a network counts as sure.
SURE = 0.9
#: Pixels that a place must have: a line along a boundary is no fault of a label.
_LEAST = 25
#: Context that is shown around a place, and the least and the largest edge of what is shown, in pixels.
_CONTEXT, _EDGES = 24, (96, 512)


@dataclass(frozen=True)
class Suspect:
    """A connected place of a case.

    Args:
        case: Its name.
        window: Where it lies, with context.
        pixels: How many are wrong by the label and sure.
        label: Class that most of them have by the label.
        pred: Class that most of them have by the network.
    """

    case: str
    window: Window
    pixels: int
    label: str
    pred: str


def sure_and_wrong(
    probs: NDArray[np.float32], pred: NDArray[np.uint8], mask: NDArray[np.uint8], labels: Labels
) -> NDArray[np.bool_]:
    """Where a network is sure of what the label denies, `[*S]`.

    With thresholds the decision need not be the most probable class; it is as sure as the class that was decided for.

    Args:
        probs: `[K, *S]`.
        pred: `[*S]`, or `[K, *S]` for overlapping labels.
        mask: Of the same shape as `pred`.
        labels: Their meaning.
    """
    with np.errstate(invalid="ignore"):
        wrong = (pred != mask) & (mask != IGNORE_INDEX)
        if labels.exclusive:
            # Where there is no data there is no class; nor is there a truth, so that any class will do.
            decided = np.where(pred == IGNORE_INDEX, 0, pred)
            return wrong & (np.take_along_axis(probs, decided[None], 0)[0] >= SURE)
        return (wrong & np.where(pred == 1, probs >= SURE, probs <= 1 - SURE)).any(0)


def find_suspects(
    case: str,
    places: NDArray[np.bool_],
    pred: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    labels: Labels,
    most: int = 3,
) -> list[Suspect]:
    """The largest places of a case, once the pixels along boundaries are taken away."""
    # Of volumes slice by slice: there may be few of them, and far apart.
    square = np.ones((1,) * (places.ndim - 2) + (3, 3), bool)
    thick = ndimage.binary_opening(places, square)
    numbered, count = ndimage.label(thick, ndimage.generate_binary_structure(places.ndim, places.ndim))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(numbered)
    suspects: list[Suspect] = []
    for number in np.argsort(-sizes, kind="stable"):
        if sizes[number] < _LEAST or len(suspects) == most:
            break
        middle = [(part.start + part.stop) // 2 for part in boxes[number]]
        if any(all(w.start <= m < w.stop for w, m in zip(s.window, middle, strict=True)) for s in suspects):
            continue  # seen beside a larger one
        inside = numbered[boxes[number]] == number + 1
        of_label, of_pred = (labels.as_ids(array[(..., *boxes[number])])[inside] for array in (mask, pred))
        names = labels.id_names
        suspects.append(
            Suspect(
                case,
                _around(boxes[number], places.shape),
                int(sizes[number]),
                names[_most_frequent(of_label)],
                names[_most_frequent(of_pred)],
            )
        )
    return suspects


def _most_frequent(ids: NDArray[np.uint8]) -> int:
    return int(np.bincount(ids[ids != IGNORE_INDEX]).argmax())


def _around(box: Sequence[slice], shape: Sequence[int]) -> Window:
    """A place with its context; of a volume the middle slice of the place."""
    least, largest = _EDGES
    window = []
    for axis, (part, size) in enumerate(zip(box, shape, strict=True)):
        middle = (part.start + part.stop) // 2
        edge = min(max(part.stop - part.start + 2 * _CONTEXT, least), largest, size)
        if len(shape) == 3 and axis == 0:
            edge = 1
        start = min(max(middle - edge // 2, 0), size - edge)
        window.append(slice(start, start + edge))
    return tuple(window)
