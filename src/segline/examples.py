"""The best, the median and the worst case of a part, for pictures: predicted anew, and of large ones a part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segline.data.cases import Case
from segline.data.datamodule import SegmentationDataModule
from segline.data.scan import CELL, Facts
from segline.inference.network import on_arrays
from segline.inference.tiled import predict_tiles
from segline.io.normalize import BandStatistics
from segline.io.source import MaskSource, Source, Window
from segline.labels import IGNORE_INDEX, Labels
from segline.module import SegmentationModule

Mask = NDArray[np.uint8]
#: Predicts a part of a source: yields decisions `[*piece]` or `[K, *piece]` with their places.
Decide = Callable[[Source, BandStatistics | None, Window], Iterator[tuple[Window, Mask]]]
#: Pixels of a case that are shown at most along an axis, and how many of them are drawn: every so-manyth.
_SHOWN, _DRAWN = 2048, 1024


def examples(
    cases: Sequence[Case], rows: Sequence[dict[str, Any]], decide: Decide, data: SegmentationDataModule
) -> list[dict[str, Any]]:
    """The best, the median and the worst of some cases by their mean Dice.

    Args:
        cases: Of one part.
        rows: Of the table of cases, one each.
        decide: Predicts.
        data: Where the cases come from.

    Returns:
        Of each: normalised `image` `[C, *S]`, `mask` and `pred` `[*S]` or `[K, *S]`, and `title`.
    """
    dice = {row["case"]: _mean_dice(row, data.labels) for row in rows}
    ranked = sorted((name for name, value in dice.items() if np.isfinite(value)), key=dice.__getitem__)
    by_name = {case.name: case for case in cases}
    places = {len(ranked) - 1: "best", len(ranked) // 2: "median", 0: "worst"}
    if len(ranked) < 3:
        places = [{}, {0: "the only case"}, {1: "best", 0: "worst"}][len(ranked)]
    shown = []
    for place, rank in places.items():
        case = by_name[ranked[place]]
        source, mask, _ = data.open(case)
        view = choose_view(data.facts[case.name], mask, data.labels)
        title = f"{rank}: {case.name}, Dice {dice[case.name]:.3f}{_say(view, source.shape)}"
        shown.append({**show_place(case, view, decide, data), "title": title})
    return shown


def _mean_dice(row: dict[str, Any], labels: Labels) -> float:
    """Of a case, over the classes that means are taken over; nan where none of them is there or predicted."""
    values = [row[f"dice/{labels.names[k]}"] for k in labels.shown]
    there = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(there)) if there else float("nan")


def show_place(case: Case, view: Window, decide: Decide, data: SegmentationDataModule) -> dict[str, Any]:
    """Image, mask and decision of a part of a case, thinned where it is large."""
    source, mask_source, statistics = data.open(case)
    mask = mask_source.read(view)
    pred = np.zeros((data.labels.num_planes, *(v.stop - v.start for v in view)), np.uint8)
    for place, decided in decide(source, statistics, view):
        there = tuple(slice(p.start - v.start, p.stop - v.start) for p, v in zip(place, view, strict=True))
        pred[(slice(None), *there)] = decided
    raw = source.read(view)
    mask[..., np.isnan(raw).all(0)] = IGNORE_INDEX  # as in validation
    arrays: dict[str, np.ndarray] = {
        "image": data.normalize(raw, statistics),
        "mask": mask,
        "pred": pred.reshape(mask.shape),
    }
    every: tuple[Any, ...] = (..., *(slice(None, None, -(-(v.stop - v.start) // _DRAWN)) for v in view))
    return {name: array[every] for name, array in arrays.items()}


def by_tiles(module: SegmentationModule, data: SegmentationDataModule) -> Decide:
    """What a module decides, through the same tiles as validation."""
    network = on_arrays(module, module.device, str(module.trainer.precision))

    def decide(source: Source, statistics: BandStatistics | None, view: Window) -> Iterator[tuple[Window, Mask]]:
        module.eval()
        prepare = partial(data.normalize, statistics=statistics)
        for place, logits in predict_tiles(network, source, prepare, data.tile, data.margin, within=view):
            yield place, data.labels.decide(data.labels.probs(logits[None]))[0]

    return decide


def choose_view(facts: Facts, mask: MaskSource, labels: Labels) -> Window:
    """The part of a case that is shown: the whole of it or, of a large one, where most classes are; of a volume one slice."""
    shape, volume = facts.shape, len(facts.shape) == 3
    edge = CELL[len(shape)]
    size = [min(length, _SHOWN) for length in shape]
    if volume:
        size[0] = min(shape[0], edge)
    cells = facts.cells[np.isin(facts.cells[:, 0], labels.shown), 1:]
    centre = [length / 2 for length in shape]
    if len(cells):
        density = np.zeros([-(-length // edge) for length in shape])
        np.add.at(density, tuple(cells.T), 1)
        counted = [max(1, s // edge) for s in size]
        seen = ndimage.uniform_filter(density, counted, mode="constant")
        # The middle of an even number of cells is a border of one.
        places = zip(np.unravel_index(seen.argmax(), seen.shape), counted, strict=True)
        centre = [(int(place) + count % 2 / 2) * edge for place, count in places]
    starts = [int(np.clip(c - s / 2, 0, n - s)) for c, s, n in zip(centre, size, shape, strict=True)]
    view = [slice(start, start + s) for start, s in zip(starts, size, strict=True)]
    if volume:
        pixels = labels.foreground(mask.read(tuple(view))).sum((1, 2))
        fullest = starts[0] + int(pixels.argmax() if pixels.any() else size[0] // 2)
        view[0] = slice(fullest, fullest + 1)
    return tuple(view)


def _say(view: Window, shape: Sequence[int]) -> str:
    """Which part of a case is shown, where it is not the whole."""
    said = f", slice {view[0].start + 1} of {shape[0]}" if len(shape) == 3 else ""
    for name, v, length in zip(("rows", "columns"), view[-2:], shape[-2:], strict=True):
        if v.stop - v.start < length:
            said += f", {name} {v.start + 1} to {v.stop} of {length}"
    return said
