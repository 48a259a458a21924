"""How files are cut into tiles: sizes, overlaps and batches, by what was trained, what is asked for and what memory there is."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segline.inference.blend import PROFILES
from segline.inference.ensemble import Ensemble
from segline.inference.field import measure_margin
from segline.machine import available, peak_of

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
    multiple: list[int] | None = None


class Room:
    """What of a network fits the memory, measured once.

    Args:
        network: On its device. On a GPU everything is taken to fit: what does not is computed by halves.
    """

    def __init__(self, network: Ensemble) -> None:
        self.network, self.on_cpu = network, network.members[0].device == "cpu"
        # Half of what is free, for the processes that share the work of a call.
        self.bytes = 0.5 * available() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def window(self) -> list[int]:
        """The window of validation, halved along all axes until one of it fits."""
        trained = self.network.card.window
        size = list(trained)
        while self.on_cpu and self._needed * math.prod(size) > self.bytes and min(size) > _PROBE[len(size)]:
            size = [s // 2 for s in size]
        if size != trained:
            print(
                f"window {size} instead of {trained}, which {self.bytes / 1e9:.1f} GB of memory do not hold; set window= to choose"
            )
        return size

    def batch_size(self, window: Sequence[int]) -> int:
        """Tiles a call: a few, for more make a CPU no faster; less where they don't fit."""
        if not self.on_cpu:
            return _ON_GPU
        return int(np.clip(self.bytes // (self._needed * math.prod(window)), 1, _ON_CPU))

    @cached_property
    def _needed(self) -> float:
        """Bytes for each pixel of a window, measured by how much more a larger one takes than a smaller one."""
        dims, bands = len(self.network.card.window), self.network.num_bands
        small, large = (np.zeros((1, bands, *[edge] * dims), np.float32) for edge in (_PROBE[dims] // 2, _PROBE[dims]))
        self.network(small)  # what is made at the first call, and what is freed and kept for the next one
        more = (large.size - small.size) / bands
        return max(peak_of(lambda: self.network(large)) / more, large.itemsize * bands)


def choose_tiling(
    network: Ensemble, blend: str, window: Sequence[int] | None, overlap: float | None, room: Room | None = None
) -> Tiling:
    """Sizes of tiles and of what they overlap.

    Args:
        network: In float32 for `exact`.
        blend: One of `BLENDS`.
        window: Size of a tile; None: that of validation, halved until it fits the memory.
        overlap: Share of a window that the next one overlaps; None: that of validation, and for weighted means one half.
        room: What fits the memory; None takes the window of validation to fit.

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
    size = list(window or (room.window() if room else card.window))
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
    multiple = [_filled_to(network, len(trained), stride, axis) for axis in range(len(trained))]
    if math.lcm(*multiple) != stride:
        raise ValueError(
            f"blend=exact needs a network that fills images up with zeros to multiples of its stride, {stride}, and this one does "
            "otherwise at their far ends, as by mirroring; set blend=gaussian"
        )
    margin = measure_margin(network, network.num_bands, len(trained), stride)
    if window is None:
        size = [-(-w // stride) * stride + 2 * m for w, m in zip(trained, margin, strict=True)]
        return Tiling(size, margin, multiple=multiple)
    if any(w % stride or w <= 2 * m for w, m in zip(window, margin, strict=True)):
        raise ValueError(
            f"window is {list(window)}, but this network needs {margin} pixels of context at each side and multiples of {stride}: "
            f"set window={[2 * m + stride for m in margin]} or larger"
        )
    return Tiling(list(window), margin, multiple=multiple)


def _filled_to(network: Ensemble, spatial_dims: int, stride: int, axis: int) -> int:
    """To multiples of what an axis can be filled up by hand, as tiles at the far ends are, and the image gives the same.

    The stride itself, or a divisor of it where a network strides less along this axis than along others.
    """
    edge = 2 * stride + 1
    shape = (1, network.num_bands, *[edge] * spatial_dims)
    images: NDArray[np.float32] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    said = network(images)
    for size in (n for n in range(stride, 1, -1) if stride % n == 0):
        pads = [(0, size - 1 if i == axis + 2 else 0) for i in range(spatial_dims + 2)]
        inside = network(np.pad(images, pads)).take(range(edge), axis + 2)
        if np.allclose(inside, said, rtol=0, atol=1e-4):
            return size
    return 1
