from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segline.inference.tiled import predict_tiles
from segline.io.normalize import Normalize, measure
from segline.io.source import Geometry

RNG = np.random.default_rng(0)
NORMALIZE = Normalize("dataset", [3.0, -1.0], [2.0, 0.5])


class Grid:
    """An array as a source."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.num_bands = values.astype(np.float32), values.shape[1:], len(values)
        self.path, self.geometry = None, Geometry()

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        assert all(0 <= w.start <= w.stop <= size for w, size in zip(window, self.shape, strict=True))
        return self.values[(slice(None), *window)].copy()


def assemble(network: object, source: Grid, **how: object) -> np.ndarray:
    logits = np.full((2, *source.shape), np.nan, np.float32)
    for core, part in predict_tiles(network, source, **{"prepare": NORMALIZE, **how}):
        assert np.isnan(logits[(slice(None), *core)]).all()
        logits[(slice(None), *core)] = part
    return logits


def pointwise(images: np.ndarray) -> np.ndarray:
    return np.stack([images[:, 0] * 2 - images[:, 1], np.tanh(images[:, 0])], 1)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(3, 12), st.integers(0, 1)), min_size=2, max_size=3),
    st.integers(1, 5),
)
def test_a_pointwise_network_gives_what_it_gives_on_the_whole(
    axes: list[tuple[int, int, int]], batch_size: int
) -> None:
    shape, window, margin = zip(*axes, strict=True)
    source, calls = Grid(RNG.normal(size=(2, *shape))), []

    def network(images: np.ndarray) -> np.ndarray:
        calls.append(images.shape)
        return pointwise(images)

    logits = assemble(network, source, window=window, margin=margin, batch_size=batch_size)
    np.testing.assert_allclose(logits, pointwise(NORMALIZE(source.values)[None])[0], atol=1e-6)
    assert {call[1:] for call in calls} == {(2, *window)}
    assert [call[0] for call in calls[:-1]] == [batch_size] * (len(calls) - 1)


@pytest.mark.parametrize("profile", [None, "linear", "gaussian"])
@pytest.mark.parametrize("within", [(slice(11, 21), slice(0, 9)), (slice(25, 40), slice(0, 30))])
def test_a_part_is_what_it_is_of_the_whole_and_no_more_is_asked(profile: str | None, within: tuple[slice, ...]) -> None:
    source, asked = Grid(RNG.normal(size=(2, 40, 30))), []

    def network(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return pointwise(images) * np.arange(1, 11)  # so that it matters which tile a pixel lies in

    how = {"window": (10, 10), "margin": (2, 2), "profile": profile}
    expected = assemble(network, source, **how)
    every = sum(asked)
    asked.clear()
    got = assemble(network, source, **how, within=within)
    outside = np.ones(source.shape, bool)
    outside[within] = False
    assert np.isnan(got[:, outside]).all()
    np.testing.assert_allclose(got[(slice(None), *within)], expected[(slice(None), *within)], rtol=1e-5)
    assert sum(asked) <= every / 2


def correlate(images: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """A convolution with same padding."""
    return np.stack(
        [
            [
                sum(ndimage.correlate(band, k, mode="constant") for band, k in zip(image, kernel, strict=True))
                for kernel in kernels
            ]
            for image in images
        ]
    ).astype(np.float32)


@pytest.mark.parametrize(("margin", "equal"), [(3, True), (2, False)])
def test_a_margin_of_half_the_field_makes_tiles_equal_to_the_whole(margin: int, equal: bool) -> None:
    """Up to the last row and column, though the second layer sees the first one's bias wherever a window goes beyond the grid."""
    first, second = RNG.normal(size=(2, 2, 5, 5)), RNG.normal(size=(2, 2, 3, 3))

    def network(images: np.ndarray) -> np.ndarray:
        return correlate(np.maximum(correlate(images, first) + 5, 0), second)

    source = Grid(RNG.normal(size=(2, 37, 50)))
    source.values[:, 5:9, 11:13] = np.nan
    logits = assemble(network, source, window=[16, 14], margin=[margin, margin])
    expected = network(NORMALIZE(source.values.copy())[None])[0]
    expected[:, 5:9, 11:13] = np.nan
    assert np.allclose(logits, expected, atol=1e-4, equal_nan=True) is equal


@pytest.mark.parametrize("profile", ["linear", "gaussian"])
def test_blended_tiles_of_a_pointwise_network_are_the_whole(profile: str) -> None:
    source = Grid(RNG.normal(size=(2, 37, 50)))
    source.values[:, 5:9, 11:13] = np.nan
    logits = assemble(pointwise, source, window=[16, 14], margin=[4, 3], profile=profile)
    expected = pointwise(NORMALIZE(source.values)[None])[0]
    expected[:, 5:9, 11:13] = np.nan
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_of_tiles_without_data_the_network_is_not_asked() -> None:
    source, asked = Grid(RNG.normal(size=(2, 40, 40))), []
    source.values[:, 10:] = np.nan

    def network(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return pointwise(images)

    logits = assemble(network, source, window=[10, 10], margin=[0, 0], batch_size=3)
    assert asked == [3, 2]  # the last one not alone
    assert np.isnan(logits[:, 10:]).all()
    assert np.isfinite(logits[:, :10]).all()


def test_no_more_is_read_ahead_than_is_soon_computed() -> None:
    source, reads = Grid(RNG.normal(size=(2, 100, 10))), []
    read = source.read
    source.read = lambda window: reads.append(window) or read(window)  # type: ignore[method-assign, func-returns-value]
    pieces = predict_tiles(pointwise, source, NORMALIZE, [10, 10], [0, 0], batch_size=2)
    for number, _ in enumerate(pieces):
        assert len(reads) <= number + 2 + 3 * 2


def test_a_case_is_normalised_by_its_own_statistics() -> None:
    source = Grid(RNG.normal(1000, 50, (2, 20, 20)))
    logits = assemble(
        lambda images: images,
        source,
        prepare=partial(Normalize("case"), statistics=measure(source)),
        window=[8, 8],
        margin=[1, 1],
    )
    np.testing.assert_allclose(logits.mean((1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(logits.std((1, 2)), 1, atol=1e-4)
