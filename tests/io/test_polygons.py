import json
from pathlib import Path
from typing import Any

import fiona
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.features import rasterize
from scipy import ndimage

from segline.io.area import row_areas
from segline.io.open import open_image, open_mask
from segline.io.polygons import write_polygons
from segline.io.sinks import Layer, open_sink
from segline.io.source import Source, whole
from segline.labels import Labels

RNG = np.random.default_rng(0)
LABELS = Labels({"soil": 0, "weed": 1, "crop": 2}, background="soil", ignore=[255])
LAND = Labels({"soil": 0, "weed": 1, "crop": 2})
OVERLAPPING = Labels({"whole": [1, 2], "a/part": [1]}, scheme="overlapping")
ONE = Labels({"water": 1}, scheme="overlapping")
#: Turned, so that rows and columns cannot be taken for one another.
PLACE = Affine(1.9, 0.4, 733000.0, 0.3, -1.8, 3725000.0)
SHAPE = (40, 57)


def make(folder: Path, name: str, crs: str | None, place: Affine | None, shape: tuple[int, int] = SHAPE) -> Source:
    """An image, on whose grid masks lie."""
    folder.mkdir(exist_ok=True)
    if name.endswith(".png"):
        Image.fromarray(np.zeros(shape, np.uint8)).save(folder / name)
        return open_image([folder / name])
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": crs, "transform": place}
    with rasterio.open(folder / name, "w", height=shape[0], width=shape[1], **profile) as file:
        file.write(np.zeros((1, *shape), np.uint8))
    return open_image([folder / name])


def utm(folder: Path) -> Source:
    return make(folder, "a.tif", "EPSG:32616", PLACE)


def polygons(folder: Path, like: Source, labels: Labels, mask: np.ndarray, ending: str) -> tuple[int, Path]:
    """Write a mask as prediction does, and its polygons."""
    path = folder / "masks" / like.path.name
    with open_sink(path, like, Layer.mask(labels)) as sink:
        sink.write(whole(like.shape), mask.astype(np.uint8))
    target = folder / "out" / (f"a{ending}" if ending.startswith(".") else ending)
    number = write_polygons(path, labels, target)
    assert [file.name for file in target.parent.iterdir()] == [target.name]
    return number, target


def records(path: Path) -> list[dict[str, Any]]:
    with fiona.open(path, driver={".gpkg": "GPKG", ".geojson": "GeoJSON"}[path.suffix]) as layer:
        return [{"geometry": dict(f["geometry"]), **f["properties"]} for f in layer]


def burnt(path: Path, like: Source) -> np.ndarray:
    """What the reader of vectors makes of the file."""
    every = Labels({str(k): k for k in range(5)})
    return open_mask([path], every, like=like, burn="class_id").read(whole(like.shape))


