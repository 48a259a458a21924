from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segline.data.synthetic.driving import CLASSES, VOID

Scenes = Callable[[str], Path]
Frames = dict[str, tuple[NDArray[np.uint8], NDArray[np.str_]]]


@pytest.fixture(scope="module")
def frames(scenes: Scenes) -> Frames:
    """Frame, and the colour of each pixel's class as a text."""
    root = scenes("driving")
    found = {}
    for path in sorted((root / "images").iterdir()):
        with Image.open(path) as image, Image.open(root / "masks" / path.name) as mask:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (240, 160))
            assert (mask.format, mask.mode, mask.size) == ("PNG", "RGB", (240, 160))
            packed = np.asarray(mask).astype(np.int64) @ [65_536, 256, 1]
            found[path.stem] = (np.asarray(image), packed)
    return found


def code(color: str) -> int:
    return int(color[1:], 16)


def test_masks_show_class_colours_and_void_alone(frames: Frames) -> None:
    known = {code(color) for color in (*CLASSES.values(), VOID)}
    seen = {int(value) for _, mask in frames.values() for value in np.unique(mask)}
    assert seen == known
    assert list(frames) == ["seq1_0000", "seq1_0001", "seq1_0002", "seq1_0003", "seq2_0000"]


def test_void_is_a_small_part(frames: Frames) -> None:
    share = np.mean([(mask == code(VOID)).mean() for _, mask in frames.values()])
    assert 0 < share < 0.15


def test_the_sky_is_above_the_road_and_houses_between(frames: Frames) -> None:
    for _, mask in frames.values():
        rows = {name: np.nonzero(mask == code(CLASSES[name]))[0].mean() for name in ("sky", "building", "road")}
        assert rows["sky"] < rows["building"] < rows["road"]


def test_frames_of_a_sequence_share_their_light_and_differ_in_place(frames: Frames) -> None:
    sky = [image[mask == code(CLASSES["sky"])].astype(float) for image, mask in frames.values()]
    blue = [float(np.quantile(color[:, 2] - color[:, 0], 0.75)) for color in sky]
    assert min(blue[:4]) > blue[4] + 10  # noon, and an overcast day
    masks = [mask for _, mask in frames.values()]
    assert all((masks[i] != masks[i + 1]).mean() > 0.05 for i in range(3))


def test_poles_and_people_are_thin(frames: Frames) -> None:
    for name in ("pole", "pedestrian"):
        widths = [
            np.diff(np.flatnonzero(np.diff(np.pad(row == code(CLASSES[name]), 1).astype(np.int8))))[::2]
            for _, mask in frames.values()
            for row in mask
        ]
        assert 1 <= np.median(np.concatenate(widths)) <= 8
