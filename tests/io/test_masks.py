from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from scipy.io import savemat

from segline.io.masks import ObjectsMask
from segline.io.open import open_image, open_mask
from segline.io.source import read_padded, whole
from segline.labels import Labels

RNG = np.random.default_rng(0)
IDS = Labels({"background": 0, "cell": [1, 2]}, background="background", ignore=[7])
RAW = RNG.choice([0, 1, 2, 7], (6, 9)).astype(np.uint8)
#: RAW by hand: background 0, cell 1, ignored 255.
MEANING = np.select([RAW == 0, RAW == 7], [0, 255], 1)
COLORS = Labels({"soil": "#000000", "weed": "#ff0000", "crop": "#00ff00"}, ignore=["#ffffff"])
PLACE = Affine(2.0, 0.0, 500000.0, 0.0, -2.0, 4000000.0)


def write_tiff(path: Path, bands: np.ndarray, **profile: Any) -> Path:
    count, height, width = bands.shape
    settings = {"crs": "EPSG:32616", "transform": PLACE, "dtype": bands.dtype, **profile}
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, **settings) as file:
        file.write(bands)
    return path


def read(path: Path, labels: Labels = IDS, **how: Any) -> np.ndarray:
    mask = open_mask([path], labels, like=how.pop("like", None), **how)
    return mask.read(whole(mask.shape))


def test_ids_of_8_and_16_bit_are_encoded(tmp_path: Path) -> None:
    Image.fromarray(RAW).save(tmp_path / "a.png")
    Image.fromarray(RAW.astype(np.uint16) * 1000).save(tmp_path / "b.png")
    large = Labels({"background": 0, "cell": [1000, 2000]}, ignore=[7000])
    mask = read(tmp_path / "a.png")
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, MEANING)
    assert np.array_equal(read(tmp_path / "b.png", large), MEANING)


@pytest.mark.parametrize("structure", [0, 255])
def test_black_and_white_masks_are_read_in_either_polarity(tmp_path: Path, structure: int) -> None:
    inside = RNG.random((5, 6)) < 0.4
    Image.fromarray(np.where(inside, structure, 255 - structure).astype(np.uint8)).save(tmp_path / "a.png")
    labels = Labels({"background": 255 - structure, "structure": structure})
    assert np.array_equal(read(tmp_path / "a.png", labels), inside)


def test_a_one_bit_mask_holds_0_and_1(tmp_path: Path) -> None:
    inside = RNG.random((5, 13)) < 0.4
    Image.fromarray(inside).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", Labels({"soil": 1, "plant": 0})), ~inside)


@pytest.mark.parametrize("bits", [2, 8])
def test_a_palette_mask_holds_indices(tmp_path: Path, bits: int) -> None:
    picture = Image.fromarray(RAW % 4)
    picture.putpalette([9, 9, 9, 255, 0, 0, 9, 9, 9, 1, 1, 1])  # colours say nothing: two of them are equal
    picture.save(tmp_path / "a.png", bits=bits)
    labels = Labels({"a": 0, "b": 1, "c": 2, "d": 3})
    assert np.array_equal(read(tmp_path / "a.png", labels), RAW % 4)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colors_are_classes_in_any_mode(tmp_path: Path, mode: str) -> None:
    classes = RNG.integers(0, 4, (5, 8))
    pixels = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 255]], np.uint8)[classes]
    picture = Image.fromarray(pixels)
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    assert picture.mode == mode
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", COLORS), np.where(classes == 3, 255, classes))


def test_colors_whose_numbers_are_small_are_colors(tmp_path: Path) -> None:
    blue = RNG.random((4, 5)) < 0.5
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[blue, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", Labels({"land": "#000000", "water": "#0000ff"})), blue)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_a_grey_picture_among_colored_masks_is_read_by_its_colors(tmp_path: Path, mode: str) -> None:
    white = RNG.random((4, 5)) < 0.5
    Image.fromarray(white).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", COLORS), np.where(white, 255, 0))


def test_ids_in_three_equal_bands_are_ids(tmp_path: Path) -> None:
    Image.fromarray(RAW).convert("RGB").save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), MEANING)


def test_a_color_picture_is_refused_where_ids_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 0, 0)).save(tmp_path / "a.png")
    write_tiff(tmp_path / "b.tif", np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
    for name in ("a.png", "b.tif"):
        with pytest.raises(ValueError, match=rf"{name} is a colour picture.*'#ff0000'"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "really_a_jpeg.png"])
