from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from segline.io.content import check_content
from segline.io.open import open_image


def picture(kind: str) -> Callable[[Path], None]:
    return lambda path: Image.new("L", (6, 5)).save(path, format=kind)


def big_tiff(path: Path) -> None:
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "transform": Affine.scale(2), "BIGTIFF": "YES"}
    with rasterio.open(path, "w", height=4, width=4, **profile) as file:
        file.write(np.zeros((1, 4, 4), np.uint8))


def volume(suffix: str, kind: type[nib.Nifti1Image] = nib.Nifti1Image) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        there = path.with_name(f"volume{suffix}")
        nib.save(kind(np.zeros((5, 5, 5), np.int16), np.eye(4)), there)
        there.rename(path)

    return write


@pytest.mark.parametrize(
    ("make", "names", "what", "ending"),
    [
        (picture("PNG"), ["a.tif", "a.TIFF", "a.nii", "a.nii.gz"], "PNG picture", ".png"),
        (picture("JPEG"), ["a.tif", "a.nii"], "JPEG picture", ".jpg"),
        (picture("TIFF"), ["a.png", "a.jpg", "a.nii.gz"], "TIFF", ".tif"),
        (big_tiff, ["a.png", "a.nii"], "TIFF", ".tif"),
        (volume(".nii"), ["a.png", "a.tif", "a.nii.gz"], "NIfTI volume", ".nii"),
        (volume(".nii", nib.Nifti2Image), ["a.tif"], "NIfTI volume", ".nii"),
        (volume(".nii.gz"), ["a.png", "a.tif", "a.nii"], "gzip file", ".nii.gz"),
    ],
)
def test_a_file_under_the_name_of_another_kind_is_said_by_what_it_is(
    tmp_path: Path, make: Callable[[Path], None], names: list[str], what: str, ending: str
) -> None:
    for name in names:
        path = tmp_path / name
        make(path)
        with pytest.raises(ValueError, match=rf"{name} is a {what} by its content.*rename it to end in \{ending}$"):
            open_image([path])
        right = tmp_path / f"right{ending}"
        path.rename(right)
        assert open_image([right]).shape  # the remedy works


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "a.png"), ("PNG", "a.jpg"), ("PNG", "a.JPEG")])
def test_names_that_one_reader_takes_are_one(tmp_path: Path, kind: str, name: str) -> None:
    picture(kind)(tmp_path / name)
    assert open_image([tmp_path / name]).shape == (5, 6)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.nii", "a.nii.gz"])
def test_an_empty_file_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{name} is empty \(0 bytes\); export or copy it again"):
        open_image([tmp_path / name])


def test_what_is_of_no_known_kind_is_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    check_content(tmp_path / "a.png")
