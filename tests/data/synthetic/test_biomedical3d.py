from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segline.data.synthetic.biomedical3d import CLASSES
from segline.io.source import whole
from segline.io.volume import VolumeFile

Scenes = Callable[[str], Path]


@pytest.fixture(scope="module")
def root(scenes: Scenes) -> Path:
    return scenes("biomedical3d")


@pytest.fixture(scope="module")
def pairs(root: Path) -> list[tuple[Any, Any]]:
    return [(nib.load(path), nib.load(root / "labels" / path.name)) for path in sorted((root / "images").iterdir())]


def test_volumes_are_stored_in_several_orientations_spacings_and_types(pairs: list[tuple[Any, Any]]) -> None:
    images = [image for image, _ in pairs]
    assert {"".join(nib.aff2axcodes(image.affine)) for image in images} == {"RAS", "LPS", "LAS", "PIR"}
    assert {str(image.get_data_dtype()) for image in images} == {"float32", "int16", "uint8"}
    assert len({tuple(np.sort(image.header.get_zooms()).round(3)) for image in images}) > 3
    assert max(max(image.header.get_zooms()) / min(image.header.get_zooms()) for image in images) > 1.5
    tops = [float(np.asanyarray(image.dataobj).max()) for image in images]
    assert max(tops) > 10 * min(tops)


def test_every_other_volume_is_oblique(pairs: list[tuple[Any, Any]]) -> None:
    oblique = [nib.affines.obliquity(image.affine).max() > np.deg2rad(1) for image, _ in pairs]
    assert oblique == [False, True] * 4


def test_a_mask_has_its_images_grid_in_both_of_niftis_affines(pairs: list[tuple[Any, Any]]) -> None:
    for image, mask in pairs:
        assert image.shape == mask.shape
        np.testing.assert_array_equal(image.affine, mask.affine)
        for volume in (image, mask):
            np.testing.assert_allclose(volume.get_qform(), volume.get_sform(), atol=1e-3)
            assert volume.header["qform_code"] == volume.header["sform_code"] == 1
            assert volume.header.get_xyzt_units()[0] == "mm"
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asanyarray(mask.dataobj))) == set(CLASSES.values())


def test_the_anterior_part_lies_before_and_below_the_other_in_canonical_axes(root: Path) -> None:
    for path in sorted((root / "labels").iterdir()):
        volume = VolumeFile(path, order=0)
        labels = volume.read_raw(whole(volume.shape))  # (D, H, W): upward, forward, right
        anterior, posterior = (np.argwhere(labels == CLASSES[name]).mean(0) for name in ("anterior", "posterior"))
        assert anterior[1] > posterior[1] + 8
        assert anterior[0] < posterior[0]


def test_the_parts_touch_and_are_as_bright_as_what_surrounds_them(pairs: list[tuple[Any, Any]]) -> None:
    for image, mask in pairs:
        values, labels = np.asanyarray(image.dataobj).astype(float), np.asanyarray(mask.dataobj)
        code = (labels == 1) * 1 + (labels == 2) * 3
        beside = [np.count_nonzero(np.abs(np.diff(code, axis=axis)) == 2) for axis in range(3)]
        assert sum(beside) > 10
        low, high = np.quantile(values[labels > 0], [0.1, 0.9])
        alike = (values > low) & (values < high) & (labels == 0)
        assert alike.sum() > 3 * (labels > 0).sum()
