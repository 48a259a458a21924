"""NIfTI volumes: canonical orientation, stored (D, H, W), resampled, read by windows from a memory map."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from segline.commit import temporary_path
from segline.io.cache import cached
from segline.io.source import Geometry, Window

SUFFIXES = (".nii", ".nii.gz")
#: Voxels of a slab that is unpacked at once.
_SLAB = 2**22
#: How many times its own size a compressed file may claim to hold: no gzip file can hold more.
_LARGEST_RATIO = 1032


class VolumeFile:
    """A volume as an array `(D, H, W)`: superior, anterior, right ascending, whatever the file's own orientation.

    Args:
        path: NIfTI file of three dimensions.
        spacing_mm: Spacing to resample to, `(D, H, W)`; None keeps the file's own.
        order: Order of the interpolation: 1 for images, 0 for masks.

    Raises:
        ValueError: Not a whole NIfTI file of three dimensions.
    """

    def __init__(self, path: Path, spacing_mm: Sequence[float] | None = None, order: int = 1) -> None:
        self.path, self.spacing_mm, self.order = path, spacing_mm, order
        image = load(path)
        # By hand: nibabel's canonical image would unpack every voxel.
        turns = io_orientation(image.affine)
        canonical = image.affine @ nib.orientations.inv_ornt_aff(turns, image.shape)
        # Of the affine, not of the header's pixdim, which some writers leave at 1.
        spacing = tuple(float(v) for v in nib.affines.voxel_sizes(canonical)[::-1])
        shape = tuple(int(image.shape[axis]) for axis in np.argsort(turns[:, 0])[::-1])
        self.native_shape = shape
        if spacing_mm is not None:
            shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, spacing_mm, strict=True))
            spacing = tuple(float(v) for v in spacing_mm)
        self.shape, self.num_bands = shape, 1
        affine = canonical @ _onto(shape[::-1], self.native_shape[::-1])
        self.geometry = Geometry(affine=tuple(tuple(float(v) for v in row) for row in affine), spacing=spacing)
        self._copy: Path | None = None

    def read_raw(self, window: Window) -> NDArray[Any]:
        """Values of a window, `[*window]`, from a copy that is made once."""
        if self._copy is None:
            settings = ("volume", tuple(self.spacing_mm) if self.spacing_mm else None, self.order, 2)
            self._copy = cached("volumes", [self.path], settings, ".npy", self._unpack)
        # Mapped for this window alone: pages of a lasting map would count as this process's memory, up to the whole volume.
        return np.array(np.load(self._copy, mmap_mode="r")[window])

    def _unpack(self, path: Path) -> None:
        try:
            if self.shape == self.native_shape:
                self._stream(path)
            else:
                self._stream_resampled(path)
        except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
            raise ValueError(f"{self.path} is truncated or damaged ({error}); export or copy it again") from error

    def _stream(self, path: Path) -> None:
        """Write the volume slab by slab along the file's slowest axis."""
        image = load(self.path)
        turns = io_orientation(image.affine)
        axis, turned = _slowest(turns)
        depth, step = image.shape[2], max(1, _SLAB // math.prod(image.shape[:2]))
        mode: Literal["w+", "r+"] = "w+"
        stored = image.dataobj
        with nib.openers.ImageOpener(str(self.path)) as file:
            voxels = nib.arrayproxy.ArrayProxy(
                file, (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
            )
            for start in range(0, depth, step):
                stop = min(start + step, depth)
                slab = nib.orientations.apply_orientation(voxels[..., start:stop], turns).transpose(2, 1, 0)
                if self.order and slab.dtype == np.float64:  # of scaled intensities: images are read as float32
                    slab = slab.astype(np.float32)
                whole = open_memmap(path, mode, slab.dtype, self.native_shape)
                place = slice(depth - stop, depth - start) if turned else slice(start, stop)
                whole[(slice(None),) * axis + (place,)] = slab
                mode = "r+"
            while file.read(2**20):  # behind the last byte a compressed file's checksum is compared
                pass

    def _stream_resampled(self, path: Path) -> None:
        """Write the resampled volume slab by slab, from an unpacked one that is there meanwhile."""
        native = temporary_path(path)
        mode: Literal["w+", "r+"] = "w+"
        try:
            self._stream(native)
            for start, stop in _slabs(self.shape[0], self.shape, self.native_shape):
                window = (slice(start, stop), slice(None), slice(None))
                # Mapped for this slab alone, as in `read_raw`.
                part = resample(np.load(native, mmap_mode="r"), self.shape, self.order, window)
                open_memmap(path, mode, part.dtype, self.shape)[start:stop] = part
                mode = "r+"
        finally:
            native.unlink(missing_ok=True)


class VolumeSource(VolumeFile):
    """An image in a NIfTI file."""

    def read(self, window: Window) -> NDArray[np.float32]:
        """The voxels of a window, `[1, *window]`; NaN where the file has NaN or infinity."""
        with np.errstate(over="ignore"):
            values = self.read_raw(window)[None].astype(np.float32)
        values[~np.isfinite(values)] = np.nan
        return values


def load(path: Path) -> Any:
    """nibabel's image, checked before anything of its size is allocated."""
    try:
        image: Any = nib.load(path)
    except (nib.filebasedimages.ImageFileError, HeaderDataError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole NIfTI file ({error}); export or copy it again") from error
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(
            f"{path} has shape {image.shape}; expected a volume of three dimensions: split series into one file a volume"
        )
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"{path} holds {image.get_data_dtype()} voxels; expected whole or real numbers, one a voxel")
    if not _turns(image.affine):
        raise ValueError(f"{path} has an affine that places no voxels ({image.affine.tolist()}); mend its header")
    expected = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    size = path.stat().st_size
    if expected > size * (_LARGEST_RATIO if path.suffix.lower() == ".gz" else 1):
        raise ValueError(
            f"{path} claims {expected:,} bytes and has {size:,}; it is truncated or damaged: export or copy it again"
        )
    return image


def _turns(affine: NDArray[np.float64]) -> bool:
    """Whether each axis of the grid runs along one of the world's."""
    return bool(np.isfinite(affine).all()) and not np.isnan(io_orientation(affine)).any()


def _onto(shape: Sequence[int], native: Sequence[int]) -> NDArray[np.float64]:
    """The affine that takes indices of a resampled grid to those of the native one, as `resample` lays them."""
    scale = np.array(native) / np.array(shape)
    affine = np.diag([*scale, 1.0])
    affine[:3, 3] = 0.5 * scale - 0.5
    return affine


def _slabs(depth: int, *shapes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and stop of slabs along an axis of so many slices, none of which is large in any of the grids."""
    step = max(1, _SLAB // max(math.prod(shape) // min(shape) for shape in shapes))
    return ((start, min(start + step, depth)) for start in range(0, depth, step))


def resample(values: NDArray[Any], shape: Sequence[int], order: int, part: Window | None = None) -> NDArray[Any]:
    """Resample `(D, H, W)` so that the first and last voxels' outer borders stay where they are (pixels are areas, not points).

    As `scipy.ndimage.zoom(..., mode="nearest", grid_mode=True)`, axis by axis, so that a part needs no more than it lies between.

    Args:
        values: A volume; of a memory map no more is read than the part needs.
        shape: That it is resampled to.
        order: 1 for linear interpolation, 0 for the nearest voxel.
        part: Of the resampled volume; None for all of it.
    """
    places = [
        np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)[cut]
        for old, new, cut in zip(values.shape, shape, part or [slice(None)] * 3, strict=True)
    ]
    # First the axis that leaves the least: of a slab the one that it is thin along.
    for axis in sorted(range(3), key=lambda k: len(places[k]) / values.shape[k]):
        place = places[axis]
        if not order:
            values = values.take(np.floor(place + 0.5).astype(np.intp), axis)
            continue
        low, high = np.floor(place).astype(np.intp), np.ceil(place).astype(np.intp)
        share = (place - low).astype(np.float32).reshape(-1, *[1] * (2 - axis))
        with np.errstate(over="ignore", invalid="ignore"):  # of values that are infinite, or were before
            near = values.take(low, axis).astype(np.float32, copy=False)
            if share.any():
                far = values.take(high, axis).astype(np.float32, copy=False)
                far -= near
                far *= share
                near += far
        values = near
    return np.ascontiguousarray(values)


def native_slabs(values: NDArray[Any], like: VolumeFile, order: int) -> Iterator[NDArray[Any]]:
    """Bring values `(D, H, W)` on `like`'s grid back to its file's own grid and axes: slabs along the last one, in turn.

    `order` is that of the interpolation: 0 for masks.
    """
    image = load(like.path)
    turns = io_orientation(image.affine)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turns)
    axis, turned = _slowest(turns)
    depth = image.shape[2]
    for start, stop in _slabs(depth, like.shape, like.native_shape):
        part = [slice(None)] * 3
        part[axis] = slice(depth - stop, depth - start) if turned else slice(start, stop)
        slab = resample(values, like.native_shape, order, tuple(part)).transpose(2, 1, 0)
        yield nib.orientations.apply_orientation(slab, back)


def _slowest(turns: NDArray[Any]) -> tuple[int, bool]:
    """Where a file's slowest axis lies in `(D, H, W)`, and whether it runs the other way."""
    return 2 - int(turns[2, 0]), bool(turns[2, 1] < 0)
