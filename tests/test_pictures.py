from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from schemes import CELLS, LAND, REGIONS

from segline.labels import Labels
from segline.pictures import (
    augmented_grid,
    case_grid,
    colorize,
    confusion_matrix,
    curves,
    error_map,
    flat,
    overlay,
    save,
    to_rgb,
)

BLACK, GREY, RED, GREEN, BLUE = (0, 0, 0), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)
RIGHT, MISSED, INVENTED, WRONG = (235, 235, 235), (0, 114, 178), (213, 94, 0), (204, 121, 167)


def colors(picture: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    assert picture.dtype == np.uint8
    return [tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()]


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as it is rendered; a warning of matplotlib would fail the test."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=30)
    return np.asarray(Image.open(file).convert("RGB"))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def shown(figure: Figure) -> list[NDArray[np.uint8]]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes]


def legends(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]


# Images


def test_one_band_is_grey_and_stretched_from_2_to_98_percent() -> None:
    band = np.linspace(-500, 500, 101, dtype=np.float32)[None]
    rgb = to_rgb(band[None])[0]
    assert (rgb == rgb[:, :1]).all()
    np.testing.assert_array_equal(rgb[:3, 0], 0)
    np.testing.assert_array_equal(rgb[-3:, 0], 255)
    assert rgb[50, 0] == 127
    assert rgb[26, 0] == 63


def test_each_of_the_first_three_bands_has_its_own_range() -> None:
    image = np.stack([np.tile(np.linspace(0, scale, 50), (2, 1)) for scale in (1, 1e-4, 6e4, 9e9)])
    rgb = to_rgb(image.astype(np.float32)).astype(int)
    assert rgb.shape == (2, 50, 3)
    assert np.abs(rgb - rgb[..., :1]).max() <= 1
    assert rgb.min() == 0
    assert rgb.max() == 255


def test_two_bands_show_the_first() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((2, 8, 8), np.float32)
    np.testing.assert_array_equal(to_rgb(image), to_rgb(image[:1]))


def test_pixels_that_do_not_count_stretch_nothing() -> None:
    image = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (1, 4, 1))
    plain = to_rgb(image)
    image[:, :2] = -1000
    valid = np.ones((4, 40), bool)
    valid[:2] = False
    np.testing.assert_allclose(to_rgb(image, valid)[2:].astype(int), plain[2:], atol=4)
    assert to_rgb(image)[2:].min() > 200  # without knowing it
    assert to_rgb(image, np.zeros((4, 40), bool)).shape == (4, 40, 3)


@pytest.mark.parametrize("fill", [np.nan, np.inf, 3.0])
def test_an_image_without_contrast_or_of_no_numbers_is_shown_all_the_same(fill: float) -> None:
    assert to_rgb(np.full((3, 4, 4), fill, np.float32)).shape == (4, 4, 3)


def test_nan_pixels_are_black_and_stretch_nothing() -> None:
    image = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (3, 4, 1))
    plain = to_rgb(image)
    image[:, 0] = np.nan
    rgb = to_rgb(image)
    assert (rgb[0] == 0).all()
    np.testing.assert_allclose(rgb[1:].astype(int), plain[1:], atol=4)


def test_of_a_volume_the_fullest_slice_is_seen_as_radiologists_do() -> None:
    mask = np.zeros((4, 3, 2), np.uint8)
    mask[1, 0, 0] = 1
    mask[2, 2] = 1  # most anterior, whole width
    mask[3] = 255  # ignored pixels are no foreground
    image = np.arange(24, dtype=np.float32).reshape(1, 4, 3, 2)
    found = flat({"image": image, "mask": mask, "title": "x"}, CELLS)
    np.testing.assert_array_equal(found["mask"], [[1, 1], [0, 0], [0, 0]])  # anterior above
    np.testing.assert_array_equal(found["image"][0], image[0, 2, ::-1, ::-1])  # right on the left
    assert found["title"] == "x"


def test_of_a_volume_without_foreground_the_middle_slice_is_seen() -> None:
    image = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1)
    assert flat({"image": image, "mask": np.zeros((5, 1, 1), np.uint8)}, CELLS)["image"] == 2


def test_a_flat_sample_stays_as_it_is() -> None:
    sample = {"image": np.zeros((3, 4, 5), np.float32), "mask": np.zeros((2, 4, 5), np.uint8)}
    assert all(flat(sample, REGIONS)[name] is sample[name] for name in sample)


