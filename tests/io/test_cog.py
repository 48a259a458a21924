import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from PIL import Image

import segline.io.cog
from segline.io.cog import as_cog
from segline.io.open import open_image
from segline.io.sinks import Layer, open_sink
from segline.labels import Labels

RNG = np.random.default_rng(0)
PLACE = Affine(1.9, 0.4, 733000.0, 0.4, -1.9, 3725000.0)
LABELS = Labels({"soil": 0, "weed": 1, "crop": 2}, colors={"soil": "#010203", "weed": "#ff0000", "crop": "#00ff80"})
OVERLAPPING = Labels({"whole": [1, 2], "part": [1]}, scheme="overlapping")


def raster(path: Path, values: np.ndarray, **profile: Any) -> Path:
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype.name}
    profile = {"driver": "GTiff", "crs": "EPSG:32616", "transform": PLACE, **shape, **profile}
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
    return path


def written(folder: Path, labels: Labels, mask: np.ndarray) -> Path:
    """A mask as prediction writes it."""
    image = open_image([raster(folder / "image.tif", np.zeros((1, *mask.shape[-2:]), np.uint8))])
    with open_sink(folder / "out" / "mask.tif", image, Layer.mask(labels)) as sink:
        sink.write((slice(0, mask.shape[-2]), slice(0, mask.shape[-1])), mask)
    return folder / "out" / "mask.tif"


def directories(path: Path) -> list[tuple[int, dict[int, list[int]]]]:
    """Place and whole-number tags of each image directory of a small TIFF, in the order of the file's chain."""
    data = path.read_bytes()
    assert data[:4] == b"II*\0"
    found, (place,) = [], struct.unpack("<I", data[4:8])
    while place:
        (number,) = struct.unpack_from("<H", data, place)
        tags = {}
        for i in range(number):
            tag, kind, count = struct.unpack_from("<HHI", data, place + 2 + 12 * i)
            if kind in (3, 4):
                form = f"<{count}{'HI'[kind - 3]}"
                start = place + 10 + 12 * i
                if struct.calcsize(form) > 4:
                    (start,) = struct.unpack_from("<I", data, start)
                tags[tag] = list(struct.unpack_from(form, data, start))
        found.append((place, tags))
        (place,) = struct.unpack_from("<I", data, place + 2 + 12 * number)
    return found


WIDTH, PREDICTOR, TILE_WIDTH, TILE_OFFSETS = 256, 317, 322, 324


def check(path: Path) -> None:
    """What makes a TIFF cloud optimised: all directories first, the largest picture leading; its tiles are the last data."""
    found = directories(path)
    widths = [tags[WIDTH][0] for _, tags in found]
    assert widths == sorted(widths, reverse=True)
    assert all(tags[TILE_WIDTH] == [512] for _, tags in found)
    places = [place for place, _ in found]
    assert places == sorted(places)
    offsets = [[offset for offset in tags[TILE_OFFSETS] if offset] for _, tags in found]
    assert max(places) < min(map(min, offsets))
    for larger, smaller in pairwise(offsets):
        assert max(smaller) < min(larger)
    assert b"LAYOUT=IFDS_BEFORE_DATA" in path.read_bytes()[:300]
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert bool(file.overviews(1)) == (max(file.shape) > 512)


@pytest.mark.parametrize("labels", [LABELS, OVERLAPPING], ids=["exclusive", "overlapping"])
@pytest.mark.parametrize("shape", [(1100, 700), (200, 300)])
def test_a_mask_becomes_cloud_optimised_and_stays_what_it_was(
    tmp_path: Path, labels: Labels, shape: tuple[int, int]
) -> None:
    mask = RNG.integers(0, 2, (2, *shape)) if labels is OVERLAPPING else RNG.choice([0, 1, 2, 255], shape)
    path = written(tmp_path, labels, mask.astype(np.uint8))
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check(path)
    as_cog(path)
    check(path)
    assert [file.name for file in path.parent.iterdir()] == ["mask.tif"]
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(), mask.reshape(-1, *shape))
        assert (file.crs.to_epsg(), file.nodata, file.dtypes[0], file.compression.name) == (
            32616,
            255,
            "uint8",
            "deflate",
        )
        assert file.transform.almost_equals(PLACE)
        assert file.tags()["CLASSES"] == ",".join(labels.names)
        assert file.descriptions == (labels.names if labels is OVERLAPPING else (None,))
        if labels is LABELS:
            assert [file.colormap(1)[k][:3] for k in range(3)] == [tuple(color) for color in LABELS.palette.tolist()]


def test_overviews_of_ids_are_ids_and_those_of_real_numbers_are_means(tmp_path: Path) -> None:
    checkered = (np.indices((1024, 1024)).sum(0) % 2 * 2).astype(np.uint8)[None]
    for name, values in {"ids.tif": checkered, "probs.tif": checkered.astype(np.float32)}.items():
        as_cog(raster(tmp_path / name, values))
        check(tmp_path / name)
        with rasterio.open(tmp_path / name, overview_level=0) as file:
            assert file.shape == (512, 512)
            assert set(np.unique(file.read())) <= ({0, 2} if name == "ids.tif" else {1.0})


def test_older_overviews_are_made_anew(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", np.full((1, 1024, 1024), 2, np.uint8))
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2])
        file.write(np.ones((1, 1024, 1024), np.uint8))
    as_cog(path)
    as_cog(path)  # of a cloud optimised one, too
    check(path)
    with rasterio.open(path, overview_level=0) as file:
        assert (file.read() == 1).all()


def test_a_picture_without_a_place_stays_without_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.ones((30, 20), np.uint8)).save(path)
    as_cog(path)
    image = open_image([path])
    assert (image.geometry.affine, image.geometry.crs) == (None, None)


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raster(tmp_path / "a.tif", np.ones((1, 600, 600), np.uint8))
    before = path.read_bytes()

    def half(source: Any, target: Path, **options: Any) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(segline.io.cog.rasterio.shutil, "copy", half)
    with pytest.raises(KeyboardInterrupt):
        as_cog(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_real_numbers_and_their_overviews_keep_their_predictor(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", RNG.random((2, 600, 700)).astype(np.float32), predictor=3, compress="deflate")
    as_cog(path)
    assert [tags[PREDICTOR] for _, tags in directories(path)] == [[3], [3]]


def test_what_is_not_on_the_disk_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.random((1, 600, 2100)).astype(np.float32)
    values[0, 0, 0] = np.nan  # equal to itself
    path, copy = raster(tmp_path / "a.tif", values, nodata=np.nan), rasterio.shutil.copy
    values[0, -1, -1] = 0
    other, before = raster(tmp_path / "b.tif", values, nodata=np.nan), path.read_bytes()

    def lossy(source: Any, target: Path, **options: Any) -> None:
        copy(other, target, **options)

    monkeypatch.setattr(segline.io.cog.rasterio.shutil, "copy", lossy)
    with pytest.raises(OSError, match="rows 0 to 600 are not on the disk"):
        as_cog(path)
    assert path.read_bytes() == before
    as_cog(other)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_what_is_no_tiff_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text('<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>')
    with pytest.raises(ValueError, match=r"a\.tif is not a whole TIFF file"):
        as_cog(tmp_path / "a.tif")
