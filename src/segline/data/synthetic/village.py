"""Where houses and streets of a village go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segline.data.synthetic.texture import Field


@dataclass
class Lot:
    """A rectangular building: centre, size and height in pixels, direction in radians."""

    row: float
    column: float
    angle: float
    length: float
    depth: float
    height: float
    roofs: NDArray[np.float64]
    flat: bool = False

    def window(self, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], Field, Field]:
        """The part of the grid around the lot, and there the coordinates along and across it."""
        reach = int(self.length + self.depth) // 2 + 12
        top, left = max(int(self.row) - reach, 0), max(int(self.column) - reach, 0)
        bottom, right = (
            max(min(int(self.row) + reach, shape[0]), top),
            max(min(int(self.column) + reach, shape[1]), left),
        )
        rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        along = (rows - self.row) * cos + (columns - self.column) * sin
        across = (columns - self.column) * cos - (rows - self.row) * sin
        return np.s_[top:bottom, left:right], along.astype(np.float32), across.astype(np.float32)


@dataclass
class Village:
    """A settlement on a main road: streets run along `angle`, houses stand on both sides."""

    row: float
    column: float
    angle: float
    radius: float
    block: float
    road_width: float
    roofs: NDArray[np.float64]

    def streets(self, along: Field, across: Field) -> NDArray[np.bool_]:
        """Where the streets beside the main road are, given coordinates along and across it."""
        bent = across + 0.0015 * along**2
        row = np.rint(bent / self.block)
        near = (np.abs(bent - self.block * row) < 1.15) & (row != 0)
        cross = np.abs(along - 74 * np.rint(along / 74 - 0.3) - 22) < 1.15
        return (near | cross) & (np.hypot(along, across) < self.radius)

    def houses(self, rng: np.random.Generator) -> Iterator[Lot]:
        """Houses in rows along the streets; a third of them touch the next."""
        for street in range(-int(self.radius / self.block), int(self.radius / self.block) + 1):
            for side in (-1, 1):
                along = -self.radius
                while along < self.radius:
                    length, depth = rng.uniform(4.5, 11), rng.uniform(4.5, 8)
                    across = street * self.block + side * (3.2 + depth / 2 + rng.uniform(0, 2)) - 0.0015 * along**2
                    inside = np.hypot(along, across) < self.radius * rng.uniform(0.75, 1.05)
                    if inside and rng.random() < 0.86:
                        cos, sin = np.cos(self.angle), np.sin(self.angle)
                        middle = along + length / 2
                        row, column = self.row + middle * cos - across * sin, self.column + middle * sin + across * cos
                        yield Lot(row, column, self.angle, length, depth, rng.uniform(2.5, 4.5), self.roofs)
                    along += length + (0.0 if rng.random() < 0.35 else rng.uniform(1.5, 7))


def villages(rng: np.random.Generator, shape: tuple[int, ...], dry: NDArray[np.bool_]) -> list[Village]:
    """One to three settlements on dry land, apart from each other."""
    found: list[Village] = []
    for _ in range(60):
        row, column = rng.uniform(0.12, 0.88, 2) * shape
        apart = all(np.hypot(row - other.row, column - other.column) > 130 for other in found)
        if (
            apart
            and dry[max(int(row) - 25, 0) : int(row) + 25, max(int(column) - 25, 0) : int(column) + 25].mean() > 0.9
        ):
            radius, block, width = rng.uniform(52, 88), rng.uniform(29, 34), rng.uniform(1.7, 2.3)
            found.append(
                Village(row, column, rng.uniform(0, np.pi), radius, block, width, rng.dirichlet([3, 2, 2, 2, 0.7, 0.7]))
            )
        if len(found) == 3:
            break
    return found


def halls(rng: np.random.Generator, shape: tuple[int, ...]) -> list[Lot]:
    """Farms and factories: a few large flat roofs anywhere."""
    return [
        Lot(row, column, angle, length, depth, height, roofs=np.full(6, 1 / 6), flat=True)
        for row, column, angle, length, depth, height in (
            (*(rng.uniform(0.06, 0.94, 2) * shape), *rng.uniform((0, 14, 9, 3), (np.pi, 34, 18, 6)))
            for _ in range(rng.integers(3, 8))
        )
    ]
