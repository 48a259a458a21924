"""How far a score could be off by the choice of cases: percentile bootstrap, of whole groups where cases belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Groups drawn at once: bounds the memory, and stays within the processor's cache.
_DRAWN_AT_ONCE = 2**18
#: Sets of cases that are drawn, where nothing else is asked for.
_RESAMPLES = 2000


def interval(
    values: ArrayLike,
    groups: Sequence[object] | NDArray[np.generic] | None = None,
    level: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of the scores of cases, and the bounds between which it would lie for other cases of the same kind.

    Cases of one patient, scene or tile are alike, so that many of them tell little more than one: with `groups`, whole groups are
    resampled (cluster bootstrap). Below some fifteen groups the bounds are too narrow, as of any percentile bootstrap.

    Args:
        values: Score of each case, `[N]`; nan where a case has none, which leaves it out.
        groups: What each case belongs to, `[N]`; None: each to itself.
        level: Share of repetitions in which the bounds hold the true mean.
        resamples: How many sets of cases are drawn.
        seed: Of the draws.

    Returns:
        Mean, lower and upper bound. The bounds are nan for fewer than two groups with a score; so is the mean where there is none.

    Raises:
        ValueError: Lengths that differ, or a level outside 0 to 1.

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Field and Welsh, Bootstrapping clustered data
        (2007).

    >>> interval([0.75, 0.75, float("nan"), 0.75])
    (0.75, 0.75, 0.75)
    >>> interval([0.5, 1.0], groups=["patient 1", "patient 1"])
    (0.75, nan, nan)
    """
    scores = np.asarray(values, np.float64)
    return ratio_interval(scores, np.ones_like(scores), groups, level, resamples, seed)


def intervals(values: Sequence[ArrayLike]) -> list[tuple[float, float, float]]:
    """As `interval` of each of many, all of whose scores count and belong to no groups: those of a length share their draws.

    Args:
        values: Scores, each `[N]`, of any lengths.

    >>> intervals([[0.75, 0.75], [0.5]])
    [(0.75, 0.75, 0.75), (0.5, nan, nan)]
    """
    scores = [np.asarray(own, np.float64) for own in values]
    found = [(float(own.mean()) if len(own) else float("nan"), float("nan"), float("nan")) for own in scores]
    for size in {len(own) for own in scores} - {0, 1}:
        of_size = [k for k, own in enumerate(scores) if len(own) == size]
        together = np.stack([scores[k] for k in of_size], 1)  # [N, P]
        means = np.concatenate([counts @ together for counts in _draw_counts(size, _RESAMPLES, seed=0)]) / size
        bounds = np.quantile(means, [0.025, 0.975], axis=0)
        for k, low, high in zip(of_size, *bounds, strict=True):
            found[k] = (found[k][0], float(low), float(high))
    return found


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    groups: Sequence[object] | NDArray[np.generic] | None = None,
    level: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """As `interval`, of a score over the data set: the sum of numerators by the sum of denominators.

    The data set's Dice is that of `2 * tp` and `2 * tp + fp + fn`, its IoU that of `tp` and `tp + fp + fn`. A case where nothing counts
    (its denominator is 0) is left out, as one without a score is.

    Args:
        numerators: Of each case, `[N]`.
        denominators: Likewise, not negative.
        groups: As for `interval`, and so on.
        level: Likewise.
        resamples: Likewise.
        seed: Likewise.

    Returns:
        Ratio, lower and upper bound; nan as for `interval`.

    Raises:
        ValueError: As for `interval`, or a denominator below 0.

    >>> ratio_interval([2, 0, 0], [2, 2, 0])
    (0.5, 0.0, 1.0)
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    members = np.arange(above.size) if groups is None else np.asarray(groups)
    if above.ndim != 1 or not above.shape == below.shape == members.shape:
        raise ValueError(
            f"there are scores {above.shape} by {below.shape} and groups {members.shape} of cases; expected one each, [N]"
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a share between 0 and 1, such as 0.95")
    if (below < 0).any():
        raise ValueError(f"a denominator is {np.nanmin(below)}; expected counts of 0 and more")
    counting = ~np.isnan(above) & (below > 0)
    if not counting.any():
        return float("nan"), float("nan"), float("nan")
    _, places = np.unique(members[counting], return_inverse=True)
    totals = np.array([np.bincount(places, part[counting]) for part in (above, below)], np.float64)
    ratio = float(totals[0].sum() / totals[1].sum())
    if totals.shape[1] < 2:
        return ratio, float("nan"), float("nan")
    low, high = np.quantile(_resampled(totals, resamples, seed), [(1 - level) / 2, (1 + level) / 2])
    return ratio, float(low), float(high)


def interval_of(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    totals: ArrayLike,
    groups: Sequence[object],
    level: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Bounds of any statistic of sums over cases, such as the mean over classes of a score of the data set's counts.

    Args:
        statistic: Of sums `[R, ...]`, one value each, `[R]`.
        totals: Of each case, `[N, ...]`.
        groups: What each case belongs to, `[N]`.
        level: As for `interval`, and so on.
        resamples: Likewise.
        seed: Likewise.

    >>> interval_of(lambda sums: sums[:, 0] / sums[:, 1], [[2, 2], [0, 2]], ["a", "b"])
    (0.0, 1.0)
    """
    counts = np.asarray(totals, np.float64)
    names, places = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return float("nan"), float("nan")
    of_group = np.zeros((len(names), *counts.shape[1:]))
    np.add.at(of_group, places, counts)
    # How often each group is drawn: sums of resampled groups are one product of matrices.
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    values = statistic(np.tensordot(drawn.astype(np.float64), of_group, 1))
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(totals: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Ratios `[resamples]` of as many groups as there are, drawn with replacement; totals of the groups are `[2, G]`."""
    sums = np.concatenate([counts @ totals.T for counts in _draw_counts(totals.shape[1], resamples, seed)])
    return sums[:, 0] / sums[:, 1]


def _draw_counts(size: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each of so many is drawn, with replacement, `[R, N]`, in parts."""
    rng, step = np.random.default_rng(seed), max(1, _DRAWN_AT_ONCE // size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
