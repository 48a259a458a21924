from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from segline.io.open import compare, open_image, open_mask
from segline.io.source import Block
from segline.labels import Labels

LABELS = Labels({"background": 0, "thing": 1})
PLACE = Affine(2.0, 0.0, 500000.0, 0.0, -2.0, 4000000.0)


def raster(
    path: Path, shape: tuple[int, int] = (20, 30), crs: str | None = "EPSG:32616", place: Affine = PLACE
) -> Path:
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": crs, "transform": place}
    with rasterio.open(path, "w", height=shape[0], width=shape[1], **profile) as file:
        file.write(np.zeros((1, *shape), np.uint8))
    return path


def volume(path: Path, affine: np.ndarray, shape: tuple[int, int, int] = (4, 5, 6)) -> Path:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), path)
    return path


def faults(image: Path, mask: Path, spacing: list[float] | None = None) -> list[str]:
    source = open_image([image], spacing_mm=spacing)
    return compare(source, open_mask([mask], LABELS, like=source, spacing_mm=spacing))


@pytest.mark.parametrize(
    ("place", "shift"),
    [
        (PLACE, None),
        (PLACE @ Affine.translation(0.004, 0.004), None),
        (PLACE @ Affine.translation(0.5, 0), "0.5"),
        (PLACE @ Affine.translation(0, -3), "3"),
        (PLACE @ Affine.scale(1.1, 1), "3"),  # 30 columns of a tenth more
        (PLACE @ Affine.scale(1, 1.1), "2"),  # 20 rows
    ],
)
def test_a_mask_that_lies_elsewhere_is_a_fault(tmp_path: Path, place: Affine, shift: str | None) -> None:
    found = faults(raster(tmp_path / "image.tif"), raster(tmp_path / "mask.tif", place=place))
    if shift is None:
        assert found == []
    else:
        (fault,) = found
        assert "mask.tif lies elsewhere" in fault
        assert "image.tif" in fault
        assert f"by up to {shift} of one" in fault


def test_a_mask_of_another_size_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults(raster(tmp_path / "image.tif"), raster(tmp_path / "mask.tif", (20, 31)))
    assert "mask.tif is 20 x 31, but" in fault
    assert "image.tif is 20 x 30" in fault


def test_another_coordinate_system_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults(raster(tmp_path / "image.tif"), raster(tmp_path / "mask.tif", crs="EPSG:32617"))
    assert "mask.tif has another coordinate system than" in fault
    assert "reproject" in fault


def test_a_mask_that_lies_nowhere_fits_by_its_size(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "mask.png")
    assert faults(raster(tmp_path / "image.tif"), tmp_path / "mask.png") == []
    Image.new("L", (20, 30)).save(tmp_path / "turned.png")
    assert len(faults(raster(tmp_path / "image.tif"), tmp_path / "turned.png")) == 1


def test_volumes_are_compared_in_the_world_whatever_their_axes(tmp_path: Path) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    image = volume(tmp_path / "image.nii", affine)
    flipped = np.diag([-1.0, 2.0, 3.0, 1.0])
    flipped[0, 3] = 3  # the same four voxels, from the other side
    assert faults(image, volume(tmp_path / "flipped.nii", flipped)) == []
    permuted = affine[:, [2, 0, 1, 3]]
    assert faults(image, volume(tmp_path / "permuted.nii", permuted, (6, 4, 5))) == []
    (fault,) = faults(image, volume(tmp_path / "mirrored.nii", np.diag([-1.0, 2.0, 3.0, 1.0])))
    assert "mirrored.nii lies elsewhere" in fault
    moved = affine.copy()
    moved[2, 3] = 1.5
    (fault,) = faults(image, volume(tmp_path / "moved.nii", moved))
    assert "by up to 0.5 of one" in fault


def test_volumes_are_compared_as_resampled(tmp_path: Path) -> None:
    image = volume(tmp_path / "image.nii", np.eye(4), (8, 8, 8))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 0.5
    mask = volume(tmp_path / "mask.nii", affine, (4, 4, 4))
    assert len(faults(image, mask)) == 1
    assert faults(image, mask, [1.0, 1.0, 1.0]) == []
    (fault,) = faults(image, volume(tmp_path / "off.nii", np.diag([2.0, 2.0, 2.0, 1.0]), (4, 4, 4)), [1.0, 1.0, 1.0])
    assert "by up to 0.5 of one" in fault


@pytest.mark.parametrize("fault", [{"shape": (40, 60)}, {"place": PLACE @ Affine.translation(5, 0)}])
def test_blocks_of_a_mask_that_does_not_fit_are_a_fault(tmp_path: Path, fault: dict) -> None:
    image = open_image([raster(tmp_path / "image.tif")])
    window = (slice(4, 12), slice(0, 15))
    for name, profile in [("fits.tif", {}), ("mask.tif", fault)]:
        mask = open_mask([raster(tmp_path / name, **profile)], LABELS, like=image)
        found = compare(Block(image, window), Block(mask, window))
        assert [name in text for text in found] == [True] * (name == "mask.tif")


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.tif.xml", "a"])
def test_a_file_of_no_known_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"of no format that images are read from; expected one of \.png.*\.nii\.gz"):
        open_image([tmp_path / name])


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*a\.png"):
        open_image([tmp_path / "a.png"])


def test_capitals_in_endings_mean_nothing(tmp_path: Path) -> None:
    assert open_image([raster(tmp_path / "a.TIF")]).shape == (20, 30)
    path = volume(tmp_path / "a.nii.gz", np.eye(4)).rename(tmp_path / "A.NII.GZ")
    assert open_image([path]).shape == (6, 5, 4)
