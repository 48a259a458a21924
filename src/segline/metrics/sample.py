"""An even sample of the pixels of a stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.labels import Labels


class PixelSample:
    """At most `size` pixels of a stream whose length is not known beforehand; each pixel is as likely as any other.

    Each pixel that counts draws a random key, and those of the least keys are kept. The same stream gives the same sample, however it
    is cut into pieces. Pixels that are ignored (for overlapping labels by every class) or have no probability (nan) never enter. The
    memory is that of a few samples.

    Args:
        labels: Scheme of the classes.
        size: How many pixels are kept.
        seed: Of the keys.

    Reference:
        Vitter, Random Sampling with a Reservoir (1985); by keys: Efraimidis and Spirakis (2006).
    """

    def __init__(self, labels: Labels, size: int = 2**20, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected a number of pixels, such as {2**20}")
        self.labels, self.size = labels, size
        self._rng = np.random.default_rng(seed)
        self._keys = np.empty(0)
        self._probs = np.empty((0, labels.num_classes), np.float32)
        self._mask = np.empty((0,) if labels.exclusive else (0, labels.num_classes), np.uint8)
        self._waiting: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._bar = math.inf  # keys from here on cannot be among the least any more

    def update(self, probs: NDArray[Any], mask: NDArray[Any]) -> None:
        """Offer the pixels of one piece.

        Args:
            probs: Probabilities `[K, *S]`.
            mask: `[*S]`, or `[K, *S]` for overlapping labels; 255 is ignored.
        """
        places = np.flatnonzero(self.labels.counted(mask) & ~np.isnan(probs).any(0))
        keys = self._rng.random(len(places))
        chosen = np.flatnonzero(keys < self._bar)
        chosen = chosen[_least(keys[chosen], self.size)]
        places, keys = places[chosen], keys[chosen]
        flat = probs.reshape(len(probs), -1)[:, places].T.astype(np.float32)
        planes = mask.reshape(self.labels.num_planes, -1)[:, places].T.astype(np.uint8)
        self._waiting.append((keys, flat, planes[:, 0] if self.labels.exclusive else planes))
        if sum(len(part[0]) for part in self._waiting) > self.size // 2:
            self._cut()

    def _cut(self) -> None:
        """Join what waits, and keep the least keys, in the order in which they came."""
        if self._waiting:
            parts = [(self._keys, self._probs, self._mask), *self._waiting]
            keys, probs, mask = (np.concatenate(column) for column in zip(*parts, strict=True))
            kept = _least(keys, self.size)
            self._keys, self._probs, self._mask = keys[kept], probs[kept], mask[kept]
            self._waiting = []
            if len(kept) == self.size:
                self._bar = float(self._keys.max())

    @property
    def probs(self) -> NDArray[np.float32]:
        """Probabilities of the sampled pixels, `[N, K]`."""
        self._cut()
        return self._probs

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Their truth, `[N]`, or `[N, K]` for overlapping labels; 255 is ignored."""
        self._cut()
        return self._mask


def _least(keys: NDArray[np.float64], size: int) -> NDArray[np.intp]:
    """Places of the least keys, at most so many, in ascending order of places."""
    if len(keys) <= size:
        return np.arange(len(keys))
    return np.sort(np.argpartition(keys, size - 1)[:size])
