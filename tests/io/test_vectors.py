import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import fiona
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.warp import transform

from segline.io.open import open_image, open_mask
from segline.io.source import Source, whole
from segline.labels import Labels

#: 2 m pixels near Atlanta, turned a little so that rows and columns cannot be taken for one another.
PLACE = Affine(1.9, 0.4, 733000.0, 0.4, -1.9, 3725000.0)
SHAPE = (24, 31)
LABELS = Labels({"background": 0, "house": 1, "road": 2, "field": 3}, ignore=[255])


@pytest.fixture
def image(tmp_path: Path) -> Source:
    path = tmp_path / "image.tif"
    height, width = SHAPE
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32616", "transform": PLACE}
    with rasterio.open(path, "w", height=height, width=width, **profile) as file:
        file.write(np.zeros((1, *SHAPE), np.uint8))
    return open_image([path])


def polygon(center: Sequence[float], seed: int, crs: str = "EPSG:32616") -> list[tuple[float, float]]:
    """A ragged star around a pixel (row, column), as coordinates of a CRS."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(2, 9, 9)
    corners = [
        PLACE @ (center[1] + r * np.cos(a), center[0] + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)
    ]
    xs, ys = transform("EPSG:32616", crs, *zip(*corners, strict=True))
    return [*zip(xs, ys, strict=True), (xs[0], ys[0])]


def inside(point: tuple[float, float], corners: Sequence[tuple[float, float]]) -> bool:
    """Point in polygon, by counting the edges that a ray crosses."""
    (x, y), odd = point, False
    for (x1, y1), (x2, y2) in pairwise(corners):
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            odd = not odd
    return odd


def burnt(polygons: Sequence[Sequence[tuple[float, float]]], values: Sequence[int]) -> np.ndarray:
    """By brute force: each pixel's centre in each polygon (of the raster's CRS), later ones on top."""
    mask = np.zeros(SHAPE, int)
    for row, column in np.ndindex(SHAPE):
        for corners, value in zip(polygons, values, strict=True):
            if inside(PLACE @ (column + 0.5, row + 0.5), corners):
                mask[row, column] = value
    return mask


CENTERS = [(6, 7), (15, 20), (22, 29), (300, 300)]  # the third reaches beyond the raster, the last lies outside
KINDS = ["house", "road", "field", "house"]


def write(path: Path, crs: str | None, properties: Sequence[dict[str, Any]], kind: str = "str") -> Path:
    """The four polygons, in a CRS, with their attributes."""
    features = [
        {"geometry": {"type": "Polygon", "coordinates": [polygon(center, seed, crs or "EPSG:32616")]}, "properties": p}
        for seed, (center, p) in enumerate(zip(CENTERS, properties, strict=True))
    ]
    schema = {"geometry": "Polygon", "properties": dict.fromkeys(properties[0], kind)}
    driver = "GPKG" if path.suffix == ".gpkg" else "GeoJSON"
    with fiona.open(path, "w", driver=driver, crs=crs, schema=schema) as layer:
        layer.writerecords(features)
    return path


def read(path: Path, image: Source, burn: Any = 1) -> np.ndarray:
    mask = open_mask([path], LABELS, like=image, burn=burn)
    return mask.read(whole(mask.shape))


@pytest.mark.parametrize(
    ("name", "crs"),
    [("a.gpkg", "EPSG:4326"), ("a.gpkg", "EPSG:3857"), ("a.gpkg", "EPSG:32616"), ("a.geojson", "EPSG:4326")],
)
def test_polygons_of_any_crs_are_burnt_where_they_hold_a_pixels_centre(
    tmp_path: Path, image: Source, name: str, crs: str
) -> None:
    path = write(tmp_path / name, crs, [{"id": k} for k in (1, 2, 3, 1)], "int")
    expected = burnt([polygon(c, seed) for seed, c in enumerate(CENTERS)], [1, 2, 3, 1])
    mask = read(path, image, "id")
    assert all((expected == k).sum() > 15 for k in range(4))
    # GeoJSON keeps 1e-7 of a degree, a centimetre: a centre on an edge may fall either way.
    assert (mask != expected).sum() <= (2 if name == "a.geojson" else 0)


def test_windows_are_parts_of_the_whole(tmp_path: Path, image: Source) -> None:
    mask = open_mask([write(tmp_path / "a.gpkg", "EPSG:3857", [{"id": 1}] * 4, "int")], LABELS, like=image)
    full = mask.read(whole(SHAPE))
    for top, left, height, width in [(3, 5, 9, 11), (0, 0, 1, 31), (20, 25, 4, 6), (7, 7, 0, 4)]:
        window = (slice(top, top + height), slice(left, left + width))
        assert np.array_equal(mask.read(window), full[window])


def test_what_is_burnt_is_an_id_an_attribute_or_named_values_of_one(tmp_path: Path, image: Source) -> None:
    ids = write(tmp_path / "ids.gpkg", "EPSG:32616", [{"id": str(k)} for k in (1, 2, 3, 1)])
    kinds = write(tmp_path / "kinds.gpkg", "EPSG:32616", [{"kind": kind} for kind in KINDS])
    whole_numbers = write(tmp_path / "real.gpkg", "EPSG:32616", [{"id": k} for k in (1.0, 2.0, 3.0, 1.0)], "float")
    expected = read(ids, image, "id")
    assert len(np.unique(expected)) == 4
    assert np.array_equal(read(ids, image, 2), (expected > 0) * 2)
    assert np.array_equal(read(whole_numbers, image, "id"), expected)
    assert np.array_equal(read(kinds, image, {"kind": {"house": 1, "road": 2, "field": 3}}), expected)
    assert np.array_equal(read(kinds, image, {"kind": {"road": 2}}), np.where(expected == 2, 2, 0))
    assert np.array_equal(read(ids, image, {"id": {1: 3}}), np.where(expected == 1, 3, 0))


@pytest.mark.parametrize(
    ("burn", "message"),
    [
        ("height", r"has no attribute 'height'; it has \['kind'\]; set data\.burn"),
        ({"height": {"house": 1}}, "has no attribute 'height'"),
        ("kind", r"attribute 'kind' is 'house'; expected whole numbers, or data\.burn={kind: {house: 1}}"),
    ],
)
def test_an_attribute_that_cannot_be_burnt_is_refused(tmp_path: Path, image: Source, burn: Any, message: str) -> None:
    path = write(tmp_path / "a.gpkg", "EPSG:32616", [{"kind": kind} for kind in KINDS])
    with pytest.raises(ValueError, match=message):
        read(path, image, burn)


def test_fractions_are_no_ids(tmp_path: Path, image: Source) -> None:
    path = write(tmp_path / "a.gpkg", "EPSG:32616", [{"height": 3.5}] * 4, "float")
    with pytest.raises(ValueError, match=r"attribute 'height' is 3\.5; expected whole numbers"):
        read(path, image, "height")


def test_holes_are_outside_and_empty_geometries_are_nothing(tmp_path: Path, image: Source) -> None:
    def corners(low: float, high: float) -> list[tuple[float, float]]:
        return [PLACE @ at for at in [(low, low), (high, low), (high, high), (low, high), (low, low)]]

    ring = {"type": "Polygon", "coordinates": [corners(2, 20), corners(8, 14)]}
    geometries = [None, {"type": "Polygon", "coordinates": []}, ring]
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32616"}}
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    expected = np.zeros(SHAPE, int)
    expected[2:20, 2:20] = 1
    expected[8:14, 8:14] = 0
    assert np.array_equal(read(path, image), expected)


def test_a_file_without_polygons_is_background(tmp_path: Path, image: Source) -> None:
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}')
    assert not read(path, image).any()


def test_polygons_without_a_coordinate_system_are_refused(tmp_path: Path, image: Source) -> None:
    path = write(tmp_path / "a.gpkg", None, [{"id": 1}] * 4, "int")
    with pytest.raises(ValueError, match=r"a\.gpkg has no coordinate system.*image\.tif"):
        read(path, image)


def test_an_image_without_a_coordinate_system_takes_no_polygons(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    path = write(tmp_path / "a.gpkg", "EPSG:4326", [{"id": 1}] * 4, "int")
    with pytest.raises(ValueError, match=r"photo\.png has no coordinate system.*GeoTIFF"):
        read(path, open_image([tmp_path / "photo.png"]))


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson"])
def test_truncated_vectors_are_refused(tmp_path: Path, image: Source, name: str) -> None:
    data = write(tmp_path / name, "EPSG:4326", [{"id": 1}] * 4, "int").read_bytes()
    for share in (0, 0.1, 0.5, 0.9):
        cut = tmp_path / f"cut_{name}"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=rf"cut_{name} is not a whole (GPKG|GeoJSON) file"):
            read(cut, image)


def test_a_virtual_layer_in_disguise_is_refused(tmp_path: Path, image: Source) -> None:
    secret = write(tmp_path / "secret.gpkg", "EPSG:4326", [{"id": 1}] * 4, "int")
    for name in ("a.gpkg", "a.geojson"):
        (tmp_path / name).write_text(
            f'<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
            "</OGRVRTDataSource>"
        )
        with pytest.raises(ValueError, match=rf"{name} is not a whole"):
            read(tmp_path / name, image)


def test_a_file_is_opened_by_the_driver_of_its_name_alone(tmp_path: Path, image: Source) -> None:
    path = write(tmp_path / "a.geojson", "EPSG:4326", [{"id": 1}] * 4, "int").rename(tmp_path / "b.gpkg")
    with fiona.open(path) as guessed:  # fiona alone opens it by its content
        assert len(guessed) == 4
    with pytest.raises(ValueError, match=r"b\.gpkg is not a whole GPKG file"):
        read(path, image)
