import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segline.io.open import open_image
from segline.io.raster import RasterSource
from segline.io.source import Block, read_padded, whole

RNG = np.random.default_rng(0)
PLACE = Affine(2.0, 0.0, 500000.0, 0.0, -2.0, 4000000.0)


def write(path: Path, bands: np.ndarray, **profile: object) -> Path:
    count, height, width = bands.shape
    settings = {"crs": "EPSG:32616", "transform": PLACE, "dtype": bands.dtype, **profile}
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, **settings) as file:
        file.write(bands)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
def test_all_bands_of_any_type_are_read(tmp_path: Path, dtype: str) -> None:
    bands = RNG.integers(0, 250, (5, 9, 12)).astype(dtype)
    source = RasterSource(write(tmp_path / "a.tif", bands))
    assert (source.shape, source.num_bands, source.dtype) == ((9, 12), 5, np.dtype(dtype))
    image = source.read(whole(source.shape))
    assert image.dtype == np.float32
    assert np.array_equal(image, bands)


@given(st.tuples(st.integers(0, 33), st.integers(0, 33)), st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_a_window_is_that_part_of_the_raster(start: tuple[int, int], size: tuple[int, int]) -> None:
    window = tuple(slice(a, min(a + n, 33)) for a, n in zip(start, size, strict=True))
    assert np.array_equal(TILED.read(window), TILED_BANDS[(slice(None), *window)])


@given(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_beyond_the_raster_lies_nothing(start: tuple[int, int], size: tuple[int, int]) -> None:
    window = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    far = np.pad(TILED_BANDS.astype(np.float32), ((0, 0), (80, 80), (80, 80)), constant_values=np.nan)
    expected = far[(slice(None), *(slice(w.start + 80, w.stop + 80) for w in window))]
    np.testing.assert_array_equal(read_padded(TILED, window), expected)


@pytest.fixture(autouse=True, scope="module")
def _tiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    global TILED, TILED_BANDS
    TILED_BANDS = RNG.integers(0, 60000, (2, 33, 33)).astype(np.uint16)
    path = tmp_path_factory.mktemp("tiled") / "a.tif"
    TILED = RasterSource(write(path, TILED_BANDS, tiled=True, blockxsize=16, blockysize=16, compress="deflate"))


TILED: RasterSource
TILED_BANDS: np.ndarray


@pytest.mark.parametrize(
    ("dtype", "nodata", "values"),
    [
        ("uint16", 0, [0, 1, 65535]),
        ("int16", -9999, [-9999, 3, -1]),
        ("float32", float("nan"), [np.nan, 0, -3]),
        ("float32", -3.4028234663852886e38, [-3.4028234663852886e38, 0, 7]),
        ("float64", -1.7976931348623157e308, [-1.7976931348623157e308, 0, 7]),
        ("float32", None, [np.nan, np.inf, -np.inf]),
        ("uint8", None, [0, 1, 255]),
    ],
)
def test_no_data_becomes_nan_and_nothing_else_does(
    tmp_path: Path, dtype: str, nodata: float | None, values: list[float]
) -> None:
    path = write(tmp_path / "a.tif", np.array([[values]], dtype), nodata=nodata)
    lost = [not np.isfinite(v) or v == nodata for v in values]
    assert np.isnan(RasterSource(path).read((slice(0, 1), slice(0, 3)))).ravel().tolist() == lost


def test_geometry_tells_where_the_raster_lies(tmp_path: Path) -> None:
    turned = Affine.rotation(30) @ Affine.scale(3.0, -2.0)
    geometry = RasterSource(write(tmp_path / "a.tif", np.zeros((1, 4, 5), np.uint8), transform=turned)).geometry
    np.testing.assert_allclose(geometry.affine, np.array(turned).reshape(3, 3), atol=1e-12)
    assert geometry.spacing == pytest.approx((2.0, 3.0))  # rows, columns
    assert rasterio.crs.CRS.from_wkt(geometry.crs).to_epsg() == 32616


def test_a_plain_tiff_lies_nowhere(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 65535, (6, 8)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    source = RasterSource(tmp_path / "a.tif")
    assert (source.geometry.affine, source.geometry.crs, source.geometry.spacing) == (None, None, None)
    assert np.array_equal(source.read(whole(source.shape))[0], pixels)


def test_one_file_a_band_is_one_image(tmp_path: Path) -> None:
    bands = RNG.integers(0, 99, (3, 6, 7)).astype(np.uint16)
    paths = [write(tmp_path / f"B{k}.tif", band[None]) for k, band in enumerate(bands)]
    source = open_image(paths)
    assert (source.num_bands, source.shape) == (3, (6, 7))
    assert np.array_equal(source.read((slice(1, 4), slice(2, 6))), bands[:, 1:4, 2:6])
    assert np.array_equal(open_image(paths, bands=[3, 1]).read(whole((6, 7))), bands[[2, 0]])


def test_a_band_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.zeros((4, 5, 5), np.uint8))
    for band in (0, 5):
        with pytest.raises(ValueError, match=rf"a\.tif has 4 bands.* no band {band}.*data\.bands.* 1 to 4"):
            open_image([path], bands=[1, band])


@pytest.mark.parametrize(
    ("shape", "profile", "message"),
    [
        ((1, 6, 8), {}, r"b\.tif is 6 x 8, but .*a\.tif is 6 x 7"),
        ((1, 6, 7), {"crs": "EPSG:32617"}, r"b\.tif has another coordinate system than .*a\.tif"),
        ((1, 6, 7), {"transform": PLACE @ Affine.translation(1, 0)}, r"b\.tif lies elsewhere.* up to 1 of one"),
    ],
)
def test_bands_on_different_grids_are_refused(
    tmp_path: Path, shape: tuple[int, int, int], profile: dict, message: str
) -> None:
    one = write(tmp_path / "a.tif", np.zeros((1, 6, 7), np.uint8))
    other = write(tmp_path / "b.tif", np.zeros(shape, np.uint8), **profile)
    with pytest.raises(ValueError, match=message):
        open_image([one, other])


def test_bands_whose_transforms_differ_by_rounding_are_stacked(tmp_path: Path) -> None:
    one = write(tmp_path / "a.tif", np.zeros((1, 6, 7), np.uint8))
    nearly = PLACE @ Affine.translation(1e-6, 0)
    other = write(tmp_path / "b.tif", np.ones((1, 6, 7), np.uint8), transform=nearly)
    assert open_image([one, other]).num_bands == 2


def test_a_block_is_a_raster_of_its_own(tmp_path: Path) -> None:
    bands = RNG.integers(0, 99, (2, 9, 10)).astype(np.uint8)
    block = Block(RasterSource(write(tmp_path / "a.tif", bands)), (slice(2, 7), slice(3, 10)))
    assert (block.shape, block.num_bands) == ((5, 7), 2)
    assert np.array_equal(block.read((slice(1, 3), slice(2, 7))), bands[:, 3:5, 5:10])


def test_an_open_raster_can_be_sent_to_another_process(tmp_path: Path) -> None:
    bands = RNG.integers(0, 99, (1, 4, 4)).astype(np.uint8)
    source = RasterSource(write(tmp_path / "a.tif", bands))
    source.read(whole(source.shape))
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(whole(source.shape)), bands)


def test_blocks_that_were_decoded_are_kept_for_the_next_window(tmp_path: Path) -> None:
    """Windows overlap, and of strips each touches whole rows; what is still read of a file that is gone by then was kept."""
    values = np.arange(2 * 300 * 300, dtype=np.uint16).reshape(2, 300, 300)
    path = write(tmp_path / "a.tif", values)
    source = RasterSource(path)
    first, next_one = (slice(0, 256), slice(0, 256)), (slice(0, 256), slice(44, 300))
    source.read(first)
    os.truncate(path, 1000)
    assert np.array_equal(source.read(next_one), values[:, :256, 44:])


@pytest.mark.parametrize("compress", [None, "deflate"])
def test_a_truncated_raster_is_refused_wherever_it_was_cut(tmp_path: Path, compress: str | None) -> None:
    bands = RNG.integers(0, 60000, (2, 32, 32)).astype(np.uint16)
    data = write(tmp_path / "whole.tif", bands, compress=compress).read_bytes()
    for length in range(0, len(data) - 1, 97):
        cut = tmp_path / f"{length}.tif"
        cut.write_bytes(data[:length])
        with pytest.raises(
            ValueError, match=rf"{length}\.tif (is empty|is not a whole TIFF|cannot be read at rows 0 to 32)"
        ):
            open_image([cut]).read(whole((32, 32)))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_virtual_raster_in_disguise_is_refused(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.tif", np.ones((1, 4, 4), np.uint8))
    disguised = tmp_path / "innocent.tif"
    disguised.write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(disguised) as followed:  # it works: rasterio alone would follow it
        assert followed.read().sum() == 16
    with pytest.raises(ValueError, match=r"innocent\.tif is a virtual raster"):
        open_image([disguised])


def write_pages(path: Path) -> None:
    page = Image.new("L", (5, 4))
    page.save(path, save_all=True, append_images=[page, page])


def write_complex(path: Path) -> None:
    write(path, np.zeros((1, 4, 5), np.complex64))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("make", "message"), [(write_pages, r"holds 3 pages.*one file a page"), (write_complex, "complex64.*amplitude")]
)
def test_a_tiff_of_which_only_a_part_would_be_read_is_refused(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=message):
        open_image([tmp_path / "a.tif"])
