import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from segline.labels import IGNORE_INDEX, Labels
from segline.metrics.calibration import NUM_BINS, Calibration, Reliability, apply_temperature, decide

EXCLUSIVE = Labels({"soil": 0, "crop": 1, "weed": 2}, background="soil")
OVERLAPPING = Labels({"whole": [1, 2], "core": [2]}, scheme="overlapping")
BOTH = pytest.mark.parametrize("labels", [EXCLUSIVE, OVERLAPPING])


def random_piece(
    labels: Labels, seed: int, size: tuple[int, ...] = (40, 30), dtype: type = np.float32
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities `[K, *S]` that are too sure, and a mask with ignored pixels."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(1, labels.num_classes, *size))
    mask = labels.decide(labels.probs(logits + 2 * rng.normal(size=logits.shape)))[0]
    mask[rng.random(mask.shape) < 0.2] = IGNORE_INDEX
    return labels.probs(logits)[0].astype(dtype), mask


def measured(labels: Labels, *pieces: tuple[NDArray[Any], NDArray[Any]]) -> Reliability:
    reliability = Reliability(labels)
    for piece in pieces:
        reliability.update(*piece)
    return reliability


@pytest.mark.parametrize("norm", ["l1", "max"])
def test_errors_of_exclusive_labels_equal_torchmetrics(norm: str) -> None:
    probs, mask = random_piece(EXCLUSIVE, 0)
    oracle = MulticlassCalibrationError(3, n_bins=15, norm=norm, ignore_index=IGNORE_INDEX)
    expected = float(oracle(torch.from_numpy(probs)[None], torch.from_numpy(mask)[None]))
    reliability = measured(EXCLUSIVE, (probs, mask))
    assert expected > 0.1
    assert (reliability.ece if norm == "l1" else reliability.max_error) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", ["l1", "max"])
def test_errors_of_overlapping_labels_equal_torchmetrics_of_each_decision(norm: str) -> None:
    probs, mask = random_piece(OVERLAPPING, 0)
    # The library's binary error bins p itself, and calls it the share of ones: it is asked about the decision instead.
    sure, right = np.maximum(probs, 1 - probs), np.where(mask == IGNORE_INDEX, IGNORE_INDEX, (probs >= 0.5) == mask)
    oracle = BinaryCalibrationError(n_bins=15, norm=norm, ignore_index=IGNORE_INDEX)
    expected = float(oracle(torch.from_numpy(sure), torch.from_numpy(right)))
    reliability = measured(OVERLAPPING, (probs, mask))
    assert expected > 0.03
    assert (reliability.ece if norm == "l1" else reliability.max_error) == pytest.approx(expected, rel=1e-5)


@BOTH
def test_bins_equal_a_loop_over_pixels(labels: Labels) -> None:
    probs, mask = random_piece(labels, 1, (8, 9))
    seen: list[list[tuple[float, bool]]] = [[] for _ in range(NUM_BINS)]
    for place in np.argwhere(mask != IGNORE_INDEX).tolist():
        if labels.exclusive:
            of_pixel = probs[:, *place]
            sure, right = of_pixel.max(), of_pixel.argmax() == mask[*place]
        else:
            p = probs[*place]
            sure, right = (p, mask[*place] == 1) if p >= 0.5 else (1 - p, mask[*place] == 0)
        seen[min(int(sure * NUM_BINS), NUM_BINS - 1)].append((float(sure), bool(right)))
    for i, (row, pixels) in enumerate(zip(measured(labels, (probs, mask)).bins, seen, strict=True)):
        assert (row["low"], row["high"], row["count"]) == (i / 15, (i + 1) / 15, len(pixels))
        if pixels:
            assert (row["confidence"], row["accuracy"]) == pytest.approx(tuple(np.mean(pixels, 0)), abs=1e-7)
        else:
            assert row["confidence"] is row["accuracy"] is None


@settings(max_examples=40)
@given(
    st.sampled_from([EXCLUSIVE, OVERLAPPING]),
    st.integers(0, 2**16),
    st.lists(st.integers(0, 40), max_size=5),
    st.randoms(use_true_random=False),
)
def test_any_pieces_in_any_order_on_any_processes_give_the_very_same(
    labels: Labels, seed: int, cuts: list[int], random: Any
) -> None:
    probs, mask = random_piece(labels, seed, dtype=np.float64)  # sums of which depend on the order
    pieces = list(zip(np.split(probs, sorted(cuts), 1), np.split(mask, sorted(cuts), mask.ndim - 2), strict=True))
    random.shuffle(pieces)
    half = len(pieces) // 2
    apart = measured(labels, *pieces[:half])
    apart.merge(measured(labels, *pieces[half:]))
    whole = measured(labels, (probs, mask))
    assert apart.bins == whole.bins
    assert (apart.ece, apart.max_error) == (whole.ece, whole.max_error)


@BOTH
def test_what_is_said_of_ignored_pixels_and_pixels_without_data_change_nothing(labels: Labels) -> None:
    probs, mask = random_piece(labels, 2)
    before = measured(labels, (probs, mask))
    lost = np.full((labels.num_classes, 5, 30), np.nan, np.float32)
    probs[np.broadcast_to(mask == IGNORE_INDEX, probs.shape)] = 0.5
    rows = mask[..., :5, :]
    after = measured(labels, (np.concatenate([probs, lost], 1), np.concatenate([mask, rows], mask.ndim - 2)))
    assert after.bins == before.bins


def test_one_class_without_a_probability_does_not_take_the_others_along() -> None:
    probs = np.array([[0.9, np.nan], [0.2, 0.7]])
    assert measured(OVERLAPPING, (probs, np.array([[1, 1], [0, 1]]))).count.sum() == 3


def test_certainty_falls_into_the_last_bin_and_is_never_above_one() -> None:
    probs = np.array([[1.0, np.nextafter(np.float32(1), np.float32(2))], [0.0, 0.0]], np.float32)
    reliability = measured(Labels({"soil": 0, "crop": 1}), (probs, np.array([0, 1])))
    row = reliability.bins[-1]
    assert (row["count"], row["confidence"], row["accuracy"]) == (2, 1.0, 0.5)
    assert reliability.ece == 0.5


def test_without_pixels_there_is_no_error() -> None:
    reliability = measured(EXCLUSIVE, (np.ones((3, 4), np.float32) / 3, np.full(4, IGNORE_INDEX)))
    assert math.isnan(reliability.ece)
    assert math.isnan(reliability.max_error)
    assert all(row["count"] == 0 for row in reliability.bins)


@BOTH
@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_probabilities_with_a_temperature_are_those_of_the_divided_logits(labels: Labels, temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(2, labels.num_classes, 5, 4, 3)).astype(np.float32)
    scaled = apply_temperature(labels.probs(logits), temperature, labels)
    assert scaled.dtype == np.float32
    assert scaled == pytest.approx(labels.probs(logits / temperature), abs=1e-5)
    assert np.array_equal(labels.decide(scaled), labels.decide(logits if labels.exclusive else labels.probs(logits)))


@BOTH
def test_a_temperature_of_one_gives_the_very_array(labels: Labels) -> None:
    probs = np.zeros((1, labels.num_classes, 2), np.float32)
    assert apply_temperature(probs, 1.0, labels) is probs


@BOTH
@pytest.mark.parametrize("temperature", [0.05, 20.0])
def test_certainty_and_missing_data_survive_any_temperature(labels: Labels, temperature: float) -> None:
    first = np.array([1.0, 0.0, np.nan], np.float32)
    probs = np.stack([first, 1 - first, *[0 * first] * (labels.num_classes - 2)])[None]
    before = probs.copy()
    scaled = apply_temperature(probs, temperature, labels)
    assert np.array_equal(probs, before, equal_nan=True)  # what came is still the caller's
    assert np.isnan(scaled[:, :, 2]).all()
    assert np.isfinite(scaled[:, :, :2]).all()
    assert np.array_equal(labels.decide(scaled[:, :, :2]), labels.decide(probs[:, :, :2]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        apply_temperature(np.ones((1, 3, 2)), temperature, EXCLUSIVE)


@BOTH
def test_default_thresholds_decide_as_the_labels_do(labels: Labels) -> None:
    # Neighbours among float32 numbers: divided by the same third, some become equal.
    first = np.float32(0.4) + np.spacing(np.float32(0.4)) * np.arange(64, dtype=np.float32)
    probs = np.stack([first[:-1], first[1:], 1 - 2 * first[1:]][: labels.num_classes])[None]
    default = [1 / 3] * 3 if labels.exclusive else [0.5] * 2
    for thresholds in (None, default):
        decided = decide(probs, thresholds, labels)
        assert np.array_equal(decided, labels.decide(probs))
        assert decided.dtype == labels.decide(probs).dtype


@BOTH
def test_thresholds_decide_as_a_loop_over_pixels_does(labels: Labels) -> None:
    rng = np.random.default_rng(0)
    probs = labels.probs(rng.normal(size=(2, labels.num_classes, 5, 6)).astype(np.float32))
    thresholds = [0.6, 0.1, 0.3][: labels.num_classes]
    decided = decide(probs, thresholds, labels)
    assert decided.shape == labels.decide(probs).shape
    assert (decided != labels.decide(probs)).any()
    for b, y, x in np.ndindex(2, 5, 6):
        shares = [float(p) / t for p, t in zip(probs[b, :, y, x], thresholds, strict=True)]
        if labels.exclusive:
            assert decided[b, y, x] == shares.index(max(shares))
        else:
            assert decided[b, :, y, x].tolist() == [int(share >= 1) for share in shares]


def test_a_threshold_that_equals_a_float32_probability_is_reached_by_it() -> None:
    probs = np.full((1, 2, 1), 0.7, np.float32)
    assert decide(probs, [float(np.float32(0.7)), 0.7], OVERLAPPING).ravel().tolist() == [1, 1]


def test_thresholds_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 thresholds for 3 classes \(soil, crop, weed\)"):
        decide(np.ones((1, 3, 2)), [0.5, 0.5], EXCLUSIVE)


def test_a_threshold_of_zero_suits_only_overlapping_labels() -> None:
    assert decide(np.zeros((1, 2, 1)), [0.0, 0.5], OVERLAPPING).ravel().tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"\[0.0, 0.5, 0.5\]; expected numbers above 0"):
        decide(np.ones((1, 3, 2)), [0.0, 0.5, 0.5], EXCLUSIVE)


FITTED = Calibration(1.75, [0.25, 0.75], "val", 4096, "0123456789abcdef" * 4, 0.125, 0.03)


@pytest.mark.parametrize("thresholds", [[0.1 + 0.2, float(np.float32(0.1))], None])
def test_a_calibration_comes_back_from_its_file(tmp_path: Path, thresholds: list[float] | None) -> None:
    calibration = Calibration(**FITTED.to_dict() | {"thresholds": thresholds})
    calibration.save(tmp_path / "new" / "calibration.json")
    assert Calibration.load(tmp_path / "new" / "calibration.json") == calibration
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", 0.0, "0.0; expected a number above 0"),
        ("temperature", True, "True; expected a number above 0"),
        ("temperature", "1.5", "'1.5'; expected a number above 0"),
        ("temperature", math.inf, "inf; expected a number above 0"),
        ("thresholds", [0.5, None], r"\[0.5, None\]; expected null or a list of numbers from 0 to 1"),
        ("thresholds", 0.5, "0.5; expected null or a list"),
        ("thresholds", [1.5], r"\[1.5\]; expected null or a list"),
        ("split", None, "None; expected a name such as 'val'"),
        ("pixels", 1.5, "1.5; expected a whole number above 0"),
        ("pixels", 0, "0; expected a whole number above 0"),
        ("checkpoint", "last.ckpt", "'last.ckpt'; expected a SHA-256 of 64 hexadecimal digits"),
        ("ece_before", -0.1, "-0.1; expected a number from 0 to 1"),
        ("ece_after", math.nan, "nan; expected a number from 0 to 1"),
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path: Path, name: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"the calibration's {name} is {expected}"):
        Calibration.from_dict(FITTED.to_dict() | {name: value})
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(FITTED.to_dict() | {name: value}))
    with pytest.raises(ValueError, match=r"calibration\.json: the calibration's"):
        Calibration.load(path)


def test_missing_and_unknown_fields_are_named(tmp_path: Path) -> None:
    without = {name: value for name, value in FITTED.to_dict().items() if name != "split"}
    with pytest.raises(ValueError, match=r"has the fields \['checkpoint', .*\]; expected \[.*'split'"):
        Calibration.from_dict(without)
    with pytest.raises(ValueError, match=r"has the fields .*'scale'.*; expected"):
        Calibration.from_dict(FITTED.to_dict() | {"scale": 1})
    with pytest.raises(ValueError, match=r"a calibration is \[1\]; expected a mapping of temperature"):
        Calibration.from_dict([1])
    (tmp_path / "torn.json").write_text('{"temperature": 1.')
    with pytest.raises(ValueError, match=r"torn\.json: Expecting"):
        Calibration.load(tmp_path / "torn.json")
