"""Statistics of bands, and bringing bands to zero mean and unit deviation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.io.source import Source, Window

_SCOPES = ("dataset", "case")


class BandStatistics:
    """Count, mean and deviation of each band; no-data (NaN) left out.

    Merging is exact for any split of the data (Chan, Golub and LeVeque 1979), and does not lose the deviation to a large mean.

    >>> a, b = BandStatistics(1), BandStatistics(1)
    >>> a.update(np.array([[1.0, 2.0]])); b.update(np.array([[3.0, np.nan]])); a.merge(b)
    >>> a.mean.tolist(), a.count.tolist()
    ([2.0], [3])
    """

    def __init__(self, num_bands: int) -> None:
        self.count = np.zeros(num_bands, np.int64)
        self.mean = np.zeros(num_bands)
        self.squares = np.zeros(num_bands)  # sum of squared deviations from the mean

    @property
    def std(self) -> NDArray[np.float64]:
        """Deviation of each band; 1 where a band is constant or empty, so that it can be divided by."""
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        # Below float32's resolution there is rounding only.
        return np.where(std > 1e-7 * np.abs(self.mean), std, 1.0)

    def update(self, values: NDArray[Any]) -> None:
        """Add pixels `[C, *S]`."""
        flat = values.reshape(len(values), -1).astype(np.float64)
        valid = ~np.isnan(flat)
        other = BandStatistics(len(values))
        other.count = valid.sum(1)
        filled = np.where(valid, flat, 0.0)
        other.mean = filled.sum(1) / np.maximum(other.count, 1)
        other.squares = (np.where(valid, flat - other.mean[:, None], 0.0) ** 2).sum(1)
        self.merge(other)

    def merge(self, other: BandStatistics) -> None:
        """Add what another one has seen."""
        total = self.count + other.count
        safe = np.maximum(total, 1)
        delta = other.mean - self.mean
        self.squares = self.squares + other.squares + delta**2 * self.count * other.count / safe
        self.mean = self.mean + delta * other.count / safe
        self.count = total

    def to_dict(self) -> dict[str, list[float]]:
        """Plain data."""
        return {name: getattr(self, name).tolist() for name in ("count", "mean", "squares")}

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> BandStatistics:
        """Back from plain data."""
        statistics = cls(len(data["count"]))
        for name, values in data.items():
            setattr(statistics, name, np.array(values, np.int64 if name == "count" else np.float64))
        return statistics


class Normalize:
    """Subtract the mean and divide by the deviation of each band; no-data becomes 0, the mean.

    Args:
        scope: `dataset` (one mean and deviation, of the training part) or `case` (each file's own, for uncalibrated intensities).
        mean: Of each band, for `dataset`.
        std: Of each band, for `dataset`.
    """

    def __init__(
        self, scope: str = "dataset", mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        if scope not in _SCOPES:
            raise ValueError(f"data.normalize is {scope!r}; expected one of {', '.join(_SCOPES)}")
        self.scope, self.mean, self.std = scope, mean, std

    def __call__(self, image: NDArray[np.float32], statistics: BandStatistics | None = None) -> NDArray[np.float32]:
        """Normalise `[C, *S]`; `statistics` are the case's own, and needed where the scope is the case."""
        if self.scope == "case":
            assert statistics is not None
            mean, std = statistics.mean, statistics.std
        else:
            assert self.mean is not None
            assert self.std is not None
            mean, std = np.asarray(self.mean), np.asarray(self.std)
        shape = (-1, *[1] * (image.ndim - 1))
        normal = image - mean.reshape(shape).astype(np.float32)
        normal /= std.reshape(shape).astype(np.float32)
        lost = np.isnan(normal)
        if lost.any():
            normal[lost] = 0.0
        return normal

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `Normalize(**data)` makes an equal object."""
        return {
            "scope": self.scope,
            "mean": None if self.mean is None else [float(v) for v in self.mean],
            "std": None if self.std is None else [float(v) for v in self.std],
        }


def strips(shape: tuple[int, ...], pixels: int = 2**22) -> list[Window]:
    """Windows that cover a grid in turn, each of about so many pixels; all start at multiples of 8 slices or 256 rows and columns."""
    if len(shape) == 3:
        step = max(8, pixels // (shape[1] * shape[2]) // 8 * 8)
        return [
            (slice(d, min(d + step, shape[0])), slice(0, shape[1]), slice(0, shape[2]))
            for d in range(0, shape[0], step)
        ]
    rows = max(256, pixels // max(shape[1], 1) // 256 * 256)
    columns = shape[1] if rows > 256 else max(256, pixels // 256)
    starts = product(range(0, shape[0], rows), range(0, shape[1], columns))
    return [(slice(r, min(r + rows, shape[0])), slice(c, min(c + columns, shape[1]))) for r, c in starts]


def measure(source: Source) -> BandStatistics:
    """Statistics of a whole source, read strip by strip."""
    statistics = BandStatistics(source.num_bands)
    for window in strips(source.shape):
        statistics.update(source.read(window))
    return statistics
