"""Differences of methods: against SciPy, against definitions written out, and on made-up scores with a known answer."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from segline.comparison.statistics import compare, group_means, holm, least_groups, sign_flips
from segline.metrics.bootstrap import interval, intervals

RNG = np.random.default_rng


def scipy_p(differences: NDArray[np.float64], draws: int = 9999) -> float:
    """Of SciPy's permutation test; of pairs it flips signs."""
    return float(
        stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=draws, rng=RNG(1)
        ).pvalue
    )


@pytest.mark.parametrize("size", [2, 3, 6, 9, 12])
def test_exact_flips_are_those_of_scipy(size: int) -> None:
    differences = RNG(size).normal(0.5, 1, size)
    assert sign_flips([differences])[0] == pytest.approx(scipy_p(differences, draws=2**12), abs=1e-12)


def test_ties_and_differences_of_zero_count_as_far_from_zero_as_the_observed_mean() -> None:
    differences = np.array([0.1, 0.2, 0.3, 0.1, 0.0, 0.0, -0.1])  # 0.1 + 0.2 is not 0.3 to a computer
    flips = [np.dot(signs, [1, 2, 3, 1, 0, 0, -1]) for signs in itertools.product([-1, 1], repeat=7)]
    assert sign_flips([differences])[0] == np.mean([abs(flip) >= 6 for flip in flips])
    assert sign_flips([np.zeros(8)])[0] == 1


def test_drawn_flips_are_near_those_of_scipy() -> None:
    differences = RNG(3).normal(0.25, 1, 60)
    expected = scipy_p(differences, draws=100_000)
    assert 0.01 < expected < 0.2
    assert sign_flips([differences])[0] == pytest.approx(expected, abs=0.005)


def test_drawn_flips_never_say_that_chance_is_impossible() -> None:
    assert sign_flips([np.ones(100)])[0] == 1 / 20_000


def test_holm_rejects_what_his_procedure_rejects() -> None:
    rng = RNG(0)
    for _ in range(200):
        ps = list(rng.uniform(0, 0.1, rng.integers(1, 8)))
        for level in (0.01, 0.05, 0.1, 0.3):
            rejected: set[int] = set()
            for step, k in enumerate(np.argsort(ps)):  # from the smallest on, until one is not small enough
                if ps[k] > level / (len(ps) - step):
                    break
                rejected.add(int(k))
            assert {k for k, p in enumerate(holm(ps)) if p <= level} == rejected


def test_a_group_counts_once_however_many_cases_it_has() -> None:
    groups = ["big"] * 100 + list("abcdef")
    scores = {"one": np.r_[np.full(100, 0.1), np.full(6, 0.9)], "other": np.full(106, 0.5)}
    (pair,) = compare(scores, groups)
    assert pair.num_groups == 7
    assert (pair.wins, pair.ties, pair.losses) == (6, 0, 1)
    assert pair.difference == pytest.approx((6 * 0.4 - 0.4) / 7)


def test_the_interval_is_a_bootstrap_of_pairs() -> None:
    rng = RNG(5)
    hard = rng.uniform(0.2, 0.9, 40)  # cases differ far more than methods do
    scores = {"one": hard + rng.normal(0.02, 0.02, 40), "other": hard}
    (pair,) = compare(scores, range(40))
    found = stats.bootstrap((scores["one"] - hard,), np.mean, method="percentile", rng=RNG(0)).confidence_interval
    assert (pair.low, pair.high) == pytest.approx((found.low, found.high), abs=5e-4)
    assert pair.high - pair.low < 0.03  # of unpaired scores it would be 0.17 wide
    assert pair.verdict == "better"


def test_intervals_of_many_pairs_are_those_of_each() -> None:
    rng = RNG(2)
    differences = [rng.normal(0, 1, size) for size in (40, 7, 40, 1, 0, 3000)]
    for found, own in zip(intervals(differences), differences, strict=True):
        assert found == pytest.approx(interval(own), abs=1e-12, nan_ok=True)


def test_drawn_flips_of_a_pair_with_fewer_groups_are_near_those_of_scipy() -> None:
    short, long = RNG(3).normal(0.25, 1, 60), RNG(4).normal(0, 1, 90)
    assert sign_flips([short, long])[0] == pytest.approx(scipy_p(short, draws=100_000), abs=0.005)


@pytest.mark.parametrize("num_groups", [16, 500])
def test_many_pairs_take_little_memory(num_groups: int) -> None:
    """All 2^15 flips of 190 pairs at once would take 50 MB, and twice that with their magnitudes."""
    differences = list(RNG(0).normal(size=(190, num_groups)))
    tracemalloc.start()
    sign_flips(differences)
    intervals(differences)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_verdicts_follow_the_sign() -> None:
    scores = {"low": np.full(8, 0.1), "high": np.full(8, 0.3)}
    (pair,) = compare(scores, range(8))
    assert (pair.verdict, pair.wins, pair.losses) == ("worse", 0, 8)
    assert pair.difference == pytest.approx(-0.2)
    (pair,) = compare({"one": np.full(8, 0.1), "same": np.full(8, 0.1)}, range(8))
    assert (pair.verdict, pair.ties, pair.p) == ("no evidence", 8, 1)


