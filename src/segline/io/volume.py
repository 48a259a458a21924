"""NIfTI volumes: canonical orientation, stored (D, H, W), resampled, read by windows from a memory map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from segline.io.cache import cached
from segline.io.source import Geometry, Window

SUFFIXES = (".nii", ".nii.gz")
#: Largest volume that a compressed file may claim to hold; its header is believed before its bytes are seen.
_LARGEST_BYTES = 64 * 2**30


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
        spacing = tuple(float(v) for v in canonical.header.get_zooms()[::-1])
        shape = tuple(int(v) for v in canonical.shape[::-1])
        self.native_shape, self.native_spacing = shape, spacing
        if spacing_mm is not None:
            shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, spacing_mm, strict=True))
            spacing = tuple(float(v) for v in spacing_mm)
        self.shape, self.num_bands = shape, 1
        self.dtype = image.get_data_dtype()
        self.geometry = Geometry(affine=tuple(tuple(float(v) for v in row) for row in image.affine), spacing=spacing)
        self._array: NDArray[Any] | None = None

    @property
    def array(self) -> NDArray[Any]:
        """The volume `(D, H, W)`, mapped into memory from a copy that is made once."""
        if self._array is None:
            settings = ("volume", tuple(self.spacing_mm) if self.spacing_mm else None, self.order, 1)
            self._array = np.load(cached("volumes", [self.path], settings, ".npy", self._unpack), mmap_mode="r")
        return self._array

    def _unpack(self, path: Path) -> None:
        try:
            values = np.asanyarray(nib.as_closest_canonical(load(self.path)).dataobj).transpose(2, 1, 0)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{self.path} is truncated or damaged ({error}); export or copy it again") from error
        np.save(path, resample(values, self.shape, self.order))

    def read_raw(self, window: Window) -> NDArray[Any]:
        """Values of a window, `[*window]`."""
        return np.asarray(self.array[window])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


class VolumeSource(VolumeFile):
    """An image in a NIfTI file."""

    def read(self, window: Window) -> NDArray[np.float32]:
        """The voxels of a window, `[1, *window]`; NaN where the file has NaN or infinity."""
        values = self.read_raw(window)[None].astype(np.float32)
        values[~np.isfinite(values)] = np.nan
        return values


def load(path: Path) -> Any:
    """nibabel's image, checked before anything of its size is allocated."""
    try:
        image: Any = nib.load(path)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a whole NIfTI file ({error}); export or copy it again") from error
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(
            f"{path} has shape {image.shape}; expected a volume of three dimensions: split series into one file a volume"
        )
    expected = int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if (path.suffix == ".gz" and expected > _LARGEST_BYTES) or (
        path.suffix != ".gz" and expected > path.stat().st_size
    ):
        raise ValueError(
            f"{path} claims {expected / 1e9:.1f} GB of voxels and has {path.stat().st_size / 1e9:.3f} GB; it is truncated or damaged"
        )
    return image


def resample(values: NDArray[Any], shape: Sequence[int], order: int) -> NDArray[Any]:
    """Resample `(D, H, W)` so that the first and last voxels' outer borders stay where they are (pixels are areas, not points)."""
    if tuple(shape) == values.shape:
        return np.ascontiguousarray(values)
    scale = [n / m for n, m in zip(values.shape, shape, strict=True)]
    coordinates = np.meshgrid(
        *[(np.arange(m) + 0.5) * s - 0.5 for m, s in zip(shape, scale, strict=True)], indexing="ij", sparse=False
    )
    source = values.astype(np.float32) if order else values
    return ndimage.map_coordinates(source, np.stack(coordinates), order=order, mode="nearest")


def to_native(mask: NDArray[Any], like: VolumeFile) -> tuple[NDArray[Any], Any]:
    """Bring a mask `(D, H, W)` on `like`'s grid back to its file's own grid and axes; with the file's image object."""
    image = load(like.path)
    native = resample(mask, like.native_shape, 0).transpose(2, 1, 0)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), io_orientation(image.affine))
    return nib.orientations.apply_orientation(native, back), image
