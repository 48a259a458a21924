"""Blending of overlapping tiles, as a stream: what is finished is handed on, and only what further tiles overlap is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from segline.io.source import Window
from segline.tiling import Tile

Piece = tuple[Window, NDArray[np.float32]]


def linear(size: int) -> NDArray[np.float64]:
    """Weights that fall evenly from the middle of a window to its ends, `[size]`."""
    place = np.arange(size)
    return np.minimum(place, place[::-1]) + 1.0


def gaussian(size: int) -> NDArray[np.float64]:
    """Weights of a bell curve with an eighth of the window as its deviation, `[size]`.

    Reference:
        Isensee et al., nnU-Net, Nature Methods 2021. https://doi.org/10.1038/s41592-020-01008-z
    """
    place = np.arange(size) - (size - 1) / 2
    return np.exp(-0.5 * (place / (size / 8)) ** 2)


#: How much a pixel of a window counts, by its place along an axis.
PROFILES: dict[str, Callable[[int], NDArray[np.float64]]] = {"linear": linear, "gaussian": gaussian}


def blend(
    tiles: Sequence[Tile], values: Iterable[NDArray[np.float32]], shape: Sequence[int], profile: str
) -> Iterator[Piece]:
    """Weighted means of overlapping tiles: pieces that cover each pixel once, in the order of the tiles.

    A tile's weight is the product of its weights along the axes, and tiles are all combinations of windows along the axes; so the
    mean over all tiles is taken along one axis after the other, and what has to wait for further tiles is as wide as they overlap.

    Args:
        tiles: As `segline.tiling.tiles` gives them, row by row: all, or those that meet a part of the grid. Then pieces cover what
            these cover, and only within the part they are means over all tiles of the grid.
        values: Of each tile, `[K, *window]`.
        shape: Of the grid.
        profile: `linear` or `gaussian`.

    Raises:
        ValueError: A profile that does not exist.
    """
    if profile not in PROFILES:
        raise ValueError(f"blend is {profile!r}; expected one of {', '.join(PROFILES)}")
    pieces: Iterator[Piece] = (_clip(tile.window, array, shape) for tile, array in zip(tiles, values, strict=True))
    for axis in reversed(range(len(shape))):
        windows = {tile.window[axis].start: tile.window[axis].stop for tile in tiles}
        weights = _weights(windows, shape[axis], PROFILES[profile])
        end = min(shape[axis], max(windows.values(), default=0))
        pieces = _merge(pieces, axis, end, list(windows), weights)
    return pieces


def _clip(window: Window, values: NDArray[np.float32], shape: Sequence[int]) -> Piece:
    """A tile without what lies beyond the grid."""
    inside = tuple(slice(w.start, min(w.stop, length)) for w, length in zip(window, shape, strict=True))
    return inside, values[(slice(None), *(slice(0, i.stop - i.start) for i in inside))]


def _weights(
    windows: dict[int, int], length: int, profile: Callable[[int], NDArray[np.float64]]
) -> dict[int, NDArray[np.float32]]:
    """Weights of each window along an axis, by its start; at each pixel those of all windows sum to 1."""
    total, plain = np.zeros(length), {}
    for start, stop in windows.items():
        plain[start] = profile(stop - start)[: length - start]
        total[start:stop] += plain[start]
    return {start: (own / total[start : start + len(own)]).astype(np.float32) for start, own in plain.items()}


def _merge(
    pieces: Iterator[Piece], axis: int, end: int, starts: Sequence[int], weights: dict[int, NDArray[np.float32]]
) -> Iterator[Piece]:
    """Sum the weighted pieces that follow each other along an axis; a part is finished where no later one reaches it."""
    nexts = dict(zip(starts, [*starts[1:], end], strict=True))
    waiting: dict[tuple[tuple[int, int], ...], NDArray[np.float32]] = {}

    def part(first: int | None, last: int | None) -> tuple[slice, ...]:
        return (*[slice(None)] * (axis + 1), slice(first, last))

    for window, values in pieces:
        start = window[axis].start
        weight = weights[start].reshape(-1, *[1] * (values.ndim - axis - 2))
        values = values * weight
        place = tuple((w.start, w.stop) for i, w in enumerate(window) if i != axis)
        before = waiting.pop(place, None)
        if before is not None:
            values[part(0, before.shape[axis + 1])] += before
        finished = nexts[start] - start
        if nexts[start] < end:
            waiting[place] = values[part(finished, None)].copy()
        done = slice(start, nexts[start])
        yield (*window[:axis], done, *window[axis + 1 :]), values[part(0, finished)]