@pytest.mark.parametrize("groups", [0, 1, 2, 5])
def test_few_groups_show_nothing_whatever_the_scores_are(groups: int) -> None:
    (pair,) = compare({"one": np.ones(groups), "other": np.zeros(groups)}, range(groups))
    assert pair.verdict == "too few groups"
    assert math.isnan(pair.p)
    assert math.isnan(pair.low) == (groups < 2)


def test_pairs_with_too_few_groups_cost_the_others_nothing() -> None:
    rare = np.r_[[0.9] * 3, [np.nan] * 3]
    pairs = compare({"one": np.full(6, 0.9), "other": np.full(6, 0.1), "rare": rare}, range(6))
    assert [(pair.verdict, pair.num_groups) for pair in pairs] == [
        ("better", 6),
        ("too few groups", 3),
        ("too few groups", 3),
    ]
    assert pairs[0].p == 2 / 64


def test_where_no_verdict_could_come_there_are_too_few_groups() -> None:
    """Of 6 groups the least p is 2 / 64, and three times that is above 0.05."""
    scores = {"low": np.full(7, 0.1), "mid": np.full(7, 0.2), "high": np.full(7, 0.3)}
    assert least_groups(3) == 7
    assert {pair.verdict for pair in compare(scores, range(7))} == {"worse"}
    few = compare({name: values[:6] for name, values in scores.items()}, range(6))
    assert {pair.verdict for pair in few} == {"too few groups"}
    assert {pair.p for pair in few} == {3 * 2 / 64}


def test_the_least_p_of_very_many_pairs_survives_their_correction() -> None:
    """1,225 pairs of 50 methods: of 20,000 draws the least p would become 0.06."""
    scores = {str(k): np.full(20, 0.01 * k) for k in range(50)}
    assert {pair.verdict for pair in compare(scores, range(20))} == {"worse"}


def test_one_method_against_all_others() -> None:
    pairs = compare({name: RNG(k).normal(size=6) for k, name in enumerate("abc")}, range(6), against="b")
    assert [(pair.one, pair.other) for pair in pairs] == [("a", "b"), ("c", "b")]


def test_cases_without_a_score_are_left_out_of_their_groups() -> None:
    assert group_means([0.5, np.nan, 1.0], ["a", "a", "b"]).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("scores", "against", "said"),
    [
        ({"a": [1.0]}, None, "there is 1 to compare; expected two"),
        ({}, None, "there are 0 to compare"),
        ({"a": [1.0], "b": [1.0]}, "c", "there is no 'c'; expected one of a, b"),
        ({"a": [1.0], "b": [1.0, 2.0]}, None, "b has scores .2,. of 1 cases"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores: dict[str, list[float]], against: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare(scores, ["x"], against=against)


def alarms(num_groups: int, num_methods: int, repeats: int, size: int = 1) -> float:
    """How often any verdict is given where methods don't differ; cases of a group are alike, and differ by method, too."""
    rng, groups = RNG(num_groups), np.repeat(np.arange(num_groups), size)
    given = 0
    for _ in range(repeats):
        of_group = rng.beta(5, 2, (num_methods, num_groups))
        scores = of_group[:, groups] + rng.normal(0, 0.01, (num_methods, len(groups)))
        verdicts = {pair.verdict for pair in compare({str(k): s for k, s in enumerate(scores)}, groups)}
        given += bool(verdicts & {"better", "worse"})
    return given / repeats


def test_cases_of_a_group_raise_no_alarms() -> None:
    """Case by case, 16 alike ones of each of 6 groups would give a verdict in most repeats."""
    assert alarms(6, 2, repeats=60, size=16) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [6, 7, 8, 10, 15, 17, 30, 60, 200])
def test_false_alarms_are_as_rare_as_stated(num_groups: int) -> None:
    # Three deviations of a binomial share above 5 %.
    assert alarms(num_groups, 2, repeats=1000) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [10, 40])
def test_many_pairs_raise_no_more_alarms_than_one(num_groups: int) -> None:
    """Of the 10 pairs of 5 methods, uncorrected, some would be called different in a third of the repeats."""
    assert alarms(num_groups, 5, repeats=300) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.slow
def test_picking_the_best_of_many_raises_no_alarms_among_them() -> None:
    """Of 100 equal methods, on 12 groups, the best 10; each of the 100 against the very best would give some verdict in most repeats."""
    rng, given = RNG(9), {"among the best": 0, "against the best": 0}
    for _ in range(200):
        scores = {str(k): of_method for k, of_method in enumerate(rng.beta(5, 2, (100, 12)))}
        ranked = sorted(scores, key=lambda name: -scores[name].mean())
        among = compare({name: scores[name] for name in ranked[:10]}, range(12))
        given["among the best"] += any(pair.verdict in ("better", "worse") for pair in among)
        against = compare(scores, range(12), against=ranked[0])
        given["against the best"] += any(pair.verdict in ("better", "worse") for pair in against)
    assert given["among the best"] <= 0.05 * 200
    assert given["against the best"] > 0.05 * 200 + 3 * math.sqrt(0.05 * 0.95 * 200)


def test_what_differs_is_found() -> None:
    rng = RNG(8)
    hard = rng.beta(5, 2, 30)
    scores = {"good": hard + 0.02 + rng.normal(0, 0.02, 30), "bad": hard + rng.normal(0, 0.02, 30), "same": hard}
    pairs = {(pair.one, pair.other): pair.verdict for pair in compare(scores, range(30))}
    assert pairs == {("good", "bad"): "better", ("good", "same"): "better", ("bad", "same"): "no evidence"}
