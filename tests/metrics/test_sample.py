from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from segline.labels import IGNORE_INDEX, Labels
from segline.metrics.sample import PixelSample

EXCLUSIVE = Labels({"soil": 0, "crop": 1, "weed": 2}, background="soil")
OVERLAPPING = Labels({"whole": [1, 2], "core": [2]}, scheme="overlapping")
BOTH = pytest.mark.parametrize("labels", [EXCLUSIVE, OVERLAPPING])


def numbered(labels: Labels, num_pixels: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Pixels whose probability is their number, and whose truth follows from it; every seventh is ignored."""
    number = np.arange(num_pixels)
    probs = np.repeat(number[None].astype(np.float32), labels.num_classes, 0)
    mask = (number % 2).astype(np.uint8)
    mask[::7] = IGNORE_INDEX
    return probs, mask if labels.exclusive else np.stack([mask, mask])


@BOTH
@pytest.mark.parametrize("size", [1, 100, 257, 5000])
def test_a_sample_has_whole_pixels_of_the_stream_each_once(labels: Labels, size: int) -> None:
    probs, mask = numbered(labels, 3000)
    sample = PixelSample(labels, size)
    for start in range(0, 3000, 250):
        sample.update(
            probs[:, start : start + 250].reshape(-1, 25, 10),
            mask[..., start : start + 250].reshape(*mask.shape[:-1], 25, 10),
        )
    number = sample.probs[:, 0].astype(int)
    assert len(number) == len(set(number.tolist())) == min(size, 2571)
    assert (number % 7 > 0).all()
    assert sample.probs.shape == (len(number), labels.num_classes)
    assert np.array_equal(sample.mask, (number % 2) if labels.exclusive else np.stack([number % 2] * 2, 1))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3000), max_size=8), st.integers(0, 99))
def test_the_same_stream_gives_the_same_sample_in_any_pieces(cuts: list[int], seed: int) -> None:
    probs, mask = numbered(EXCLUSIVE, 3000)
    whole, apart = PixelSample(EXCLUSIVE, 300, seed), PixelSample(EXCLUSIVE, 300, seed)
    whole.update(probs, mask)
    for low, high in pairwise([0, *sorted(cuts), 3000]):
        apart.update(probs[:, low:high], mask[low:high])
    assert np.array_equal(apart.probs, whole.probs)
    assert np.array_equal(apart.mask, whole.mask)


def test_another_seed_gives_another_sample() -> None:
    samples = [PixelSample(EXCLUSIVE, 300, seed) for seed in (0, 1)]
    for sample in samples:
        sample.update(*numbered(EXCLUSIVE, 3000))
    assert not np.array_equal(samples[0].probs, samples[1].probs)


def test_every_pixel_is_as_likely_wherever_it_lies_in_the_stream() -> None:
    drawn = np.zeros(1000)
    for seed in range(300):
        sample = PixelSample(EXCLUSIVE, 90, seed)
        for start in (0, 500, 550, 600):  # pieces of unequal length
            stop = {0: 500, 600: 1000}.get(start, start + 50)
            number = np.arange(start, stop, dtype=np.float32)
            sample.update(np.stack([number] * 3), np.zeros(len(number), np.uint8))
        drawn[sample.probs[:, 0].astype(int)] += 1
    of_parts = drawn.reshape(20, 50).sum(1)
    assert of_parts.sum() == 300 * 90
    assert stats.chisquare(of_parts).pvalue > 0.001


def test_the_memory_is_that_of_the_sample_however_long_the_stream() -> None:
    sample = PixelSample(EXCLUSIVE, 100)
    for _ in range(200):
        sample.update(np.full((3, 150), 0.3, np.float32), np.zeros(150, np.uint8))
        held = len(sample._keys) + sum(len(part[0]) for part in sample._waiting)
        assert held <= 150


def test_pixels_without_data_or_ignored_by_every_class_never_enter() -> None:
    probs = np.array([[0.1, np.nan, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]], np.float32)
    mask = np.array([[1, 1, IGNORE_INDEX, IGNORE_INDEX], [0, 0, 1, IGNORE_INDEX]], np.uint8)
    sample = PixelSample(OVERLAPPING)
    sample.update(probs, mask)
    assert sample.probs.tolist() == [[np.float32(0.1)] * 2, [np.float32(0.3)] * 2]
    assert sample.mask.tolist() == [[1, 0], [IGNORE_INDEX, 1]]


@BOTH
def test_an_empty_stream_gives_an_empty_sample(labels: Labels) -> None:
    sample = PixelSample(labels)
    assert sample.probs.shape == (0, labels.num_classes)
    assert sample.mask.shape == ((0,) if labels.exclusive else (0, 2))
    with pytest.raises(ValueError, match="size is 0; expected a number of pixels"):
        PixelSample(labels, 0)
