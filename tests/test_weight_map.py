"""Weights against the paper's formula, over all objects and all pixels."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from segline.labels import IGNORE_INDEX, Labels
from segline.losses.entropy import CrossEntropyLoss
from segline.weight_map import BorderWeights, two_nearest

LABELS = Labels({"background": 0, "cell": 1, "mitosis": 2}, background="background", ignore=[9])
CLASS_WEIGHTS = [0.5, 1.5, 4.0]


def scattered(size: tuple[int, ...], seed: int, most: int = 7) -> NDArray[np.int32]:
    """Boxes with numbers that have gaps; some touch, lie over others or have several parts."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros(size, np.int32)
    for _ in range(rng.integers(0, most + 1)):
        corner = [rng.integers(0, n) for n in size]
        numbers[tuple(slice(c, c + rng.integers(1, 5)) for c in corner)] = rng.choice([1, 2, 5, 6, 40])
    return numbers


def by_formula(numbers: NDArray[Any], w0: float, sigma: float) -> NDArray[np.float64]:
    """The second term of the paper's equation 2 at each background pixel, by the distances to all pixels of all objects."""
    pixels = np.argwhere(numbers >= 0)
    objects = [np.argwhere(numbers == n) for n in np.unique(numbers[numbers > 0])]
    distances = np.sort([cdist(pixels, o).min(1) for o in objects], axis=0)
    if len(distances) < 2:
        return np.zeros(numbers.shape)
    emphasis = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return emphasis.reshape(numbers.shape) * (numbers == 0)


