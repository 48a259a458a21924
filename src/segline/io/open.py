"""Open images and masks by what their files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segline.io.content import check_content
from segline.io.image import FORMATS, ImageSource
from segline.io.masks import EncodedMask, ObjectsMask, raw_mask, volume_mask
from segline.io.raster import SUFFIXES as RASTER_SUFFIXES
from segline.io.raster import RasterSource
from segline.io.source import Geometry, MaskSource, Source, Window, say_size
from segline.io.vectors import Burn
from segline.io.volume import SUFFIXES as VOLUME_SUFFIXES
from segline.io.volume import VolumeSource
from segline.labels import Labels
from segline.words import count_of

#: Endings of files that an image can be read from.
IMAGE_SUFFIXES = (*FORMATS, *RASTER_SUFFIXES, *VOLUME_SUFFIXES)


class BandsSource:
    """Bands of one or several sources on the same grid, as one source.

    Args:
        sources: One file, or one file a band (or group of bands).
        bands: Which of all their bands to keep, counted from 1; None for all.

    Raises:
        ValueError: A band that is not there, or files on different grids.
    """

    def __init__(self, sources: Sequence[Source], bands: Sequence[int] | None) -> None:
        first = sources[0]
        total = sum(source.num_bands for source in sources)
        for source in sources[1:]:
            if faults := compare(first, source):
                raise ValueError(faults[0])
        if bands is not None and (missing := [band for band in bands if not 1 <= band <= total]):
            raise ValueError(
                f"{first.path} has {count_of(total, 'band')}, so there is no band {missing[0]}; set data.bands to some of 1 to "
                f"{total}, or take files with all the bands that the network was trained on"
            )
        self.sources, self.bands = sources, None if bands is None else [band - 1 for band in bands]
        self.path, self.shape, self.geometry = first.path, first.shape, first.geometry
        self.num_bands = total if bands is None else len(bands)

    def read(self, window: Window) -> NDArray[np.float32]:
        """The kept bands of a window, `[C, *window]`."""
        values = np.concatenate([source.read(window) for source in self.sources])
        return values if self.bands is None else values[self.bands]


def open_image(
    paths: Sequence[Path], *, bands: Sequence[int] | None = None, spacing_mm: Sequence[float] | None = None
) -> Source:
    """The image in a file, or in one file a band.

    Raises:
        ValueError: A file that is missing, of no known format, damaged, or lacks a band.
    """
    sources = [_open_one(path, spacing_mm) for path in paths]
    return sources[0] if len(sources) == 1 and bands is None else BandsSource(sources, bands)


def _open_one(path: Path, spacing_mm: Sequence[float] | None) -> Source:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    name = path.name.lower()
    if name.endswith(IMAGE_SUFFIXES):
        check_content(path)
    if name.endswith(tuple(FORMATS)):
        return ImageSource(path)
    if name.endswith(RASTER_SUFFIXES):
        return RasterSource(path)
    if name.endswith(VOLUME_SUFFIXES):
        return VolumeSource(path, spacing_mm)
    raise ValueError(f"{path} is of no format that images are read from; expected one of {', '.join(IMAGE_SUFFIXES)}")


def open_mask(
    paths: Sequence[Path],
    labels: Labels,
    *,
    like: Source,
    burn: Burn = 1,
    spacing_mm: Sequence[float] | None = None,
    objects: bool = False,
) -> MaskSource:
    """The mask of an image: a file, or one file an object.

    Args:
        paths: One file, or with `objects` any number.
        labels: Which raw values make up which class.
        like: The image, onto whose grid vectors are burnt.
        burn: What polygons burn: an id for all, the attribute that holds it, or {attribute: {value: id}}.
        spacing_mm: As for the image.
        objects: Each file is one object; their union is raw value 1.
    """
    for path in paths:
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
    raw = raw_mask(paths, labels, like, burn, lambda path: volume_mask(path, spacing_mm), objects)
    return (ObjectsMask if objects else EncodedMask)(paths[0], raw, labels)


def compare(image: Source | MaskSource, mask: Source | MaskSource) -> list[str]:
    """What keeps a mask, or another band, from lying on its image: size, coordinate system, place."""
    # Blocks are compared as what they are cut from: of those the size and the place are known.
    image, mask = getattr(image, "whole", image), getattr(mask, "whole", mask)
    if image.shape != mask.shape:
        return [
            f"{mask.path} is {say_size(mask.shape)}, but {image.path} is {say_size(image.shape)}; both must have one size"
        ]
    ours, theirs = image.geometry, mask.geometry
    faults = []
    if ours.crs and theirs.crs and not _same_crs(ours.crs, theirs.crs):
        faults.append(f"{mask.path} has another coordinate system than {image.path}; reproject it onto that grid")
    elif ours.affine and theirs.affine and _shift(ours, theirs, image.shape) > 1e-2:
        faults.append(
            f"{mask.path} lies elsewhere than {image.path}: its affine moves pixels by up to "
            f"{_shift(ours, theirs, image.shape):.3g} of one; resample it onto that grid, or copy that file's header if the pixels fit"
        )
    return faults


def _same_crs(one: str, other: str) -> bool:
    from rasterio.crs import CRS

    return bool(CRS.from_wkt(one) == CRS.from_wkt(other))


def _shift(one: Geometry, other: Geometry, shape: tuple[int, ...]) -> float:
    """By how many pixels the corners of a grid lie apart under two affines."""
    a, b = np.array(one.affine), np.array(other.affine)
    sizes = shape[::-1]  # affines take (column, row) or (x, y, z)
    corners = np.array(np.meshgrid(*[(0, size) for size in sizes])).reshape(len(sizes), -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.linalg.inv(a) @ (b @ corners) - corners
    return float(np.abs(apart).max())
