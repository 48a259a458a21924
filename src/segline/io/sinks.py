"""Masks written in the format, grid and coordinate system of the files they are of; whole under their names, or not at all."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import nibabel as nib
import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window as RasterWindow

from segline.commit import committed, temporary_path
from segline.io.raster import ENVIRONMENT, RasterSource
from segline.io.source import Source, Window
from segline.io.volume import VolumeSource, to_native
from segline.labels import IGNORE_INDEX, Labels


class Sink(Protocol):
    """Takes a mask window by window; a context that leaves the file on a clean exit and nothing on an error."""

    def write(self, window: Window, mask: NDArray[np.uint8]) -> None:
        """Take the mask of a window: `[*window]`, or `[K, *window]` for overlapping labels."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Committed:
    """A file that is written beside its name and renamed at the end."""

    def __init__(self, path: Path) -> None:
        self.path, self._commit = path, committed(path)
        self.temporary = self._commit.__enter__()
        self.temporary.touch()  # now, not after hours: whether the folder can be written to

    def finish(self) -> None:
        """Complete the temporary file."""

    def abandon(self) -> None:
        """Let go of the temporary file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
            else:
                self.abandon()
        except BaseException:
            self._commit.__exit__(*sys.exc_info())
            raise
        self._commit.__exit__(kind, error, trace)


class RasterSink(_Committed):
    """Tiled, compressed TIFF, with the CRS, transform, colours and class names; one band, or one for each overlapping class."""

    def __init__(self, path: Path, like: RasterSource, labels: Labels) -> None:
        super().__init__(path)
        (height, width), source = like.shape, like.dataset
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "height": height,
            "width": width,
            "count": labels.num_planes,
            "dtype": "uint8",
            "compress": "deflate",
            "BIGTIFF": "IF_SAFER",
        }
        if like.geometry.affine is not None:
            profile |= {"transform": source.transform}
        if height >= 256 and width >= 256:
            profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
        with rasterio.Env(**ENVIRONMENT), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._file = rasterio.open(self.temporary, "w", crs=source.crs, nodata=IGNORE_INDEX, **profile)
            if labels.num_planes == 1:
                self._file.write_colormap(1, {k: tuple(map(int, color)) for k, color in enumerate(labels.id_palette)})
            self._file.update_tags(CLASSES=",".join(labels.names))

    def write(self, window: Window, mask: NDArray[np.uint8]) -> None:
        """Take the mask of a window."""
        rows, columns = window
        place = RasterWindow(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        self._file.write(mask if mask.ndim == 3 else mask[None], window=place)

    def finish(self) -> None:
        """Complete the file."""
        self._file.close()

    abandon = finish


class VolumeSink(_Committed):
    """NIfTI of uint8 on the input's own grid, axes and affine; a fourth axis holds overlapping classes, if there are several."""

    def __init__(self, path: Path, like: VolumeSource, labels: Labels) -> None:
        super().__init__(path)
        self._like, self._shape = like, (labels.num_planes, *like.shape)
        self._scratch = temporary_path(path.with_suffix(".scratch"))
        np.memmap(self._scratch, np.uint8, "w+", shape=self._shape)

    def write(self, window: Window, mask: NDArray[np.uint8]) -> None:
        """Take the mask of a window."""
        # Mapped for this window alone: pages of a lasting map would count as this process's memory.
        np.memmap(self._scratch, np.uint8, "r+", shape=self._shape)[(slice(None), *window)] = mask

    def abandon(self) -> None:
        """Let go of the scratch file."""
        self._scratch.unlink(missing_ok=True)

    def finish(self) -> None:
        """Bring the mask back to the file's grid and write it."""
        try:
            self._finish()
        finally:
            self.abandon()

    def _finish(self) -> None:
        native = [to_native(mask, self._like) for mask in np.memmap(self._scratch, np.uint8, "r", shape=self._shape)]
        image = native[0][1]
        header = image.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # the image's range of display would show the mask black
        values = native[0][0] if len(native) == 1 else np.stack([mask for mask, _ in native], -1)
        nib.save(type(image)(values.astype(np.uint8, copy=False), image.affine, header), self.temporary)


class PictureSink(_Committed):
    """PNG with a palette; overlapping classes are one file each, `<name>_<class>.png`, if there are several."""

    def __init__(self, path: Path, like: Source, labels: Labels) -> None:
        super().__init__(path.with_suffix(".png"))
        self._labels = labels
        self._mask = np.zeros((labels.num_planes, *like.shape), np.uint8)

    def write(self, window: Window, mask: NDArray[np.uint8]) -> None:
        """Take the mask of a window."""
        self._mask[(slice(None), *window)] = mask

    def finish(self) -> None:
        """Write the picture, or one picture a class."""
        labels = self._labels
        if labels.num_planes == 1:
            _save_palette(self._mask[0], labels.id_palette, self.temporary)
            return
        for k, name in enumerate(labels.names):
            with committed(self.path.with_stem(f"{self.path.stem}_{name.replace('/', '-')}")) as temporary:
                _save_palette(self._mask[k], labels.id_palette[[0, k + 1]], temporary)
        # The plain name shows all classes at once: the last one wins where they overlap.
        _save_palette(labels.as_ids(self._mask), labels.id_palette, self.temporary)


def _save_palette(mask: NDArray[np.uint8], palette: NDArray[Any], path: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path, format="PNG")