# Masks


def test_classes_have_their_colours_and_ignored_pixels_are_grey() -> None:
    assert colors(colorize(np.array([[0, 1, 2, 255]], np.uint8), CELLS)) == [BLACK, RED, BLUE, GREY]
    assert colors(colorize(np.array([[0, 1, 2, 0]]), CELLS)) == [BLACK, RED, BLUE, BLACK]  # a prediction, int64


def test_of_overlapping_classes_the_last_is_seen_and_what_counts_covers_what_is_ignored() -> None:
    mask = np.array([[[0, 1, 1, 255, 1]], [[0, 0, 1, 255, 255]]], np.uint8)
    assert colors(colorize(mask, REGIONS)) == [BLACK, RED, BLUE, GREY, RED]


def test_an_overlay_blends_exactly_where_the_mask_says() -> None:
    rgb = np.full((1, 4, 3), 100, np.uint8)
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    blended = colors(overlay(rgb, mask, CELLS, alpha=0.25))
    assert blended == [(100, 100, 100), (139, 75, 75), (75, 75, 139), (100, 100, 100)]
    assert colors(overlay(rgb, mask % 2, LAND, alpha=0.5)) == [(50, 178, 50), (50, 50, 178)] * 2


def test_an_overlay_of_overlapping_classes_leaves_the_rest_plain() -> None:
    rgb = np.full((1, 3, 3), 100, np.uint8)
    mask = np.array([[[0, 1, 255]], [[0, 1, 255]]], np.uint8)
    assert colors(overlay(rgb, mask, REGIONS, alpha=1.0)) == [(100, 100, 100), BLUE, (100, 100, 100)]


def test_errors_are_told_apart() -> None:
    mask = np.array([[0, 1, 2, 1, 0, 1, 255, 255]], np.uint8)
    pred = np.array([[0, 1, 2, 0, 2, 2, 0, 1]])
    assert colors(error_map(mask, pred, CELLS)) == [RIGHT, RIGHT, RIGHT, MISSED, INVENTED, WRONG, GREY, GREY]


def test_without_a_background_every_error_is_a_wrong_class() -> None:
    mask, pred = np.array([[0, 0, 1, 1, 255]], np.uint8), np.array([[0, 1, 0, 1, 1]])
    assert colors(error_map(mask, pred, LAND)) == [RIGHT, WRONG, WRONG, RIGHT, GREY]


def test_errors_of_overlapping_classes_are_those_of_any_class_that_counts() -> None:
    mask = np.array([[[1, 1, 0, 0, 1, 255, 1]], [[1, 1, 0, 1, 0, 255, 255]]], np.uint8)
    pred = np.array([[[1, 1, 1, 1, 1, 1, 0]], [[1, 0, 0, 0, 0, 1, 1]]])
    expected = [RIGHT, MISSED, INVENTED, WRONG, RIGHT, GREY, MISSED]
    assert colors(error_map(mask, pred, REGIONS)) == expected


# Figures


def case(labels: Labels, size: tuple[int, ...], title: str = "case") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    channels = () if labels.exclusive else (labels.num_classes,)
    mask = rng.integers(0, labels.num_classes if labels.exclusive else 2, (*channels, *size)).astype(np.uint8)
    pred = rng.permuted(mask).astype(np.int64)
    mask[..., -1, :] = 255
    return {"image": rng.random((3, *size), np.float32), "mask": mask, "pred": pred, "title": title}


@pytest.mark.parametrize("labels", [CELLS, LAND, REGIONS], ids=["cells", "land", "regions"])
@pytest.mark.parametrize("size", [(16, 24), (4, 16, 12)])
def test_a_case_is_image_truth_prediction_and_error(labels: Labels, size: tuple[int, ...]) -> None:
    one = case(labels, size)
    figure = case_grid([one, one], labels)
    plane = flat(one, labels)
    ignored = plane["mask"] == 255
    said = np.where(ignored, 255, plane["pred"])
    valid = ~(ignored if labels.exclusive else ignored.all(0))
    expected = [
        to_rgb(plane["image"], valid),
        colorize(plane["mask"], labels),
        colorize(said, labels),
        error_map(plane["mask"], said, labels),
    ]
    panels = shown(figure)
    assert len(panels) == 8
    for panel, picture in zip(panels, expected * 2, strict=True):
        np.testing.assert_array_equal(panel, picture)
    assert texts(figure)[:4] == ["image", "truth", "prediction", "error"]
    assert pixels(figure).std() > 10


