"""One look at every file: what it counts is what NumPy counts, and what it finds wrong is found at once."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from segline.data.cases import Case
from segline.data.scan import CELL, Facts, merge_statistics, scan
from segline.io.open import open_image, open_mask
from segline.io.source import MaskSource, Source
from segline.labels import Labels

LABELS = Labels({"background": 0, "cell": [1, 2], "rare": 5}, ignore=[9])
REGIONS = Labels({"whole": [1, 2], "part": 2}, scheme="overlapping", ignore=[9])


class Opener:
    """Opens cases, and counts how often."""

    def __init__(self, labels: Labels) -> None:
        self.labels, self.calls = labels, list[str]()

    def __call__(self, case: Case) -> tuple[Source, MaskSource]:
        self.calls.append(case.name)
        image = open_image(case.images)
        return image, open_mask(case.masks, self.labels, like=image)


def look(cases: Sequence[Case], labels: Labels = LABELS, opener: Opener | None = None) -> dict[str, Facts]:
    return scan(cases, opener or Opener(labels), labels, "settings")


def raster(path: Path, bands: NDArray[Any], crs: str = "EPSG:32633", west: float = 0.0, **options: Any) -> Path:
    bands = bands if bands.ndim == 3 else bands[None]
    profile = {
        "driver": "GTiff",
        "height": bands.shape[1],
        "width": bands.shape[2],
        "count": len(bands),
        "dtype": bands.dtype,
    }
    with rasterio.open(path, "w", crs=crs, transform=Affine(1, 0, west, 0, -1, 100), **profile, **options) as file:
        file.write(bands)
    return path


def picture(path: Path, pixels: NDArray[np.uint8]) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def case(name: str, image: Path, mask: Path) -> Case:
    return Case(name, name, (image,), (mask,))


def scene(folder: Path, name: str, rng: np.random.Generator) -> tuple[Case, NDArray[np.float32], NDArray[np.int16]]:
    image = rng.normal(1000, [[[1]], [[50]]], (2, 70, 90)).astype(np.float32)
    image[:, :5] = np.nan  # no data at all
    image[1, 10:20, 10:20] = np.nan  # no data in one band
    mask = rng.choice([0, 1, 2, 9], (70, 90)).astype(np.int16)
    mask[64:66, 40] = 5
    return case(name, raster(folder / f"{name}.tif", image), raster(folder / f"{name}_m.tif", mask)), image, mask


def test_counts_and_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (one, image, mask), (two, other, _) = scene(tmp_path, "one", rng), scene(tmp_path, "two", rng)
    facts = look([one, two])
    found = facts["one"]
    counted = (mask != 9) & ~np.isnan(image).all(0)
    assert (found.shape, found.num_bands) == ((70, 90), 2)
    assert found.pixels.tolist() == [int((np.isin(mask, ids) & counted).sum()) for ids in ([0], [1, 2], [5])]
    assert found.ignored == int((~counted).sum())
    assert found.pixels.sum() + found.ignored == mask.size
    both = np.stack([image, other]).transpose(1, 0, 2, 3).reshape(2, -1).astype(float)
    merged = merge_statistics(list(facts.values()))
    np.testing.assert_allclose(merged.mean, np.nanmean(both, 1), rtol=1e-9)
    np.testing.assert_allclose(merged.std, np.nanstd(both, 1), rtol=1e-7)
    assert merged.count.tolist() == (~np.isnan(both)).sum(1).tolist()


def test_overlapping_classes_are_counted_each_by_itself(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).choice([0, 1, 2, 9], (40, 40)).astype(np.uint8)
    one = case("one", picture(tmp_path / "i.png", mask * 20), picture(tmp_path / "m.png", mask))
    found = look([one], REGIONS)["one"]
    assert found.pixels.tolist() == [int(np.isin(mask, [1, 2]).sum()), int((mask == 2).sum())]
    assert found.ignored == int((mask == 9).sum())


@pytest.mark.parametrize("axes", [2, 3])
def test_the_index_knows_every_cell_that_holds_a_class(tmp_path: Path, axes: int) -> None:
    edge, shape = CELL[axes], (70, 300) if axes == 2 else (17, 20, 30)
    mask = np.zeros(shape, np.uint8)
    for k, place in ((1, (0,) * axes), (2, tuple(n - 1 for n in shape)), (5, tuple(n // 2 for n in shape))):
        mask[place] = k
    mask[(edge,) * axes] = 9
    if axes == 2:
        one = case("one", picture(tmp_path / "i.png", mask), picture(tmp_path / "m.png", mask))
    else:
        for name in "im":  # (x, y, z) in the file, (D, H, W) here
            nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0), np.eye(4)), tmp_path / f"{name}.nii.gz")
        one = case("one", tmp_path / "i.nii.gz", tmp_path / "m.nii.gz")
    found = look([one])["one"]
    encoded = LABELS.encode(mask)
    expected = {
        (k, *(at // edge for at in place)) for k in range(3) for place in zip(*np.nonzero(encoded == k), strict=True)
    }
    assert {tuple(row) for row in found.cells.tolist()} == expected
    assert len(found.cells) == len(expected)


def test_the_index_holds_for_images_that_are_read_in_parts(tmp_path: Path) -> None:
    mask = np.zeros((257, 16_400), np.uint8)  # more than is read at once, in either direction
    places = (3, 16_390), (256, 70), (256, 16_399)
    for place in places:
        mask[place] = 1
    one = case("one", picture(tmp_path / "i.png", mask), picture(tmp_path / "m.png", mask))
    found = look([one])["one"]
    cells = {tuple(row[1:]) for row in found.cells.tolist() if row[0] == 1}
    assert cells == {(row // CELL[2], column // CELL[2]) for row, column in places}
    assert found.pixels.tolist() == [mask.size - 3, 3, 0]


def test_a_case_without_data_or_labels_says_so(tmp_path: Path) -> None:
    data, nothing = np.ones((1, 16, 16), np.float32), np.full((1, 16, 16), np.nan, np.float32)
    ids, void = np.ones((16, 16), np.uint8), np.full((16, 16), 9, np.uint8)
    half = np.where(np.arange(16) < 8, np.nan, 1.0).astype(np.float32) * data
    cases = [
        case("whole", raster(tmp_path / "a.tif", data), raster(tmp_path / "am.tif", ids)),
        case("dark", raster(tmp_path / "b.tif", nothing), raster(tmp_path / "bm.tif", ids)),
        case("void", raster(tmp_path / "c.tif", data), raster(tmp_path / "cm.tif", void)),
        case(
            "both",
            raster(tmp_path / "d.tif", half),
            raster(tmp_path / "dm.tif", np.where(np.arange(16) < 8, ids, void)),
        ),
    ]
    facts = look(cases)
    assert facts["whole"].empty is None
    assert "no data" in (facts["dark"].empty or "")
    assert "ignored everywhere" in (facts["void"].empty or "")
    assert "ignored everywhere" in (facts["both"].empty or "")
    assert facts["dark"].pixels.sum() == 0
    assert all(not one.faults for one in facts.values())


def broken_files(folder: Path) -> tuple[list[Case], dict[str, str]]:
    """One case for each kind of damage, and what is to be said of it, as an expression."""
    ok = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    ids = np.zeros((40, 40), np.uint8)
    image, mask = picture(folder / "ok.png", ok), picture(folder / "ok_m.png", ids)
    geo, geo_mask = raster(folder / "ok.tif", ok), raster(folder / "ok_m.tif", ids)

    unknown = ids.copy()
    unknown[:2, :3], unknown[5, 5] = 7, 8
    Image.fromarray(ids).save(folder / "j.jpg")
    for name, whole in (("cut.png", image), ("cut.tif", geo)):
        (folder / name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    volume = np.zeros((8, 9, 10), np.uint8)
    for name, shift in (("v", 0.0), ("vm", 0.0), ("moved", 2.0)):
        affine = np.eye(4)
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(volume, affine), folder / f"{name}.nii.gz")
    (folder / "cutv.nii.gz").write_bytes((folder / "v.nii.gz").read_bytes()[:-20])
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "w.nii")
    (folder / "cutw.nii").write_bytes((folder / "w.nii").read_bytes()[:-100])
    cases = {
        "size": (image, picture(folder / "size.png", ids[:, :30]), r"size.png is 40 x 30, but .*ok.png is 40 x 40"),
        "unknown": (
            image,
            picture(folder / "unknown.png", unknown),
            r"unknown.png: .*7 \(6 pixels\), 8 \(1 pixels\); expected ",
        ),
        "jpeg": (image, folder / "j.jpg", r"j.jpg: a JPEG cannot hold a mask"),
        "cut png": (folder / "cut.png", mask, r"cut.png is not a whole PNG"),
        "cut tif": (folder / "cut.tif", geo_mask, r"cut.tif (is not a whole TIFF|cannot be read)"),
        "cut nii.gz": (folder / "cutv.nii.gz", folder / "vm.nii.gz", r"cutv.nii.gz is (truncated|not a whole)"),
        "cut nii": (folder / "cutw.nii", folder / "vm.nii.gz", r"cutw.nii claims .* truncated or damaged"),
        "crs": (
            geo,
            raster(folder / "crs.tif", ids, crs="EPSG:32634"),
            r"crs.tif has another coordinate system than .*ok.tif",
        ),
        "place": (geo, raster(folder / "place.tif", ids, west=5.0), r"place.tif lies elsewhere than .*up to 5 of one"),
        "affine": (folder / "v.nii.gz", folder / "moved.nii.gz", r"moved.nii.gz lies elsewhere than .*up to 2 of one"),
        "gone": (image, folder / "gone.png", r"there is no file .*gone.png"),
    }
    return [case(name, *files) for name, (*files, _) in cases.items()], {name: say for name, (*_, say) in cases.items()}


def test_every_fault_is_found_in_one_go_with_its_file(tmp_path: Path) -> None:
    cases, said = broken_files(tmp_path)
    good = case("good", tmp_path / "ok.png", tmp_path / "ok_m.png")
    facts = look([*cases, good])
    assert facts["good"].faults == []
    for name, expression in said.items():
        assert len(facts[name].faults) == 1
        assert re.search(expression, facts[name].faults[0]), (name, facts[name].faults)


def test_unchanged_files_are_not_looked_at_again(tmp_path: Path) -> None:
    one, _, _ = scene(tmp_path, "one", np.random.default_rng(0))
    opener = Opener(LABELS)
    first = look([one], opener=opener)["one"]
    again = look([one], opener=opener)["one"]
    assert opener.calls == ["one"]
    assert again.pixels.tolist() == first.pixels.tolist()
    assert again.cells.tolist() == first.cells.tolist()
    assert again.shape == first.shape
    np.testing.assert_array_equal(again.statistics.std, first.statistics.std)


def test_changed_files_labels_and_settings_are_looked_at_again(tmp_path: Path) -> None:
    one, _, mask = scene(tmp_path, "one", np.random.default_rng(0))
    opener = Opener(LABELS)
    before = look([one], opener=opener)["one"]
    state = one.masks[0].stat()
    raster(one.masks[0], np.where(mask == 1, 0, mask).astype(np.int16))
    os.utime(one.masks[0], ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert one.masks[0].stat().st_size == state.st_size  # only the time tells
    after = look([one], opener=opener)["one"]
    assert after.pixels[0] > before.pixels[0]
    other = Labels({"background": 0, "cell": [1, 2], "rare": 5, "void": 9})
    assert look([one], other)["one"].ignored < after.ignored
    scan([one], opener, LABELS, "other settings")
    assert opener.calls == ["one"] * 3


def test_a_fault_is_not_kept(tmp_path: Path) -> None:
    one = case(
        "one",
        picture(tmp_path / "i.png", np.ones((8, 8), np.uint8)),
        picture(tmp_path / "m.png", np.ones((8, 8), np.uint8)),
    )
    opener, fails = Opener(LABELS), [True]

    def open_case(case: Case) -> tuple[Source, MaskSource]:
        if fails.pop():
            raise OSError("too many open files")
        return opener(case)

    assert scan([one], open_case, LABELS, "settings")["one"].faults == ["too many open files"]
    fails.append(False)
    assert scan([one], open_case, LABELS, "settings")["one"].faults == []
