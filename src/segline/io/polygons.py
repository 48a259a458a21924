"""Finished masks as polygons of a GeoPackage or GeoJSON, for maps and other programs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes

from segline.commit import committed, temporary_path
from segline.io.area import row_areas
from segline.io.image import decode
from segline.io.normalize import strips
from segline.io.raster import ENVIRONMENT, RasterFile, raster_window
from segline.io.raster import SUFFIXES as RASTER_SUFFIXES
from segline.io.sinks import class_path
from segline.io.source import Geometry, Window, say_size
from segline.labels import IGNORE_INDEX, Labels
from segline.words import count_of

SUFFIXES = {".gpkg": "GPKG", ".geojson": "GeoJSON"}
#: Pixels between corners of polygons in degrees: what is straight there bends away from what is straight on the map.
_STRAIGHT = 32


def write_polygons(mask: Path, labels: Labels, path: Path) -> int:
    """Write the regions of a finished mask as polygons: pixels of one class that share edges are one, with its holes.

    The background, ignored pixels and pixels of no class are left out. Attributes: `class`, `class_id` (of `labels.id_names`; of
    overlapping classes the band), and `area_m2` as `row_areas` measures it, or `area_px` where the mask lies nowhere on Earth.

    GeoPackage keeps the mask's CRS. GeoJSON has WGS 84 longitude and latitude to 1e-7 of a degree, about a centimetre (RFC 7946).
    Where there is no CRS both have coordinates of the transform or, of photographs, (column, row) of pixel corners, from the
    upper left and downwards: programs for maps show them upside down, and such a GeoJSON is outside of RFC 7946.

    The mask is read strip by strip; the polygons of one band are held in memory by GDAL, 0.6 KB for a small one.

    Args:
        mask: GeoTIFF or palette PNG as a sink writes it; of several overlapping classes the PNG beside its `<name>_<class>.png`.
        labels: Of the mask.
        path: `.gpkg` or `.geojson`; appears whole or not at all.

    Returns:
        The number of polygons; a file without any is valid, too.

    Raises:
        ValueError: Another format, a mask that is damaged or not of these labels.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"polygons cannot be written to {path}; expected a name with one of {', '.join(SUFFIXES)}")
    import fiona

    planes, driver = _open(mask, labels), SUFFIXES[path.suffix.lower()]
    grid = _Grid(planes.shape, planes.geometry, degrees=driver == "GeoJSON")
    schema = {"geometry": "Polygon", "properties": {"class": "str", "class_id": "int32", **grid.measure}}
    # A layer takes no name from its file: GeoPackage refuses some that files have.
    options: dict[str, Any] = {"layer": "mask", "schema": schema, "crs_wkt": grid.crs}
    if grid.degrees:
        options["RFC7946"] = "YES"
    with rasterio.Env(**ENVIRONMENT), warnings.catch_warnings(), committed(path) as temporary:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with fiona.open(temporary, "w", driver=driver, **options) as layer:
            layer.writerecords(_features(planes, grid, labels, path))  # takes them one by one
    return grid.num_features


def _features(planes: _Planes, grid: _Grid, labels: Labels, path: Path) -> Iterator[dict[str, Any]]:
    if labels.exclusive:
        kept = [{k: k for k in labels.shown}]
        dropped = [k for k in range(labels.num_classes) if k not in labels.shown]
    else:
        kept, dropped = [{1: k + 1} for k in range(labels.num_classes)], [0]
    for k, ids in enumerate(kept):
        for rings, value in _regions(planes, k, list(ids), dropped, path):
            yield grid.feature(rings, {"class": labels.id_names[ids[value]], "class_id": ids[value]})


@dataclass(frozen=True)
class _Planes:
    """The arrays that a mask is made of: one of ids, or one of 0 and 1 for each overlapping class."""

    path: Path
    shape: tuple[int, ...]
    geometry: Geometry
    read: Callable[[int, Window], NDArray[Any]]


def _open(mask: Path, labels: Labels) -> _Planes:
    if mask.name.lower().endswith(RASTER_SUFFIXES):
        raster = RasterFile(mask)
        if (raster.num_bands, raster.dtype) != (labels.num_planes, np.uint8):
            raise ValueError(
                f"{mask} has {count_of(raster.num_bands, 'band')} of {raster.dtype}; a mask of {labels} has {labels.num_planes} of uint8"
            )
        return _Planes(mask, raster.shape, raster.geometry, lambda k, window: raster.read_raw(window, [k + 1])[0])
    if mask.suffix.lower() != ".png":
        raise ValueError(
            f"{mask} is of no format that polygons are made of; expected .png, {', '.join(RASTER_SUFFIXES)}"
        )
    files = [mask]
    if labels.num_planes > 1:  # under the plain name a pixel has only the uppermost of its classes
        files = [class_path(mask, name) for name in labels.names]
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"there is no file {missing[0]}")
    pictures = [decode(file, palette_as_ids=True) for file in files]
    height, width = pictures[0].shape[:2]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != (height, width, 1):
            raise ValueError(f"{file} is {say_size(picture.shape)}; expected {say_size((height, width, 1))}")
    return _Planes(mask, (height, width), Geometry(), lambda k, window: pictures[k][window][..., 0])


