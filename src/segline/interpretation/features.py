"""Feature maps of any network, met by hooks while it runs: no architecture is known by name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_STRIDED = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)


@dataclass(frozen=True)
class FeatureMap:
    """What a module makes of an image.

    Args:
        name: Of the module.
        values: `[C, *S]`.
        step: Pixels of the image that a value stands for, along each axis.
        start: Where in the image the first value begins, along each axis; negative where the network has padded the image.
    """

    name: str
    values: Tensor
    step: tuple[float, ...]
    start: tuple[float, ...]


@dataclass(frozen=True)
class _Visit:
    """A module that gave a map of features, in the order in which they ran."""

    name: str
    step: tuple[float, ...]


class Anatomy:
    """Where the levels of a network are, found by letting it run once.

    A level is what the network holds between two changes of resolution. It is shown by its last block: a module with others inside, one of
    them a convolution of more than a pixel; where it has none, by its last layer. Of each resolution there are two levels at most, the last
    one before the coarsest and the last one behind it. The head, which is the last convolution, and what is coarser than the total
    stride, as pooled context, are no levels.

    Args:
        network: In evaluation mode.
        image: `[1, C, *S]`, normalised.
        stride: Total stride of the network; None where it is not known.

    Attributes:
        first: Name of the first convolution that ran; None where there was none.
        levels: Names of modules, in the order in which they ran.

    Raises:
        ValueError: Nothing inside the network gives a feature map.
    """

    def __init__(self, network: nn.Module, image: Tensor, stride: int | None) -> None:
        self.network, self.image = network, image
        self.first: str | None = None
        self._last: str | None = None
        self._padded = image
        visits = self._run()
        if not visits:
            raise ValueError(f"{type(network).__name__} has no feature maps; expected a network of convolutions")
        self._steps = {visit.name: visit.step for visit in visits}
        #: Of what went into the network: the image, or more where it is padded.
        self._size = tuple(map(max, self._padded.shape[2:], image.shape[2:]))
        self._before = _find(image, self._padded)
        self.levels = self._levels([v for v in visits if stride is None or max(v.step) <= stride] or visits)

    @property
    def coarsest(self) -> str:
        """The level of the lowest resolution, the first of equals."""
        return max(self.levels, key=lambda name: math.prod(self._steps[name]))

    def maps(self, names: Sequence[str]) -> list[FeatureMap]:
        """What modules that ran make of the image."""
        found: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
            if name in names:
                found[name] = output[0].float().clone()  # what follows may work in place

        with hooked(self.network, keep), torch.no_grad():
            self.network(self.image)
        return [FeatureMap(name, found[name], *self.place(name, found[name].shape[1:])) for name in names]

    def place(self, name: str, size: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Step and start of a map: it lies centred on what went into the network, for what valid convolutions take, they take evenly."""
        step = self._steps[name]
        return step, tuple((p - n * s) / 2 - self._before for p, n, s in zip(self._size, size, step, strict=True))

    def over(self, name: str, values: Tensor) -> FeatureMap:
        """A map `[C, *S]` that lies over all of what went into the network."""
        step = tuple(p / n for p, n in zip(self._size, values.shape[1:], strict=True))
        return FeatureMap(name, values, step, tuple(-float(self._before) for _ in step))

    def check(self, layer: str) -> None:
        """Refuse a layer that gives no feature map.

        Raises:
            ValueError: There is none of this name, or it gives something else.
        """
        if layer not in self._steps:
            there = layer in dict(self.network.named_modules())
            raise ValueError(
                f"layer is {layer!r}, {'which gives no feature map' if there else 'but the network has no such module'}; "
                f"expected one of its levels, {', '.join(self.levels)}, or another module by its dotted name"
            )

    def _run(self) -> list[_Visit]:
        visits: list[_Visit] = []
        scale = _Scale(self.image)

        def note(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(module, _CONVOLUTIONS):
                if self.first is None:
                    self.first, self._padded = name, arguments[0].detach()
                self._last = name
            if _is_map(output, self.image):
                visits.append(_Visit(name, scale.step(module, arguments, tuple(output.shape[2:]))))

        with hooked(self.network, note), torch.no_grad():
            self.network(self.image)
        return visits

    def _levels(self, visits: Sequence[_Visit]) -> list[str]:
        names = [visit.name for visit in visits]
        called = Counter(names)
        head = names.index(self._last) if self._last is not None and self._last in names else len(names)
        body = [
            v for v in visits[:head] if called[v.name] == 1 and not f"{self._last}.".startswith(f"{v.name}.")
        ] or list(visits[: head + 1])
        coarsest = max(math.prod(v.step) for v in body)
        bottom = next(i for i, v in enumerate(body) if math.prod(v.step) == coarsest)
        found: dict[Any, str] = {}
        for is_block in (False, True):  # blocks take the place of layers
            for i, visit in enumerate(body):
                if not is_block or self._is_block(visit.name):
                    found[i >= bottom, visit.step] = visit.name
        return sorted(found.values(), key=names.index)

    def _is_block(self, name: str) -> bool:
        inside = list(self.network.get_submodule(name).modules())
        return len(inside) > 1 and any(isinstance(m, _CONVOLUTIONS) and m.weight[0, 0].numel() > 1 for m in inside)


@contextmanager
def hooked(network: nn.Module, hook: Callable[[str, nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Call `hook(name, module, arguments, output)` behind every module inside a network; what it returns takes the output's place."""
    handles = [m.register_forward_hook(partial(hook, name)) for name, m in network.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_map(output: Any, image: Tensor) -> bool:
    """Whether an output is a map of features over the image: neither tokens, nor pooled to a single value, nor with channels last."""
    if not (isinstance(output, Tensor) and output.is_floating_point() and output.ndim == image.ndim):
        return False
    if len(output) != 1 or max(output.shape[2:]) == 1:
        return False
    rows, columns = (have / now for have, now in zip(image.shape[-2:], output.shape[-2:], strict=True))
    return max(rows, columns) <= 2 * min(rows, columns)


class _Scale:
    """What a value of a map stands for, followed from module to module: valid convolutions leave no exact shares of the image's size."""

    def __init__(self, image: Tensor) -> None:
        self.axes = image.ndim - 2
        self.image = self.last = tuple(image.shape[2:])
        #: Sizes of maps, and what a value of the latest map of that size stands for.
        self.seen: dict[tuple[int, ...], tuple[float, ...]] = {self.image: (1.0,) * self.axes}

    def step(self, module: nn.Module, arguments: Any, size: tuple[int, ...]) -> tuple[float, ...]:
        """Of the map of this size that a module gives."""
        came = arguments[0] if arguments else None
        before = tuple(came.shape[2:]) if isinstance(came, Tensor) and came.ndim == self.axes + 2 else self.last
        found = self._of(before)
        if isinstance(module, _STRIDED):
            stride: Any = module.stride
            strides = [stride] * self.axes if isinstance(stride, int) else stride
            up = isinstance(module, nn.modules.conv._ConvTransposeNd)
            found = tuple(s / n if up else s * n for s, n in zip(found, strides, strict=True))
        elif next(module.children(), None) is not None and size in self.seen:  # what is inside gave it
            found = self.seen[size]
        else:
            found = _resized(found, before, size)
        self.seen[size], self.last = found, size
        return found

    def _of(self, size: tuple[int, ...]) -> tuple[float, ...]:
        """Of a map of this size, which may have been padded or resized outside of any module."""
        if size in self.seen:
            return self.seen[size]
        if all(now >= pixels for now, pixels in zip(size, self.image, strict=True)):
            return (1.0,) * self.axes  # the image with a border
        return _resized(self.seen[self.last], self.last, size)


def _resized(step: Sequence[float], before: Sequence[int], now: Sequence[int]) -> tuple[float, ...]:
    """What a value stands for when a map is resized; sizes that differ by less than a half have lost or won a border."""
    ratios = [max(b, n) / min(b, n) for b, n in zip(before, now, strict=True)]
    times = [round(ratio) if ratio >= 1.5 else 1 for ratio in ratios]
    return tuple(s * t if n < b else s / t for s, t, b, n in zip(step, times, before, now, strict=True))


def _find(image: Tensor, padded: Tensor) -> int:
    """At which pixel of each axis an image begins in its padded copy."""
    spare = [p - s for p, s in zip(padded.shape[2:], image.shape[2:], strict=True)]
    for before in range(min(spare) + 1):
        window: list[Any] = [slice(before, before + size) for size in image.shape[2:]]
        if torch.equal(padded[(..., *window)], image):
            return before
    return 0