def test_what_is_predicted_under_ignored_pixels_changes_no_picture() -> None:
    one = case(CELLS, (8, 8))
    other = {**one, "pred": np.where(one["mask"] == 255, 1 - one["pred"] % 2, one["pred"])}
    assert (one["pred"] != other["pred"]).any()
    np.testing.assert_array_equal(pixels(case_grid([one], CELLS)), pixels(case_grid([other], CELLS)))


def test_a_long_title_keeps_its_ends_and_stays_on_the_figure() -> None:
    figure = case_grid([case(CELLS, (8, 8), "worst: " + "very_long_name_" * 30 + "33, Dice 0.312")], CELLS)
    (title,) = texts(figure)[4:]
    assert title.startswith("worst: very_long")
    assert title.endswith("33, Dice 0.312")
    figure.draw_without_rendering()
    assert figure.texts[4].get_window_extent().x1 < figure.bbox.x1


def test_legends_name_what_is_seen_and_nothing_else() -> None:
    one = case(CELLS, (8, 8))
    one["mask"][:] = 0
    one["pred"] = np.zeros((8, 8), int)
    one["pred"][0] = 1
    assert legends(case_grid([one], CELLS)) == [["background", "cell"], ["right", "invented"]]
    one["mask"][4] = 255
    assert legends(case_grid([one], CELLS)) == [["background", "cell"], ["right", "invented", "ignored"]]


def test_legends_of_many_long_names_lie_below_the_panels_within_the_figure() -> None:
    many = Labels({f"class with a rather long name {k}": k for k in range(40)})
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8) % 40
    figure = case_grid(
        [{"image": np.zeros((1, 8, 8), np.float32), "mask": mask, "pred": mask[::-1].astype(int), "title": ""}], many
    )
    figure.draw_without_rendering()
    lowest = min(axis.get_window_extent().y0 for axis in figure.axes)
    boxes = [legend.get_window_extent() for legend in figure.legends]
    assert len(figure.legends[0].get_texts()) == 40
    assert all(box.y1 <= lowest + 1 and box.y0 >= 0 and box.x0 >= 0 for box in boxes)
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[1].x1 <= figure.bbox.x1


def test_rows_are_as_high_as_their_pictures() -> None:
    figure = case_grid([case(CELLS, (8, 32)), case(CELLS, (30, 20))], CELLS)
    figure.draw_without_rendering()
    boxes = [axis.get_window_extent() for axis in figure.axes]
    assert boxes[0].width / boxes[0].height == pytest.approx(4, rel=0.01)
    assert boxes[4].height / boxes[4].width == pytest.approx(1.5, rel=0.01)
    assert 0.2 < (boxes[0].y0 - boxes[4].y1) / figure.dpi < 0.5  # inches between the rows, for the title


def test_no_case_is_an_empty_figure() -> None:
    assert pixels(case_grid([], CELLS)).shape[2] == 3


@pytest.mark.parametrize("labels", [CELLS, LAND, REGIONS], ids=["cells", "land", "regions"])
def test_augmented_windows_stand_above_their_masks(labels: Labels) -> None:
    windows = [case(labels, (8, 8)), case(labels, (3, 8, 8))]
    figure = augmented_grid([{k: w[k] for k in ("image", "mask")} for w in windows], labels)
    panels = shown(figure)
    assert len(panels) == 4
    for above, below, window in zip(panels[:2], panels[2:], windows, strict=True):
        np.testing.assert_array_equal(below, overlay(above, flat(window, labels)["mask"], labels))
        assert (above != below).any()
    assert legends(figure) == [[labels.names[k] for k in labels.shown]]
    assert pixels(figure).std() > 10


def test_weights_stand_below_their_windows_on_one_scale() -> None:
    windows = [{**case(CELLS, (8, 8)), "weight": np.full((8, 8), weight, np.float32)} for weight in (0.0, 2.0, 4.0)]
    panels = shown(augmented_grid([{k: w[k] for k in ("image", "mask", "weight")} for w in windows], CELLS))
    assert len(panels) == 9
    black, middle, white = (panel.mean() for panel in panels[6:])
    assert black < 5 < 60 < middle < 130 < 200 < white


