"""The label scheme of a task: the one place that knows exclusive from overlapping labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.colors import default_color
from segline.raw_values import RawValues, parse_values, plain_values

#: Value of a pixel that counts nowhere: not in a loss, a gradient, a metric or a picture.
IGNORE_INDEX = 255

_SCHEMES = ("exclusive", "overlapping")


class Labels:
    """Names, colours and coding of the classes of one task.

    A mask file holds *raw values* (ids or colours); `classes` says which of them make up which class. Raw values are
    integers throughout: a colour `"#8429f6"` is the number 0x8429f6.

    Args:
        classes: Class name -> raw value or values in the mask files, in the order of the network's output channels.
        scheme: `exclusive` (softmax, argmax; K >= 2) or `overlapping` (one sigmoid a class, K >= 1; a raw value may belong
            to several classes).
        background: Exclusive labels: the class that stays out of means over classes (None: every class counts).
        ignore: Raw values of pixels that count nowhere.
        rest: Overlapping labels: raw values that belong to no class.
        colors: Class name -> `"#rrggbb"` for pictures and palettes; by default the colours of the mask files, else
            a palette that is easy to tell apart.

    Raises:
        ValueError: A scheme that does not exist, too few classes, or a raw value with two meanings.

    >>> labels = Labels({"background": 0, "cell": [1, 2]}, background="background", ignore=[7])
    >>> labels.encode(np.array([[0, 1], [2, 7]])).tolist()
    [[0, 1], [1, 255]]
    """

    def __init__(
        self,
        classes: Mapping[str, RawValues],
        scheme: str = "exclusive",
        background: str | None = None,
        ignore: RawValues = (),
        rest: RawValues = (0,),
        colors: Mapping[str, str] | None = None,
    ) -> None:
        if scheme not in _SCHEMES:
            raise ValueError(f"data.labels.scheme is {scheme!r}; expected one of {', '.join(_SCHEMES)}")
        self.scheme = scheme
        self.values = {name: parse_values(raw) for name, raw in classes.items()}
        self.background = background
        self.ignore = parse_values(ignore)
        self.rest = parse_values(rest) if scheme == "overlapping" else ()
        self.colors = dict(colors or {})
        self._raw_classes, self._raw_ignore, self._raw_rest = dict(classes), ignore, rest
        self._check()

    def _check(self) -> None:
        if not 1 <= self.num_classes < IGNORE_INDEX:
            raise ValueError(f"data.labels.classes has {self.num_classes} classes; expected 1 to {IGNORE_INDEX - 1}")
        if self.exclusive and self.num_classes < 2:
            raise ValueError(
                f"exclusive labels need at least two classes, but data.labels.classes has {list(self.names)}; name the background "
                "as a class, or set data.labels.scheme=overlapping for one sigmoid channel"
            )
        if self.background is not None and (not self.exclusive or self.background not in self.names):
            raise ValueError(
                f"data.labels.background is {self.background!r}; expected null or, of exclusive labels, one of {list(self.names)}"
            )
        if empty := [name for name, values in self.values.items() if not values]:
            raise ValueError(
                f"the class {empty[0]!r} of data.labels.classes has no value; give it those of the mask files, such as 7 or '#8429f6'"
            )
        if unknown := set(self.colors) - set(self.names):
            raise ValueError(
                f"data.labels.colors names {sorted(unknown)}, which are not among the classes {list(self.names)}"
            )
        used: dict[int, str] = dict.fromkeys(self.ignore, "ignore")
        groups = [("rest", self.rest), *(self.values.items() if self.exclusive else [])]
        if not self.exclusive:
            groups.append(("the classes", tuple({v for values in self.values.values() for v in values})))
        for name, values in groups:
            for value in values:
                if value in used:
                    raise ValueError(
                        f"raw mask value {value} belongs to {used[value]!r} and to {name!r}; give it to one of them"
                    )
                used[value] = name

    @property
    def exclusive(self) -> bool:
        """Whether each pixel has exactly one class."""
        return self.scheme == "exclusive"

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the network's channels."""
        return tuple(self.values)

    @property
    def num_classes(self) -> int:
        """Number of output channels K."""
        return len(self.values)

    @property
    def num_planes(self) -> int:
        """How many arrays `[*S]` a mask is made of: one of ids, or one for each overlapping class."""
        return 1 if self.exclusive else self.num_classes

    @property
    def colored(self) -> bool:
        """Whether the classes go by colours in the mask files rather than by ids."""
        raws = [*self._raw_classes.values(), self._raw_ignore, self._raw_rest]
        return any(isinstance(v, str) for raw in raws for v in ([raw] if isinstance(raw, (int, str)) else raw))

    @property
    def shown(self) -> list[int]:
        """Indices of the classes that enter means over classes."""
        return [k for k, name in enumerate(self.names) if name != self.background]

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """RGB colour of each class, `[K, 3]`."""
        rows = []
        for k, (name, values) in enumerate(self.values.items()):
            color = parse_values(self.colors[name])[0] if name in self.colors else None
            if color is None:
                from_file = self._raw_classes[name]
                first = from_file if isinstance(from_file, (int, str)) else from_file[0]
                color = (
                    values[0]
                    if isinstance(first, str) and first.startswith("#")
                    else default_color(k, name == self.background)
                )
            rows.append([color >> 16 & 255, color >> 8 & 255, color & 255])
        return np.array(rows, np.uint8)

    def encode(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        """Turn raw integer values `[*S]` into a mask: `[*S]` of 0..K-1, or `[K, *S]` of 0/1; 255 is ignored.

        Raises:
            ValueError: A raw value that belongs to no class, with how often it occurs.
        """
        found, places, counts = _occurring(raw)
        table = np.zeros((self.num_planes, len(found)), np.uint8)
        unknown = []
        for column in np.flatnonzero(counts).tolist():
            value = int(found[column])
            member = [k for k, values in enumerate(self.values.values()) if value in values]
            if value in self.ignore:
                table[:, column] = IGNORE_INDEX
            elif self.exclusive and member:
                table[0, column] = member[0]
            elif not self.exclusive and (member or value in self.rest):
                table[member, column] = 1
            else:
                unknown.append((value, int(counts[column])))
        if unknown:
            raise ValueError(self._unknown(unknown))
        mask = table[:, places]
        return mask[0] if self.exclusive else mask

    def _unknown(self, unknown: list[tuple[int, int]]) -> str:
        def say(value: int) -> str:
            return f"#{value:06x}" if self.colored else str(value)

        listed = ", ".join(f"{say(value)} ({count} pixels)" for value, count in unknown[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        classes = ", ".join(f"{name}: {' '.join(map(say, values))}" for name, values in self.values.items())
        return f"mask values outside the classes: {listed}{more}; expected {classes}; add them to data.labels.classes or data.labels.ignore"

    def probs(self, logits: Any) -> Any:
        """Probabilities `[B, K, *S]` of logits `[B, K, *S]`; NumPy stays NumPy, a torch tensor stays one."""
        if isinstance(logits, np.ndarray):
            if self.exclusive:
                probs = logits - logits.max(axis=1, keepdims=True)
                np.exp(probs, out=probs)  # in place: pages that are new cost more than the arithmetic
                probs /= probs.sum(axis=1, keepdims=True)
                return probs
            return 1 / (1 + np.exp(-logits))
        return logits.softmax(1) if self.exclusive else logits.sigmoid()

    def decide(self, probs: Any) -> Any:
        """The decision: class ids `[B, *S]`, or 0/1 for each class `[B, K, *S]`; NumPy or torch, as given."""
        if not self.exclusive:
            return (probs >= 0.5) * 1
        # torch's argmax over this axis takes ten times as long as its max, which finds the same first place.
        return _highest(probs) if isinstance(probs, np.ndarray) else probs.max(1).indices

    def entropy(self, probs: NDArray[np.float32]) -> NDArray[np.float32]:
        """How unsure probabilities `[B, K, *S]` are, `[B, *S]`: 0 where they are certain, 1 where nothing is more likely than the rest.

        Of exclusive labels the entropy over its largest value, the log of K; of overlapping ones the mean of each class's yes or no.

        >>> Labels({"a": 0, "b": 1}).entropy(np.array([[0.5, 0.5], [1.0, 0.0]], np.float32)).tolist()
        [1.0, 0.0]
        """
        if self.exclusive:
            return _surprise(probs).sum(1) / np.float32(np.log(self.num_classes))
        return (_surprise(probs) + _surprise(1 - probs)).mean(1) / np.float32(np.log(2))

    def valid(self, mask: Any) -> Any:
        """Where a mask counts, of the mask's own shape."""
        return mask != IGNORE_INDEX

    def of_class(self, mask: NDArray[Any], k: int) -> NDArray[np.bool_]:
        """Where a mask or a decision has class k, `[*S]`."""
        found: NDArray[np.bool_] = mask == k if self.exclusive else mask[k] == 1
        return found

    def one_hot(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Where a mask or a decision has each class, `[K, *S]`."""
        return np.stack([self.of_class(mask, k) for k in range(self.num_classes)])

    def foreground(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Where a mask has a class that enters means, `[*S]`."""
        foreground: NDArray[np.bool_] = np.any(self.one_hot(mask)[self.shown], axis=0)
        return foreground

    def counted(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Where a mask counts for any class, `[*S]`."""
        valid: NDArray[np.bool_] = self.valid(mask)
        return valid if self.exclusive else np.any(valid, axis=0)

    def as_ids(self, mask: NDArray[Any]) -> NDArray[Any]:
        """One id a pixel `[*S]`, places in `id_names`: of overlapping classes `[K, *S]` the last one on top."""
        if self.exclusive:
            return mask
        ids = np.where((mask == IGNORE_INDEX).any(0), IGNORE_INDEX, 0).astype(np.uint8)
        for k, plane in enumerate(mask, 1):
            ids[plane == 1] = k
        return ids

    @property
    def id_names(self) -> tuple[str, ...]:
        """What the ids of `as_ids` mean; 0 is none of the overlapping classes."""
        return self.names if self.exclusive else ("none", *self.names)

    @property
    def id_palette(self) -> NDArray[np.uint8]:
        """Colours of the ids of `as_ids`, `[N, 3]`."""
        return self.palette if self.exclusive else np.concatenate([np.zeros((1, 3), np.uint8), self.palette])

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `Labels(**data)` makes an equal object."""
        plain = {name: plain_values(raw) for name, raw in self._raw_classes.items()}
        return {
            "classes": plain,
            "scheme": self.scheme,
            "background": self.background,
            "ignore": plain_values(self._raw_ignore),
            "rest": plain_values(self._raw_rest),
            "colors": self.colors or None,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.names, self.scheme))

    def __repr__(self) -> str:
        return f"Labels({', '.join(self.names)}; {self.scheme})"


def _occurring(raw: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.intp]]:
    """Values, for each pixel the place of its own among them, and how often each occurs."""
    if raw.size and (least := int(raw.min())) + 65536 > (
        most := int(raw.max())
    ):  # ids: counting them is quicker than sorting
        places = raw.astype(np.intp) - least
        return np.arange(least, most + 1), places, np.bincount(places.ravel())
    found, places, counts = np.unique(raw, return_inverse=True, return_counts=True)
    return found, places.reshape(raw.shape), counts


def _highest(probs: NDArray[Any]) -> NDArray[np.uint8]:
    """The class `[B, *S]` of the highest of `[B, K, *S]`, the first of equals: class by class, in a tenth of the time of `argmax`."""
    highest, found = probs[:, 0].copy(), np.zeros(probs[:, 0].shape, np.uint8)
    for k in range(1, probs.shape[1]):
        higher = probs[:, k] > highest
        np.maximum(found, higher * np.uint8(k), out=found)
        np.maximum(highest, probs[:, k], out=highest)
    return found


def _surprise(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each outcome's part of the entropy."""
    return -probs * np.log(np.maximum(probs, np.finfo(np.float32).tiny))
