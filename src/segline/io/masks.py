"""Masks of any format as raw integer values, encoded by the labels: ids, colours, one file an object, vectors, .mat, NIfTI."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Compression

from segline.io.cache import cached
from segline.io.image import decode
from segline.io.raster import SUFFIXES as RASTER_SUFFIXES
from segline.io.raster import RasterFile
from segline.io.source import Geometry, Source, Window, say_size
from segline.io.vectors import VECTOR_DRIVERS, Burn, Vectors
from segline.io.volume import SUFFIXES as VOLUME_SUFFIXES
from segline.io.volume import VolumeFile
from segline.labels import IGNORE_INDEX, Labels

#: Raw value of a pixel that has none.
_NO_VALUE = np.iinfo(np.int64).min
_SMEARED = "{}: a JPEG cannot hold a mask, its compression smears the labels; export the masks as PNG"


class RawMask(Protocol):
    """A mask file as integers."""

    shape: tuple[int, ...]
    geometry: Geometry

    def read_raw(self, window: Window) -> NDArray[Any]:
        """Raw values `[*window]`."""
        ...


class EncodedMask:
    """A mask file seen through the labels: class ids, or 0/1 for each overlapping class; 255 is ignored.

    A raster's declared no-data value is ignored, too, unless the labels give it a meaning.
    """

    def __init__(self, path: Path, raw: RawMask, labels: Labels) -> None:
        self.path, self.raw, self.labels = path, raw, labels
        self.shape, self.geometry = raw.shape, raw.geometry
        known = {v for values in (*labels.values.values(), labels.ignore, labels.rest) for v in values}
        nodata = getattr(raw, "nodata", None)
        self._hole = None if nodata is None or nodata in known or not np.isfinite(nodata) else int(nodata)

    def read(self, window: Window) -> NDArray[np.uint8]:
        """The mask of a window.

        Raises:
            ValueError: A value that belongs to no class.
        """
        raw = self.raw.read_raw(window)
        hole = raw == _NO_VALUE
        if self._hole is not None:
            hole |= raw == self._hole
        if hole.any():  # any value that the labels know may stand there until it is overwritten
            raw = np.where(hole, next(iter(self.labels.values.values()))[0], raw.astype(np.int64))
        try:
            mask = self.labels.encode(raw)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        mask[..., hole] = IGNORE_INDEX
        return mask


class ObjectsMask(EncodedMask):
    """Several files, one object each; their union is raw value 1."""

    raw: _Objects

    def instances(self, window: Window) -> NDArray[np.int32]:
        """Number of the object at each pixel, from 1; 0 outside of all."""
        return self.raw.numbers[window]


class _Picture:
    """PNG: ids, 0/255, 1 bit, palette, or colours packed as 0xRRGGBB."""

    def __init__(self, path: Path, labels: Labels) -> None:
        _refuse_jpeg(path)
        self.path, self.colored = path, labels.colored
        self.shape, self.geometry = decode(path, palette_as_ids=not self.colored).shape[:2], Geometry()

    def read_raw(self, window: Window) -> NDArray[Any]:
        pixels = decode(self.path, palette_as_ids=not self.colored)
        return _ids_or_colors(pixels[window], self.colored, self.path)


class _Raster(RasterFile):
    """TIFF: ids, or colours packed as 0xRRGGBB, in bands or by the file's colour table."""

    def __init__(self, path: Path, labels: Labels) -> None:
        super().__init__(path)
        self.colored = labels.colored
        self._table: NDArray[np.int64] | None = None
        if self.dataset.compression is Compression.jpeg:
            raise ValueError(_SMEARED.format(path))
        if self.colored and self.dataset.colorinterp[0] is ColorInterp.palette:
            table = self.dataset.colormap(1)
            self._table = np.array([table[value][:3] for value in range(len(table))])
            self.nodata = None  # an index, not a colour
        elif self.colored and self.nodata is not None:
            self.nodata *= 0x010101

    def read_raw(self, window: Window, bands: list[int] | None = None) -> NDArray[Any]:
        pixels = _whole_numbers(np.moveaxis(super().read_raw(window), 0, -1), self.path)
        return _ids_or_colors(pixels if self._table is None else self._table[pixels[..., 0]], self.colored, self.path)


class _Volume(VolumeFile):
    """NIfTI: ids, of integer or float type."""

    def read_raw(self, window: Window) -> NDArray[Any]:
        return _whole_numbers(super().read_raw(window), self.path)