def _regions(
    planes: _Planes, k: int, kept: Sequence[int], dropped: Sequence[int], path: Path
) -> Iterator[tuple[list[NDArray[np.int64]], int]]:
    """Rings of each region of a plane, `[N, 2]` of (column, row), the outer one first; with the region's value."""
    # GDAL would hold what is left out, too, and the background may have more corners than all the rest. So it is given a copy that
    # has 0 there, beside the result. It has no transform, so that corners are whole numbers.
    scratch = temporary_path(path.with_suffix(".tif"))
    height, width = planes.shape
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": "uint8",
        "compress": "deflate",
        "zlevel": 1,
        "bigtiff": "if_safer",
    }
    try:
        with rasterio.open(scratch, "w", height=height, width=width, **profile) as file:
            for window in strips(planes.shape):
                file.write(_coded(planes, k, window, kept, dropped), 1, window=raster_window(window))
        with rasterio.open(scratch, driver="GTiff") as file:
            band = rasterio.band(file, 1)
            for geometry, code in shapes(band, mask=band):
                yield [np.array(ring, np.int64) for ring in geometry["coordinates"]], int(code) - 1
    finally:
        scratch.unlink(missing_ok=True)


def _coded(planes: _Planes, k: int, window: Window, kept: Sequence[int], dropped: Sequence[int]) -> NDArray[np.uint8]:
    """A window of a plane: values that are kept, plus one; 0 elsewhere."""
    plane = planes.read(k, window)
    if unknown := sorted(set(np.flatnonzero(np.bincount(plane.ravel())).tolist()) - {*kept, *dropped, IGNORE_INDEX}):
        raise ValueError(
            f"{planes.path} has the value {unknown[0]}, which is none of {sorted([*kept, *dropped])}; it is no mask of these labels"
        )
    table = np.zeros(256, np.uint8)
    table[kept] = np.array(kept) + 1
    return table[plane]


class _Grid:
    """From pixels to coordinates and areas.

    Args:
        shape: Rows and columns.
        geometry: Of the mask.
        degrees: Whether coordinates become longitude and latitude, if they can.
    """

    def __init__(self, shape: Sequence[int], geometry: Geometry, degrees: bool) -> None:
        areas = row_areas(geometry, shape)
        self.measure = {"area_px": "int64"} if areas is None else {"area_m2": "float"}
        self.degrees = degrees and areas is not None
        self.crs = geometry.crs if geometry.affine is not None and self.degrees == degrees else None
        self.num_features = 0
        self._affine = np.array(np.eye(3) if geometry.affine is None else geometry.affine)[:2]
        # Pixels or square metres above each edge of a row, in a column of pixels.
        self._above = np.concatenate([[0], np.cumsum(np.ones(shape[0], np.int64) if areas is None else areas)])

    def feature(self, rings: Sequence[NDArray[np.int64]], properties: dict[str, Any]) -> dict[str, Any]:
        """What Fiona writes for a region; adds its area to the properties."""
        self.num_features += 1
        outer, *holes = (self._area(ring) for ring in rings)
        coordinates = []
        for ring in rings:
            corners = _split(ring) if self.degrees else ring
            coordinates.append((corners @ self._affine[:, :2].T + self._affine[:, 2]).tolist())
        geometry = {"type": "Polygon", "coordinates": coordinates}
        return {"geometry": geometry, "properties": {**properties, next(iter(self.measure)): outer - sum(holes)}}

    def _area(self, ring: NDArray[np.int64]) -> float | int:
        """What a ring encloses: the sum over its pixels, for each vertical edge counts all to its left."""
        columns, rows = ring.T
        area: float | int = abs((columns[:-1] * np.diff(self._above[rows])).sum()).item()
        return area


def _split(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """A ring with more corners on its long edges, at the same places for both regions that an edge parts."""
    steps = np.diff(ring, axis=0)
    lengths = np.abs(steps).sum(1)
    if lengths.max() <= _STRAIGHT:
        return ring
    edge = np.repeat(np.arange(len(steps)), lengths)
    gone = np.arange(len(edge)) - (np.cumsum(lengths) - lengths)[edge]
    every = ring[edge] + gone[:, None] * np.sign(steps)[edge]
    along = np.where(steps[edge, 0] != 0, every[:, 0], every[:, 1])
    return np.concatenate([every[(gone == 0) | (along % _STRAIGHT == 0)], ring[-1:]])
