import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from segline.metrics.bootstrap import interval, ratio_interval


def test_bounds_of_independent_cases_equal_scipy() -> None:
    values = np.random.default_rng(0).beta(8, 2, 60)
    mean, low, high = interval(values, resamples=20_000)
    oracle = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    # A bound's own deviation between runs is about 0.02 standard errors of the mean.
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(oracle.low, abs=0.1 * error)
    assert high == pytest.approx(oracle.high, abs=0.1 * error)


def test_bounds_of_another_level_equal_scipy() -> None:
    values = np.random.default_rng(1).beta(2, 2, 40)
    bounds = interval(values, level=0.5, resamples=20_000)[1:]
    oracle = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, confidence_level=0.5, rng=1
    ).confidence_interval
    assert bounds == pytest.approx(tuple(oracle), abs=0.1 * values.std() / np.sqrt(len(values)))


def coverage(rng: np.random.Generator, num_groups: int, of_group: int, clustered: bool, repeats: int = 300) -> float:
    """Share of repetitions whose bounds hold the true mean 0, where cases of a group deviate together."""
    groups = np.repeat(np.arange(num_groups), of_group)
    held = 0
    for seed in range(repeats):
        values = rng.normal(size=num_groups)[groups] + 0.3 * rng.normal(size=len(groups))
        _, low, high = interval(values, groups if clustered else None, resamples=300, seed=seed)
        held += low <= 0 <= high
    return held / repeats


def test_independent_cases_are_covered_as_often_as_promised() -> None:
    assert 0.91 <= coverage(np.random.default_rng(0), 50, 1, clustered=False) <= 0.98


def test_groups_of_like_cases_are_covered_as_often_as_promised_and_only_by_whole_groups() -> None:
    assert 0.91 <= coverage(np.random.default_rng(0), 40, 10, clustered=True) <= 0.98
    assert coverage(np.random.default_rng(0), 40, 10, clustered=False) < 0.6


def test_cases_written_several_times_tell_no_more_than_once() -> None:
    values = np.random.default_rng(0).random(30)
    once, again = interval(values), interval(np.repeat(values, 20), np.repeat(np.arange(30), 20))
    assert again == pytest.approx(once, rel=1e-12)
    naive = interval(np.repeat(values, 20))
    assert naive[2] - naive[1] < 0.3 * (once[2] - once[1])


@settings(max_examples=30)
@given(st.integers(0, 2**16))
def test_names_of_groups_and_order_of_cases_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, groups = rng.random(20), rng.integers(0, 6, 20)
    order = rng.permutation(20)
    named = [f"patient {group}" for group in groups[order]]
    assert interval(values[order], named, resamples=50) == pytest.approx(
        interval(values, groups, resamples=50), nan_ok=True
    )


def test_groups_of_unequal_size_count_by_their_cases() -> None:
    values, groups = [1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"]
    assert interval(values, groups) == (0.25, 0.0, 1.0)  # not the mean of the means of groups


def test_cases_without_a_score_are_left_out() -> None:
    values = np.random.default_rng(0).random(30)
    holed, groups = np.insert(values, [3, 9, 30], np.nan), np.insert(np.arange(30) // 3, [3, 9, 30], [0, 77, 78])
    assert interval(holed) == interval(values)
    assert interval(holed, groups) == interval(values, np.arange(30) // 3)


@pytest.mark.parametrize(
    ("values", "groups", "mean"),
    [
        ([0.5], None, 0.5),
        ([0.5, np.nan], None, 0.5),
        ([0.5, 1.0, np.nan], [1, 1, 2], 0.75),
        ([np.nan, np.nan], None, np.nan),
        ([], None, np.nan),
    ],
)
def test_fewer_than_two_groups_have_no_bounds(values: list[float], groups: list[int] | None, mean: float) -> None:
    assert interval(values, groups) == pytest.approx((mean, np.nan, np.nan), nan_ok=True)


def test_the_same_seed_gives_the_same_bounds_and_another_one_others() -> None:
    values = np.random.default_rng(0).random(30)
    assert interval(values, seed=3) == interval(values, seed=3) != interval(values, seed=4)


def dice_counts(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    size = rng.integers(10, 10_000, 40)
    found, wrong = rng.binomial(size, 0.8), rng.binomial(size, 0.3)
    return 2 * found, 2 * found + wrong


def test_bounds_of_the_score_over_the_data_set_equal_scipy_on_pairs() -> None:
    above, below = dice_counts(np.random.default_rng(0))
    ratio, low, high = ratio_interval(above, below, resamples=20_000)
    oracle = stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
    )
    assert ratio == above.sum() / below.sum()
    assert ratio != pytest.approx((above / below).mean(), rel=1e-4)
    assert (low, high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.1 * oracle.standard_error)


def test_groups_of_counts_are_resampled_whole() -> None:
    above, below = dice_counts(np.random.default_rng(1))
    halves = ratio_interval(
        np.concatenate([above // 2, above - above // 2]),
        np.concatenate([below // 2, below - below // 2]),
        np.tile(np.arange(40), 2),
    )
    assert halves == pytest.approx(ratio_interval(above, below), rel=1e-12)


def test_a_case_where_nothing_counts_changes_nothing() -> None:
    above, below = dice_counts(np.random.default_rng(2))
    assert ratio_interval(np.append(above, 0), np.append(below, 0)) == ratio_interval(above, below)
    assert ratio_interval([3, 0], [4, 0]) == pytest.approx((0.75, np.nan, np.nan), nan_ok=True)


def test_more_draws_than_fit_into_memory_at_once_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    before = interval(values)
    monkeypatch.setattr("segline.metrics.bootstrap._DRAWN_AT_ONCE", 70)
    assert interval(values) == before


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scores \(2,\) by \(2,\) and groups \(1,\) of cases; expected one each"):
        interval([0.5, 0.6], ["a"])
    with pytest.raises(ValueError, match=r"scores \(2,\) by \(3,\)"):
        ratio_interval([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"level is 95; expected a share"):
        interval([0.5, 0.6], level=95)
    with pytest.raises(ValueError, match=r"a denominator is -1"):
        ratio_interval([1, 2], [1, -1])