@pytest.mark.parametrize("objects", [False, True])
def test_a_jpeg_mask_is_refused(tmp_path: Path, name: str, objects: bool) -> None:
    Image.new("L", (8, 8)).save(tmp_path / name, format="JPEG")
    with pytest.raises(ValueError, match=rf"{name}: a JPEG cannot hold a mask.*PNG"):
        read(tmp_path / name, objects=objects)


def test_a_tiff_mask_compressed_as_jpeg_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.zeros((1, 16, 16), np.uint8), compress="jpeg")
    with pytest.raises(ValueError, match="JPEG cannot hold a mask"):
        read(path)


def test_a_value_outside_the_classes_is_named_with_file_and_count(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 5, 5], [9, 1, 5]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: mask values outside the classes: 5 \(3 pixels\), 9 \(1 pixels\)"):
        read(tmp_path / "a.png")


def test_overlapping_labels_give_a_channel_a_class(tmp_path: Path) -> None:
    labels = Labels({"cell": [1, 2], "nucleus": 2}, scheme="overlapping", ignore=[7])
    Image.fromarray(RAW).save(tmp_path / "a.png")
    expected = np.stack([np.isin(RAW, [1, 2]), RAW == 2]) * 1
    expected[:, RAW == 7] = 255
    assert np.array_equal(read(tmp_path / "a.png", labels), expected)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii", "a.mat"])
@pytest.mark.parametrize("scheme", ["exclusive", "overlapping"])
def test_windows_are_parts_of_the_whole_and_beyond_it_all_is_ignored(tmp_path: Path, name: str, scheme: str) -> None:
    labels = Labels({"cell": [1, 2], "dirt": [0] if scheme == "exclusive" else [1]}, scheme=scheme, ignore=[7])
    path, raw = tmp_path / name, RAW
    if name == "a.png":
        Image.fromarray(raw).save(path)
    elif name == "a.tif":
        write_tiff(path, raw[None])
    elif name == "a.mat":
        savemat(path, {"ids": raw})
    else:
        raw = RNG.choice([0, 1, 2, 7], (5, 6, 7)).astype(np.uint8)
        nib.save(nib.Nifti1Image(raw.transpose(2, 1, 0), np.eye(4)), path)
    mask = open_mask([path], labels, like=None)
    full = mask.read(whole(mask.shape))
    padded = np.pad(full, [(0, 0)] * (full.ndim - raw.ndim) + [(20, 20)] * raw.ndim, constant_values=255)
    for _ in range(20):
        starts = RNG.integers(-12, 12, raw.ndim)
        window = tuple(slice(int(s), int(s + n)) for s, n in zip(starts, RNG.integers(1, 9, raw.ndim), strict=True))
        expected = padded[(..., *(slice(w.start + 20, w.stop + 20) for w in window))]
        assert np.array_equal(read_padded(mask, window), expected)


# One file an object


def test_one_file_an_object_is_their_union_with_numbers(tmp_path: Path) -> None:
    discs = [np.hypot(*np.mgrid[-y : 12 - y, -x : 14 - x]) < 3 for y, x in [(3, 3), (8, 9), (4, 11)]]
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    Image.fromarray(discs[0].astype(np.uint8) * 255).save(paths[0])
    Image.fromarray(discs[1]).save(paths[1])
    green = np.zeros((12, 14, 4), np.uint8)
    green[..., 3] = 255
    green[discs[2], 1] = 200
    Image.fromarray(green).save(paths[2])
    mask = open_mask(paths, Labels({"background": 0, "nucleus": 1}), like=None, objects=True)
    assert isinstance(mask, ObjectsMask)
    expected = np.zeros((12, 14), int)
    for number, disc in enumerate(discs, 1):
        expected[disc] = number
    window = (slice(1, 11), slice(2, 13))
    assert np.array_equal(mask.read(window), expected[window] > 0)
    assert np.array_equal(mask.instances(window), expected[window])


def test_objects_of_another_size_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "1.png", tmp_path / "2.png"]
    Image.new("L", (4, 5)).save(paths[0])
    Image.new("L", (5, 5)).save(paths[1])
    with pytest.raises(ValueError, match=r"2\.png is 5 x 5, but 1\.png beside it is 5 x 4"):
        open_mask(paths, IDS, like=None, objects=True)


# Rasters, volumes, MATLAB


def test_a_rasters_no_data_is_ignored_unless_the_labels_know_it(tmp_path: Path) -> None:
    raw = RNG.choice([0, 1, 99], (1, 5, 6)).astype(np.int16)
    path = write_tiff(tmp_path / "a.tif", raw, nodata=99)
    assert np.array_equal(read(path), np.where(raw[0] == 99, 255, raw[0]))
    known = Labels({"a": 0, "b": 1, "c": 99})
    assert np.array_equal(read(path, known), np.where(raw[0] == 99, 2, raw[0]))
    assert np.array_equal(read(write_tiff(tmp_path / "b.tif", raw % 2, nodata=0)), raw[0] % 2)


