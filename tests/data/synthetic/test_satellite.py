from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from scipy import ndimage

from segline.data.synthetic.satellite import CLASSES
from segline.io.raster import RasterSource

Scenes = Callable[[str], Path]


@pytest.fixture(scope="module")
def root(scenes: Scenes) -> Path:
    return scenes("satellite")


def test_scenes_are_geotiffs_with_a_grid_of_2_m_that_the_masks_share(root: Path) -> None:
    for path in sorted((root / "scenes").iterdir()):
        with rasterio.open(path) as scene, rasterio.open(root / "masks" / path.name) as mask:
            assert scene.driver == mask.driver == "GTiff"
            assert scene.crs == mask.crs == CRS.from_epsg(32633)
            assert scene.transform == mask.transform
            assert scene.res == (2.0, 2.0)
            assert scene.transform.e < 0  # north is up
            assert (scene.count, scene.dtypes[0], scene.nodata) == (4, "uint16", 0)
            assert (mask.count, mask.dtypes[0], mask.nodata) == (1, "uint8", 255)
            assert scene.descriptions == ("red", "green", "blue", "near_infrared")
            assert scene.block_shapes[0] == (128, 128)  # a window is read without the rest


def test_scenes_lie_apart_on_the_ground(root: Path) -> None:
    bounds = []
    for path in (root / "scenes").iterdir():
        with rasterio.open(path) as scene:
            bounds.append(scene.bounds)
    for i, one in enumerate(bounds):
        for other in bounds[:i]:
            assert rasterio.coords.disjoint_bounds(one, other)


def test_a_wedge_without_data_is_ignored_in_the_mask_and_nothing_else_is(root: Path) -> None:
    empty = []
    for index in range(3):
        source = RasterSource(root / "scenes" / f"scene_{index:02d}.tif")
        image = source.read((slice(0, source.shape[0]), slice(0, source.shape[1])))
        with rasterio.open(root / "masks" / f"scene_{index:02d}.tif") as file:
            mask = file.read(1)
        np.testing.assert_array_equal(np.isnan(image), np.broadcast_to(mask == 255, image.shape))
        empty.append(float((mask == 255).mean()))
    assert empty[:2] == [0, 0]
    assert 0.04 < empty[2] < 0.17


def test_spectra_are_plausible(root: Path) -> None:
    with rasterio.open(root / "scenes" / "scene_00.tif") as file:
        red, _, _, infrared = file.read() / 10_000
    with rasterio.open(root / "masks" / "scene_00.tif") as file:
        mask = file.read(1)
    ndvi = (infrared - red) / (infrared + red)
    median = {name: float(np.median(ndvi[mask == k])) for name, k in CLASSES.items()}
    assert median["vegetation"] > 0.35
    assert median["water"] < 0.05
    assert median["vegetation"] > median["bare_soil"] > median["road"]


def test_houses_are_of_many_sizes_and_some_touch(root: Path) -> None:
    with rasterio.open(root / "masks" / "scene_00.tif") as file:
        parts, count = ndimage.label(file.read(1) == CLASSES["building"])
    areas = np.bincount(parts.ravel())[1:]
    assert count > 20
    assert np.quantile(areas, 0.95) > 2.5 * np.quantile(areas, 0.2)
