"""How files are cut into tiles: sizes, overlaps and batches, by what was trained, what is asked for and what memory there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segline.inference.blend import PROFILES
from segline.inference.ensemble import Ensemble
from segline.inference.field import measure_margin
from segline.memory import available, peak_of

BLENDS = ("cores", *PROFILES, "exact")
#: Tiles a call of the network, at most.
_ON_CPU, _ON_GPU = 4, 16
#: Edge of the window that memory is measured on, by the number of axes.
_PROBE = {2: 128, 3: 32}


@dataclass(frozen=True)
class Tiling:
    """How a source is cut into tiles and put together again; the arguments of `predict_tiles`."""

    window: list[int]
    margin: list[int]
    profile: str | None = None
    multiple: int | None = None


def choose_tiling(network: Ensemble, blend: str, window: Sequence[int] | None, overlap: float | None) -> Tiling:
    """Sizes of tiles and of what they overlap.

    Args:
        network: In float32 for `exact`.
        blend: One of `BLENDS`.
        window: Size of a tile; None: that of training, halved until it fits the memory.
        overlap: Share of a window that the next one overlaps; None: that of validation, and for weighted means one half.

    Raises:
        ValueError: A way that does not exist or that the network cannot go, or a window too small for it.
    """
    card = network.card
    if blend not in BLENDS:
        raise ValueError(f"blend is {blend!r}; expected one of {', '.join(BLENDS)}")
    if window is not None and (len(window) != len(card.window) or min(window) < 1):
        raise ValueError(f"window is {list(window)}; expected {len(card.window)} sizes, such as {card.window}")
    if blend == "exact":
        return _exact(network, window, overlap)
    if overlap is not None and not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; expected a share of the window from 0 to less than 1")
    size = _fitting(network) if window is None else list(window)
    if overlap is None and blend == "cores" and size == card.window:
        return Tiling(size, card.margin)
    if overlap is None:  # the share that validation has, or a half
        trained = [2 * m / w for m, w in zip(card.margin, card.window, strict=True)]
        shares = trained if blend == "cores" else [0.5] * len(size)
    else:
        shares = [overlap] * len(size)
    margin = [min(round(w * share / 2), (w - 1) // 2) for w, share in zip(size, shares, strict=True)]
    return Tiling(size, margin, None if blend == "cores" else blend)


def _exact(network: Ensemble, window: Sequence[int] | None, overlap: float | None) -> Tiling:
    stride, trained = network.stride, network.card.window
    if stride is None:
        raise ValueError("blend=exact needs a network that says its total stride by `stride`; set blend=gaussian")
    if overlap is not None:
        raise ValueError("blend=exact measures what tiles must overlap; leave overlap out, or set blend=gaussian")
    margin = measure_margin(network, network.num_bands, len(trained), stride)
    if window is None:
        size = [-(-w // stride) * stride + 2 * m for w, m in zip(trained, margin, strict=True)]
        return Tiling(size, margin, multiple=stride)
    if any(w % stride or w <= 2 * m for w, m in zip(window, margin, strict=True)):
        raise ValueError(
            f"window is {list(window)}, but this network needs {margin} pixels of context at each side and multiples of {stride}: "
            f"set window={[2 * m + stride for m in margin]} or larger"
        )
    return Tiling(list(window), margin, multiple=stride)


# What fits the memory


def choose_batch_size(network: Ensemble, window: Sequence[int]) -> int:
    """Tiles a call: a few, for more make a CPU no faster; less where they don't fit the memory. On a GPU what doesn't fit is split."""
    if network.members[0].device != "cpu":
        return _ON_GPU
    return int(np.clip(_share() // (_bytes_a_pixel(network) * math.prod(window)), 1, _ON_CPU))


def _fitting(network: Ensemble) -> list[int]:
    """The window of training, halved along all axes until one of it fits the memory."""
    size, card = list(network.card.window), network.card
    if network.members[0].device != "cpu":
        return size
    needed = _bytes_a_pixel(network)
    while needed * math.prod(size) > _share() and min(size) > _PROBE[len(size)]:
        size = [s // 2 for s in size]
    if size != card.window:
        print(
            f"window {size} instead of {card.window}, which {_share() / 1e9:.1f} GB of memory do not hold; set window= to choose"
        )
    return size


def _share() -> float:
    """Bytes that the network may take of what there is."""
    return 0.5 * available()


def _bytes_a_pixel(network: Ensemble) -> float:
    """Memory that the network takes for each pixel of a window, measured by how much more a larger one takes."""
    dims = len(network.card.window)
    small, large = (
        np.zeros((1, network.num_bands, *[edge] * dims), np.float32) for edge in (_PROBE[dims] // 2, _PROBE[dims])
    )
    network(small)  # what is made at the first call, and what is freed and kept for the next one
    more = (large.size - small.size) / network.num_bands
    return max(peak_of(lambda: network(large)) / more, large.itemsize * network.num_bands)
