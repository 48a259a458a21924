import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segline.io.normalize import BandStatistics, Normalize, measure, strips
from segline.io.source import Geometry

NUMBERS = st.floats(-1e6, 1e6, width=32) | st.just(np.nan)


class Grid:
    """An array as a source, which notes what is read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.num_bands = values, values.shape[1:], len(values)
        self.path, self.geometry = None, Geometry()
        self.read_pixels = 0

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        part = self.values[(slice(None), *window)]
        self.read_pixels = max(self.read_pixels, part[0].size)
        return part


@given(
    st.lists(arrays(np.float32, st.tuples(st.just(2), st.integers(0, 6)), elements=NUMBERS), max_size=5), st.booleans()
)
def test_statistics_of_parts_are_those_of_all_pixels(parts: list[np.ndarray], merged: bool) -> None:
    total = BandStatistics(2)
    for part in parts:
        if merged:
            other = BandStatistics(2)
            other.update(part)
            total.merge(other)
        else:
            total.update(part)
    pixels = np.concatenate([np.zeros((2, 0), np.float32), *parts], axis=1).astype(float)
    for band, values in enumerate(pixels):
        values = values[~np.isnan(values)]
        assert total.count[band] == len(values)
        if len(values):
            np.testing.assert_allclose(total.mean[band], values.mean(), rtol=1e-9, atol=1e-6)
            spread = values.std()
            assert total.std[band] == pytest.approx(spread if spread > 1e-7 * abs(values.mean()) else 1.0, rel=1e-4)
        else:
            assert (total.mean[band], total.std[band]) == (0, 1)
    again = BandStatistics.from_dict(total.to_dict())
    assert again.to_dict() == total.to_dict()
    assert again.count.dtype == np.int64


def test_a_large_mean_does_not_drown_the_deviation() -> None:
    values = (1e6 + np.random.default_rng(0).normal(size=(1, 1000))).astype(np.float32)
    statistics = BandStatistics(1)
    for part in np.array_split(values, 7, axis=1):
        statistics.update(part)
    assert statistics.std[0] == pytest.approx(values.astype(float).std(), rel=1e-9)


def test_a_constant_band_is_not_blown_up_by_rounding() -> None:
    statistics = BandStatistics(2)
    for size in (3, 7, 10):
        statistics.update(np.full((2, size), [[0.1], [-1e5]]))
    assert statistics.std.tolist() == [1, 1]


def test_normalised_pixels_have_zero_mean_and_unit_deviation() -> None:
    image = np.random.default_rng(0).normal([[[500.0]], [[-3.0]]], [[[20.0]], [[0.1]]], (2, 30, 40)).astype(np.float32)
    image[:, :3] = np.nan
    for normalize, statistics in [
        (Normalize("dataset", np.nanmean(image, (1, 2)).tolist(), np.nanstd(image, (1, 2)).tolist()), None),
        (Normalize("case"), measure(Grid(image))),
    ]:
        kept = image.copy()
        normal = normalize(image, statistics)
        assert normal.dtype == np.float32
        assert (normal[:, :3] == 0).all()
        np.testing.assert_allclose(normal[:, 3:].mean((1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(normal[:, 3:].std((1, 2)), 1, atol=1e-4)
        np.testing.assert_array_equal(image, kept)
        copy = Normalize(**normalize.to_dict())
        np.testing.assert_array_equal(copy(image, statistics), normal)


def test_a_scope_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'minmax'; expected one of dataset, case"):
        Normalize("minmax")


@given(
    st.tuples(st.integers(1, 2000), st.integers(1, 40000)) | st.tuples(*[st.integers(1, 600)] * 3),
)
def test_strips_cover_a_grid_once_from_even_starts(shape: tuple[int, ...]) -> None:
    windows = strips(shape)
    pixels = 0
    for window in windows:
        sizes = [w.stop - w.start for w in window]
        assert all(0 <= w.start < w.stop <= size for w, size in zip(window, shape, strict=True))
        assert all(w.start % (256 if len(shape) == 2 else 8) == 0 for w in window)
        assert np.prod(sizes) <= max(2**22, 8 * np.prod(shape[1:]) if len(shape) == 3 else 0)
        pixels += int(np.prod(sizes))
    assert pixels == np.prod(shape)
    corners = {tuple(w.start for w in window) for window in windows}
    assert len(corners) == len(windows)


def test_a_source_is_measured_strip_by_strip() -> None:
    values = np.random.default_rng(0).random((1, 512, 20000)).astype(np.float32)
    source = Grid(values)
    statistics = measure(source)
    assert statistics.mean[0] == pytest.approx(values.mean(dtype=float))
    assert statistics.std[0] == pytest.approx(values.std(dtype=float))
    assert source.read_pixels < values.size / 2
