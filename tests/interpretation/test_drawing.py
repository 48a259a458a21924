import io
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from schemes import CELLS, REGIONS

from segline.interpretation import drawing
from segline.interpretation.drawing import Canvas
from segline.interpretation.features import FeatureMap

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 20, 3)).astype(np.uint8)


def feature(*shape: int, step: float = 4, start: float = 0) -> FeatureMap:
    values = torch.from_numpy(RNG.random(shape, np.float32))
    return FeatureMap("layer", values, (step,) * (len(shape) - 1), (start,) * (len(shape) - 1))


def rendered(figure: Figure) -> np.ndarray:
    """As pixels; a warning of matplotlib would fail the test."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=30)
    return np.asarray(Image.open(file).convert("RGB"))


def images(figure: Figure) -> list[Any]:
    return [picture for axis in figure.axes for picture in axis.images]


@pytest.mark.parametrize("shape", [(10, 3, 3, 3), (32, 13, 7, 5), (3, 1, 1, 1), (64, 2, 3, 3, 3)])
def test_filters_are_the_weights_in_the_same_place_of_each_band(shape: tuple[int, ...]) -> None:
    weights = RNG.normal(size=shape).astype(np.float32)
    figure = drawing.filters(weights, "conv")
    plane = weights[:, :, 1] if weights.ndim == 5 else weights
    drawn = images(figure)
    assert len(drawn) == shape[1]
    height, width = plane.shape[2:]
    most = np.abs(plane).max()
    for band, picture in enumerate(drawn):
        assert picture.get_clim() == (-most, most)
        mosaic = picture.get_array().filled(np.nan)
        across = (mosaic.shape[1] + 1) // (width + 1)
        for i in range(shape[0]):
            top, left = i // across * (height + 1), i % across * (width + 1)
            np.testing.assert_array_equal(mosaic[top : top + height, left : left + width], plane[i, band])
        assert np.isfinite(mosaic).sum() == shape[0] * height * width  # and nothing else
    rendered(figure)


def test_of_a_volume_the_slice_is_drawn_at_its_place_in_a_map() -> None:
    one = feature(2, 5, 4, 6, step=2, start=-1)  # covers slices -1 to 9
    for depth, place in ((0, 0), (1, 1), (2, 1), (7, 4), (30, 4)):
        values, extent = Canvas(RGB, depth=depth).of(one)
        np.testing.assert_array_equal(values, one.values[:, place])
        assert extent == (-1, 11, 7, -1)


@pytest.mark.parametrize("depth", [None, 1])
def test_maps_lie_over_the_image_and_volumes_as_radiologists_see_them(depth: int | None) -> None:
    size = (3, 5) if depth is None else (2, 3, 5)
    figure = drawing.features(Canvas(RGB, depth=depth), [feature(9, *size), feature(2, *size)])
    shown = [axis for axis in figure.axes if axis.images and axis.get_xlim() in ((0, 20), (20, 0))]
    assert len(shown) == 1 + 8 + 1 + 2
    for axis in shown:
        assert axis.images[0].get_extent() == [0, 20, 12, 0]
        assert (axis.get_xlim(), axis.get_ylim()) == (((0, 20), (12, 0)) if depth is None else ((20, 0), (0, 12)))
    rendered(figure)


def test_the_channels_that_vary_most_are_shown_by_their_numbers() -> None:
    values = torch.zeros(12, 3, 5)
    values[[11, 3, 5]] = torch.rand(3, 3, 5)
    values[7] = 100  # large, and the same everywhere
    figure = drawing.features(Canvas(RGB), [FeatureMap("layer", values, (4, 4), (0, 0))])
    numbers = [text.get_text() for axis in figure.axes[1:9] for text in axis.texts]
    assert numbers == ["0", "1", "2", "3", "4", "5", "6", "11"]  # the first of equals besides


def test_gates_are_drawn_as_they_are_over_the_image() -> None:
    gates = [feature(1, 3, 5), feature(1, 6, 10, step=2)]
    figure = drawing.attention(Canvas(RGB), gates)
    for axis, gate in zip(figure.axes[1:3], gates, strict=True):
        below, above = axis.images
        np.testing.assert_array_equal(below.get_array(), Canvas(RGB).grey)
        np.testing.assert_array_equal(above.get_array(), gate.values[0])
        assert above.get_alpha() < 1
    rendered(figure)


@pytest.mark.parametrize("labels", [CELLS, REGIONS])
def test_a_class_is_drawn_as_shares_of_its_largest_value(labels: Any) -> None:
    mask = np.zeros((12, 20), np.uint8) if labels.exclusive else np.zeros((2, 12, 20), np.uint8)
    mask[..., 4:8, 4:9] = 1
    maps = {1: feature(1, 3, 5), 0: FeatureMap("layer", torch.zeros(1, 3, 5), (4, 4), (0, 0))}
    figure = drawing.cams(Canvas(RGB), maps, mask, labels, "title")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[:4] == ["image", "prediction", labels.names[1], f"{labels.names[0]}: nothing speaks for it here"]
    share = figure.axes[2].images[1].get_array()
    np.testing.assert_allclose(share, maps[1].values[0] / maps[1].values.max())
    assert not figure.axes[3].images[1].get_array().any()
    rendered(figure)
    rendered(drawing.cams(Canvas(RGB), {}, mask * 0, labels, "none is predicted"))


@pytest.mark.parametrize("depth", [None, 1])
@pytest.mark.parametrize("reach", [None, [(3, 2), (40, 30)]])
def test_both_fields_are_drawn_whole(depth: int | None, reach: Any) -> None:
    share = np.zeros((12, 20))
    share[6, 10] = 1
    figure = drawing.receptive_field(Canvas(RGB, depth=depth), share, (6, 10), 5, reach, ["one", "two", "three"])
    for axis in figure.axes[:2]:
        boxes = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axis.patches]
        assert boxes == [(8, 4, 5, 5), *([(-30, 3, 71, 6)] if reach else [])]
        assert sorted(axis.get_xlim()) == ([-30, 41] if reach else [0, 20])
        assert sorted(axis.get_ylim()) == [0, 12]
        assert bool(axis.get_xlim()[0] < axis.get_xlim()[1]) is (depth is None)
    rendered(figure)


def test_a_field_without_a_gradient_is_drawn() -> None:
    figure = drawing.receptive_field(Canvas(RGB), np.zeros((12, 20)), (6, 10), 1, None, ["one", "two", "three"])
    image, gradient = images(figure)
    assert image.get_array().std() > 0
    assert gradient.get_array().std() == 0
    rendered(figure)