class _Matlab:
    """.mat: the one two-dimensional array of whole numbers in it."""

    def __init__(self, path: Path) -> None:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError

        try:
            arrays = {
                name: v
                for name, v in loadmat(path).items()
                if isinstance(v, np.ndarray) and v.ndim == 2 and v.dtype.kind in "iub"
            }
        # All that scipy raises on damaged files.
        except (OSError, ValueError, NotImplementedError, TypeError, IndexError, MatReadError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole .mat file of version 7 or less ({error})") from error
        if len(arrays) != 1:
            raise ValueError(f"{path} holds {sorted(arrays) or 'no'} arrays of whole numbers; expected exactly one")
        (self._array,) = arrays.values()
        self.shape, self.geometry = self._array.shape, Geometry()

    def read_raw(self, window: Window) -> NDArray[Any]:
        return self._array[window]


class _Objects:
    """One file an object: raw value 1 where any of them is."""

    def __init__(self, paths: Sequence[Path]) -> None:
        # Dozens of files, put together once and mapped into memory.
        path = cached("objects", paths, 1, ".npy", lambda path: np.save(path, _number_objects(paths)))
        self.numbers: NDArray[np.int32] = np.load(path, mmap_mode="r")
        self.shape: tuple[int, ...] = self.numbers.shape
        self.geometry = Geometry()

    def read_raw(self, window: Window) -> NDArray[Any]:
        return (self.numbers[window] > 0).astype(np.uint8)


def _number_objects(paths: Sequence[Path]) -> NDArray[np.int32]:
    """Number of the file whose object is at each pixel, from 1."""
    numbers = np.zeros(decode(paths[0]).shape[:2], np.int32)
    for number, path in enumerate(paths, 1):
        _refuse_jpeg(path)
        pixels = decode(path)
        inside = pixels[..., : 3 if pixels.shape[2] >= 3 else 1].any(-1)  # a last band of alpha says nothing
        if inside.shape != numbers.shape:
            raise ValueError(
                f"{path} is {say_size(inside.shape)}, but {paths[0].name} beside it is {say_size(numbers.shape)}"
            )
        numbers[inside] = number
    return numbers


def raw_mask(
    paths: Sequence[Path],
    labels: Labels,
    like: Source,
    burn: Burn,
    open_volume: Callable[[Path], RawMask],
    objects: bool,
) -> RawMask:
    """The reader that fits the files."""
    path = paths[0]
    suffix = path.suffix.lower()
    if objects:
        return _Objects(paths)
    if suffix in VECTOR_DRIVERS:
        return Vectors(path, like, burn)
    if suffix in RASTER_SUFFIXES:
        return _Raster(path, labels)
    if suffix == ".mat":
        return _Matlab(path)
    if path.name.lower().endswith(VOLUME_SUFFIXES):
        return open_volume(path)
    return _Picture(path, labels)


def volume_mask(path: Path, spacing_mm: Sequence[float] | None) -> RawMask:
    """A NIfTI mask, resampled by the nearest voxel."""
    return _Volume(path, spacing_mm, order=0)


def _ids_or_colors(pixels: NDArray[Any], colored: bool, path: Path) -> NDArray[Any]:
    """Raw values `[*S]` of pixels `[*S, C]`; grey stands for a colour, too, where the labels name colours."""
    first = pixels[..., 0]
    if pixels.shape[-1] < 3:
        return first.astype(np.int32) * 0x010101 if colored else first
    red, green, blue = (pixels[..., band].astype(np.int32) for band in range(3))
    if colored:
        return red << 16 | green << 8 | blue
    if not (np.array_equal(red, green) and np.array_equal(green, blue)):
        raise ValueError(
            f"{path} is a colour picture, but data.labels.classes names ids; name the colours, such as '#ff0000'"
        )
    return first


def _refuse_jpeg(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) == b"\xff\xd8":  # whatever the file is called
            raise ValueError(_SMEARED.format(path))


def _whole_numbers(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """Values as integers; NaN and the huge numbers that stand for no data become `_NO_VALUE`."""
    if values.dtype.kind in "iub":
        return values
    with np.errstate(invalid="ignore"):
        lost = ~(np.abs(values) < 2**53)
    rounded = np.round(np.where(lost, 0, values)).astype(np.int64)
    if (fractions := ~lost & (np.abs(values - rounded) > 1e-3)).any():
        raise ValueError(f"{path} holds fractions such as {values[fractions][0]:g}; expected class ids")
    return np.where(lost, _NO_VALUE, rounded)
