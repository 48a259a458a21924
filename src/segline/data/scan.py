"""One look at every file: faults, statistics of bands, counts of classes, and where each class is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from segline.data.cases import Case
from segline.io.cache import cached
from segline.io.normalize import BandStatistics, strips
from segline.io.open import compare
from segline.io.source import MaskSource, Source
from segline.labels import Labels

#: Edge of the cells in which classes are looked up, in pixels, by the number of axes.
CELL = {2: 32, 3: 8}
#: Raised when what is stored of a case changes.
_VERSION = 4

#: Opens a case: image, mask.
Open = Callable[[Case], tuple[Source, MaskSource]]


@dataclass
class Facts:
    """What the scan found out about one case.

    Args:
        shape: Size in pixels.
        num_bands: Bands of the image.
        statistics: Of the bands.
        pixels: Of each class, `[K]`.
        ignored: Pixels of the mask that count nowhere.
        cells: Where each class occurs, as indices of cells `[N, 1 + axes]`: class, cell along each axis.
        faults: What keeps the case from being used.
    """

    shape: tuple[int, ...]
    num_bands: int
    statistics: BandStatistics
    pixels: NDArray[np.int64]
    ignored: int
    cells: NDArray[np.int32]
    faults: list[str]

    @property
    def empty(self) -> str | None:
        """Why nothing can be learnt from the case, if so."""
        if not self.statistics.count.any():
            return "its image holds no data (NaN or no-data everywhere)"
        return "its mask is ignored everywhere" if self.ignored == int(np.prod(self.shape)) else None


def scan(cases: Sequence[Case], open_case: Open, labels: Labels, settings: object) -> dict[str, Facts]:
    """Facts of each case by its name; those of unchanged files come from the cache.

    Args:
        cases: What to look at.
        open_case: Opens one.
        labels: Meaning of the masks.
        settings: What else the facts depend on (bands, spacing).
    """
    facts = {}
    for case in tqdm(cases, desc="scan", unit="case", leave=False, delay=2):
        key = (_VERSION, labels.to_dict(), settings, case.block, case.objects, case.burn)
        files = [*case.images, *case.masks]
        if missing := [path for path in files if not path.is_file()]:
            facts[case.name] = _broken(labels, f"there is no file {missing[0]}")
            continue
        make = partial(_write, case=case, open_case=open_case, labels=labels)
        try:
            facts[case.name] = _load(cached("scan", files, key, ".json", make).read_text())
        except _BrokenError as broken:
            facts[case.name] = _broken(labels, *broken.faults)
    return facts


class _BrokenError(Exception):
    """A case with faults: those are not kept, they may have been the machine's."""

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults


def _write(path: Path, case: Case, open_case: Open, labels: Labels) -> None:
    """Read a case once, strip by strip; a fault ends it."""
    try:
        image, mask = open_case(case)
        if faults := compare(image, mask):
            raise _BrokenError(*faults)
        facts = _measure(image, mask, labels)
    except (ValueError, OSError) as error:
        raise _BrokenError(str(error)) from error
    path.write_text(_dump(facts))


def _measure(image: Source, mask: MaskSource, labels: Labels) -> Facts:
    statistics, pixels = BandStatistics(image.num_bands), np.zeros(labels.num_classes, np.int64)
    ignored, cells = 0, []
    for window in strips(image.shape):
        values = image.read(window)
        statistics.update(values)
        classes = mask.read(window)
        counted = labels.counted(classes) & ~np.isnan(values).all(0)
        one_hot = labels.one_hot(classes) & counted
        pixels += one_hot.reshape(len(pixels), -1).sum(1)
        ignored += int((~counted).sum())
        cells.append(_cells(one_hot, [w.start for w in window]))
    return Facts(image.shape, image.num_bands, statistics, pixels, ignored, np.concatenate(cells), [])


def _cells(one_hot: NDArray[np.bool_], start: Sequence[int]) -> NDArray[np.int32]:
    """Cells that hold a class, as `[N, 1 + axes]`; strips start on the grid of cells."""
    edge = CELL[one_hot.ndim - 1]
    for axis in range(1, one_hot.ndim):
        one_hot = np.logical_or.reduceat(one_hot, np.arange(0, one_hot.shape[axis], edge), axis=axis)
    found = np.argwhere(one_hot).astype(np.int32)
    found[:, 1:] += np.array(start, np.int32) // edge
    return found


def _broken(labels: Labels, *faults: str) -> Facts:
    return Facts(
        (),
        0,
        BandStatistics(0),
        np.zeros(labels.num_classes, np.int64),
        0,
        np.zeros((0, 1), np.int32),
        list(faults),
    )


def _dump(facts: Facts) -> str:
    plain: dict[str, Any] = {**vars(facts), "statistics": facts.statistics.to_dict()}
    return json.dumps(
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}
    )


def _load(text: str) -> Facts:
    data = json.loads(text)
    cells = np.array(data["cells"], np.int32).reshape(-1, 1 + len(data["shape"]))
    return Facts(
        **{
            **data,
            "shape": tuple(data["shape"]),
            "statistics": BandStatistics.from_dict(data["statistics"]),
            "pixels": np.array(data["pixels"], np.int64),
            "cells": cells,
        }
    )


def merge_statistics(facts: Sequence[Facts]) -> BandStatistics:
    """Statistics of several cases together."""
    total = BandStatistics(facts[0].num_bands)
    for one in facts:
        total.merge(one.statistics)
    return total
