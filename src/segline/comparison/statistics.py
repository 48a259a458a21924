"""Whether one method is better than another on the same cases: paired differences of groups, their interval, test and verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segline.metrics.bootstrap import interval

#: Fewer groups can give no p below 0.05: of 5, whose signs flip in 32 ways, the least is 2 / 32.
LEAST_GROUPS = 6
#: Up to so many differences all flips of signs are tried.
_MOST_EXACT = 16
_DRAWS = 20_000
#: Differences of means that are told apart at most, for rounding makes equal ones differ: in units of the largest sum.
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
    maximize: bool = True,
    level: float = 0.05,
) -> list[Pair]:
    """Compare methods pair by pair; what they are asked on is the same for all.

    A group's difference is the mean of its cases' ones, so that a patient of many scans counts as much as one of few.

    Args:
        scores: By method, of each case, `[N]`, a mean over seeds; nan where a case has none, which leaves it out of the pair.
        groups: What each case belongs to, `[N]`: patient, scene or tile.
        against: The method that all others are compared with; None: all pairs.
        maximize: Whether more is better.
        level: Chance at most that any verdict "better" or "worse" is given where no method differs from another.

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
    pairs = [_pair(one, other, group_means(values[one] - values[other], groups)) for one, other in named]
    if not maximize:
        pairs = [replace(pair, wins=pair.losses, losses=pair.wins) for pair in pairs]
    tested = [k for k, pair in enumerate(pairs) if pair.num_groups >= LEAST_GROUPS]
    for k, p in zip(tested, holm([pairs[k].p for k in tested]), strict=True):
        better = (pairs[k].difference > 0) == maximize
        pairs[k] = replace(pairs[k], p=p, verdict=("better" if better else "worse") if p <= level else "no evidence")
    return pairs


def _pair(one: str, other: str, differences: NDArray[np.float64]) -> Pair:
    """A pair before correction; wins are those of a score of which more is better."""
    difference, low, high = interval(differences)
    few = len(differences) < LEAST_GROUPS
    wins, ties, losses = (int((np.sign(differences) == sign).sum()) for sign in (1, 0, -1))
    p = float("nan") if few else sign_flip(differences)
    return Pair(one, other, difference, low, high, p, wins, ties, losses, "too few groups")


def group_means(values: ArrayLike, groups: Sequence[object]) -> NDArray[np.float64]:
    """Mean of each group's cases that have a value, `[G]`, of the groups that have such.

    >>> group_means([1.0, 3.0, float("nan"), 5.0, float("nan")], ["a", "a", "a", "b", "c"])
    array([2., 5.])
    """
    of_case = np.asarray(values, np.float64)
    there = ~np.isnan(of_case)
    _, places = np.unique(np.asarray(groups)[there], return_inverse=True)
    return np.bincount(places, of_case[there]) / np.bincount(places)


def sign_flip(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences: how often flipped signs give one as far from zero.

    Where two methods are equally good, a difference may as well have the other sign. All flips are tried for up to 16 differences, else
    20,000 are drawn, the observed one among them.

    >>> sign_flip([1.0, 2.0, 3.0])
    0.25
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        return 1.0
    observed = abs(values.sum()) - _ROUNDING * np.abs(values).sum()
    if len(values) <= _MOST_EXACT:
        # Half of them: the others are these with all signs flipped.
        signs = 1.0 - 2.0 * (np.arange(2 ** (len(values) - 1))[:, None] >> np.arange(len(values)) & 1)
        return float((np.abs(signs @ values) >= observed).mean())
    rng = np.random.default_rng(seed)
    reached = 1
    for start in range(1, _DRAWS, 1000):
        signs = rng.integers(2, size=(min(1000, _DRAWS - start), len(values))) * 2.0 - 1.0
        reached += int((np.abs(signs @ values) >= observed).sum())
    return reached / _DRAWS


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
