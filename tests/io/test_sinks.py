import gzip
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp

import segline
from segline.io import volume
from segline.io.open import BandsSource, open_image, open_mask
from segline.io.sinks import Layer, Sink, open_sink
from segline.io.source import Source, whole
from segline.labels import Labels
from segline.machine import peak_of

RNG = np.random.default_rng(0)
LABELS = Labels({"soil": 0, "weed": 1, "crop": 2}, colors={"soil": "#010203", "weed": "#ff0000", "crop": "#00ff80"})
OVERLAPPING = Labels({"whole": [1, 2], "a/part": [1]}, scheme="overlapping", colors={"a/part": "#00ff80"})
ONE = Labels({"water": 1}, scheme="overlapping", colors={"water": "#0000ff"})
PLACE = Affine(1.9, 0.4, 733000.0, 0.4, -1.9, 3725000.0)


def make(folder: Path, name: str, shape: tuple[int, ...] = (20, 30)) -> Source:
    """An image of the format that its name says."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    if name.endswith((".png", ".jpg")):
        Image.fromarray(RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)).save(path)
    elif name == "plain.tif":
        Image.fromarray(RNG.integers(0, 65535, shape).astype(np.uint16)).save(path)
    elif name.endswith(".tif"):
        profile = {"driver": "GTiff", "count": 2, "dtype": "float32", "crs": "EPSG:32616", "transform": PLACE}
        with rasterio.open(path, "w", height=shape[0], width=shape[1], nodata=np.nan, **profile) as file:
            file.write(RNG.random((2, *shape)).astype(np.float32))
    else:
        affine = np.array([[0, -2, 0, 7], [-1, 0, 0.1, 5], [0, 0, 3, -4], [0, 0, 0, 1.0]])
        image = nib.Nifti1Image(RNG.random((4, 5, 6)).astype(np.float32), affine)
        image.header["cal_max"] = 1000
        image.header.set_xyzt_units("mm", "sec")
        image.set_qform(affine, code="scanner")
        nib.save(image, path)
    return open_image([path])


def halves(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    middle = shape[0] // 2
    return [(slice(0, middle), *whole(shape[1:])), (slice(middle, shape[0]), *whole(shape[1:]))]


def write(path: Path, like: Source, labels: Labels, mask: np.ndarray) -> None:
    with open_sink(path, like, Layer.mask(labels)) as sink:
        for window in halves(like.shape):
            sink.write(window, mask[(..., *window)].astype(np.uint8))
        assert not path.exists()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("name", ["a.png", "photo.jpg", "a.tif", "plain.tif", "a.nii", "a.nii.gz"])
def test_a_mask_that_was_written_is_read_back_on_its_image(tmp_path: Path, name: str) -> None:
    image = make(tmp_path / "in", name)
    mask = RNG.integers(0, 3, image.shape)
    write(tmp_path / "out" / name, image, LABELS, mask)
    (written,) = (tmp_path / "out").iterdir()
    assert written.name == name.replace(".jpg", ".png")
    back = open_mask([written], LABELS, like=image)
    assert np.array_equal(back.read(whole(back.shape)), mask)
    assert back.geometry == image.geometry


def test_a_picture_shows_its_classes_in_their_colors(tmp_path: Path) -> None:
    image = make(tmp_path, "a.png")
    mask = RNG.integers(0, 3, image.shape)
    write(tmp_path / "out" / "a.png", image, LABELS, mask)
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), mask)
        assert np.array_equal(np.asarray(picture.convert("RGB")), LABELS.palette[mask])


@pytest.mark.parametrize("shape", [(20, 30), (300, 260)])
def test_a_raster_has_crs_transform_colors_and_names(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = make(tmp_path, "a.tif", shape)
    mask = RNG.integers(0, 3, shape)
    write(tmp_path / "out" / "a.tif", image, LABELS, mask)
    with rasterio.open(tmp_path / "out" / "a.tif") as file:
        assert np.array_equal(file.read(), mask[None])
        assert (file.crs.to_epsg(), file.dtypes, file.nodata) == (32616, ("uint8",), 255)
        assert file.transform.almost_equals(PLACE)
        assert file.colorinterp == (ColorInterp.palette,)
        assert [file.colormap(1)[k][:3] for k in range(3)] == [tuple(color) for color in LABELS.palette.tolist()]
        assert file.tags()["CLASSES"] == "soil,weed,crop"
        assert file.profile["tiled"] == (min(shape) >= 256)


def test_the_mask_of_stacked_bands_is_a_raster_like_the_first(tmp_path: Path) -> None:
    stacked = BandsSource([make(tmp_path, "B1.tif"), make(tmp_path, "B2.tif")], [1, 4])
    write(tmp_path / "out" / "a.tif", stacked, LABELS, np.ones(stacked.shape))
    with rasterio.open(tmp_path / "out" / "a.tif") as file:
        assert file.crs.to_epsg() == 32616


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_volume_has_the_affine_axes_and_codes_of_its_image(tmp_path: Path, name: str) -> None:
    image = make(tmp_path, name)
    mask = RNG.integers(0, 3, image.shape)
    write(tmp_path / "out" / name, image, LABELS, mask)
    ours, theirs = nib.load(tmp_path / "out" / name), nib.load(image.path)
    assert ours.get_data_dtype() == np.uint8
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.affine, theirs.affine)
    assert ours.header.get_zooms() == theirs.header.get_zooms()
    assert [int(ours.header[code]) for code in ("sform_code", "qform_code")] == [
        int(theirs.header[code]) for code in ("sform_code", "qform_code")
    ]
    assert ours.header.get_xyzt_units() == ("mm", "sec")
    assert (ours.header["cal_max"], ours.header["cal_min"]) == (0, 0)
    canonical = nib.as_closest_canonical(ours).get_fdata().transpose(2, 1, 0)
    assert np.array_equal(canonical, mask)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_volume_is_written_slab_by_slab_as_nibabel_writes_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Any
) -> None:
    monkeypatch.setattr(volume, "_SLAB", 40)
    header = kind.header_class(endianness=">")
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"of the scanner"))
    header.set_data_dtype(">i2")
    (tmp_path / "in").mkdir()
    nib.save(kind(np.zeros((4, 5, 6), np.int16), np.diag([-1.0, 2.0, -3.0, 1.0]), header), tmp_path / "in" / name)
    image, layer = open_image([tmp_path / "in" / name]), Layer(("one", "two"))
    values = RNG.random((2, *image.shape)).astype(np.float32)
    with open_sink(tmp_path / name, image, layer) as sink:
        sink.write(whole(image.shape), values)
    ours = nib.load(tmp_path / name)
    assert (type(ours), ours.header.endianness, ours.shape) == (kind, ">", (4, 5, 6, 2))
    assert [extension.get_content() for extension in ours.header.extensions] == [b"of the scanner"]
    assert np.array_equal(nib.as_closest_canonical(ours).get_fdata().transpose(3, 2, 1, 0), values)
    nib.save(kind(np.asanyarray(ours.dataobj), ours.affine, ours.header), tmp_path / f"again_{name}")
    unpack = gzip.decompress if name.endswith(".gz") else bytes
    assert unpack((tmp_path / name).read_bytes()) == unpack((tmp_path / f"again_{name}").read_bytes())


def test_a_mask_of_a_resampled_volume_is_on_the_files_own_grid(tmp_path: Path) -> None:
    path = make(tmp_path, "a.nii").path
    image = open_image([path], spacing_mm=[1.0, 1.0, 1.0])
    write(tmp_path / "out" / "a.nii", image, LABELS, np.full(image.shape, 2))
    ours = nib.load(tmp_path / "out" / "a.nii")
    assert ours.shape == (4, 5, 6)
    assert (ours.get_fdata() == 2).all()


@pytest.mark.parametrize("labels", [OVERLAPPING, ONE], ids=["several", "one"])
def test_overlapping_classes_are_kept_apart_in_every_format(tmp_path: Path, labels: Labels) -> None:
    k, out = labels.num_classes, tmp_path / "out"
    masks = {name: RNG.integers(0, 2, (k, *make(tmp_path, name).shape)) for name in ("a.png", "a.tif", "a.nii.gz")}
    for name, mask in masks.items():
        write(out / name, open_image([tmp_path / name]), labels, mask)
    with rasterio.open(out / "a.tif") as file:
        assert np.array_equal(file.read(), masks["a.tif"])
        assert file.tags()["CLASSES"] == ",".join(labels.names)
    volume = nib.as_closest_canonical(nib.load(out / "a.nii.gz")).get_fdata()
    volume = volume.reshape(*volume.shape[:3], k)  # one class is a volume as any other
    assert np.array_equal(volume.transpose(3, 2, 1, 0), masks["a.nii.gz"])
    names = ["a.png"] if k == 1 else ["a_whole.png", "a_a-part.png"]
    assert files(out) == sorted({"a.png", "a.tif", "a.nii.gz", *names})
    for name, mask, color in zip(names, masks["a.png"], labels.palette, strict=True):
        with Image.open(out / name) as picture:
            assert np.array_equal(np.asarray(picture), mask)
            assert np.array_equal(np.asarray(picture.convert("RGB")), mask[..., None] * color)


def test_one_picture_shows_all_overlapping_classes_the_last_on_top(tmp_path: Path) -> None:
    image = make(tmp_path, "a.png")
    mask = RNG.integers(0, 2, (2, *image.shape))
    write(tmp_path / "out" / "a.png", image, OVERLAPPING, mask)
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), np.where(mask[1], 2, mask[0]))
        colors = np.concatenate([[[0, 0, 0]], OVERLAPPING.palette])
        assert np.array_equal(np.asarray(picture.convert("RGB")), colors[np.asarray(picture)])


def test_pixels_without_a_decision_are_a_rasters_no_data(tmp_path: Path) -> None:
    image = make(tmp_path, "a.tif")
    for number, labels in enumerate((LABELS, OVERLAPPING)):
        mask = np.full((labels.num_classes, *image.shape) if number else image.shape, 255)
        write(tmp_path / "out" / "a.tif", image, labels, mask)
        with rasterio.open(tmp_path / "out" / "a.tif") as file:
            assert file.read(masked=True).mask.all()
        (tmp_path / "out" / "a.tif").unlink()


@pytest.mark.parametrize("num_classes", [2, 4, 16, 17])
def test_pixels_without_a_decision_are_255_in_a_picture_of_few_colors(tmp_path: Path, num_classes: int) -> None:
    image, labels = make(tmp_path, "a.png"), Labels({f"class_{k}": k for k in range(num_classes)})
    mask = RNG.choice([0, num_classes - 1, 255], image.shape)
    write(tmp_path / "out" / "a.png", image, labels, mask)
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), mask)
        assert (np.asarray(picture.convert("RGB"))[mask == 255] == 0).all()


def test_pixels_without_a_decision_are_255_in_the_picture_of_each_overlapping_class(tmp_path: Path) -> None:
    image = make(tmp_path, "a.png")
    mask = RNG.integers(0, 2, (2, *image.shape))
    mask[:, :4] = 255
    write(tmp_path / "out" / "a.png", image, OVERLAPPING, mask)
    for name, plane in {"a_whole.png": mask[0], "a_a-part.png": mask[1]}.items():
        with Image.open(tmp_path / "out" / name) as picture:
            assert np.array_equal(np.asarray(picture), plane)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii", "a.nii.gz"])
@pytest.mark.parametrize("labels", [LABELS, OVERLAPPING], ids=["exclusive", "overlapping"])
@pytest.mark.parametrize("before", [False, True], ids=["nothing", "an old mask"])
def test_an_error_leaves_things_as_they_were(tmp_path: Path, name: str, labels: Labels, before: bool) -> None:
    image, path = make(tmp_path, name), tmp_path / "out" / name
    if before:
        path.parent.mkdir()
        path.write_text("old")
    first, _ = halves(image.shape)
    shape = [w.stop - w.start for w in first]
    sink = open_sink(path, image, Layer.mask(labels))
    sink.write(first, np.ones(shape if labels.exclusive else [labels.num_classes, *shape], np.uint8))
    with pytest.raises(KeyboardInterrupt), sink:
        raise KeyboardInterrupt
    assert files(path.parent) == ([name] if before else [])
    assert not before or path.read_text() == "old"


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii"])
def test_others_may_read_what_was_written(tmp_path: Path, name: str) -> None:
    image = make(tmp_path, name)
    write(tmp_path / "out" / name, image, LABELS, np.zeros(image.shape))
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o666 & ~umask


def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(tmp_path: Path) -> None:
    image = make(tmp_path, "a.nii")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        open_sink(tmp_path / "file" / "a.nii", image, Layer.mask(LABELS))


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from segline.io.sinks import Layer, Sink, save_plain_tiff
from functools import partial
path, layer = Path(sys.argv[1]), Layer(("entropy",))
noise = np.random.default_rng(0).normal(size=(1, 512, 512)).astype(np.float32)
sink = Sink(path, (512, 512), layer, partial(save_plain_tiff, layer=layer), keep=True)
sink.write((slice(0, 512), slice(0, 512)), noise)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))
with sink:
    pass
"""


