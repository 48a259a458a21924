"""Tiled prediction: a callable from arrays to arrays, over a source of any size, as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from segline.inference.blend import Piece, blend
from segline.io.source import Source, Window, read_padded, whole
from segline.tiling import Tile, tiles

#: A network to this module: images `[B, C, *S]` -> logits or probabilities `[B, K, *S]`, float32 both.
Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
#: Makes of an image as it was read, `[C, *S]` with nan where there is no data, what the network takes.
Prepare = Callable[[NDArray[np.float32]], NDArray[np.float32]]
#: Images of a batch, and where each of them has no data.
_Batch = tuple[NDArray[np.float32], NDArray[np.bool_]]
#: Batches that are read while the network computes.
_AHEAD = 2


def predict_tiles(
    network: Network,
    source: Source,
    prepare: Prepare,
    window: Sequence[int],
    margin: Sequence[int],
    batch_size: int = 4,
    *,
    within: Window | None = None,
    profile: str | None = None,
    multiple: Sequence[int] | None = None,
    alone: bool = False,
) -> Iterator[Piece]:
    """Yield what the network says, piece by piece: `[K, *piece]` with the piece's place; together they cover the source once.

    Where the source has no data it is nan. The next batches are read while the network computes. Pieces come row by row: none starts
    before the one before it along the first axis.

    Args:
        network: What predicts.
        source: What is read, tile by tile.
        prepare: Normalises, as in training.
        window: Size of a tile, `*S`.
        margin: Context at each inner border of a tile, `*S`; with a `profile` half of what two tiles overlap.
        batch_size: Tiles a call of the network.
        within: Only this part of the source, from the tiles that it needs; None for all.
        profile: How overlapping tiles are blended, `linear` or `gaussian`; None: each tile's core is taken.
        multiple: As in `segline.tiling.tiles`.
        alone: Ask of a last tile by itself, which is quicker; else it is asked twice, so that CPUs round as for any other.
    """
    part = within or whole(source.shape)
    grid = tiles(source.shape, tuple(window), tuple(margin), multiple)
    needed = [(tile.window if profile else tile.core, tile) for tile in grid]
    grid = [tile for place, tile in needed if all(_meet(p, w) for p, w in zip(place, part, strict=True))]

    def read(batch: Sequence[Tile]) -> _Batch:
        images = [read_padded(source, tile.window) for tile in batch]
        lost = np.stack([np.isnan(image).all(0) for image in images])
        return np.stack([prepare(image) for image in images]), lost

    said = _apply(network, read, grid, batch_size, pair=batch_size > 1 and not alone)
    pieces = blend(grid, said, source.shape, profile) if profile else _cores(grid, said)
    return (clipped for piece in pieces if (clipped := _clip(piece, part)) is not None)


def _cores(grid: Sequence[Tile], said: Iterator[NDArray[np.float32]]) -> Iterator[Piece]:
    return ((tile.core, values[(slice(None), *tile.inner)]) for tile, values in zip(grid, said, strict=True))


def _clip(piece: Piece, part: Window) -> Piece | None:
    """What of a piece lies in a part of the grid; None where nothing does."""
    place, values = piece
    inside = tuple(slice(max(p.start, w.start), min(p.stop, w.stop)) for p, w in zip(place, part, strict=True))
    if any(i.start >= i.stop for i in inside):
        return None
    return inside, values[
        (slice(None), *(slice(i.start - p.start, i.stop - p.start) for i, p in zip(inside, place, strict=True)))
    ]


def _apply(
    network: Network, read: Callable[[Sequence[Tile]], _Batch], grid: Sequence[Tile], batch_size: int, pair: bool
) -> Iterator[NDArray[np.float32]]:
    """What the network says of each tile; of tiles without any data it is not asked, once it is known how many values it gives."""
    pending: deque[Future[_Batch]] = deque()
    num_outputs: int | None = None
    with ThreadPoolExecutor(1, "read") as reader:  # one: files are not read by several threads at once
        batches = _batches(grid, batch_size)
        while True:
            while len(pending) < _AHEAD and (batch := next(batches, None)):
                pending.append(reader.submit(read, batch))
            if not pending:
                return
            images, lost = pending.popleft().result()
            asked = ~lost.reshape(len(lost), -1).all(1)
            if num_outputs is None or asked.all():
                said = _ask(network, images, pair)
                num_outputs = said.shape[1]
            else:
                said = np.full((len(images), num_outputs, *images.shape[2:]), np.nan, np.float32)
                if asked.any():
                    said[asked] = _ask(network, images[asked], pair)
            for values, hole in zip(said, lost, strict=True):
                if hole.any():
                    values[:, hole] = np.nan
                yield values


def _ask(network: Network, images: NDArray[np.float32], pair: bool) -> NDArray[np.float32]:
    """What the network says, the same whoever shares the batch: of one image alone CPUs round the sums in another order."""
    if pair and len(images) == 1:
        return network(np.repeat(images, 2, 0))[:1]
    return network(images)


def _batches(grid: Sequence[Tile], batch_size: int) -> Iterator[list[Tile]]:
    """Tiles in their order, those of one size together."""
    for _, same in groupby(grid, key=lambda tile: [w.stop - w.start for w in tile.window]):
        group = list(same)
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


def _meet(one: slice, other: slice) -> bool:
    return bool(one.start < other.stop and other.start < one.stop)
