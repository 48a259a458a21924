"""Few pixels of a window count, equally many of each class."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hydra.utils import instantiate
from numpy.typing import NDArray

from segline.augment import Sample
from segline.config import compose
from segline.data.pixels import SamplePixels

IGNORED = 255


def noisy(bands: int, size: tuple[int, ...]) -> Sample:
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 3, IGNORED], size=size).astype(np.uint8)
    return {"image": rng.standard_normal((bands, *size), np.float32), "mask": mask}


def counts(mask: NDArray[np.uint8]) -> dict[int, int]:
    return {label: n for label, n in Counter(mask.ravel().tolist()).items() if label != IGNORED}


@pytest.mark.parametrize(
    ("num_pixels", "each"),
    [(None, 9), (1000, 9), (28, 9), (26, 8), (6, 2), (1, 1)],  # three classes, and 9 pixels of the rarest
)
@pytest.mark.parametrize("size", [(20, 24), (8, 6, 10)])
def test_equally_many_pixels_of_each_class_are_left(num_pixels: int | None, each: int, size: tuple[int, ...]) -> None:
    labels = np.repeat([0, 2, 7, IGNORED], [200, 9, 100, np.prod(size) - 309]).astype(np.uint8)
    before = {**noisy(3, size), "mask": np.random.default_rng(0).permutation(labels).reshape(size)}
    drawn = np.zeros(size)
    for seed in range(50):
        after = SamplePixels(num_pixels)(before, np.random.default_rng(seed))
        assert counts(after["mask"]) == {0: each, 2: each, 7: each}
        left = after["mask"] != IGNORED
        np.testing.assert_array_equal(after["mask"][left], before["mask"][left])
        assert after["image"] is before["image"]
        drawn += left
    assert Counter(before["mask"].ravel().tolist()) == Counter(labels.tolist())  # what came in is as it was
    common = drawn[before["mask"] == 0]
    assert common.max() < 0.3 * 50  # each time others: of 200 pixels no more than 9 at once


def test_each_of_overlapping_labels_has_its_own_pixels_inside_and_outside() -> None:
    mask = np.zeros((3, 16, 16), np.uint8)
    mask[0, :4, :4], mask[0, 12:] = 1, IGNORED
    mask[1, 2:, :] = 1
    mask[2] = IGNORED  # nobody knows
    before = {**noisy(2, (16, 16)), "mask": mask}
    after = SamplePixels(40)(before, np.random.default_rng(0))["mask"]
    assert [counts(label) for label in after] == [{0: 16, 1: 16}, {0: 20, 1: 20}, {}]
    left = after != IGNORED
    np.testing.assert_array_equal(after[left], mask[left])
    assert (left[0] != left[1]).any()


def test_a_window_of_one_class_or_none_has_no_more_pixels_than_were_asked_for() -> None:
    for label, found in ((4, {4: 30}), (IGNORED, {})):
        before = {**noisy(1, (16, 16)), "mask": np.full((16, 16), label, np.uint8)}
        assert counts(SamplePixels(30)(before, np.random.default_rng(0))["mask"]) == found


def test_masks_of_any_memory_layout_are_thinned_out() -> None:
    mask = np.repeat([[0], [1]], 4, axis=1).T
    assert not mask.flags.c_contiguous
    kept = SamplePixels()({"image": np.zeros((1, 4, 2), np.float32), "mask": mask}, np.random.default_rng(0))["mask"]
    assert np.array_equal(kept, mask)


def test_pixels_are_sampled_by_a_line_of_the_command() -> None:
    line = "+data.augment.transforms.sample={_target_: segline.data.pixels.SamplePixels, num_pixels: 30}"
    augment = instantiate(compose(["data=biomedical3d", line]).data.augment, _convert_="all")
    assert list(augment.transforms)[-1] == "sample"
    drawn = [augment(noisy(1, (8, 12, 12)), np.random.default_rng(seed))["mask"] for seed in (0, 0, 1)]
    assert counts(drawn[0]) == {0: 15, 3: 15}
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_no_pixels_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="num_pixels is 0; expected 1 or more, or null"):
        SamplePixels(0)
