"""Tiles of a grid: which window is read, and which part of it counts. Pure functions of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Tile:
    """One window and the part of it that is kept, in pixels of the whole grid.

    Args:
        window: What is read; where the grid is smaller it reaches beyond its far end.
        core: What is kept; within the grid, and within the window.
    """

    window: tuple[slice, ...]
    core: tuple[slice, ...]

    @property
    def inner(self) -> tuple[slice, ...]:
        """The core in pixels of the window."""
        return tuple(slice(c.start - w.start, c.stop - w.start) for c, w in zip(self.core, self.window, strict=True))


def tiles(
    shape: Sequence[int], window: Sequence[int], margin: Sequence[int], multiple: Sequence[int] | None = None
) -> list[Tile]:
    """Cut a grid into tiles whose cores cover it, each pixel once.

    Windows start at 0 and step by the window less both margins; the last one ends with the grid, so that a border of the grid is
    one of a window, as in training. A core is its window without the margin, except at the borders of the grid.

    With `multiple`, a network's total stride along each axis, every window lies on the network's own grid, if the sizes are its
    multiples, and the last ones end where such a network pads the whole grid to.

    Raises:
        ValueError: The margins leave nothing of the window.

    >>> [(t.window[0].start, t.core[0].start, t.core[0].stop) for t in tiles([9], [6], [1])]
    [(0, 0, 5), (3, 5, 9)]
    """
    if any(m < 0 or 2 * m >= w for w, m in zip(window, margin, strict=True)):
        raise ValueError(
            f"a margin of {list(margin)} leaves nothing of a window of {list(window)}; expected less than half of it"
        )
    ends: Sequence[int | None] = multiple or [None] * len(shape)
    axes = [_axis(*sizes) for sizes in zip(shape, window, margin, ends, strict=True)]
    return [Tile(tuple(w for w, _ in place), tuple(c for _, c in place)) for place in product(*axes)]


def _axis(size: int, window: int, margin: int, multiple: int | None) -> list[tuple[slice, slice]]:
    """Windows and cores along one axis."""
    step = window - 2 * margin
    count = 1 if size <= window else 1 + -(-(size - window) // step)
    starts = [i * step for i in range(count)]
    if multiple is None:
        starts[-1] = max(size - window, 0)
    places, kept = [], 0
    for start in starts:
        end = start + window if multiple is None else min(start + window, -(-size // multiple) * multiple)
        last = start == starts[-1]
        core = slice(kept, size if last else start + window - margin)
        places.append((slice(start, end), core))
        kept = core.stop
    return places