def test_curves_draw_the_rows_and_mark_the_best_epoch() -> None:
    rows = [
        {"epoch": 0.0, "train/loss": 2.0, "lr": 0.1},
        {"epoch": 1.0, "train/loss": 1.0, "val/loss": 1.5, "val/dice": 0.6, "lr": 0.1},
        {"epoch": 2.0, "train/loss": 0.5, "val/loss": 1.2, "val/dice": 0.9, "train/dice": 0.95, "lr": 0.05},
        {"epoch": 3.0, "train/loss": 0.4, "val/loss": 1.3, "val/dice": 0.8, "lr": 0.01},
        {"epoch": 4.0, "train/loss": 0.4, "val/loss": float("nan"), "lr": 0.01},
    ]
    figure = curves(rows, "val/dice")
    loss, dice, rate = figure.axes
    drawn = [
        {str(line.get_label()): np.c_[line.get_xdata(), line.get_ydata()].tolist() for line in axis.lines}
        for axis in (loss, dice, rate)
    ]
    assert drawn[0] == {
        "train": [[0, 2.0], [1, 1.0], [2, 0.5], [3, 0.4], [4, 0.4]],
        "val": [[1, 1.5], [2, 1.2], [3, 1.3]],
    }
    assert drawn[1]["val"] == [[1, 0.6], [2, 0.9], [3, 0.8]]
    assert drawn[1]["train"] == [[2, 0.95]]
    assert [2, 0.9] in [line for points in drawn[1].values() for line in points]
    assert dice.get_title(loc="right") == "best 0.900 in epoch 2"
    assert drawn[2]["lr"][-1] == [4, 0.01]
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss", "dice", "learning rate"]
    figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in loss.get_xticks())


def test_curves_of_the_loss_as_objective_mark_the_least() -> None:
    rows = [{"epoch": float(e), "train/loss": 1.0, "val/loss": v, "lr": 1.0} for e, v in enumerate((3, 1, 2))]
    figure = curves(rows, "val/loss")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss", "learning rate"]
    assert figure.axes[0].get_title(loc="right") == "best 1.000 in epoch 1"


@pytest.mark.parametrize("rows", [[], [{"epoch": 0.0, "train/loss": 1.0, "val/iou": 0.5, "lr": 1e-3}]])
def test_curves_of_few_epochs_render(rows: list[dict[str, float]]) -> None:
    figure = curves(rows, "val/iou")
    pixels(figure)
    low, high = figure.axes[0].get_xlim()
    assert not rows or {tick for tick in figure.axes[0].get_xticks() if low <= tick <= high} == {0}


def test_a_confusion_matrix_says_the_share_of_each_true_class_in_percent() -> None:
    matrix = np.array([[900, 100, 0], [1, 996, 3], [0, 0, 0]])
    figure = confusion_matrix(matrix, ["soil", "weed", "crop"])
    (axis,) = figure.axes
    said = [text.get_text() for text in axis.texts]
    assert said == ["90", "10", "", "·", "100", "·", "–", "–", "–"]
    places = [tuple(map(int, text.get_position())) for text in axis.texts]
    assert places == [(column, row) for row in range(3) for column in range(3)]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["soil", "weed", "crop"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("prediction", "truth")
    np.testing.assert_allclose(axis.images[0].get_array()[0], [0.9, 0.1, 0])
    assert pixels(figure).std() > 10


def test_numbers_in_a_confusion_matrix_stand_out_from_their_cell() -> None:
    (axis,) = confusion_matrix(np.array([[90, 10], [45, 55]]), ["a", "b"]).axes
    assert [text.get_color() for text in axis.texts] == ["white", "0.2", "0.2", "0.2"]


def test_a_confusion_matrix_of_many_classes_is_of_colours_alone_and_fits_a_page() -> None:
    figure = confusion_matrix(np.eye(59, dtype=np.int64), [f"class {k}" for k in range(59)])
    assert list(figure.axes[0].texts) == []
    assert figure.get_figwidth() < 18
    assert pixels(figure).std() > 10


def test_a_picture_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    save(confusion_matrix(np.eye(2, dtype=np.int64), ["a", "b"]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.format == "PNG"
    before = (tmp_path / "a.png").read_bytes()

    class Broken(Figure):
        def savefig(self, fname: Any, **_: Any) -> None:  # type: ignore[override]
            Path(fname).write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(Broken(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
