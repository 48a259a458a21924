"""What every file looks like to the rest: a grid with bands, read window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segline.labels import IGNORE_INDEX

#: Part of a grid, one slice an axis, `(rows, columns)` or `(slices, rows, columns)`; start and stop are pixels of the whole
#: grid and may lie outside of it where `read_padded` is used.
Window = tuple[slice, ...]


#: Rows of a matrix that takes (column, row, 1) or (x, y, z, 1) to the world.
Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Geometry:
    """Where a grid lies in the world.

    Args:
        affine: World coordinates of pixel indices, row by row; None for photographs. Indices run in the order of the formats, which
            is `*S` reversed: of rasters (column, row) of a pixel's corner, 3 x 3; of volumes (x, y, z) of a voxel's centre, 4 x 4.
        crs: Coordinate reference system as WKT; None where there is none.
        spacing: Size of a pixel along each axis of `*S`: mm for volumes, units of the CRS for rasters; None for photographs.
    """

    affine: Affine | None = None
    crs: str | None = None
    spacing: tuple[float, ...] | None = None


class Source(Protocol):
    """An image of any format, read by windows."""

    path: Path
    shape: tuple[int, ...]
    num_bands: int
    geometry: Geometry

    def read(self, window: Window) -> NDArray[np.float32]:
        """The pixels of a window inside the grid, `[C, *window]`; NaN where there is no data."""
        ...


class MaskSource(Protocol):
    """A mask of any format, encoded by the labels, read by windows."""

    path: Path
    shape: tuple[int, ...]
    geometry: Geometry

    def read(self, window: Window) -> NDArray[np.uint8]:
        """The mask of a window inside the grid: `[*window]` or, for overlapping labels, `[K, *window]`; 255 is ignored."""
        ...


class Block:
    """A part of a source or a mask, as one of its own.

    Args:
        whole: What it is a part of.
        block: Which part.
    """

    def __init__(self, whole: Source | MaskSource, block: Window) -> None:
        self.whole, self.block = whole, block
        self.path = whole.path
        self.shape = tuple(b.stop - b.start for b in block)
        self.geometry = Geometry(_shifted(whole.geometry.affine, block), whole.geometry.crs, whole.geometry.spacing)
        self.num_bands = getattr(whole, "num_bands", 0)

    def read(self, window: Window) -> NDArray[Any]:
        """The pixels of a window inside the block."""
        return self.whole.read(
            tuple(slice(b.start + w.start, b.start + w.stop) for b, w in zip(self.block, window, strict=True))
        )


def _shifted(affine: Affine | None, block: Window) -> Affine | None:
    """Where a block lies, by where the whole does."""
    if affine is None:
        return None
    start = [b.start for b in reversed(block)]  # affines take (column, row) or (x, y, z)
    moved = [row[-1] + sum(a * s for a, s in zip(row, start, strict=False)) for row in affine[:-1]]
    return (*((*row[:-1], at) for row, at in zip(affine[:-1], moved, strict=True)), affine[-1])


def say_size(shape: Sequence[int]) -> str:
    """`[256, 320]` as `256 x 320`."""
    return " x ".join(map(str, shape))


def whole(shape: tuple[int, ...]) -> Window:
    """The window that is the whole grid."""
    return tuple(slice(0, size) for size in shape)


def read_padded(source: Source | MaskSource, window: Window) -> NDArray[Any]:
    """Read a window that may reach beyond the grid; outside lie NaN (images) or ignored pixels (masks)."""
    inside, pads = [], []
    for w, size in zip(window, source.shape, strict=True):
        start, stop = (min(max(end, 0), size) for end in (w.start, w.stop))
        before = min(max(-w.start, 0), w.stop - w.start)
        inside.append(slice(start, stop))
        pads.append((before, w.stop - w.start - before - (stop - start)))
    values = source.read(tuple(inside))
    if not any(before or after for before, after in pads):
        return values
    fill = np.nan if values.dtype.kind == "f" else IGNORE_INDEX
    pads = [(0, 0)] * (values.ndim - len(pads)) + pads
    return np.pad(values, pads, constant_values=fill)
