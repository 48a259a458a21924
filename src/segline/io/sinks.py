"""Masks and measures written in the format, grid and coordinate system of their images; whole under their names, or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nibabel as nib
import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from segline.commit import committed, writing
from segline.io.raster import ENVIRONMENT, RasterSource, blocks, check_written, raster_window
from segline.io.source import Source, Window
from segline.io.volume import VolumeSource, load, native_slabs
from segline.labels import IGNORE_INDEX, Labels
from segline.machine import let_go

#: Edge of the blocks that a TIFF is written in.
_BLOCK = 256
#: Bytes that are written or read before their pages are let go.
_HELD = 2**24


@dataclass(frozen=True)
class Layer:
    """What is written of an image: planes of ids, or of real numbers.

    Args:
        names: Of the classes, or of the planes of real numbers.
        labels: Of masks; None for real numbers, of which nan is no data.
    """

    names: tuple[str, ...]
    labels: Labels | None = None

    @classmethod
    def mask(cls, labels: Labels) -> Layer:
        """The layer of a decision."""
        return cls(labels.names, labels)

    @property
    def num_planes(self) -> int:
        """How many arrays `[*S]` there are."""
        return len(self.names) if self.labels is None else self.labels.num_planes

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """Type of the values."""
        return np.float32 if self.labels is None else np.uint8

    @property
    def nodata(self) -> float:
        """Value of pixels without data."""
        return np.nan if self.labels is None else IGNORE_INDEX


#: Writes planes `[P, *S]`, mapped from a file and maybe larger than the memory, to a file.
_Save = Callable[[np.memmap[Any, Any], Path], None]


class Sink:
    """Takes a layer window by window, on disk, and turns it into a file on a clean exit; the last one to write a pixel wins.

    What was written lies in a hidden file beside the target until then. With `keep` it stays there on an error or a kill, and the next
    sink of the same target and layer goes on with it; else an error leaves nothing.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(self, path: Path, shape: Sequence[int], layer: Layer, save: _Save, keep: bool = False) -> None:
        self.path, self.layer, self._save, self._keep = path, layer, save, keep
        self._held = 0
        self._shape = (layer.num_planes, *shape)
        self._scratch = _scratch_of(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = int(np.prod(self._shape)) * np.dtype(layer.dtype).itemsize
        #: Whether what an earlier sink wrote is there.
        self.goes_on = keep and self._scratch.exists() and self._scratch.stat().st_size == size
        if not self.goes_on:
            with writing(path):
                _reserve(self._scratch, size)

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Take the values of a window: `[*window]` or `[P, *window]`."""
        self._planes[(slice(None), *window)] = values
        self._held += values.nbytes
        if self._held > _HELD:
            let_go(self._planes)
            self._held = 0

    def flush(self) -> None:
        """Let what was written outlive a power failure, too."""
        self._planes.flush()
        let_go(self._planes)
        self._held = 0

    def read(self, window: Window) -> NDArray[Any]:
        """What was written, as labels code a mask: `[*window]`, or `[P, *window]` for overlapping classes and real numbers."""
        planes = _taken(self._planes, window)
        return planes[0] if self.layer.labels is not None and self.layer.labels.exclusive else planes

    @cached_property
    def _planes(self) -> np.memmap[Any, Any]:
        # One map for all windows: to map and unmap the file for each takes eight times as long as to write to it.
        return np.memmap(self._scratch, self.layer.dtype, "r+", shape=self._shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with writing(self.path), committed(self.path) as temporary:
                    self._save(self._planes, temporary)
        except BaseException:
            if not self._keep:
                discard(self.path)
            raise
        finally:
            # As long as it is mapped, even a file that is removed takes its place on the disk.
            self.__dict__.pop("_planes", None)
        if kind is None or not self._keep:
            discard(self.path)


def _taken(planes: np.memmap[Any, Any], window: Window) -> NDArray[Any]:
    """A window of planes mapped from a file, in memory, and little more of them than that."""
    taken = np.empty((len(planes), *(w.stop - w.start for w in window)), planes.dtype)
    # The system maps 64 KiB around what is touched: of a wide raster's rows that may be much more than the window.
    row = min(planes[0, 0].nbytes, taken[0, 0].nbytes + 2**16)
    rows = max(_HELD // (len(planes) * row), 1)
    for start in range(0, taken.shape[1], rows):
        piece = taken[:, start : start + rows]
        first = window[0].start + start
        piece[:] = planes[(slice(None), slice(first, first + piece.shape[1]), *window[1:])]
        let_go(planes)
    return taken


def _scratch_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def discard(path: Path) -> None:
    """Let go of what a sink of this path has kept."""
    _scratch_of(path).unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether the file is there, and no sink has anything more to write to it."""
    return path.exists() and not _scratch_of(path).exists()


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros, all of its place on the disk taken: a full disk is said now, not after hours."""
    with path.open("wb") as file:
        try:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # elsewhere a file of holes
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            path.unlink()
            raise


def save_raster(planes: np.memmap[Any, Any], path: Path, like: RasterSource, layer: Layer) -> None:
    """Tiled, compressed TIFF with the CRS, transform, colours and class names; a band a plane."""
    transform = None if like.geometry.affine is None else like.dataset.transform
    _save_tiff(planes, path, layer, like.dataset.crs, transform)


def save_plain_tiff(planes: np.memmap[Any, Any], path: Path, layer: Layer) -> None:
    """Tiled, compressed TIFF that lies nowhere: of a photograph's measures, for which PNG has no type."""
    _save_tiff(planes, path, layer, None, None)


def _save_tiff(planes: np.memmap[Any, Any], path: Path, layer: Layer, crs: Any, transform: Any) -> None:
    count, height, width = planes.shape
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": count,
        "dtype": np.dtype(layer.dtype).name,
        "nodata": layer.nodata,
        "compress": "deflate",
        "zlevel": 2,  # a tenth of the time of 6, GDAL's own choice, on noise, for 7 % more bytes; of smooth masks half, for 60 %
        "predictor": 1 if layer.labels else 3,  # of real numbers the bytes alone would hardly shrink
        "BIGTIFF": "IF_SAFER",
        "NUM_THREADS": "ALL_CPUS",
    }
    if transform is not None:
        profile |= {"transform": transform}
    if height >= _BLOCK and width >= _BLOCK:
        profile |= {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK}
    with rasterio.Env(**ENVIRONMENT), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", crs=crs, **profile) as file:
            if layer.labels and count == 1:
                palette = enumerate(layer.labels.id_palette)
                file.write_colormap(1, {k: tuple(map(int, color)) for k, color in palette})
            file.update_tags(CLASSES=",".join(layer.names))
            for band, name in enumerate(layer.names if count == len(layer.names) else (), 1):
                file.set_band_description(band, name)
            for window in blocks(height, width):
                file.write(_taken(planes, window), window=raster_window(window))
        check_written(path, partial(_taken, planes))


