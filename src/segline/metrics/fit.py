"""Temperature and thresholds from pixels that were held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from segline.labels import Labels
from segline.metrics.calibration import decide, logits_of

#: Between these a temperature is looked for.
TEMPERATURES = (0.05, 20.0)

#: Pixels whose likelihood is taken at once: bounds the memory.
_PIXELS_AT_ONCE = 2**16

#: Thresholds of exclusive labels: the least one, sweeps over the classes, and the gain in mean Dice of a sweep that ends them.
_LEAST = 1e-6
_MAX_SWEEPS = 20
_LEAST_GAIN = 1e-4


def fit_temperature(probs: NDArray[Any], mask: NDArray[Any], labels: Labels) -> float:
    """The temperature for which the truth is likeliest, for `apply_temperature`; 1 where none is better.

    Minimises the mean over pixels of `-log softmax(log(p) / T)[truth]`; over pixels and classes of `-log sigmoid(±logit(p) / T)` for
    overlapping labels. The logarithm of probabilities is as good as the logits, which differ from it by a constant a pixel.

    Args:
        probs: Probabilities `[N, K]`, best float32: of float16 the small ones are lost. Rows with nan are left out.
        mask: `[N]`, or `[N, K]` for overlapping labels; 255 is ignored.
        labels: Scheme of the classes.

    Returns:
        The temperature, within `TEMPERATURES`.

    Raises:
        ValueError: No pixel counts.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2.
    """
    gaps, lead = _gaps(probs, mask, labels)
    if not len(gaps):
        raise ValueError(
            "there is no pixel to fit a temperature to: all of them are ignored; choose a split with masks"
        )
    low, high = np.log(TEMPERATURES)
    found = optimize.minimize_scalar(
        lambda log: _negative_log_likelihood(gaps, lead, math.exp(log)), bounds=(low, high), method="bounded"
    )
    return math.exp(found.x) if found.fun < _negative_log_likelihood(gaps, lead, 1.0) else 1.0


def _gaps(probs: NDArray[Any], mask: NDArray[Any], labels: Labels) -> tuple[NDArray[Any], NDArray[Any]]:
    """How far each logit lies below the highest, `[N, K]`, and the true one, `[N]`; of overlapping labels yes and no are two."""
    valid = labels.valid(mask)
    if labels.exclusive:
        counts = valid & ~np.isnan(probs).any(1)
        logits = logits_of(probs[counts], labels)
        true = mask[counts].astype(np.intp)
    else:
        counts = valid & ~np.isnan(probs)
        yes = logits_of(probs[counts], labels)
        logits = np.stack([np.zeros_like(yes), yes], 1)
        true = mask[counts].astype(np.intp)
    logits -= logits.max(1, keepdims=True)
    return logits, np.take_along_axis(logits, true[:, None], 1)[:, 0]


def _negative_log_likelihood(gaps: NDArray[Any], lead: NDArray[Any], temperature: float) -> float:
    """Mean of `log(sum(exp(gaps / T))) - lead / T`; no gap is above 0, so that no exponential overflows."""
    total = -lead.sum(dtype=np.float64) / temperature
    for start in range(0, len(gaps), _PIXELS_AT_ONCE):
        exponents = np.exp(gaps[start : start + _PIXELS_AT_ONCE] / temperature)
        total += np.log(exponents.sum(1)).sum(dtype=np.float64)
    return float(total / len(gaps))


def fit_thresholds(probs: NDArray[Any], mask: NDArray[Any], labels: Labels) -> list[float]:
    """Thresholds of the classes for which Dice over these pixels is highest, for `decide`; never below that of `labels.decide`.

    Overlapping labels: each class by itself, exactly; 0.5 where nothing is better, or the class is not there. Exclusive labels: the
    mean Dice of `labels.shown` climbs by the best threshold of one class after the other, so that it may end below the very best for
    three classes and more; a million pixels of 19 classes take about a minute. Thresholds start at 1 / K and sum to 1; those of classes
    that are not there only follow that sum.

    Args:
        probs: Probabilities `[N, K]`, after the temperature. Those that are nan are left out.
        mask: `[N]`, or `[N, K]` for overlapping labels; 255 is ignored.
        labels: Names and scheme of the classes.

    Reference:
        Lipton, Elkan and Naryanaswamy, Optimal Thresholding of Classifiers to Maximize F1 Measure (2014).

    >>> probs = np.array([[0.9], [0.4], [0.3], [0.1]])
    >>> fit_thresholds(probs, np.array([[1], [1], [0], [0]]), Labels({"weed": 1}, scheme="overlapping"))
    [0.35]
    """
    if labels.exclusive:
        counts = labels.valid(mask) & ~np.isnan(probs).any(1)
        return _climb(probs[counts], mask[counts], labels)
    valid = labels.valid(mask) & ~np.isnan(probs)
    return [_best_threshold(p[v], m[v] == 1) for p, m, v in zip(probs.T, mask.T, valid.T, strict=True)]


def _best_threshold(probs: NDArray[Any], true: NDArray[np.bool_]) -> float:
    """Of one class by itself, from probabilities and truth `[N]`."""
    if not true.any():
        return 0.5
    order = np.argsort(-probs)
    probs, true = probs[order], true[order]
    # Pixels of the same probability are found together or not at all.
    last = np.flatnonzero(np.append(probs[1:] < probs[:-1], True))
    scores = 2 * np.cumsum(true)[last] / (last + 1 + true.sum())
    best = int(scores.argmax())
    found = probs >= 0.5
    if 2 * (found & true).sum() / (found.sum() + true.sum()) >= scores[best]:
        return 0.5
    value = probs[last[best]]
    below = probs[last[best] + 1] if last[best] + 1 < len(probs) else value * 0
    middle = (value + below) / 2
    return float(middle if middle > below else value)


def _climb(probs: NDArray[Any], mask: NDArray[Any], labels: Labels) -> list[float]:
    """Of exclusive labels, by coordinate ascent over the classes."""
    k = labels.num_classes
    there = np.flatnonzero(np.bincount(mask, minlength=k)).tolist()
    shown = [c for c in labels.shown if c in there]
    thresholds = [1 / k] * k
    best = _mean_dice(decide(probs, thresholds, labels), mask, shown, k)
    logs = np.log(np.maximum(probs, _LEAST))
    for _ in range(_MAX_SWEEPS if shown else 0):
        before = best
        for c in there:
            tried = np.array(thresholds)
            tried[c] = math.exp(_best_cut(logs, np.log(tried).astype(logs.dtype), c, mask, shown))
            tried = np.maximum(tried / tried.sum(), _LEAST)
            tried /= tried.sum()
            # Rounding may tell equal pixels apart or join them, so what counts is what the decision itself reaches.
            reached = _mean_dice(decide(probs, tried.tolist(), labels), mask, shown, k)
            if reached > best:
                thresholds, best = tried.tolist(), reached
        if best < before + _LEAST_GAIN:
            break
    return thresholds


def _mean_dice(pred: NDArray[Any], mask: NDArray[Any], shown: Sequence[int], num_classes: int) -> float:
    both, found, true = (np.bincount(ids, minlength=num_classes) for ids in (mask[pred == mask], pred, mask))
    return float((2 * both[shown] / (found + true)[shown]).mean()) if shown else math.nan


def _best_cut(logs: NDArray[Any], limits: NDArray[Any], c: int, mask: NDArray[Any], shown: Sequence[int]) -> float:
    """Logarithm of the best threshold of class c among the others', from logarithms `[N, K]` and `[K]`.

    A pixel goes to c where its lead over its best rival is above the threshold: in the order of the leads, to c up to a place, and to
    the rivals from there on. The Dice of each class changes only at the pixels that it wins or loses, so one pass gives all sums.
    """
    scores = logs - limits
    scores[:, c] = -np.inf
    rival = scores.argmax(1)
    lead = logs[:, c] - scores.max(1)
    order = np.argsort(-lead)
    lead, rival, true = lead[order], rival[order], mask[order]
    change = np.zeros(len(lead) + 1)  # of the sum of Dice, as one more pixel goes to c
    for j in shown:
        mine = np.arange(len(lead)) if j == c else np.flatnonzero(rival == j)
        both = np.append(0, np.cumsum(true[mine] == j))
        found = np.arange(len(mine) + 1)
        if j != c:
            both, found = both[-1] - both, found[::-1]
        dice = 2 * both / (found + (true == j).sum())
        change[0] += dice[0]
        change[mine + 1] += np.diff(dice)
    apart = np.append(np.append(True, lead[1:] < lead[:-1]), True)
    places = np.flatnonzero(apart)
    cut = int(places[np.cumsum(change)[places].argmax()])
    ends = np.concatenate([lead[:1] + 1, lead, lead[-1:] - 1])
    return float(ends[cut] + ends[cut + 1]) / 2