def flooded(foreground: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Connected components over corners, pixel by pixel."""
    numbers, rest = np.zeros(foreground.shape, np.int32), set(map(tuple, np.argwhere(foreground).tolist()))
    while rest:
        found = [rest.pop()]
        for pixel in found:  # grows meanwhile
            near = {
                tuple(p + s for p, s in zip(pixel, step, strict=True))
                for step in product((-1, 0, 1), repeat=len(pixel))
            }
            found += rest & near
            rest -= near
        numbers[tuple(np.transpose(found))] = numbers.max() + 1
    return numbers


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32), three=st.booleans(), sigma=st.sampled_from([0.6, 1.0, 2.5, 5.0]), known=st.booleans()
)
def test_weights_are_those_of_the_formula_for_all_objects_and_pixels(
    seed: int, three: bool, sigma: float, known: bool
) -> None:
    size = (5, 9, 8) if three else (19, 23)
    numbers = scattered(size, seed)
    sample = {"mask": np.where(numbers > 4, 2, np.minimum(numbers, 1)).astype(np.uint8)}
    if known:
        sample["instances"] = numbers
    else:
        numbers = flooded(numbers > 0)
    weights = BorderWeights(10.0, sigma)(sample, LABELS, CLASS_WEIGHTS)
    assert weights.dtype == np.float32
    expected = np.array(CLASS_WEIGHTS)[sample["mask"]] + by_formula(numbers, 10.0, sigma)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_a_number_by_hand() -> None:
    mask = np.array([[1, 0, 1, 0, 0, 0, 2]], np.uint8)
    found = BorderWeights(w0=10.0, sigma=5.0)({"mask": mask}, LABELS, CLASS_WEIGHTS)
    # Distances to the two nearest of three: 1 + 1, 1 + 3, 2 + 2, 1 + 3.
    between = 0.5 + 10 * np.exp(-np.array([4, 16, 16, 16]) / 50)
    np.testing.assert_allclose(found, [[1.5, between[0], 1.5, *between[1:], 4.0]], rtol=1e-6)


def test_touching_objects_are_two_where_their_numbers_are_known() -> None:
    numbers = np.zeros((9, 9), np.int32)
    numbers[3:6, 1:4], numbers[3:6, 4:8] = 7, 9
    sample = {"mask": (numbers > 0).astype(np.uint8)}
    alone = BorderWeights()(sample, LABELS, CLASS_WEIGHTS)
    np.testing.assert_array_equal(alone, np.array(CLASS_WEIGHTS, np.float32)[sample["mask"]])
    apart = BorderWeights()(sample | {"instances": numbers}, LABELS, CLASS_WEIGHTS)
    assert apart[2, 3] == pytest.approx(0.5 + 10 * np.exp(-((1 + np.sqrt(2)) ** 2) / 50), rel=1e-5)
    np.testing.assert_array_equal(apart[numbers > 0], alone[numbers > 0])  # the paper's borders are background


def test_numbers_count_only_where_the_mask_has_an_object() -> None:
    mask, numbers = np.zeros((1, 9), np.uint8), np.zeros((1, 9), np.int32)
    numbers[0, :3], numbers[0, 4:] = 1, 2
    mask[0, :3], mask[0, 4:] = 1, IGNORE_INDEX
    found = BorderWeights()({"mask": mask, "instances": numbers}, LABELS, CLASS_WEIGHTS)
    assert found[0, 3] == 0.5  # the other one is ignored, so that there is one object only
    assert np.isfinite(found).all()


def test_ignored_pixels_count_in_no_loss_whatever_they_weigh() -> None:
    mask = np.array([[1, 0, IGNORE_INDEX, 0, 1]], np.uint8)
    weight = torch.from_numpy(BorderWeights()({"mask": mask}, LABELS, CLASS_WEIGHTS))[None]
    logits, truth = torch.randn(1, 3, 1, 5), torch.from_numpy(mask).long()[None]
    loss = CrossEntropyLoss()
    value = loss(logits, truth, weight)
    counted = truth[0, 0] != IGNORE_INDEX
    by_hand = (-logits.log_softmax(1)[0, truth[0, 0].where(counted, 0), 0, torch.arange(5)] * weight[0, 0])[
        counted
    ].sum()
    assert value.item() == pytest.approx((by_hand / weight[0, 0][counted].sum()).item(), rel=1e-5)
    weight[..., 2], logits[..., 2] = 99.0, 7.0
    assert loss(logits, truth, weight) == value


def test_overlapping_labels_are_objects_of_any_class_and_weigh_one() -> None:
    labels = Labels({"cell": [1, 2], "mitosis": 2}, scheme="overlapping", ignore=[9])
    mask = labels.encode(np.array([[1, 0, 2, 2, 9, 0, 1]]))
    mask[0, 0, 2] = 0  # of the second class alone
    found = BorderWeights()({"mask": mask}, labels, [7.0, 7.0])
    lifted = 1 + 10 * np.exp(-(np.array([2, 3]) ** 2) / 50)
    np.testing.assert_allclose(found[0, [0, 1, 2, 3, 5, 6]], [1, lifted[0], 1, 1, lifted[1], 1], rtol=1e-6)


def test_objects_may_be_of_a_class_that_means_leave_out() -> None:
    labels = Labels({"interior": 255, "membrane": 0}, background="interior")
    mask = np.array([[0, 0, 1, 0, 0]], np.uint8)
    found = BorderWeights(objects=["interior"])({"mask": mask}, labels, [1.0, 2.0])
    np.testing.assert_allclose(found, [[1, 1, 2 + 10 * np.exp(-4 / 50), 1, 1]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"data.weight_map.objects has \['cell'\]; expected some of \['interior'"):
        BorderWeights(objects=["cell"])({"mask": mask}, labels, [1.0, 2.0])


def test_what_has_no_background_has_no_objects() -> None:
    with pytest.raises(ValueError, match=r"background is null.*set data.weight_map.objects to some of \['land'"):
        BorderWeights()({"mask": np.zeros((2, 2), np.uint8)}, Labels({"land": 0, "water": 1}), [1.0, 1.0])


@pytest.mark.parametrize("wrong", [{"w0": -1.0}, {"sigma": 0.0}])
def test_numbers_that_make_no_weight_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"data.weight_map has w0 .* expected 0 or more and above 0"):
        BorderWeights(**wrong)  # type: ignore[arg-type]


def test_distances_are_exact_within_reach_and_larger_beyond() -> None:
    numbers = np.zeros((1, 40), np.int32)
    numbers[0, 3], numbers[0, 20] = 4, 2
    nearest, second = two_nearest(numbers, reach=10)
    places = np.arange(40)
    both = np.sort([np.abs(places - 3), np.abs(places - 20)], axis=0)
    np.testing.assert_array_equal(nearest[0][both[0] <= 10], both[0][both[0] <= 10])
    np.testing.assert_array_equal(second[0][both[1] <= 10], both[1][both[1] <= 10])
    assert second[0][both[1] > 10].min() > 10
