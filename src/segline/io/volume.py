"""NIfTI volumes: canonical orientation, stored (D, H, W), resampled, read by windows from a memory map."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from scipy import ndimage

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
        canonical = nib.as_closest_canonical(image)
        # Of the affine, not of the header's pixdim, which some writers leave at 1.
        spacing = tuple(float(v) for v in nib.affines.voxel_sizes(canonical.affine)[::-1])
        shape = tuple(int(v) for v in canonical.shape[::-1])
        self.native_shape = shape
        if spacing_mm is not None:
            shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, spacing_mm, strict=True))
            spacing = tuple(float(v) for v in spacing_mm)
        self.shape, self.num_bands = shape, 1
        affine = canonical.affine @ _onto(shape[::-1], self.native_shape[::-1])
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
                values = np.asanyarray(nib.as_closest_canonical(load(self.path)).dataobj).transpose(2, 1, 0)
                np.save(path, resample(values, self.shape, self.order))
        except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
            raise ValueError(f"{self.path} is truncated or damaged ({error}); export or copy it again") from error

    def _stream(self, path: Path) -> None:
        """Write the volume slab by slab along the file's slowest axis."""
        image = load(self.path)
        turns = io_orientation(image.affine)
        axis, turned = (
            2 - int(turns[2, 0]),
            turns[2, 1] < 0,
        )  # where the file's slowest axis lies in (D, H, W), and which way
        depth, step = image.shape[2], max(1, _SLAB // math.prod(image.shape[:2]))
        mode: Literal["w+", "r+"] = "w+"
        for start in range(0, depth, step):
            stop = min(start + step, depth)
            slab = nib.orientations.apply_orientation(image.dataobj[..., start:stop], turns).transpose(2, 1, 0)
            if self.order and slab.dtype == np.float64:  # of scaled intensities: images are read as float32
                slab = slab.astype(np.float32)
            whole = open_memmap(path, mode, slab.dtype, self.shape)
            place = slice(depth - stop, depth - start) if turned else slice(start, stop)
            whole[(slice(None),) * axis + (place,)] = slab
            mode = "r+"


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
        image: Any = nib.load(
            path, keep_file_open=True
        )  # so that slabs of a compressed file are unpacked one after the other
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


def resample(values: NDArray[Any], shape: Sequence[int], order: int) -> NDArray[Any]:
    """Resample `(D, H, W)` so that the first and last voxels' outer borders stay where they are (pixels are areas, not points)."""
    if tuple(shape) == values.shape:
        return np.ascontiguousarray(values)
    scale = [m / n for n, m in zip(values.shape, shape, strict=True)]
    source = values.astype(np.float32) if order else values
    resampled: NDArray[Any] = ndimage.zoom(source, np.array(scale), order=order, mode="nearest", grid_mode=True)  # type: ignore[call-overload]
    return resampled


def to_native(values: NDArray[Any], like: VolumeFile, order: int) -> tuple[NDArray[Any], Any]:
    """Bring values `(D, H, W)` on `like`'s grid back to its file's own grid and axes; with the file's image object.

    `order` is that of the interpolation: 0 for masks.
    """
    image = load(like.path)
    native = resample(values, like.native_shape, order).transpose(2, 1, 0)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), io_orientation(image.affine))
    return nib.orientations.apply_orientation(native, back), image
