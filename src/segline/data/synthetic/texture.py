"""Random fields, cells and curves: what the scenes are painted with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from scipy.spatial import cKDTree

Field = NDArray[np.float32]


def fractal(rng: np.random.Generator, shape: Sequence[int], scale: ArrayLike, smoothness: float = 0.9) -> Field:
    """Cloudy noise of mean 0 and standard deviation 1, with structure from a wavelength of `scale` pixels downwards.

    Args:
        rng: Where the noise comes from.
        shape: Of the field, any rank.
        scale: Longest wavelength in pixels, one for all axes or one an axis (streaks).
        smoothness: Amplitudes fall with frequency to the power of twice this: 0.5 is rough, 1.5 is silk.
    """
    scales = np.broadcast_to(np.asarray(scale, np.float32), (len(shape),))
    axes = [fft.fftfreq(size) for size in shape[:-1]] + [fft.rfftfreq(shape[-1])]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    falloff = (1 + sum(np.square(s * f) for s, f in zip(scales, grid, strict=True))) ** -smoothness
    field = fft.irfftn(fft.rfftn(rng.standard_normal(shape, np.float32)) * falloff, s=tuple(shape))
    return ((field - field.mean()) / field.std()).astype(np.float32)


def scattered(
    rng: np.random.Generator, size: Sequence[float], step: float, jitter: float = 0.45
) -> NDArray[np.float64]:
    """Points about `step` apart that cover a box of `size` and one step around it, `[N, rank]`."""
    axes = [np.arange(-step, length + 2 * step, step) for length in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(size))
    return grid + rng.uniform(-jitter, jitter, grid.shape) * step


def cells(points: NDArray[np.float64], at: NDArray[np.floating]) -> tuple[NDArray[np.intp], Field, Field]:
    """Voronoi cells: whose cell each place is in, how far its seed is, and how far the border.

    Args:
        points: Seeds of the cells, `[N, rank]`.
        at: Places, `[*S, rank]`.

    Returns:
        Nearest and second nearest seed `[*S, 2]`, distance to the nearest `[*S]`, distance to the border `[*S]`.
    """
    distance, index = map(np.asarray, cKDTree(points).query(at, k=2))
    apart = np.linalg.norm(points[index[..., 0]] - points[index[..., 1]], axis=-1)
    border = (distance[..., 1] ** 2 - distance[..., 0] ** 2) / (2 * apart)
    return index, distance[..., 0].astype(np.float32), border.astype(np.float32)


def turned(rows: Field, columns: Field, angle: float) -> tuple[Field, Field]:
    """Coordinates along and across a direction, `angle` radians from the row axis's downward direction."""
    along = rows * np.float32(np.cos(angle)) + columns * np.float32(np.sin(angle))
    across = columns * np.float32(np.cos(angle)) - rows * np.float32(np.sin(angle))
    return along, across


def curve_distance(rng: np.random.Generator, along: Field, across: Field, swing: float, wavelength: float) -> Field:
    """Signed distance to a meandering curve that follows the `along` axis, good near the curve."""
    offset, slope = np.zeros_like(along), np.zeros_like(along)
    for octave in range(3):
        k = 2 * np.pi * 2**octave / (wavelength * rng.uniform(0.8, 1.25))
        size, phase = swing * rng.uniform(0.6, 1) / 2.2**octave, rng.uniform(0, 2 * np.pi)
        offset += (size * np.sin(k * along + phase)).astype(np.float32)
        slope += (size * k * np.cos(k * along + phase)).astype(np.float32)
    return ((across - offset) / np.sqrt(1 + slope**2)).astype(np.float32)
