"""Photographs and micrographs: PNG and JPEG, 8 and 16 bit, grey or colour."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from segline.io.source import Geometry, Window

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
#: Decoded pictures that are kept, in bytes for each process: many windows come from one picture.
_kept_bytes = 256 * 2**20
_kept: OrderedDict[tuple[str, int, bool], NDArray[Any]] = OrderedDict()


class ImageSource:
    """A picture, decoded once and kept for the next windows.

    Raises:
        ValueError: Not a whole PNG or JPEG file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        pixels = decode(path)
        self.shape: tuple[int, ...] = pixels.shape[:2]
        self.num_bands, self.geometry = pixels.shape[2], Geometry()

    def read(self, window: Window) -> NDArray[np.float32]:
        """The pixels of a window, `[C, *window]`."""
        return np.ascontiguousarray(decode(self.path)[window].transpose(2, 0, 1), dtype=np.float32)


def keep_decoded(num_bytes: int) -> None:
    """Let this process, and those that it starts, keep so many bytes of decoded pictures."""
    global _kept_bytes
    _kept_bytes = num_bytes


def decode(path: Path, palette_as_ids: bool = False) -> NDArray[Any]:
    """The pixels of a file, `[H, W, C]`, of its own type; EXIF orientation applied.

    Args:
        path: PNG or JPEG.
        palette_as_ids: Give the indices of a palette picture and the 0 and 1 of a 1-bit picture, instead of their colours.
    """
    key = (str(path), path.stat().st_mtime_ns if path.exists() else 0, palette_as_ids)
    if key not in _kept:
        _kept[key] = _decode(path, palette_as_ids)
        held = sum(array.nbytes for array in _kept.values())
        while held > _kept_bytes and len(_kept) > 1:
            held -= _kept.popitem(last=False)[1].nbytes
    _kept.move_to_end(key)
    return _kept[key]


def _decode(path: Path, palette_as_ids: bool) -> NDArray[Any]:
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            if image.format == "PNG" and image.mode in ("RGB", "RGBA") and _bit_depth(path) == 16:
                image.load()  # OpenCV would print its own words on a damaged file
                return _decode_deep(path)
            oriented = ImageOps.exif_transpose(image)
            if oriented.mode == "P":
                oriented = oriented if palette_as_ids else oriented.convert("RGB")
            elif oriented.mode == "1":
                oriented = oriented.convert("L")
                return np.asarray(oriented)[..., None] // (255 if palette_as_ids else 1)
            elif oriented.mode not in ("L", "LA", "I", "I;16", "I;16B", "RGB", "RGBA"):
                oriented = oriented.convert("RGB")
            pixels = np.asarray(oriented)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to be decoded as a whole ({error}); save it as a tiled TIFF") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a whole PNG or JPEG file ({error}); export or copy it again") from error
    if pixels.dtype == np.int32:  # Pillow's mode for 16-bit grey
        pixels = pixels.astype(np.uint16)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _bit_depth(path: Path) -> int:
    """Bits a channel, from a PNG's header."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _decode_deep(path: Path) -> NDArray[Any]:
    """16-bit colour, of which Pillow would keep 8 bits."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path} is not a whole PNG file; export or copy it again")
    order = [2, 1, 0, 3][: pixels.shape[2]]
    return np.ascontiguousarray(pixels[..., order])
