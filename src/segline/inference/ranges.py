"""Whether the values of a file are of the range that a network has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from segline.card import Card
from segline.io.normalize import BandStatistics
from segline.io.source import Source, Window

#: Windows that are looked at along each axis, and their edge, by the number of axes.
_LOOKS = {2: (4, 64), 3: (2, 32)}
#: The unit must be another where all bands' largest value is so small a part of the learnt deviation, or their deviation so many
#: times as large. A dark and flat photograph reaches a third of it, 0..1 for 0..255 a fiftieth.
_SMALL, _LARGE = 1 / 20, 20
#: How many deviations a band's mean may lie away.
_FAR = 10
#: Bands that are told one by one.
_TOLD = 4


def doubt_range(source: Source, card: Card) -> str | None:
    """What to warn of where a thin sample of a file is far from what was learnt; None where it is not, or where nothing can be said.

    Nothing is said of files that are normalised by their own statistics, and of no data. Of a flat image only the mean is judged: it
    may well be water or night.

    Args:
        source: As the network takes it.
        card: Of the network.
    """
    if card.normalize["scope"] != "dataset":
        return None
    found = BandStatistics(source.num_bands)
    peak = np.zeros(source.num_bands)
    for window in sample(source.shape):
        values = source.read(window)
        found.update(values)
        peak = np.fmax(peak, np.fmax.reduce(np.abs(values).reshape(len(values), -1), 1))
    seen = found.count > 0
    if not seen.any():
        return None
    mean, std = (np.asarray(card.normalize[name], float) for name in ("mean", "std"))
    spread = np.sqrt(found.squares / np.maximum(found.count, 1))
    ratio = (spread / std)[seen]
    small = bool((ratio > 0).any() and (peak < _SMALL * std)[seen].all())
    unit = small or bool((ratio > _LARGE).all())
    if not unit and (np.abs(found.mean - mean)[seen] <= _FAR * std[seen]).all():
        return None
    scaled = f" by about {_short(float(np.median(1 / ratio[ratio > 0])), 2)}" if unit else ""
    trained = f" ({card.trained_on})" if card.trained_on else ""
    return (
        f"{source.path} has bands of mean {_say(found.mean)} and deviation {_say(spread)}, but the network has learnt {_say(mean)} "
        f"and {_say(std)}{trained}, so that its mask may be worthless; scale the values{scaled}, or train with data.normalize=case"
    )


def sample(shape: Sequence[int]) -> list[Window]:
    """A few small windows that are evenly spread over a grid, each once.

    >>> len(sample((1000, 1000))), len(sample((64, 1000))), sample((9, 8))
    (16, 4, [(slice(0, 9, None), slice(0, 8, None))])
    """
    count, edge = _LOOKS[len(shape)]
    axes = [sorted({round(k * max(size - edge, 0) / (count - 1)) for k in range(count)}) for size in shape]
    return [
        tuple(slice(start, min(start + edge, size)) for start, size in zip(starts, shape, strict=True))
        for starts in product(*axes)
    ]


def _say(values: NDArray[np.float64]) -> str:
    more = ["..."] if len(values) > _TOLD else []
    return ", ".join([*(_short(v, 3) for v in values[:_TOLD]), *more])


def _short(value: float, digits: int) -> str:
    """A number of a few digits, up to a million without an exponent."""
    return f"{float(f'{value:.{digits}g}'):g}"