def blobs(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Regions with holes, islands in them, corners that touch, and some pixels that are ignored."""
    mask = ndimage.zoom(RNG.integers(0, 3, (shape[0] // 2 + 1, shape[1] // 3 + 1)), (2, 3), order=0)
    mask = mask[: shape[0], : shape[1]]
    mask[2:15, 4:20] = 1
    mask[5:12, 7:16] = 0
    mask[7:9, 9:12] = 2
    mask[20:24, 20:30] = 255
    return mask


@pytest.mark.parametrize(
    ("crs", "place"),
    [
        ("EPSG:32616", PLACE),
        ("EPSG:4326", Affine(1e-4, 0, 7, 0, -1e-4, 51)),
        ("EPSG:4979", Affine(1e-4, 0, 7, 0, -1e-4, 51)),  # of three axes, and the next: the older WKT can say neither
        ("EPSG:8857", Affine(10, 0, 500000, 0, -10, 6000000)),
        ("EPSG:2953", Affine(0.5, 0, 2493000, 0, -0.5, 7435000)),  # northing comes first by its definition
        ("EPSG:2263", Affine(1.5, 0, 980000, 0, 1.5, 200000)),  # US feet, and from the south upwards
    ],
)
@pytest.mark.parametrize("ending", [".gpkg", ".geojson"])
def test_polygons_burnt_again_are_the_mask(tmp_path: Path, crs: str, place: Affine, ending: str) -> None:
    image, mask = make(tmp_path, "a.tif", crs, place), blobs()
    number, path = polygons(tmp_path, image, LABELS, mask, ending)
    # A centimetre of rounding or of another datum's shift moves no pixel's centre across an edge.
    assert np.array_equal(burnt(path, image), np.where(mask == 255, 0, mask))
    assert number == len(records(path)) == sum(ndimage.label(mask == k)[1] for k in (1, 2))


@pytest.mark.parametrize("ending", [".gpkg", ".geojson"])
def test_attributes_are_class_id_and_area_of_its_pixels(tmp_path: Path, ending: str) -> None:
    image, mask = make(tmp_path, "a.tif", "EPSG:4326", Affine(0.1, 0, 7, 0, -0.5, 75)), blobs()
    _, path = polygons(tmp_path, image, LABELS, mask, ending)
    areas = row_areas(image.geometry, SHAPE)
    assert areas is not None
    assert areas[-1] > 1.5 * areas[0]
    expected = []
    for k in (1, 2):
        regions, number = ndimage.label(mask == k)
        pixels = np.broadcast_to(areas[:, None], SHAPE)
        expected += [(LABELS.names[k], k, area) for area in ndimage.sum(pixels, regions, range(1, number + 1))]
    found = records(path)
    assert set(found[0]) == {"geometry", "class", "class_id", "area_m2"}
    assert all(type(record["class_id"]) is int for record in found)
    got = sorted((record["class"], record["class_id"], record["area_m2"]) for record in found)
    assert [row[:2] for row in got] == [row[:2] for row in sorted(expected)]
    np.testing.assert_allclose([row[2] for row in got], [row[2] for row in sorted(expected)], rtol=1e-9)


def test_holes_stay_holes_and_no_ring_touches_itself(tmp_path: Path) -> None:
    mask = np.ones(SHAPE, int)
    mask[3:5, 3:5] = mask[5:7, 5:7] = 0  # two holes that share a corner
    mask[10:20, 10:20] = 0
    mask[14:16, 14:16] = 1  # an island in a hole
    number, path = polygons(tmp_path, utm(tmp_path), LABELS, mask, ".gpkg")
    assert number == 2
    found = sorted(records(path), key=lambda record: -record["area_m2"])
    outer, *holes = found[0]["geometry"]["coordinates"]
    assert len(holes) == 3
    assert [len(record["geometry"]["coordinates"]) for record in found] == [4, 1]
    assert all(len(set(ring)) == len(ring) - 1 for ring in [outer, *holes])
    square = 1.9 * 1.8 + 0.4 * 0.3
    np.testing.assert_allclose([r["area_m2"] for r in found], [(mask.sum() - 4) * square, 4 * square], rtol=1e-9)


@pytest.mark.parametrize("labels", [LAND, LABELS], ids=["no background", "a background"])
def test_only_the_background_and_ignored_pixels_are_left_out(tmp_path: Path, labels: Labels) -> None:
    _, path = polygons(tmp_path, utm(tmp_path), labels, blobs(), ".gpkg")
    names = {"soil", "weed", "crop"} - ({"soil"} if labels is LABELS else set())
    assert {record["class"] for record in records(path)} == names


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("labels", [OVERLAPPING, ONE], ids=["several", "one"])
def test_overlapping_classes_are_polygons_of_their_own(tmp_path: Path, labels: Labels, name: str) -> None:
    image = make(tmp_path, name, "EPSG:32616", PLACE)
    masks = np.stack([ndimage.zoom(RNG.integers(0, 2, (8, 19)), (5, 3), order=0) for _ in range(labels.num_classes)])
    if name == "a.tif":
        masks[:, :3, :4] = 255
    _, path = polygons(tmp_path, image, labels, masks, ".gpkg")
    found = records(path)
    for k, mask in enumerate(masks, 1):
        assert {record["class_id"] for record in found if record["class"] == labels.id_names[k]} == {k}
        shapes = [record["geometry"] for record in found if record["class_id"] == k]
        grid = PLACE if name == "a.tif" else Affine.identity()
        assert np.array_equal(rasterize(shapes, out_shape=SHAPE, transform=grid), mask == 1)
    assert {record["class_id"] for record in found} == set(range(1, labels.num_classes + 1))


@pytest.mark.parametrize("ending", [".gpkg", ".geojson"])
def test_of_photographs_coordinates_are_pixels(tmp_path: Path, ending: str) -> None:
    image, mask = make(tmp_path, "a.png", None, None), np.zeros(SHAPE, int)
    mask[3:5, 10:40] = 2  # longer than what is split in degrees
    number, path = polygons(tmp_path, image, LABELS, mask, ending)
    (record,) = records(path)
    (ring,) = record.pop("geometry")["coordinates"]
    assert number == 1
    assert record == {"class": "crop", "class_id": 2, "area_px": 60}
    assert type(record["area_px"]) is int
    assert len(ring) == 5
    assert set(ring) == {(10, 3), (10, 5), (40, 3), (40, 5)}
    with fiona.open(path) as layer:
        assert not layer.crs_wkt or ending == ".geojson"  # whose readers suppose WGS 84
    if ending == ".geojson":
        assert "crs" not in json.loads(path.read_text())


def test_a_transform_without_a_crs_is_kept(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, int)
    mask[1, 2] = 1
    for ending in (".gpkg", ".geojson"):
        _, path = polygons(tmp_path / ending, make(tmp_path, "a.tif", None, PLACE), LABELS, mask, ending)
        (record,) = records(path)
        assert record["area_px"] == 1
        corners = np.array(sorted(set(record["geometry"]["coordinates"][0])))
        np.testing.assert_allclose(corners, sorted(PLACE @ at for at in [(2, 1), (3, 1), (2, 2), (3, 2)]), rtol=1e-12)


def test_geojson_is_that_of_rfc_7946(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, int)
    mask[3:30, 10:40] = 1
    mask[8:20, 15:30] = 0
    _, path = polygons(tmp_path, utm(tmp_path), LABELS, mask, ".geojson")
    collection = json.loads(path.read_text())
    assert "crs" not in collection
    (feature,) = collection["features"]
    turns = []
    for ring in feature["geometry"]["coordinates"]:
        x, y = np.array(ring).T
        assert ((x > -85) & (x < -84)).all()  # longitude first
        assert ((y > 33) & (y < 34)).all()
        turns.append(np.sign((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()))
    assert turns == [1, -1]  # the outer ring counterclockwise, the hole clockwise


def test_long_edges_stay_straight_on_the_mask_s_own_map(tmp_path: Path) -> None:
    # 300 km far north: between two corners alone, an edge of constant northing would bend by some pixels.
    image = make(tmp_path, "a.tif", "EPSG:32616", Affine(1000, 0, 350000, 0, -1000, 7500000), (30, 300))
    mask = np.zeros((30, 300), int)
    mask[10:20] = 1
    mask[20:] = 2
    _, path = polygons(tmp_path, image, LABELS, mask, ".geojson")
    assert np.array_equal(burnt(path, image), mask)
    rings = [set(record["geometry"]["coordinates"][0]) for record in records(path)]
    assert len(rings[0] & rings[1]) > 5  # without slivers between neighbours


@pytest.mark.parametrize("ending", [".gpkg", ".geojson"])
@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_without_regions_is_a_valid_file_without_polygons(tmp_path: Path, ending: str, value: int) -> None:
    image = utm(tmp_path)
    number, path = polygons(tmp_path, image, LABELS, np.full(SHAPE, value), ending)
    assert number == 0
    assert not burnt(path, image).any()
    with fiona.open(path) as layer:
        assert (layer.name, len(list(layer))) == ("mask", 0)
        assert ending == ".geojson" or layer.crs.to_epsg() == 32616


@pytest.mark.parametrize("name", ["-a", "(1) b", "gpkg_c", "sqlite_d", "scene.v1.2"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    _, path = polygons(tmp_path, utm(tmp_path), LABELS, blobs(), f"{name}.gpkg")
    assert fiona.listlayers(path) == ["mask"]


@pytest.mark.parametrize(
    ("labels", "mask", "target", "message"),
    [
        (LABELS, "a.tif", "a.shp", r"a\.shp; expected a name with one of \.gpkg, \.geojson"),
        (LABELS, "a.nii.gz", "a.gpkg", r"a\.nii\.gz is of no format that polygons are made of; expected \.png, \.tif"),
        (OVERLAPPING, "a.tif", "a.gpkg", r"a\.tif has 1 band of uint8; a mask of .*whole.* has 2 of uint8"),
        (Labels({"a": 0, "b": 1}), "a.tif", "a.gpkg", r"a\.tif has the value 2, which is none of \[0, 1\]"),
        (OVERLAPPING, "a.png", "a.gpkg", r"there is no file .*a_whole\.png"),
        (LABELS, "rgb.png", "a.gpkg", r"rgb\.png is 40 x 57 x 3; expected 40 x 57 x 1"),
    ],
)
def test_what_is_no_mask_of_the_labels_is_refused(
    tmp_path: Path, labels: Labels, mask: str, target: str, message: str
) -> None:
    polygons(tmp_path, utm(tmp_path), LAND, np.full(SHAPE, 2), ".gpkg")
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "masks" / "a.png")
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(tmp_path / "masks" / "rgb.png")
    with pytest.raises(ValueError, match=message):
        write_polygons(tmp_path / "masks" / mask, labels, tmp_path / "none" / target)
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())


def test_an_error_leaves_an_older_file_as_it_was(tmp_path: Path) -> None:
    _, path = polygons(tmp_path, utm(tmp_path), LABELS, blobs(), ".gpkg")
    before = path.read_bytes()
    with rasterio.open(tmp_path / "masks" / "a.tif", "r+") as file:
        file.write(np.full((1, 1, 1), 9, np.uint8), window=rasterio.windows.Window(50, 39, 1, 1))
    with pytest.raises(ValueError, match="has the value 9"):
        write_polygons(tmp_path / "masks" / "a.tif", LABELS, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["a.gpkg"]
