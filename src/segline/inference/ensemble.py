"""Several predictions as one: members, views and passes of dropout averaged; how sure they are, and how far they agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.card import Card
from segline.inference.tiled import Network, Prepare
from segline.io.normalize import BandStatistics, Normalize, measure
from segline.io.source import Source
from segline.labels import Labels

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Member:
    """One trained network, ready to predict.

    Args:
        card: What it says of itself.
        network: Normalised images `[B, C, *S]` -> probabilities `[B, K, *S]`.
        stride: Its total stride; None where it is not known.
        device: Where it computes.
    """

    card: Card
    network: Network
    stride: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class View:
    """An image mirrored, turned or scaled, and how what is said of it is brought back.

    Args:
        flips: Axes that are mirrored, from -1 for the last.
        turns: Quarter turns in the plane of the last two axes.
        scale: Factor of its size.
    """

    flips: tuple[int, ...] = ()
    turns: int = 0
    scale: float = 1.0

    def see(self, images: Array) -> Array:
        """The view of images `[B, C, *S]`."""
        if self.scale != 1:
            images = resize(images, [max(1, round(n * self.scale)) for n in images.shape[2:]])
        return np.ascontiguousarray(np.rot90(np.flip(images, self.flips), self.turns, (-2, -1)))

    def back(self, values: Array, shape: Sequence[int]) -> Array:
        """What was said of the view, `[B, K, *]`, on the grid of the image, `[B, K, *shape]`."""
        values = np.flip(np.rot90(values, -self.turns, (-2, -1)), self.flips)
        return values if self.scale == 1 else resize(values, shape)


def views_of(augmentations: Sequence[str | float], spatial_dims: int) -> list[View]:
    """The views of test-time augmentation: all combinations of what is named, each different one once; the image itself first.

    Args:
        augmentations: `flips` (along every axis), `turns` (quarter turns in the plane), and numbers: scales besides 1.
        spatial_dims: Axes of an image.

    Raises:
        ValueError: A name that is unknown, or a scale outside of 0.1 to 10.

    >>> [len(views_of(names, 2)) for names in ([], ["flips"], ["turns"], ["flips", "turns"], ["flips", 0.75])]
    [1, 4, 4, 8, 8]
    """
    names = [a for a in augmentations if not isinstance(a, int | float)]
    scales = list(dict.fromkeys([1.0, *(float(a) for a in augmentations if isinstance(a, int | float))]))
    if set(names) - {"flips", "turns"} or not all(0.1 <= scale <= 10 for scale in scales):
        raise ValueError(
            f"tta is {list(augmentations)}; expected some of flips, turns, and scales such as 0.75 and 1.25"
        )
    axes = list(range(-spatial_dims, 0)) if "flips" in names else []
    if "turns" in names:  # a half turn and a flip of the columns are a flip of the rows
        axes = [axis for axis in axes if axis != -2]
    flips = chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1))
    turns = range(4) if "turns" in names else (0,)
    return [View(f, t, s) for s, f, t in product(scales, flips, turns)]


class Ensemble:
    """A network to `predict_tiles`: the mean of the probabilities that members give to views, over several passes.

    Args:
        members: Of the same bands, labels and spacing; each is normalised by its own card.
        views: What each member looks at.
        passes: Calls of each member on each view: more than one with dropout only.
        spread: Give a further plane: the mean entropy of the single predictions, of which `disagreement` is made.

    Raises:
        ValueError: Members that are not of the same kind of image and labels.
    """

    def __init__(
        self, members: Sequence[Member], views: Sequence[View] = (View(),), passes: int = 1, spread: bool = False
    ) -> None:
        self.members, self.views, self.passes, self.spread = members, views, passes, spread
        self.card, self.labels = members[0].card, Labels(**members[0].card.labels)
        for member in members[1:]:
            for field, ours in _kind(self.card).items():
                if ours != (theirs := _kind(member.card)[field]):
                    raise ValueError(
                        f"the checkpoints differ in {field}: {ours} and {theirs}; expected some that can be averaged"
                    )
        # Folds have means and deviations of their own: images lie behind each other along the bands, once for each normalisation.
        self._normalizes = [Normalize(**fields) for fields in _different(m.card.normalize for m in members)]
        settings = [normalize.to_dict() for normalize in self._normalizes]
        self._which = [settings.index(Normalize(**m.card.normalize).to_dict()) for m in members]

    @property
    def num_bands(self) -> int:
        """Of a prepared image."""
        return (self.card.num_bands or 1) * len(self._normalizes)

    @property
    def stride(self) -> int | None:
        """Total stride of all members; None where one does not know its own."""
        strides = [member.stride for member in self.members]
        return None if None in strides else math.lcm(*(stride for stride in strides if stride))

    @property
    def num_predictions(self) -> int:
        """How many are averaged."""
        return len(self.members) * len(self.views) * self.passes

    def prepare(self, source: Source, statistics: BandStatistics | None = None) -> Prepare:
        """What makes images of a source ready: normalised as each member wants it, if need be by the statistics of its bands."""
        if statistics is None and any(normalize.scope == "case" for normalize in self._normalizes):
            statistics = measure(source)
        if len(self._normalizes) == 1:
            return partial(self._normalizes[0], statistics=statistics)
        return lambda image: np.concatenate([normalize(image, statistics) for normalize in self._normalizes])

    def __call__(self, images: Array) -> Array:
        """Mean probabilities `[B, K, *S]` of prepared images, with `spread` followed by the mean entropy, `[B, K + 1, *S]`."""
        total: Any = None
        for probs in self._predictions(images):
            said = np.concatenate([probs, self.labels.entropy(probs)[:, None]], 1) if self.spread else probs
            total = said if total is None else total + said
        mean: Array = total if self.num_predictions == 1 else total / np.float32(self.num_predictions)
        return mean

    def _predictions(self, images: Array) -> Iterator[Array]:
        own = np.split(images, len(self._normalizes), axis=1)
        for view in self.views:
            seen = [view.see(part) for part in own] if view != View() else own
            for member, which in zip(self.members, self._which, strict=True):
                for _ in range(self.passes):
                    yield view.back(member.network(seen[which]), images.shape[2:])


def _kind(card: Card) -> dict[str, Any]:
    """What networks must have in common to be averaged."""
    return {
        "bands": card.bands,
        "the number of bands": card.num_bands,
        "spacing_mm": card.spacing_mm,
        "dimensions": len(card.window),
        "labels": card.labels,
        "the order of classes": list(card.labels["classes"]),
    }


def _different(settings: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for one in settings:
        if one not in found:
            found.append(one)
    return found


def resize(values: Array, shape: Sequence[int]) -> Array:
    """Interpolate `[B, C, *]` linearly to `[B, C, *shape]`; the outer borders of the first and last pixels stay where they are."""
    for axis, new in enumerate(shape, 2):
        old = values.shape[axis]
        if old == new:
            continue
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(place.astype(np.intp), max(old - 2, 0))
        share = (place - low).astype(np.float32).reshape(-1, *[1] * (values.ndim - axis - 1))
        values = values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, old - 1), axis) * share
    return values
