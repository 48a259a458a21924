"""Masks of any format as raw integer values, encoded by the labels: ids, colours, one file an object, vectors, .mat, NIfTI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segline.io.image import decode
from segline.io.raster import RasterFile
from segline.io.source import Geometry, Source, Window
from segline.io.volume import VolumeFile
from segline.labels import IGNORE_INDEX, Labels

#: Vector formats and the drivers they are read with, by name: GDAL would else follow a file in disguise.
VECTOR_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON"}
#: What burns polygons: an id for all, the attribute that holds it, or {attribute: {value: id}}.
Burn = int | str | Mapping[str, Mapping[Any, int]]


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
        self._hole = int(nodata) if nodata is not None and not np.isnan(nodata) and int(nodata) not in known else None

    def read(self, window: Window) -> NDArray[np.uint8]:
        """The mask of a window.

        Raises:
            ValueError: A value that belongs to no class.
        """
        raw = self.raw.read_raw(window)
        hole = raw == self._hole if self._hole is not None else None
        if hole is not None:  # any value that the labels know may stand there until it is overwritten
            raw = np.where(hole, next(iter(self.labels.values.values()))[0], raw)
        try:
            mask = self.labels.encode(raw)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        if hole is not None:
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
        self.path, self.colored = path, any(v > IGNORE_INDEX for values in labels.values.values() for v in values)
        if path.suffix.lower() in (".jpg", ".jpeg"):
            raise ValueError(
                f"{path}: a JPEG cannot hold a mask, its compression smears the labels; export the masks as PNG"
            )
        self.shape, self.geometry = self._pixels().shape, Geometry()

    def _pixels(self) -> NDArray[Any]:
        pixels = decode(self.path, palette_as_ids=not self.colored)
        if pixels.shape[2] >= 3:
            red, green, blue = (pixels[..., i].astype(np.int32) for i in range(3))
            if not self.colored and not (np.array_equal(red, green) and np.array_equal(green, blue)):
                raise ValueError(
                    f"{self.path} is a colour picture, but data.labels.classes names ids; name the colours, such as '#ff0000'"
                )
            return red << 16 | green << 8 | blue if self.colored else red
        return pixels[..., 0]

    def read_raw(self, window: Window) -> NDArray[Any]:
        return self._pixels()[window]


class _Raster(RasterFile):
    """TIFF: ids of the first band."""

    def read_raw(self, window: Window, bands: list[int] | None = None) -> NDArray[Any]:
        return _whole_numbers(super().read_raw(window, [1])[0], self.path)


class _Volume(VolumeFile):
    """NIfTI: ids, of integer or float type."""

    def read_raw(self, window: Window) -> NDArray[Any]:
        return _whole_numbers(super().read_raw(window), self.path)


class _Matlab:
    """.mat: the one two-dimensional array of whole numbers in it."""

    def __init__(self, path: Path) -> None:
        from scipy.io import loadmat

        try:
            arrays = {
                name: v
                for name, v in loadmat(path).items()
                if isinstance(v, np.ndarray) and v.ndim == 2 and v.dtype.kind in "iub"
            }
        except (OSError, ValueError, NotImplementedError) as error:
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
        self.numbers: NDArray[np.int32] = np.zeros(decode(paths[0]).shape[:2], np.int32)
        for number, path in enumerate(paths, 1):
            pixels = decode(path)[..., 0]
            if pixels.shape != self.numbers.shape:
                raise ValueError(
                    f"{path} is {_size(pixels.shape)}, but {paths[0].name} beside it is {_size(self.numbers.shape)}"
                )
            self.numbers[pixels > 0] = number
        self.shape: tuple[int, ...] = self.numbers.shape
        self.geometry = Geometry()

    def read_raw(self, window: Window) -> NDArray[Any]:
        return (self.numbers[window] > 0).astype(np.uint8)


class _Vectors:
    """Polygons of a GeoPackage or GeoJSON, burnt onto the image's grid; a pixel belongs to the polygon that holds its centre."""

    def __init__(self, path: Path, like: Source, burn: Burn) -> None:
        import fiona
        from fiona.errors import FionaError
        from rasterio.warp import transform_geom

        if like.geometry.crs is None or like.geometry.affine is None:
            raise ValueError(
                f"{like.path} has no coordinate system, so the polygons of {path} cannot be laid on it; use a GeoTIFF with a CRS"
            )
        try:
            with fiona.open(path, driver=VECTOR_DRIVERS[path.suffix.lower()]) as layer:
                crs = layer.crs_wkt or "EPSG:4326"
                features = [(f["geometry"], f["properties"]) for f in layer if f["geometry"] is not None]
        except (FionaError, OSError) as error:
            raise ValueError(f"{path} is not a whole {VECTOR_DRIVERS[path.suffix.lower()]} file ({error})") from error
        burnt = ((geometry, _burn_value(dict(properties), burn, path)) for geometry, properties in features)
        self._shapes = [(transform_geom(crs, like.geometry.crs, g), value) for g, value in burnt if value is not None]
        self.shape, self.geometry = like.shape, like.geometry

    def read_raw(self, window: Window) -> NDArray[Any]:
        from affine import Affine
        from rasterio.features import rasterize

        assert self.geometry.affine is not None
        rows, columns = window
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        if not self._shapes or 0 in shape:
            return np.zeros(shape, np.int32)
        grid = Affine(*self.geometry.affine[0], *self.geometry.affine[1]) * Affine.translation(
            columns.start, rows.start
        )
        return rasterize(self._shapes, out_shape=shape, transform=grid, fill=0, dtype="int32")


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
        return _Vectors(path, like, burn)
    if suffix in (".tif", ".tiff"):
        return _Raster(path)
    if suffix == ".mat":
        return _Matlab(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return open_volume(path)
    return _Picture(path, labels)


def volume_mask(path: Path, spacing_mm: Sequence[float] | None) -> RawMask:
    """A NIfTI mask, resampled by the nearest voxel."""
    return _Volume(path, spacing_mm, order=0)


def _burn_value(properties: dict[str, Any], burn: Burn, path: Path) -> int | None:
    """The id that a polygon burns, or None for none."""
    if isinstance(burn, int):
        return burn
    attribute = burn if isinstance(burn, str) else next(iter(burn))
    if attribute not in properties:
        raise ValueError(
            f"{path} has no attribute {attribute!r}; it has {sorted(properties)}; set data.burn to one of them or to an id"
        )
    value = properties[attribute]
    if not isinstance(burn, str):
        return {str(k): v for k, v in burn[attribute].items()}.get(str(value))
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{path}: attribute {attribute!r} is {value!r}; expected whole numbers, or data.burn={{{attribute}: {{{value}: 1}}}}"
        ) from None


def _whole_numbers(values: NDArray[Any], path: Path) -> NDArray[Any]:
    if values.dtype.kind in "iub":
        return values
    rounded = np.round(np.nan_to_num(values, nan=-1.0)).astype(np.int64)
    if not np.allclose(rounded, np.nan_to_num(values, nan=-1.0), atol=1e-3):
        raise ValueError(
            f"{path} holds fractions such as {values[~np.isclose(values, np.round(values))][0]:g}; expected class ids"
        )
    return rounded


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