def save_volume(planes: np.memmap[Any, Any], path: Path, like: VolumeSource, layer: Layer) -> None:
    """NIfTI on the input's own grid, axes and affine; several planes lie along a fourth axis."""
    image, dtype = load(like.path), np.dtype(layer.dtype)
    header = image.header.copy()
    header.set_data_dtype(dtype)
    header["cal_min"] = header["cal_max"] = 0  # the image's range of display would show the mask black
    shape = image.shape if len(planes) == 1 else (*image.shape, len(planes))
    # Of an array without a memory nibabel makes the header that it would write; the voxels follow as a stream.
    whole = type(image)(np.broadcast_to(np.zeros((), dtype), shape), image.affine, header)
    whole.update_header()
    whole.header.set_slope_inter(1, 0)
    stored = whole.header.get_data_dtype()  # in the byte order of the image's file
    with nib.openers.Opener(str(path), "wb") as file:
        whole.header.write_to(file)
        file.write(bytes(whole.header.get_data_offset() - file.tell()))
        for plane in planes:
            for slab in native_slabs(plane, like, 0 if layer.labels else 1):
                file.write(slab.astype(stored, copy=False).tobytes(order="F"))
                let_go(plane)


def save_picture(planes: np.memmap[Any, Any], path: Path, target: Path, labels: Labels) -> None:
    """PNG with a palette; of several overlapping classes each is a file of its own, too: `<target>_<class>.png`."""
    if len(planes) > 1:
        for k, name in enumerate(labels.names):
            with committed(class_path(target, name)) as temporary:
                _save_palette(planes[k], labels.id_palette[[0, k + 1]], temporary)
    # The plain name shows all classes at once: the last one wins where they overlap.
    _save_palette(planes[0] if len(planes) == 1 else labels.as_ids(planes), labels.id_palette, path)


def class_path(target: Path, name: str) -> Path:
    """Where the picture of one of several overlapping classes lies."""
    return target.with_stem(f"{target.stem}_{name.replace('/', '-')}")


def _save_palette(mask: NDArray[np.uint8], palette: NDArray[Any], path: Path) -> None:
    image = Image.fromarray(np.asarray(mask))
    # Of a palette of few colours Pillow keeps few bits, in which 255, ignored pixels, would become a class. They are black.
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    image.putpalette(colors.tobytes())
    image.save(path, format="PNG")


def open_sink(path: Path, like: Source, layer: Layer, keep: bool = False) -> Sink:
    """Where a layer of an image goes: the format of the image's own file, of photographs PNG for masks and TIFF for measures."""
    like = getattr(like, "sources", [like])[0]  # stacked bands lie as the first of them
    save: _Save
    if isinstance(like, RasterSource):
        save = partial(save_raster, like=like, layer=layer)
    elif isinstance(like, VolumeSource):
        save = partial(save_volume, like=like, layer=layer)
    elif layer.labels is not None:
        path = path.with_suffix(".png")
        save = partial(save_picture, target=path, labels=layer.labels)
    else:
        path = path.with_suffix(".tif")
        save = partial(save_plain_tiff, layer=layer)
    return Sink(path, like.shape, layer, save, keep)
