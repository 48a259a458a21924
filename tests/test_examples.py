import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image

from segline import examples
from segline.data.datamodule import SegmentationDataModule
from segline.data.scan import CELL, Facts
from segline.io.normalize import BandStatistics
from segline.io.source import Geometry
from segline.labels import Labels
from segline.models.unet import UNet
from segline.module import SegmentationModule

LABELS = Labels({"background": 0, "cell": 1, "rare": 2}, background="background")


class Grid:
    """An array as a mask."""

    def __init__(self, values: np.ndarray) -> None:
        self.path, self.values, self.shape, self.geometry = Path("mask"), values, values.shape, Geometry()

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        return self.values[window]


def facts(mask: np.ndarray) -> Facts:
    edge = CELL[mask.ndim]
    cells = [(k, *(p // edge for p in place)) for k in (0, 1, 2) for place in np.argwhere(mask == k)]
    found = np.array(sorted(set(cells)), np.int32)
    return Facts(mask.shape, 1, BandStatistics(1), np.bincount(mask.ravel(), minlength=3), 0, found, [])


def prepared(
    folder: Path, suffix: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[SegmentationDataModule, SegmentationModule]:
    """Data of a folder, and an untrained network for them."""
    data = SegmentationDataModule(
        str(folder),
        f"{{name}}.{suffix}",
        f"{{name}}_mask.{suffix}",
        labels=Labels({"background": 0, "cell": 1} if scheme == "exclusive" else {"cell": 1}, scheme),
        in_channels=1,
        spatial_dims=2,
        window=[64, 64],
        margin=[8, 8],
        val=0.5,
    )
    data.prepare()
    classes = {split: [case.name for case in cases] for split, cases in data.cases.items()}
    torch.manual_seed(0)
    network = UNet(1, data.labels.num_classes, spatial_dims=2, channels=[4, 8])
    module = SegmentationModule(network, None, data.labels, classes, None)  # type: ignore[arg-type]
    monkeypatch.setattr(type(module), "trainer", type("Trainer", (), {"precision": "32-true"})())
    return data, module


def table_row(data: SegmentationDataModule) -> dict[str, Any]:
    return {"case": data.cases["val"][0].name, **{f"dice/{name}": 0.5 for name in data.labels.names}}


def test_a_case_is_ranked_by_the_classes_that_means_are_taken_over() -> None:
    labels = Labels({"sky": 0, "car": 1, "tree": 2}, background="sky")
    row = {"case": 0, "dice/sky": 1.0, "dice/car": 0.25, "dice/tree": 0.75}
    assert examples._mean_dice(row, labels) == 0.5
    assert examples._mean_dice({**row, "dice/tree": None}, labels) == 0.25
    assert math.isnan(examples._mean_dice({**row, "dice/car": None, "dice/tree": math.nan}, labels))


def test_of_a_large_case_the_part_with_most_classes_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_SHOWN", 128)
    mask = np.zeros((500, 90), np.uint8)
    mask[10:20] = 1
    mask[330:400, 5:80] = 2
    rows, columns = examples.choose_view(facts(mask), Grid(mask), LABELS)
    assert (rows.stop - rows.start, columns) == (128, slice(0, 90))
    assert (mask[rows] == 2).sum() == 70 * 75
    mask[:] = 0
    assert examples.choose_view(facts(mask), Grid(mask), LABELS) == (slice(186, 314), slice(0, 90))


def test_pixels_without_data_are_no_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        image = np.random.default_rng(0).normal(size=(1, 40, 40)).astype(np.float32)
        image[:, 10:20] = np.nan
        for file, values in ((f"{name}.tif", image), (f"{name}_mask.tif", np.ones((1, 40, 40), np.uint8))):
            profile = {"width": 40, "height": 40, "count": 1, "dtype": values.dtype, "transform": Affine.scale(2)}
            with rasterio.open(tmp_path / file, "w", **profile) as raster:
                raster.write(values)
    data, module = prepared(tmp_path, "tif", "exclusive", monkeypatch)
    (shown,) = examples.examples(data.cases["val"], [table_row(data)], examples.by_tiles(module, data), data)
    np.testing.assert_array_equal(np.flatnonzero((shown["mask"] == 255).all(1)), np.arange(10, 20))


def test_of_a_volume_the_slice_with_most_foreground_is_shown() -> None:
    mask = np.zeros((40, 30, 20), np.uint8)
    mask[3, 3, 3] = 1
    mask[27:30, 4:20, 2:19] = 1
    mask[28, 4:25, 2:19] = 2
    view = examples.choose_view(facts(mask), Grid(mask), LABELS)
    assert view == (slice(28, 29), slice(0, 30), slice(0, 20))
    assert examples._say(view, mask.shape) == ", slice 29 of 40"
    mask[:] = 0
    assert examples.choose_view(facts(mask), Grid(mask), LABELS)[0] == slice(20, 21)


@pytest.mark.parametrize("scheme", ["exclusive", "overlapping"])
def test_what_is_shown_is_what_validation_sees_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(examples, "_SHOWN", 96)
    monkeypatch.setattr(examples, "_DRAWN", 48)
    rng = np.random.default_rng(0)
    mask = np.pad(np.ones((40, 40), np.uint8), ((100, 10), (20, 140)))
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, mask.shape).astype(np.uint8)).save(tmp_path / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    data, module = prepared(tmp_path, "png", scheme, monkeypatch)
    case, table = data.cases["val"][0], [table_row(data)]
    (shown,) = examples.examples(data.cases["val"], table, examples.by_tiles(module, data), data)
    where = examples.choose_view(data.facts[case.name], data.open(case)[1], data.labels)
    rows, columns = ((w.start + 1, w.stop) for w in where)
    assert shown["title"] == (
        f"the only case: {case.name}, Dice 0.500, rows {rows[0]} to {rows[1]} of 150, columns {columns[0]} to {columns[1]} of 200"
    )
    whole = (slice(0, 150), slice(0, 200))
    monkeypatch.setattr(examples, "choose_view", lambda *_: whole)
    monkeypatch.setattr(examples, "_DRAWN", 200)
    (full,) = examples.examples(data.cases["val"], table, examples.by_tiles(module, data), data)
    for name in ("image", "mask", "pred"):
        np.testing.assert_array_equal(shown[name], full[name][(..., *where)][..., ::2, ::2])
    assert full["pred"].any()
    assert not full["pred"].all()