def test_a_disk_that_fills_when_gdal_closes_the_file_is_no_success(tmp_path: Path) -> None:
    """rasterio says nothing of what cannot be written at its end; the limit of a file's size stands for the disk's."""
    path = tmp_path / "a.tif"
    environment = {**os.environ, "PYTHONPATH": str(Path(segline.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, env=environment)
    assert "a.tif: it could not be written" in done.stderr
    assert "the same command goes on with it when there is room" in done.stderr
    assert files(tmp_path) == [".a.tif.partial"]  # what was computed is kept


LARGE = """
import sys
from functools import partial
from pathlib import Path
import numpy as np
from segline.io.sinks import Layer, Sink, save_plain_tiff
from segline.labels import Labels
from segline.machine import _status
layer, flushes = Layer.mask(Labels({"ground": 0, "field": 1})), sys.argv[2] == "flushed"
for rows in (1_000, 16_000):  # a mask of 16 MB, and one of 256 MB
    with Sink(Path(sys.argv[1]), (rows, 16_000), layer, partial(save_plain_tiff, layer=layer)) as sink:
        for row in range(0, rows, 500):
            sink.write((slice(row, row + 500), slice(0, 16_000)), np.ones((500, 16_000), np.uint8))
            if flushes:
                sink.flush()
    print(_status("VmHWM") >> 20)  # of getrusage a process would get that of its parent, if that is more
print(Path("/proc/self/maps").read_text().count("partial"))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not say how much memory a process took"
)
@pytest.mark.parametrize("flushes", ["flushed", "not flushed"])  # shallow volumes are one row of tiles
def test_the_memory_does_not_grow_with_the_mask(tmp_path: Path, flushes: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(segline.__file__).parents[1])}
    command = [sys.executable, "-c", LARGE, str(tmp_path / "a.tif"), flushes]
    small, large, mapped = map(int, subprocess.check_output(command, env=environment).split())
    assert large - small < 100  # MB: that of GDAL's own 64 MB of blocks which the small one does not fill, and not 256
    assert mapped == 0  # of a file that is mapped the place on the disk is not free


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not say how much memory a call took"
)
def test_a_window_of_a_wide_mask_takes_little_memory(tmp_path: Path) -> None:
    """The system maps pages around those that are touched: of a wide raster's rows all of them."""
    shape = (1_000, 100_000)
    if peak_of(lambda: np.ones(50_000_000, np.uint8)) < 40e6:
        pytest.skip("the system does not let a call's peak be measured")
    with Sink(tmp_path / "a.tif", shape, Layer.mask(LABELS), lambda planes, path: path.touch()) as sink:
        for row in range(0, shape[0], 100):
            sink.write((slice(row, row + 100), slice(0, shape[1])), np.full((100, shape[1]), row // 100, np.uint8))
        sink.flush()
        window = (slice(0, shape[0]), slice(50_000, 51_000))
        assert peak_of(lambda: sink.read(window)) < 40e6
        assert np.array_equal(sink.read(window)[:, 0], np.arange(shape[0]) // 100)


def test_names_with_dots_and_capitals_are_kept(tmp_path: Path) -> None:
    names: list[Any] = ["scene.v1.2.tif", "sub-01.T1w.nii.gz", "a.b.png"]
    for name in names:
        image = make(tmp_path, name)
        write(tmp_path / "out" / name, image, LABELS, np.zeros(image.shape))
    assert files(tmp_path / "out") == sorted(names)
