"""TIFF and GeoTIFF, read window by window, with coordinate system and no-data."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.windows import Window as RasterWindow

from segline.io.source import Geometry, Window

SUFFIXES = (".tif", ".tiff")
#: Of GDAL, which would else keep blocks of 5 % of the machine's memory and look for sidecar files. rasterio hands the cache's size
#: over in bytes, where GDAL itself reads small numbers as megabytes. Without a cache each window would decode all blocks that it
#: touches, of strips whole rows; this one holds 256 rows of 32,000 pixels of 4 bands of uint16.
ENVIRONMENT = {"GDAL_CACHEMAX": 2**26, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
#: Edge of the windows in which a file is written and compared: whole blocks of 256 and 512, a few megabytes.
_EDGE = 2048


class RasterFile:
    """An open raster of one driver; survives being sent to another process, where it is opened anew.

    Raises:
        ValueError: Not a whole TIFF file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, Any] | None = None
        with_geometry = self.dataset
        affine, crs = with_geometry.transform, with_geometry.crs
        self.shape: tuple[int, ...] = (with_geometry.height, with_geometry.width)
        self.num_bands: int = with_geometry.count
        if with_geometry.subdatasets:
            raise ValueError(
                f"{path} holds {len(with_geometry.subdatasets)} pages; expected one picture: split it into one file a page"
            )
        if "complex" in with_geometry.dtypes[0]:
            raise ValueError(
                f"{path} holds {with_geometry.dtypes[0]} values; expected real numbers: write the amplitude"
            )
        self.dtype = np.dtype(with_geometry.dtypes[0])
        self.nodata: float | None = with_geometry.nodata
        located = not affine.is_identity
        self.geometry = Geometry(
            affine=tuple(tuple(float(v) for v in affine[row : row + 3]) for row in (0, 3, 6)) if located else None,
            crs=crs.to_wkt() if crs else None,
            spacing=(float(np.hypot(affine.b, affine.e)), float(np.hypot(affine.a, affine.d))) if located else None,
        )

    @property
    def dataset(self) -> Any:
        """rasterio's own object, in this process."""
        if self._open is None or self._open[0] != os.getpid():
            import warnings

            try:
                with rasterio.Env(**ENVIRONMENT), warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotGeoreferencedWarning)
                    # The driver is named: GDAL would follow a VRT in disguise to any file or address.
                    self._open = os.getpid(), rasterio.open(self.path, driver="GTiff")
            except RasterioIOError as error:
                raise ValueError(f"{self.path} is not a whole TIFF file ({error}); export or copy it again") from error
        return self._open[1]

    def read_raw(self, window: Window, bands: list[int] | None = None) -> NDArray[Any]:
        """Values as they are stored, `[C, *window]`."""
        rows, place = window[0], raster_window(window)
        if place.width <= 0 or place.height <= 0:
            return np.zeros(
                (len(bands or range(self.num_bands)), max(place.height, 0), max(place.width, 0)), self.dtype
            )
        try:
            with rasterio.Env(**ENVIRONMENT):
                values: NDArray[Any] = self.dataset.read(bands, window=place)
                return values
        except RasterioError as error:
            reason = error.__cause__ or error  # rasterio's own words only point to it
            raise ValueError(
                f"{self.path} cannot be read at rows {rows.start} to {rows.stop} ({reason}); "
                "it is truncated or damaged: export or copy it again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


class RasterSource(RasterFile):
    """An image in a TIFF or GeoTIFF."""

    def read(self, window: Window) -> NDArray[np.float32]:
        """The pixels of a window, `[C, *window]`; NaN where a band has its no-data value, NaN or infinity."""
        raw = self.read_raw(window)
        with np.errstate(over="ignore"):  # such as the no-data value -1.8e308 of 64-bit rasters
            values = raw.astype(np.float32)
        if self.nodata is not None and not np.isnan(self.nodata):
            values[raw == self.nodata] = np.nan
        if raw.dtype.kind == "f":
            values[~np.isfinite(values)] = np.nan
        return values


def raster_window(window: Window) -> RasterWindow:
    """A window in rasterio's words."""
    rows, columns = window
    return RasterWindow(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


def blocks(height: int, width: int) -> list[Window]:
    """Windows of whole blocks that cover a raster."""
    corners = product(range(0, height, _EDGE), range(0, width, _EDGE))
    return [
        (slice(row, min(row + _EDGE, height)), slice(column, min(column + _EDGE, width))) for row, column in corners
    ]


def check_written(path: Path, expected: Callable[[Window], NDArray[Any]]) -> None:
    """Read a TIFF back once it is closed: GDAL writes the last blocks then, and rasterio does not hear whether it could.

    Args:
        path: Of the TIFF.
        expected: What a window of it was to be, `[C, *window]`.

    Raises:
        OSError: It is not what was to be written.
    """
    with rasterio.open(path, driver="GTiff") as file:
        for window in blocks(file.height, file.width):
            written = file.read(window=raster_window(window))
            if not np.array_equal(written, expected(window), equal_nan=written.dtype.kind == "f"):
                raise OSError(f"rows {window[0].start} to {window[0].stop} are not on the disk")
