from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from segline.labels import IGNORE_INDEX, Labels
from segline.metrics.calibration import Reliability, apply_temperature, decide
from segline.metrics.fit import fit_temperature, fit_thresholds

BINARY = Labels({"soil": 0, "weed": 1}, background="soil")
EXCLUSIVE = Labels({"soil": 0, "crop": 1, "weed": 2}, background="soil")
OVERLAPPING = Labels({"whole": [1, 2], "core": [2]}, scheme="overlapping")
BOTH = pytest.mark.parametrize("labels", [EXCLUSIVE, OVERLAPPING])


def truthful(labels: Labels, num_pixels: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Logits `[N, K]` and a truth that is drawn from their probabilities: they are calibrated as they are."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (num_pixels, labels.num_classes))
    probs = labels.probs(logits)
    if labels.exclusive:
        mask = (probs.cumsum(1) < rng.random((num_pixels, 1))).sum(1).clip(max=labels.num_classes - 1)
    else:
        mask = rng.random(probs.shape) < probs
    return logits, mask.astype(np.uint8)


def likelihood(probs: NDArray[Any], mask: NDArray[Any], labels: Labels, temperature: float) -> float:
    """Mean negative log-likelihood, written down again."""
    p = probs.astype(np.float64)
    if labels.exclusive:
        return -special.log_softmax(np.log(p) / temperature, 1)[np.arange(len(p)), mask].mean()
    return -special.log_expit(np.where(mask == 1, 1, -1) * special.logit(p) / temperature).mean()


@BOTH
@pytest.mark.parametrize("scale", [2.5, 0.4])
def test_a_known_temperature_is_found(labels: Labels, scale: float) -> None:
    logits, mask = truthful(labels, 60_000)
    probs = labels.probs((logits * scale).astype(np.float32))
    assert fit_temperature(probs, mask, labels) == pytest.approx(scale, rel=0.02)


@BOTH
def test_the_truth_is_nowhere_likelier_than_at_the_temperature_found(labels: Labels) -> None:
    logits, mask = truthful(labels, 3_000)
    probs = labels.probs(logits * 1.7)
    found = fit_temperature(probs, mask, labels)
    best = likelihood(probs, mask, labels, found)
    assert all(best < likelihood(probs, mask, labels, found * factor) for factor in (0.99, 1.01))
    assert all(best <= likelihood(probs, mask, labels, t) for t in np.geomspace(0.05, 20, 200))


@BOTH
def test_what_is_too_sure_becomes_calibrated(labels: Labels) -> None:
    logits, mask = truthful(labels, 60_000)
    probs = labels.probs((logits * 3).astype(np.float32))
    after = apply_temperature(probs, fit_temperature(probs, mask, labels), labels)
    errors = []
    for of_pixels in (probs, after):
        reliability = Reliability(labels)
        reliability.update(of_pixels.T, mask.T)
        errors.append(reliability.ece)
    assert errors[0] > 0.1
    assert errors[1] < 0.01


@BOTH
def test_where_any_temperature_is_as_likely_none_is_set(labels: Labels) -> None:
    probs = np.full((6, labels.num_classes), 1 / 3 if labels.exclusive else 0.5)
    mask = np.array([0, 1, 2] * 2) if labels.exclusive else np.array([[0, 1]] * 6)
    assert fit_temperature(probs, mask, labels) == 1


@BOTH
def test_certain_and_wrong_is_as_finite_as_certain_and_right(labels: Labels) -> None:
    probs = np.zeros((40, labels.num_classes), np.float32)
    probs[:, 0] = 1
    mask = np.zeros(40, np.uint8) if labels.exclusive else np.array([[1, 0]] * 40, np.uint8)
    assert fit_temperature(probs, mask, labels) == 1
    mask[:10] = 1 if labels.exclusive else 1 - mask[:10]
    assert 4 < fit_temperature(probs, mask, labels) <= 20


@BOTH
def test_ignored_pixels_and_pixels_without_data_change_no_fit(labels: Labels) -> None:
    logits, mask = truthful(labels, 900)
    probs = labels.probs((logits * 2).astype(np.float32)) ** 2  # no longer what they should be
    if labels.exclusive:
        probs /= probs.sum(1, keepdims=True)
    wrong = np.full_like(probs[:300], 0.01)
    lost = np.full_like(probs[:300], np.nan)
    more = np.concatenate([probs, wrong, lost])
    more_mask = np.concatenate([mask, np.full_like(mask[:300], IGNORE_INDEX), 0 * mask[:300]])
    assert fit_temperature(more, more_mask, labels) == pytest.approx(fit_temperature(probs, mask, labels), rel=1e-6)
    assert fit_thresholds(more, more_mask, labels) == fit_thresholds(probs, mask, labels)


def test_an_ignored_class_of_a_pixel_leaves_its_other_classes() -> None:
    logits, mask = truthful(OVERLAPPING, 900)
    probs = OVERLAPPING.probs(logits * 2)
    one = fit_thresholds(probs, mask, OVERLAPPING)
    mask[:, 1] = IGNORE_INDEX
    assert fit_thresholds(probs, mask, OVERLAPPING) == [one[0], 0.5]
    alone = Labels({"whole": 1}, scheme="overlapping")
    assert fit_temperature(probs, mask, OVERLAPPING) == fit_temperature(probs[:, :1], mask[:, :1], alone)


@BOTH
def test_without_a_pixel_there_is_nothing_to_fit(labels: Labels) -> None:
    probs = np.full((4, labels.num_classes), 0.3)
    mask = np.full(4 if labels.exclusive else (4, 2), IGNORE_INDEX)
    with pytest.raises(ValueError, match="no pixel to fit a temperature to: all of them are ignored; choose a split"):
        fit_temperature(probs, mask, labels)
    assert fit_thresholds(probs, mask, labels) == [1 / 3] * 3 if labels.exclusive else [0.5] * 2


def dice(pred: NDArray[Any], true: NDArray[Any]) -> float:
    return float(2 * (pred & true).sum() / (pred.sum() + true.sum()))


def mean_dice(probs: NDArray[Any], mask: NDArray[Any], labels: Labels, thresholds: list[float] | None) -> float:
    """Over the classes that are shown and there."""
    pred = decide(probs, thresholds, labels)
    if labels.exclusive:
        return float(np.mean([dice(pred == k, mask == k) for k in labels.shown if (mask == k).any()]))
    return float(np.mean([dice(p, m) for p, m in zip(pred.T, mask.T, strict=True) if m.any()]))


def rare(labels: Labels, num_pixels: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Probabilities `[N, K]` of which those of the later classes are too low, in steps so that many are equal."""
    logits, mask = truthful(labels, num_pixels, seed)
    probs = labels.probs(logits - np.arange(labels.num_classes) - (not labels.exclusive))
    return (np.round(probs * 64) / 64).astype(np.float32), mask


@settings(max_examples=30)
@given(st.integers(0, 2**16), st.integers(2, 60))
def test_thresholds_of_overlapping_labels_are_the_best_there_are(seed: int, num_pixels: int) -> None:
    probs, mask = rare(OVERLAPPING, num_pixels, seed)
    thresholds = fit_thresholds(probs, mask, OVERLAPPING)
    for k in range(2):
        if not mask[:, k].any():
            assert thresholds[k] == 0.5
            continue
        reached = dice(decide(probs, thresholds, OVERLAPPING)[:, k], mask[:, k])
        assert reached == max(dice(probs[:, k] >= cut, mask[:, k]) for cut in np.unique(probs[:, k]))


@settings(max_examples=30)
@given(st.integers(0, 2**16), st.integers(2, 60))
def test_thresholds_of_two_exclusive_classes_are_the_best_there_are(seed: int, num_pixels: int) -> None:
    probs, mask = rare(BINARY, num_pixels, seed)
    if not (mask == 1).any():
        return
    thresholds = fit_thresholds(probs, mask, BINARY)
    assert sum(thresholds) == pytest.approx(1)
    between = (np.arange(64) + 0.5) / 64  # any two steps of probabilities
    best = max(mean_dice(probs, mask, BINARY, [1 - t, t]) for t in between.tolist())
    assert mean_dice(probs, mask, BINARY, thresholds) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_of_three_exclusive_classes_come_close_to_the_best_of_a_grid(seed: int) -> None:
    probs, mask = rare(EXCLUSIVE, 400, seed)
    default = mean_dice(probs, mask, EXCLUSIVE, None)
    thresholds = fit_thresholds(probs, mask, EXCLUSIVE)
    steps = np.arange(1, 30) / 30
    grid = [[1 - a - b, a, b] for a, b in product(steps, steps) if a + b < 0.99]
    best = max(mean_dice(probs, mask, EXCLUSIVE, t) for t in grid)
    assert sum(thresholds) == pytest.approx(1)
    assert default < best - 0.02
    assert mean_dice(probs, mask, EXCLUSIVE, thresholds) > best - 0.01


@settings(max_examples=40)
@given(st.sampled_from([BINARY, EXCLUSIVE, OVERLAPPING]), st.integers(0, 2**16), st.integers(1, 80))
def test_thresholds_are_never_worse_than_none(labels: Labels, seed: int, num_pixels: int) -> None:
    probs, mask = rare(labels, num_pixels, seed)
    thresholds = fit_thresholds(probs, mask, labels)
    if any((mask == k).any() for k in labels.shown) if labels.exclusive else mask.any():
        fitted, default = (mean_dice(probs, mask, labels, t) for t in (thresholds, None))
        assert fitted >= default


@settings(max_examples=40)
@given(st.sampled_from([BINARY, EXCLUSIVE]), st.integers(0, 2**16))
def test_thresholds_between_neighbours_among_float32_numbers_are_never_worse_than_none(
    labels: Labels, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k = labels.num_classes
    steps = rng.integers(-8, 8, (40, k)).astype(np.float32)
    probs = np.float32(1 / k) + np.spacing(np.float32(1 / k)) * steps
    mask = np.append(rng.integers(0, k, 39), 1).astype(np.uint8)
    assert mean_dice(probs, mask, labels, fit_thresholds(probs, mask, labels)) >= mean_dice(probs, mask, labels, None)


def test_the_background_is_no_goal_of_thresholds() -> None:
    probs, mask = rare(EXCLUSIVE, 2_000, 0)
    everyone = Labels({"soil": 0, "crop": 1, "weed": 2})
    shown, every = (fit_thresholds(probs, mask, labels) for labels in (EXCLUSIVE, everyone))
    assert mean_dice(probs, mask, EXCLUSIVE, shown) > mean_dice(probs, mask, EXCLUSIVE, every)
    assert mean_dice(probs, mask, everyone, every) > mean_dice(probs, mask, everyone, shown)


def test_a_class_that_is_not_there_is_not_forbidden_for_that() -> None:
    probs = np.array([[0.9, 0, 0.1]] * 20 + [[0.1, 0, 0.9]] * 20 + [[0.01, 0.97, 0.02]], np.float32)
    mask = np.array([0] * 20 + [2] * 21, np.uint8)
    assert fit_thresholds(probs, mask, EXCLUSIVE) == [1 / 3] * 3  # one of 0.99 for crop would make all pixels right


def test_thresholds_lie_in_the_middle_of_a_gap_and_at_half_where_that_is_as_good() -> None:
    alone = Labels({"weed": 1}, scheme="overlapping")
    mask = np.array([[1], [1], [0], [0]], np.uint8)
    assert fit_thresholds(np.array([[0.375], [0.25], [0.125], [0.0]], np.float32), mask, alone) == [0.1875]
    assert fit_thresholds(np.array([[0.9], [0.8], [0.3], [0.1]], np.float32), mask, alone) == [0.5]


@pytest.mark.parametrize("places", [0, 1])  # the middle is rounded up or down, to the even one
def test_neighbours_among_float32_numbers_are_told_apart(places: int) -> None:
    value = np.float32(0.3) + places * np.spacing(np.float32(0.3))
    probs = np.array([value, np.nextafter(value, np.float32(0))], np.float32)[:, None]
    alone = Labels({"weed": 1}, scheme="overlapping")
    thresholds = fit_thresholds(probs, np.array([[1], [0]], np.uint8), alone)
    assert decide(probs, thresholds, alone).ravel().tolist() == [1, 0]
