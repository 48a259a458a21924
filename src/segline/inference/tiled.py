"""Tiled prediction: a callable from arrays to arrays, over a source of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from segline.io.normalize import BandStatistics, Normalize
from segline.io.source import Source, Window, read_padded
from segline.tiling import tiles

#: A network to this module: images `[B, C, *S]` -> logits `[B, K, *S]`, float32 both.
Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def predict_tiles(
    network: Network,
    source: Source,
    normalize: Normalize,
    statistics: BandStatistics | None,
    window: Sequence[int],
    margin: Sequence[int],
    batch_size: int = 4,
    within: Window | None = None,
) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Yield the logits `[K, *core]` of each tile's core, with the core's place in the source; together they cover it once.

    Args:
        network: What predicts.
        source: What is read, tile by tile.
        normalize: As in training.
        statistics: Of this source's bands, where `normalize` goes by the case.
        window: Size of a tile, `*S`.
        margin: Context at each inner border of a tile, `*S`.
        batch_size: Tiles a call of the network.
        within: Only the tiles whose cores meet this part of the source; None for all.
    """
    grid = tiles(source.shape, tuple(window), tuple(margin))
    if within is not None:
        grid = [tile for tile in grid if all(_meet(c, w) for c, w in zip(tile.core, within, strict=True))]
    for start in range(0, len(grid), batch_size):
        batch = grid[start : start + batch_size]
        images = np.stack([normalize(read_padded(source, tile.window), statistics) for tile in batch])
        for tile, logits in zip(batch, network(images), strict=True):
            yield tile.core, logits[(slice(None), *tile.inner)]


def _meet(one: slice, other: slice) -> bool:
    return bool(one.start < other.stop and other.start < one.stop)