@pytest.mark.parametrize("nodata", [None, np.nan, -3.4028234663852886e38, -9999.0])
def test_ids_as_real_numbers_are_ids_and_their_no_data_is_ignored(tmp_path: Path, nodata: float | None) -> None:
    lost = np.nan if nodata is None else nodata
    raw = RNG.choice([0, 1, lost], (1, 5, 6)).astype(np.float32)
    empty = np.isnan(raw[0]) | (np.abs(raw[0]) > 5)
    assert empty.any()
    path = write_tiff(tmp_path / "a.tif", raw, nodata=nodata)
    assert np.array_equal(read(path), np.where(empty, 255, np.nan_to_num(raw[0])))


@pytest.mark.parametrize("name", ["a.tif", "a.nii"])
def test_fractions_are_no_ids(tmp_path: Path, name: str) -> None:
    raw = np.array([[0.0, 1.0], [0.25, 1.0]], np.float32)
    if name == "a.tif":
        write_tiff(tmp_path / name, raw[None])
    else:
        nib.save(nib.Nifti1Image(raw[None], np.eye(4)), tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} holds fractions such as 0\.25; expected class ids"):
        read(tmp_path / name)


@pytest.mark.parametrize("table", [False, True])
def test_colors_of_a_raster_are_classes(tmp_path: Path, table: bool) -> None:
    classes = RNG.integers(0, 4, (5, 8)).astype(np.uint8)
    colors = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)]
    if table:
        path = write_tiff(tmp_path / "a.tif", classes[None])
        with rasterio.open(path, "r+") as file:
            file.write_colormap(1, dict(enumerate(colors)))
    else:
        path = write_tiff(tmp_path / "a.tif", np.array(colors, np.uint8)[classes].transpose(2, 0, 1))
    assert np.array_equal(read(path, COLORS), np.where(classes == 3, 255, classes))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_a_nifti_mask_is_read_as_its_image_is(tmp_path: Path, dtype: str) -> None:
    raw = RNG.choice([0, 1, 2, 7], (5, 6, 7)).astype(dtype)
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(raw, affine), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(raw.astype(np.float32), affine), tmp_path / "image.nii.gz")
    image = open_image([tmp_path / "image.nii.gz"])
    shown = image.read(whole(image.shape))[0]
    assert np.array_equal(read(tmp_path / "mask.nii.gz"), np.select([shown == 0, shown == 7], [0, 255], 1))


def test_a_resampled_nifti_mask_holds_no_new_labels(tmp_path: Path) -> None:
    raw = RNG.choice([0, 2], (8, 8, 8)).astype(np.uint8)
    nib.save(nib.Nifti1Image(raw, np.eye(4)), tmp_path / "a.nii")
    mask = read(tmp_path / "a.nii", Labels({"background": 0, "part": 2}), spacing_mm=[0.7, 1.3, 1.0])
    assert mask.shape == (11, 6, 8)
    assert 0.3 < mask.mean() < 0.7


@pytest.mark.parametrize("compressed", [False, True])
def test_a_matlab_mask_is_its_one_array(tmp_path: Path, compressed: bool) -> None:
    savemat(tmp_path / "a.mat", {"groundtruth": RAW, "comment": "a text"}, do_compression=compressed)
    assert np.array_equal(read(tmp_path / "a.mat"), MEANING)
    data = (tmp_path / "a.mat").read_bytes()
    for length in range(0, len(data) - 9, 11):
        (tmp_path / f"{length}.mat").write_bytes(data[:length])
        with pytest.raises(ValueError, match=rf"{length}\.mat (is not a whole \.mat|holds no arrays)"):
            read(tmp_path / f"{length}.mat")


def test_a_damaged_matlab_mask_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"groundtruth": RAW}, do_compression=True)
    data = (tmp_path / "a.mat").read_bytes()
    for place in range(137, len(data) - 4, 5):  # after the header
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        (tmp_path / f"{place}.mat").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{place}\.mat (is not a whole \.mat|holds)"):
            read(tmp_path / f"{place}.mat")


def test_a_matlab_file_of_two_arrays_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"one": RAW, "two": RAW})
    with pytest.raises(ValueError, match=r"\['one', 'two'\].*exactly one"):
        read(tmp_path / "a.mat")


def test_a_mask_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*a\.png"):
        read(tmp_path / "a.png")
