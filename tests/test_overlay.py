from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from schemes import CELLS, LAND, REGIONS

import segline.overlay
from segline.io.source import Geometry, Window
from segline.labels import Labels
from segline.overlay import draw_overlay
from segline.pictures import to_rgb

RED, GREEN, BLUE, GREY, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)


class Held:
    """An image in memory that notes which windows are read of it."""

    def __init__(self, image: NDArray[np.float32]) -> None:
        self.path, self.image, self.geometry = Path("held"), image, Geometry()
        self.num_bands, self.shape = len(image), image.shape[1:]
        self.windows: list[Window] = []

    def read(self, window: Window) -> NDArray[np.float32]:
        self.windows.append(window)
        return self.image[(slice(None), *window)]


def reader(mask: NDArray[np.int64]) -> Callable[[Window], NDArray[np.uint8]]:
    return lambda window: mask[(..., *window)].astype(np.uint8)


def drawn(path: Path, image: NDArray[np.float32], mask: NDArray[np.int64], labels: Labels) -> NDArray[np.uint8]:
    draw_overlay(Held(image), reader(mask), labels, path / "a.png")
    with Image.open(path / "a.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def has(picture: NDArray[np.uint8], color: tuple[int, ...]) -> bool:
    return bool((picture == color).all(-1).any())


def ramp(shape: tuple[int, int], bands: int = 1) -> NDArray[np.float32]:
    image = np.linspace(-7, 9000, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    return np.stack([image * (band + 1) for band in range(bands)])


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_classes_are_tinted_their_outlines_full_and_the_rest_is_plain(tmp_path: Path, bands: int) -> None:
    image, mask = ramp((800, 1000), bands), np.zeros((800, 1000), int)
    mask[100:200, 300:500] = 1
    mask[700:, 900:] = 2  # at the border of the picture
    picture = drawn(tmp_path, image, mask, CELLS)
    rgb = to_rgb(image)
    assert picture.shape[1] == 1000
    for place, color in [((slice(110, 190), slice(310, 490)), RED), ((slice(720, 790), slice(920, 990)), BLUE)]:
        tinted = np.rint(0.55 * rgb[place] + 0.45 * np.array(color))
        assert np.abs(picture[place] - tinted).max() <= 1
    for place in [(100, 300), (199, 499), (150, 300), (100, 400)]:
        assert tuple(picture[place]) == RED
    for place in [(700, 900), (750, 900), (700, 999)]:
        assert tuple(picture[place]) == BLUE
    assert tuple(picture[799, 950]) != BLUE  # the class may go on beyond the picture
    assert tuple(picture[150, 299]) == tuple(rgb[150, 299])
    plain = (mask == 0).copy()
    assert np.array_equal(picture[:800][plain], rgb[plain])


def test_without_a_background_every_class_is_tinted(tmp_path: Path) -> None:
    mask = np.zeros((600, 1000), int)
    mask[:, 500:] = 1
    picture = drawn(tmp_path, np.zeros((3, 600, 1000), np.float32), mask, LAND)
    assert tuple(picture[300, 100]) == (0, 115, 0)  # 45 % of the colour over black
    assert tuple(picture[300, 900]) == (0, 0, 115)
    assert (tuple(picture[300, 499]), tuple(picture[300, 500])) == (GREEN, BLUE)


def test_the_outline_of_a_class_below_another_is_seen(tmp_path: Path) -> None:
    mask = np.zeros((2, 600, 1000), int)
    mask[0, 100:400, 100:500] = 1
    mask[1, 50:550, 300:900] = 1
    picture = drawn(tmp_path, np.zeros((1, 600, 1000), np.float32), mask, REGIONS)
    assert tuple(picture[250, 200]) == (115, 0, 0)
    assert tuple(picture[250, 400]) == (0, 0, 115)  # both are there
    assert tuple(picture[250, 499]) == RED
    assert tuple(picture[250, 899]) == BLUE


@pytest.mark.parametrize("labels", [CELLS, REGIONS], ids=["exclusive", "overlapping"])
def test_ignored_pixels_are_hatched(tmp_path: Path, labels: Labels) -> None:
    mask = np.zeros((600, 1000) if labels is CELLS else (2, 600, 1000), int)
    mask[..., 100:300, 200:400] = 255
    image = np.zeros((1, 600, 1000), np.float32)
    image[0, :, ::2] = 1
    picture, rgb = drawn(tmp_path, image, mask, labels), to_rgb(image)
    hatched = (picture[:600] == GREY).all(-1)
    assert 0.1 < hatched[100:300, 200:400].mean() < 0.5
    assert not hatched[:100].any()
    assert np.array_equal(picture[:600][~hatched], rgb[~hatched])


def test_the_legend_names_the_classes_that_are_seen(tmp_path: Path) -> None:
    image, mask = np.zeros((1, 600, 1000), np.float32), np.zeros((600, 1000), int)
    assert drawn(tmp_path, image, mask, CELLS).shape == (600, 1000, 3)  # nothing to say
    mask[:100] = 2
    legend = drawn(tmp_path, image, mask, CELLS)[600:]
    assert has(legend, BLUE)
    assert not has(legend, RED)
    assert (legend == GREY).all(-1).sum() < 20  # of the letters' edges
    assert legend.min() < 100  # the name
    mask[200:300], mask[300:400] = 1, 255
    legend = drawn(tmp_path, image, mask, CELLS)[600:]
    assert has(legend, BLUE)
    assert has(legend, RED)
    assert (legend == GREY).all(-1).sum() > 40
    assert np.flatnonzero((legend == RED).all(-1).any(0))[0] < np.flatnonzero((legend == BLUE).all(-1).any(0))[0]


@pytest.mark.slow
def test_a_long_legend_takes_lines_and_ends_where_there_is_no_more_room(tmp_path: Path) -> None:
    many = Labels({f"class {k} é": k for k in range(200)})
    mask = np.repeat(np.repeat(np.arange(200).reshape(20, 10), 10, 0), 60, 1)
    picture = drawn(tmp_path, np.zeros((1, 200, 600), np.float32), mask, many)
    assert all(has(picture[200:], tuple(many.palette[k].tolist())) for k in range(200))
    tall = np.repeat(np.repeat(np.arange(200), 20)[:, None], 300, 1)
    picture = drawn(tmp_path, np.zeros((1, 4000, 300), np.float32), tall, many)
    assert picture.shape[1] < 300
    assert 1500 < len(picture) <= 2048
    last = np.flatnonzero((picture[-10:] != 255).any((1, 2)))
    assert len(last) < 10  # not cut through


@pytest.mark.parametrize("shape", [(5000, 3000), (700, 9000), (4097, 40), (2049, 2049)])
def test_of_a_large_image_every_nth_pixel_is_drawn_strip_by_strip(
    tmp_path: Path, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Strips whose borders are no multiples of n.
    monkeypatch.setattr(segline.overlay, "strips", lambda shape, pixels: _uneven(shape))
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, shape)
    source = Held(rng.random((2, *shape), np.float32))
    draw_overlay(source, reader(mask), LAND, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    n = next(n for n in range(1, 99) if -(-shape[0] // n) <= 1792 and -(-shape[1] // n) <= 2048)
    assert max(picture.shape) <= 2048
    assert picture.shape[1] == -(-shape[1] // n)
    expected = mask[::n, ::n]
    seen = picture[: len(expected)].astype(int)
    assert np.array_equal(seen[..., 2] > seen[..., 1], expected == 1)
    assert len(source.windows) > 1


def _uneven(shape: tuple[int, int]) -> list[Window]:
    rows, columns = ([*range(0, size, 1001), size] for size in shape)
    return [
        (slice(top, bottom), slice(left, right)) for top, bottom in pairwise(rows) for left, right in pairwise(columns)
    ]


@pytest.mark.parametrize(("shape", "bands"), [((20_000, 20_000), 1), ((3_000, 20_000), 13)])
def test_memory_is_bounded_by_strips(shape: tuple[int, int], bands: int) -> None:
    pixels = []

    class Large(Held):
        def read(self, window: Window) -> NDArray[np.float32]:
            pixels.append(super().read(window).size)
            return super().read(window)

    source = Large(np.broadcast_to(np.float32(1), (bands, *shape)))
    nothing = reader(np.broadcast_to(np.int64(0), shape))
    image, _ = segline.overlay._thinned(source, nothing, LAND, (slice(0, shape[0]), slice(0, shape[1])))
    assert (image == 1).all()  # nothing is left out
    assert sum(pixels) == bands * shape[0] * shape[1]
    assert max(pixels) <= 2**23


def test_small_images_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), int)
    mask[10:20, 10:30] = 1
    image = ramp((30, 40))
    picture = drawn(tmp_path, image, mask, CELLS)
    assert picture.shape[1] == 1000
    blocks = picture[:750].reshape(30, 25, 40, 25, 3)
    assert np.array_equal(blocks[0, :, 0], np.broadcast_to(to_rgb(image)[0, 0], (25, 25, 3)))
    # The outline is thin, within the outermost pixels.
    assert tuple(picture[250, 300]) == RED
    assert tuple(picture[262, 300]) != RED


def test_of_a_volume_the_fullest_slice_is_shown_as_radiologists_see_it(tmp_path: Path) -> None:
    image, mask = np.zeros((1, 11, 20, 24), np.float32), np.zeros((11, 20, 24), int)
    mask[3, :2, :2] = 1
    mask[9, 1:5, 2:9] = 1
    mask[9, 15:, 20:] = 255  # counts for nothing
    mask[5, :, :] = 255
    image[0, 9, 0, 0] = image[0, 9, 10, 10] = 1
    image[0, 3] = np.arange(24)
    source = Held(image)
    draw_overlay(source, reader(mask), CELLS, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    times = 1024 // 24
    assert picture.shape[1] == 24 * times
    small = picture[times // 2 : 20 * times : times, times // 2 :: times].astype(int)
    tinted = small[..., 0] > small[..., 1]
    assert np.array_equal(tinted, (mask[9] == 1)[::-1, ::-1])
    assert [window[0] for window in source.windows] == [slice(9, 10)]


def test_a_volume_without_foreground_shows_its_middle(tmp_path: Path) -> None:
    source = Held(np.zeros((1, 9, 20, 24), np.float32))
    draw_overlay(source, reader(np.zeros((9, 20, 24), int)), CELLS, tmp_path / "a.png")
    assert [window[0] for window in source.windows] == [slice(4, 5)]


def test_pixels_without_data_are_drawn(tmp_path: Path) -> None:
    for image in (np.full((2, 40, 40), np.nan, np.float32), np.where(np.eye(40) > 0, np.nan, ramp((40, 40)))):
        mask = np.full((40, 40), 255)
        picture = drawn(tmp_path, image.astype(np.float32), mask, CELLS)
        assert has(picture, GREY)


def test_an_error_leaves_an_older_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("old")

    def damaged(window: Window) -> NDArray[np.uint8]:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        draw_overlay(Held(np.zeros((1, 9, 9), np.float32)), damaged, CELLS, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
