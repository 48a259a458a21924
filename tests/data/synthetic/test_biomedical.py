from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from segline.data.synthetic.biomedical import CLASSES

Scenes = Callable[[str], Path]


@pytest.fixture(scope="module")
def fields(scenes: Scenes) -> dict[str, tuple[NDArray[np.uint16], NDArray[np.uint8]]]:
    root = scenes("biomedical")
    found = {}
    for path in sorted((root / "images").iterdir()):
        with Image.open(path) as image, Image.open(root / "masks" / f"{path.stem}.png") as mask:
            assert (image.format, image.mode) == ("TIFF", "I;16")
            assert (mask.format, mask.mode) == ("PNG", "L")
            found[path.stem] = (np.asarray(image), np.asarray(mask))
    return found


def test_micrographs_are_grey_tiffs_of_16_bits_with_masks_of_ids(
    fields: dict[str, tuple[NDArray[np.uint16], NDArray[np.uint8]]],
) -> None:
    assert list(fields) == ["slide1_00", "slide1_01", "slide1_02", "slide1_03", "slide2_00"]
    for image, mask in fields.values():
        assert image.dtype == np.uint16
        assert image.max() > 255  # 8 bits would not hold it
        assert image.shape == mask.shape
        assert set(np.unique(mask)) == set(CLASSES.values())


def test_a_slide_has_its_own_brightness(
    fields: dict[str, tuple[NDArray[np.uint16], NDArray[np.uint8]]],
) -> None:
    bright = [np.median(image[mask == 1]) for image, mask in fields.values()]
    assert max(bright[:4]) < 1.6 * min(bright[:4])
    assert not min(bright[:4]) * 0.9 < bright[4] < max(bright[:4]) * 1.1


def test_nuclei_are_of_several_sizes_touch_and_differ_in_brightness(
    fields: dict[str, tuple[NDArray[np.uint16], NDArray[np.uint8]]],
) -> None:
    image, mask = fields["slide1_00"]
    parts, count = ndimage.label(mask == CLASSES["nucleus"])
    areas = np.bincount(parts.ravel())[1:]
    assert count > 10
    assert areas.max() > 4 * np.median(areas)  # a clump
    assert np.quantile(areas, 0.75) > 1.5 * np.quantile(areas, 0.25)
    levels = ndimage.mean(image, parts, np.arange(1, count + 1))
    assert np.quantile(levels, 0.9) > 1.5 * np.quantile(levels, 0.1)


def test_background_holds_things_as_bright_as_nuclei(
    fields: dict[str, tuple[NDArray[np.uint16], NDArray[np.uint8]]],
) -> None:
    for image, mask in fields.values():
        away = ~ndimage.binary_dilation(mask > 0, iterations=4)
        assert (image[away] > np.median(image[mask == 1])).sum() > 40
