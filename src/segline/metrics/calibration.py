"""Whether a network is as right as it is sure; and what a checkpoint is put right by: a temperature and thresholds."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from segline.commit import committed
from segline.labels import Labels

NUM_BINS = 15

#: Confidences are summed as multiples of this, the step of float32 below 1: sums of integers are the same in any order.
_STEP = 2.0**-24

#: Probabilities nearer to 0 (and to 1, for a sigmoid) count as this: the logarithm of 0 does not exist.
_LEAST_SOFTMAX = float(np.finfo(np.float32).tiny)
_LEAST_SIGMOID = 2.0**-24


class Reliability:
    """A reliability diagram of a stream of pixels: in each bin of confidence, how often the decision is right.

    For exclusive labels a pixel counts once, and its confidence is the highest probability. For overlapping labels each class of a
    pixel is a decision of its own between yes and no at 0.5, with the confidence max(p, 1 - p). Bins include their lower end, and the
    last one 1. Ignored pixels and those without a probability (nan) are left out.

    Args:
        labels: Scheme of the classes.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks (2017).

    >>> reliability = Reliability(Labels({"soil": 0, "crop": 1}))
    >>> reliability.update(np.array([[0.75, 0.25, 0.25], [0.25, 0.75, 0.75]]), np.array([0, 1, 0]))
    >>> round(reliability.ece, 4)  # two of three are right, at a confidence of 0.75
    0.0833
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.count = np.zeros(NUM_BINS, np.int64)
        self.right = np.zeros(NUM_BINS, np.int64)
        self._sure = np.zeros(NUM_BINS, np.int64)  # sum of confidences, in steps

    def update(self, probs: NDArray[Any], mask: NDArray[Any]) -> None:
        """Count the pixels of one piece.

        Args:
            probs: Probabilities `[K, *S]`.
            mask: `[*S]`, or `[K, *S]` for overlapping labels; 255 is ignored.
        """
        sure = probs.max(0) if self.labels.exclusive else np.maximum(probs, 1 - probs)
        counts = self.labels.valid(mask) & ~np.isnan(sure)
        right = (self.labels.decide(probs[None])[0] == mask)[counts]
        # Probabilities that were added up may exceed 1 by a rounding.
        steps = np.minimum(np.rint(sure[counts].astype(np.float64) / _STEP), 1 / _STEP)
        places = np.minimum((sure[counts].astype(np.float64) * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        self.count += np.bincount(places, minlength=NUM_BINS)
        self.right += np.bincount(places[right], minlength=NUM_BINS)
        # bincount adds in float64, which is exact up to 2^29 pixels a piece.
        self._sure += np.bincount(places, steps, minlength=NUM_BINS).astype(np.int64)

    def merge(self, other: Reliability) -> None:
        """Add what another one has seen."""
        self.count += other.count
        self.right += other.right
        self._sure += other._sure

    @property
    def bins(self) -> list[dict[str, Any]]:
        """A plain row a bin: `low`, `high`, `count`, and mean `confidence` and `accuracy`, None where it is empty."""
        return [
            {
                "low": i / NUM_BINS,
                "high": (i + 1) / NUM_BINS,
                "count": count,
                "confidence": sure * _STEP / count if count else None,
                "accuracy": right / count if count else None,
            }
            for i, (count, sure, right) in enumerate(
                zip(self.count.tolist(), self._sure.tolist(), self.right.tolist(), strict=True)
            )
        ]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over the pixels of their bin's gap between confidence and accuracy; nan without pixels."""
        gaps = np.abs(self._sure * _STEP - self.right)
        return float(gaps.sum() / self.count.sum()) if self.count.any() else math.nan

    @property
    def max_error(self) -> float:
        """Maximum calibration error: the widest such gap of a bin; nan without pixels."""
        filled = self.count > 0
        gaps = np.abs(self._sure * _STEP - self.right)[filled] / self.count[filled]
        return float(gaps.max()) if filled.any() else math.nan


def logits_of(probs: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Logits `[B, K, *S]` that have these probabilities, for exclusive labels up to a constant a pixel; nan stays nan."""
    if labels.exclusive:
        return np.log(np.maximum(probs, _LEAST_SOFTMAX))
    return special.logit(np.clip(probs, _LEAST_SIGMOID, 1 - _LEAST_SIGMOID))


def apply_temperature(probs: NDArray[Any], temperature: float, labels: Labels) -> NDArray[Any]:
    """Probabilities `[B, K, *S]` of the logits divided by a temperature: above 1 less sure, below 1 surer; nan stays nan.

    The decision of `labels.decide` stays what it is. A temperature of 1 gives the very array that came.

    Raises:
        ValueError: A temperature that is not above 0.

    >>> labels = Labels({"soil": 0, "crop": 1})
    >>> apply_temperature(np.array([[0.8, 0.2]]), 2.0, labels).round(3).tolist()  # odds of 4 become odds of 2
    [[0.667, 0.333]]
    """
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; expected a number above 0")
    if temperature == 1:
        return probs
    logits = logits_of(probs, labels)
    logits /= temperature
    return special.softmax(logits, axis=1) if labels.exclusive else special.expit(logits)


def decide(probs: NDArray[Any], thresholds: Sequence[float] | None, labels: Labels) -> NDArray[Any]:
    """The decision as of `labels.decide`, with a threshold for each class.

    Exclusive labels: the class whose probability is highest by its threshold. Overlapping labels: each class that reaches its own.

    Args:
        probs: Probabilities `[B, K, *S]`.
        thresholds: Of each class, above 0 for exclusive labels; None: the decision of `labels.decide`.
        labels: Scheme of the classes.

    Returns:
        Class ids `[B, *S]`, or 0/1 for each class `[B, K, *S]`.

    Raises:
        ValueError: Not as many thresholds as classes, or for exclusive labels one of 0.

    >>> decide(np.array([[0.7, 0.3]]), [0.8, 0.2], Labels({"soil": 0, "weed": 1})).tolist()
    [1]
    """
    if thresholds is None:
        return labels.decide(probs)
    if len(thresholds) != labels.num_classes:
        raise ValueError(
            f"there are {len(thresholds)} thresholds for {labels.num_classes} classes ({', '.join(labels.names)}); expected one each"
        )
    if labels.exclusive and not min(thresholds) > 0:
        raise ValueError(
            f"the thresholds are {list(thresholds)}; expected numbers above 0, by which probabilities are divided"
        )
    # In the type of the probabilities, in which the thresholds were found: a comparison across types may differ by a rounding.
    limits = np.array(thresholds, probs.dtype).reshape(-1, *[1] * (probs.ndim - 2))
    if not labels.exclusive:
        return (probs >= limits) * 1
    same = len(set(thresholds)) == 1  # a division by the same number can make two probabilities equal
    return labels.decide(probs if same else probs / limits)


@dataclass(frozen=True)
class Calibration:
    """What puts the probabilities and decisions of a checkpoint right, and what it was fitted on; plain JSON.

    The temperature comes first (`apply_temperature`), and the thresholds are of the probabilities after it (`decide`).

    Args:
        temperature: What logits are divided by.
        thresholds: Of each class; None for the decision of the labels.
        split: Whose pixels it was fitted on.
        pixels: How many.
        checkpoint: SHA-256 of the file that it belongs to, in hexadecimal.
        ece_before: Expected calibration error without the temperature.
        ece_after: With it.

    Raises:
        ValueError: A value of another type or outside its range.
    """

    temperature: float
    thresholds: list[float] | None
    split: str
    pixels: int
    checkpoint: str
    ece_before: float
    ece_after: float

    def __post_init__(self) -> None:
        limits = [] if self.thresholds is None else self.thresholds
        checks = {
            "temperature": (_number(self.temperature) and self.temperature > 0, "a number above 0"),
            "thresholds": (
                isinstance(limits, list) and all(_number(t) and 0 <= t <= 1 for t in limits),
                "null or a list of numbers from 0 to 1",
            ),
            "split": (isinstance(self.split, str), "a name such as 'val'"),
            "pixels": (type(self.pixels) is int and self.pixels > 0, "a whole number above 0"),
            "checkpoint": (
                isinstance(self.checkpoint, str) and re.fullmatch("[0-9a-f]{64}", self.checkpoint) is not None,
                "a SHA-256 of 64 hexadecimal digits",
            ),
            "ece_before": (_number(self.ece_before) and 0 <= self.ece_before <= 1, "a number from 0 to 1"),
            "ece_after": (_number(self.ece_after) and 0 <= self.ece_after <= 1, "a number from 0 to 1"),
        }
        for name, (right, expected) in checks.items():
            if not right:
                raise ValueError(f"the calibration's {name} is {getattr(self, name)!r}; expected {expected}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """Read it back.

        Raises:
            ValueError: Not a calibration: fields missing, unknown, of another type or outside their range.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(data, dict):
            raise ValueError(f"a calibration is {data!r}; expected a mapping of {', '.join(names)}")
        if set(data) != set(names):
            raise ValueError(f"a calibration has the fields {sorted(data)}; expected {sorted(names)}")
        return cls(**data)

    def save(self, path: Path) -> None:
        """Write it as JSON: whole, or not at all."""
        with committed(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ValueError: As for `from_dict`, with the file's name.
        """
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
