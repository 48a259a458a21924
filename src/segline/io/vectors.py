"""Vector masks: polygons of a GeoPackage or GeoJSON, burnt onto a raster's grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.io.source import Source, Window

#: Vector formats and the drivers they are read with, by name: GDAL would else follow a file in disguise.
VECTOR_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON"}
#: What burns polygons: an id for all, the attribute that holds it, or {attribute: {value: id}}.
Burn = int | str | Mapping[str, Mapping[Any, int]]


class Vectors:
    """Polygons of a GeoPackage or GeoJSON, burnt onto the image's grid; a pixel belongs to the polygon that holds its centre."""

    def __init__(self, path: Path, like: Source, burn: Burn) -> None:
        import fiona
        from fiona.errors import FionaError
        from rasterio.crs import CRS
        from rasterio.warp import transform_geom

        if like.geometry.crs is None or like.geometry.affine is None:
            raise ValueError(
                f"{like.path} has no coordinate system, so the polygons of {path} cannot be laid on it; use a GeoTIFF with a CRS"
            )
        try:
            with fiona.open(path, driver=VECTOR_DRIVERS[path.suffix.lower()]) as layer:
                crs = layer.crs_wkt
                features = [(f["geometry"], f["properties"]) for f in layer if _has_points(f["geometry"])]
        except (FionaError, OSError, UnicodeError) as error:
            raise ValueError(f"{path} is not a whole {VECTOR_DRIVERS[path.suffix.lower()]} file ({error})") from error
        if not crs or not (CRS.from_wkt(crs).is_geographic or CRS.from_wkt(crs).is_projected):
            raise ValueError(
                f"{path} has no coordinate system, so its polygons cannot be laid on {like.path}; set it, as with ogr2ogr -a_srs"
            )
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
        (a, b, c), (d, e, f), _ = self.geometry.affine
        left, top = columns.start, rows.start
        grid = Affine(a, b, a * left + b * top + c, d, e, d * left + e * top + f)
        return rasterize(self._shapes, out_shape=shape, transform=grid, fill=0, dtype="int32")


def _has_points(geometry: Any) -> bool:
    return geometry is not None and bool(geometry.get("coordinates") or geometry.get("geometries"))


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
        number = int(value)
        if number != float(value):
            raise ValueError("a fraction")
        return number
    except (TypeError, ValueError):
        raise ValueError(
            f"{path}: attribute {attribute!r} is {value!r}; expected whole numbers, or data.burn={{{attribute}: {{{value}: 1}}}}"
        ) from None
