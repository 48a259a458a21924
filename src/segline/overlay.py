"""A mask laid over its image, as one picture: of a photograph, a scene of any size, or a slice of a volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from segline.commit import committed
from segline.io.normalize import strips
from segline.io.source import Source, Window, whole
from segline.labels import Labels
from segline.pictures import flat, overlay, to_rgb

#: Pixels of a side of the finished picture at most, of which at least so many are left to the legend below.
_SIDE, _LEGEND = 2048, 256
#: Small images are enlarged towards so many pixels: a volume's slice has fewer than an outline and a legend need.
_ENLARGED = 1024
#: Of hatched pixels: their colour, the distance of the lines and their thickness in pixels.
_GREY, _HATCH, _LINE = (128, 128, 128), 12, 3


def draw_overlay(source: Source, read: Callable[[Window], NDArray[np.uint8]], labels: Labels, path: Path) -> None:
    """Draw class colours and outlines over an image, and below it a legend of the classes that are seen.

    Of a large image every n-th pixel is drawn, and it is read strip by strip; of a volume the axial slice with the most foreground,
    as `pictures.flat` turns it. Ignored pixels are hatched. Contrast is that of `pictures.to_rgb`.

    Args:
        source: The image.
        read: Of the mask: a window inside the image's grid -> `[*window]` or, for overlapping labels, `[K, *window]`.
        labels: Of the mask.
        path: A PNG of at most 2,048 pixels a side; it appears whole or not at all.
    """
    view = whole(source.shape)
    if len(view) == 3:
        view = (_fullest(source.shape, read, labels), *view[1:])
    shown = flat(dict(zip(("image", "mask"), _thinned(source, read, labels, view), strict=True)), labels)
    image, mask = _enlarged(shown["image"]), _enlarged(shown["mask"])
    picture = _paint(to_rgb(image), mask, labels)
    size = int(np.clip(max(mask.shape[-2:]) / 56, 12, 28))
    legend = _legend(_seen(mask, labels), size, picture.shape[1], _SIDE - len(picture))
    with committed(path) as temporary:
        Image.fromarray(np.concatenate([picture, legend])).save(temporary, format="PNG")


# What is shown


def _fullest(shape: Sequence[int], read: Callable[[Window], NDArray[np.uint8]], labels: Labels) -> slice:
    """The slice of a volume with the most foreground; the middle one where there is none."""
    pixels = np.zeros(shape[0], np.int64)
    for window in strips(tuple(shape)):
        pixels[window[0]] = labels.foreground(read(window)).sum((1, 2))
    depth = int(pixels.argmax()) if pixels.any() else len(pixels) // 2
    return slice(depth, depth + 1)


def _thinned(
    source: Source, read: Callable[[Window], NDArray[np.uint8]], labels: Labels, view: Window
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Every n-th row and column of a view: the bands that are shown `[C, *S]`, and the mask."""
    height, width = source.shape[-2:]
    n = max(-(-height // (_SIDE - _LEGEND)), -(-width // _SIDE))
    size = (*[v.stop - v.start for v in view[:-2]], -(-height // n), -(-width // n))
    bands = 3 if source.num_bands >= 3 else 1
    image = np.zeros((bands, *size), np.float32)
    mask = np.zeros(size if labels.exclusive else (labels.num_classes, *size), np.uint8)
    for strip in strips((height, width), 2**22 // source.num_bands):
        window = (*view[:-2], *strip)
        kept: tuple[Any, ...] = (..., *(slice(-s.start % n, None, n) for s in strip))
        place: tuple[Any, ...] = (..., *(slice(-(-s.start // n), -(-s.stop // n)) for s in strip))
        image[place] = source.read(window)[:bands][kept]
        mask[place] = read(window)[kept]
    return image, mask


def _enlarged(array: NDArray[Any]) -> NDArray[Any]:
    """Small arrays `[..., H, W]` with each pixel repeated."""
    times = max(1, _ENLARGED // max(array.shape[-2:]))
    return array.repeat(times, -2).repeat(times, -1)


# How it is shown


def _paint(rgb: NDArray[np.uint8], mask: NDArray[np.uint8], labels: Labels) -> NDArray[np.uint8]:
    """Colours, outlines and hatching over a picture."""
    painted = overlay(rgb, mask, labels)
    thickness = 1 + max(mask.shape[-2:]) // 900
    for k in labels.shown:
        inside = labels.of_class(mask, k)
        if inside.any():
            # Outside of the picture everything goes on: its border is no outline.
            core = ndimage.binary_erosion(inside, np.ones((3, 3), np.bool_), iterations=thickness, border_value=1)
            painted[inside & ~core] = labels.palette[k]
    painted[~labels.counted(mask) & _stripes(*mask.shape[-2:])] = _GREY
    return painted


def _stripes(height: int, width: int) -> NDArray[np.bool_]:
    stripes: NDArray[np.bool_] = np.add.outer(np.arange(height), np.arange(width)) % _HATCH < _LINE
    return stripes


def _seen(mask: NDArray[np.uint8], labels: Labels) -> list[tuple[str, tuple[int, ...] | None]]:
    """Names and colours of what a mask has and the picture shows; None for what is hatched."""
    names: list[tuple[str, tuple[int, ...] | None]] = [
        (labels.names[k], tuple(labels.palette[k].tolist())) for k in labels.shown if labels.of_class(mask, k).any()
    ]
    return names if labels.counted(mask).all() else [*names, ("ignored", None)]


def _legend(
    entries: Sequence[tuple[str, tuple[int, ...] | None]], size: int, width: int, room: int
) -> NDArray[np.uint8]:
    """Coloured squares of a size with names, in as many lines as they need and as there is room for, `[H, width, 3]`."""
    gap, line = size // 2, size + size // 2
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", round(0.8 * size))
    x, y, places = gap, gap, []
    for number, (name, _) in enumerate(entries):
        wide = size + gap + int(font.getlength(name)) + 2 * gap
        if x > gap and x + wide > width:
            x, y = gap, y + line
        if y + line > room:
            # The last one gives way to the number of those that are not named.
            entries = [*entries[: number - 1], (f"and {len(entries) - number + 1} more", (255, 255, 255))]
            break
        places.append((x, y))
        x += wide
    canvas = np.full((places[-1][1] + line if places else 0, width, 3), 255, np.uint8)
    for (x, y), (_, color) in zip(places, entries, strict=True):
        box = canvas[y : y + size, x : x + size]
        box[:] = (255, 255, 255) if color is None else color
        if color is None:
            box[_stripes(*box.shape[:2])] = _GREY
    picture = Image.fromarray(canvas)
    for (x, y), (name, _) in zip(places, entries, strict=True):
        ImageDraw.Draw(picture).text((x + size + gap, y + size / 2), name, (40, 40, 40), font, anchor="lm")
    return np.asarray(picture)
