"""Whether one method is better than another on the same cases: paired differences of groups, their interval, test and verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segline.metrics.bootstrap import intervals

#: Of more methods only the best so many are tested against each other: a search of 200 runs has 19,900 pairs, of which no one reads
#: the table. All pairs of the best, not each against the very best: of 200 equal methods the luckiest is far above most others, but near
#: the next ones, so that picking the best raises no false alarms among them.
MOST_TESTED = 30
#: Fewer groups can give no p below 0.05: of 5, whose signs flip in 32 ways, the least is 2 / 32.
LEAST_GROUPS = 6
#: Up to so many differences all flips of signs are tried.
_MOST_EXACT = 16
#: Draws of flips where there are more; for many pairs as many as let the least p survive the correction.
_DRAWS = 20_000
#: Flips tried at once: bounds the memory.
_AT_ONCE = 1000
#: Chance at most that any verdict "better" or "worse" is given where no method differs from another.
_LEVEL = 0.05
#: Differences that are told apart at most, for rounding makes equal ones differ: in units of the largest score, or sum.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Pair:
    """How one method differs from another.

    Args:
        one: Name of a method.
        other: Of the one that it is compared with.
        difference: Mean over groups of what `one` has more than `other`.
        low: Lower bound of the difference by a paired bootstrap of groups, 95 %; nan for fewer than two groups.
        high: Upper bound.
        p: Of the sign-flip test, after Holm's correction for all pairs that were tested; nan for too few groups.
        wins: Groups in which `one` is better.
        ties: Groups in which both are equal.
        losses: The others.
        verdict: "better", "worse", "no evidence" or "too few groups".
    """

    one: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int
    verdict: str

    @property
    def num_groups(self) -> int:
        """Groups that both have a score of."""
        return self.wins + self.ties + self.losses


def compare(
    scores: Mapping[str, ArrayLike],
    groups: Sequence[object],
    *,
    against: str | None = None,
) -> list[Pair]:
    """Compare methods pair by pair; what they are asked on is the same for all.

    A group's difference is the mean of its cases' ones, so that a patient of many scans counts as much as one of few.

    Args:
        scores: By method, of each case, `[N]`, a mean over seeds; nan where a case has none, which leaves it out of the pair.
        groups: What each case belongs to, `[N]`: patient, scene or tile.
        against: The method that all others are compared with; None: all pairs.

    Raises:
        ValueError: Lengths differ, there are fewer than two methods, or none is called `against`.

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979; Good, Permutation,
        Parametric, and Bootstrap Tests of Hypotheses (2005), chapter 3, for flips of signs.

    >>> pair, = compare({"a": [0.8] * 6, "b": [0.7, 0.6, 0.7, 0.7, 0.6, 0.7]}, groups=range(6))
    >>> f"{pair.difference:.3f}", pair.p, pair.wins, pair.verdict
    ('0.133', 0.03125, 6, 'better')
    """
    values = {name: np.asarray(of_method, np.float64) for name, of_method in scores.items()}
    if len(values) < 2:
        raise ValueError(f"there {'is' if values else 'are'} {len(values)} to compare; expected two methods or more")
    if against is not None and against not in values:
        raise ValueError(f"there is no {against!r}; expected one of {', '.join(values)}")
    if wrong := [name for name, of_method in values.items() if of_method.shape != (len(groups),)]:
        raise ValueError(
            f"{wrong[0]} has scores {values[wrong[0]].shape} of {len(groups)} cases; expected one each, [N]"
        )
    named = combinations(values, 2) if against is None else ((name, against) for name in values if name != against)
    # Numbers are sorted faster than names, for each pair.
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    differences = {pair: group_means(_difference(*(values[name] for name in pair)), members) for pair in named}
    tested = {pair: own for pair, own in differences.items() if len(own) >= LEAST_GROUPS}
    ps = dict(zip(tested, holm(sign_flips(list(tested.values()))), strict=True))
    # Of few groups and many pairs none could pass, whatever the scores are.
    decidable = any(least_p(len(own), len(tested)) * len(tested) <= _LEVEL for own in tested.values())
    found = zip(differences.items(), intervals(list(differences.values())), strict=True)
    return [_pair(*pair, own, bounds, ps.get(pair, float("nan")), decidable) for (pair, own), bounds in found]


def _difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """What one has more than the other; means of the same seeds in another order differ by rounding, and are equal."""
    difference = one - other
    rounded = np.abs(difference) <= _ROUNDING * np.maximum(np.abs(one), np.abs(other))
    return np.where(rounded, 0.0, difference)


def _pair(
    one: str,
    other: str,
    differences: NDArray[np.float64],
    bounds: tuple[float, float, float],
    p: float,
    decidable: bool,
) -> Pair:
    difference, low, high = bounds
    wins, ties, losses = (int((np.sign(differences) == sign).sum()) for sign in (1, 0, -1))
    if p != p or not decidable:
        verdict = "too few groups"
    elif p > _LEVEL:
        verdict = "no evidence"
    else:
        verdict = "better" if difference > 0 else "worse"
    return Pair(one, other, difference, low, high, p, wins, ties, losses, verdict)


def group_means(values: ArrayLike, groups: Sequence[object] | NDArray[np.generic]) -> NDArray[np.float64]:
    """Mean of each group's cases that have a value, `[G]`, of the groups that have such.

    >>> group_means([1.0, 3.0, float("nan"), 5.0, float("nan")], ["a", "a", "a", "b", "c"])
    array([2., 5.])
    """
    of_case = np.asarray(values, np.float64)
    there = ~np.isnan(of_case)
    _, places = np.unique(np.asarray(groups)[there], return_inverse=True)
    return np.bincount(places, of_case[there]) / np.bincount(places)


def sign_flips(differences: Sequence[ArrayLike]) -> list[float]:
    """Two-sided p of the mean of paired differences, of each pair: how often flipped signs give one as far from zero.

    Where two methods are equally good, a difference may as well have the other sign. All flips are tried for up to 16 differences, else
    20,000 are drawn (more for very many pairs), the observed one among them.

    >>> sign_flips([[1.0, 2.0, 3.0], [1.0, -1.0]])
    [0.25, 1.0]
    """
    values = [np.asarray(own, np.float64) for own in differences]
    ps = [1.0] * len(values)
    of_size: dict[int, list[int]] = {}
    for k, own in enumerate(values):
        if len(own):
            of_size.setdefault(len(own) if len(own) <= _MOST_EXACT else _MOST_EXACT + 1, []).append(k)
    for alike in of_size.values():
        # Drawn flips are the same for all pairs: zeros in place of groups that one lacks change none of its sums.
        size = max(len(values[k]) for k in alike)
        together = np.stack([np.pad(values[k], (0, size - len(values[k]))) for k in alike], 1)  # [G, P]
        observed = np.abs(together.sum(0)) - _ROUNDING * np.abs(together).sum(0)
        reached, tried = np.zeros(len(alike)), 0
        for signs in _signs(size, len(values)):
            reached += (np.abs(signs @ together) >= observed).sum(0)
            tried += len(signs)
        for k, count in zip(alike, reached, strict=True):
            ps[k] = float(count / tried)
    return ps


def least_groups(num_pairs: int) -> int:
    """Groups below which no test of so many pairs can show a difference.

    >>> least_groups(1), least_groups(3), least_groups(10)
    (6, 7, 9)
    """
    return next(size for size in range(LEAST_GROUPS, 100) if least_p(size, num_pairs) * max(num_pairs, 1) <= _LEVEL)


def least_p(num_groups: int, num_pairs: int = 1) -> float:
    """The least that `sign_flips` can give so many groups, where so many pairs are tested."""
    return 2.0 ** (1 - num_groups) if num_groups <= _MOST_EXACT else 1 / _num_draws(num_pairs)


def _num_draws(num_pairs: int) -> int:
    return max(_DRAWS, math.ceil(2 * num_pairs / _LEVEL))


def _signs(size: int, num_pairs: int) -> Iterator[NDArray[np.float64]]:
    """Flips of so many differences, `[F, G]`, in parts."""
    if size <= _MOST_EXACT:
        # Half of them: the others are these with all signs flipped.
        for start in range(0, half := 2 ** (size - 1), _AT_ONCE):
            numbers = np.arange(start, min(start + _AT_ONCE, half))
            yield np.where(numbers[:, None] >> np.arange(size) & 1, -1.0, 1.0)
        return
    rng = np.random.default_rng(0)
    yield np.ones((1, size))
    for start in range(1, draws := _num_draws(num_pairs), _AT_ONCE):
        yield np.where(rng.integers(2, size=(min(_AT_ONCE, draws - start), size)), -1.0, 1.0)


def holm(ps: Sequence[float]) -> list[float]:
    """P values corrected for their number: the chance that any of them is this low where nothing differs.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, k in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[k]))
        adjusted[k] = highest
    return adjusted
