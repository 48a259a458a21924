"""How large a pixel is on the ground."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform

from segline.io.source import Geometry

Array = NDArray[np.float64]

#: Of WKT2: WKT1 cannot say every CRS. Some axes are in feet.
_ELLIPSOID = re.compile(r'ELLIPSOID\["(?:[^"]|"")*",([^,\]]+),([^,\]]+)(?:,LENGTHUNIT\["(?:[^"]|"")*",([^,\]]+))?')
#: The cylinder upright: not Transverse Mercator, nor Oblique.
_MERCATOR = re.compile(r'METHOD\["(?:Popular Visualisation Pseudo )?Mercator\b')


def row_areas(geometry: Geometry, shape: Sequence[int]) -> Array | None:
    """Square metres of one pixel in each row, `[H]`; None where there is no transform, or no CRS of the Earth.

    Degrees: the exact area of the cell on the CRS's ellipsoid; where rows do not run along parallels, by the scale at the row's
    middle. The Mercator projections of web maps, which at 60° show everything four times too large, are taken back to degrees. Of
    every other projection it is the area on the map, whose scale is nearly that of the ground (UTM: to 0.1 %).

    Args:
        geometry: Of a raster.
        shape: Rows and columns.

    >>> wgs84 = CRS.from_epsg(4326).to_wkt()
    >>> globe = Geometry(((360, 0, -180), (0, -90, 90), (0, 0, 1)), wgs84)
    >>> [round(area / 1e6) for area in row_areas(globe, (2, 1))]  # km² of each hemisphere
    [255032811, 255032811]
    """
    if geometry.affine is None or geometry.crs is None:
        return None
    crs = CRS.from_wkt(geometry.crs)
    if not (crs.is_geographic or crs.is_projected):
        return None
    (a, b, _), (d, e, top), _ = geometry.affine
    height, width = shape
    wkt, unit = crs.to_wkt(version="WKT2_2019"), float(crs.units_factor[1])  # metres or radians
    along = b == d == 0
    edges: Array = d * width / 2 + e * np.arange(height + 1.0) + top
    if crs.is_geographic:
        latitudes = np.clip(edges * unit, -np.pi / 2, np.pi / 2)  # cells centred on a pole reach beyond it
        if along:
            return abs(a * unit) * np.abs(np.diff(_zone(latitudes, wkt)))
        return abs(a * e - b * d) * unit**2 * _density((latitudes[1:] + latitudes[:-1]) / 2, wkt)
    if along and _MERCATOR.search(wkt):
        latitudes, width_of_pixel = _of_mercator(crs, edges, a)
        return width_of_pixel * np.abs(np.diff(_zone(latitudes, wkt)))
    return np.full(height, abs(a * e - b * d) * unit**2)


def is_in_degrees(geometry: Geometry) -> bool:
    """Whether a raster's grid is one of longitudes and latitudes."""
    return geometry.crs is not None and bool(CRS.from_wkt(geometry.crs).is_geographic)


def _ellipsoid(wkt: str) -> tuple[float, float]:
    """Semi-major axis in metres, and squared eccentricity."""
    found = _ELLIPSOID.search(wkt)
    assert found is not None
    axis, inverse = float(found[1]) * float(found[3] or 1), float(found[2])
    flattening = 1 / inverse if inverse else 0.0  # 0 stands for a sphere
    return axis, flattening * (2 - flattening)


def _zone(latitudes: Array, wkt: str) -> Array:
    """Area between the equator and a latitude, for each radian of longitude: half of the squared axis times the authalic function.

    Reference: Snyder 1987, Map Projections: A Working Manual, equation 3-12.
    """
    axis, squared = _ellipsoid(wkt)
    sines, eccentricity = np.sin(latitudes), squared**0.5
    bulge = np.arctanh(eccentricity * sines) / eccentricity if squared else sines
    zone: Array = axis**2 / 2 * (1 - squared) * (sines / (1 - squared * sines**2) + bulge)
    return zone


def _density(latitudes: Array, wkt: str) -> Array:
    """Area for each square radian of longitude and latitude: the derivative of `_zone`."""
    axis, squared = _ellipsoid(wkt)
    density: Array = axis**2 * (1 - squared) * np.cos(latitudes) / (1 - squared * np.sin(latitudes) ** 2) ** 2
    return density


def _of_mercator(crs: Any, edges: Array, step: float) -> tuple[Array, float]:
    """Latitudes of the edges of rows, and the width of a pixel, in radians."""
    ahead = [edges[0]] * 2
    (west, east), _ = transform(crs, "EPSG:4326", [0.0, step], ahead)
    _, latitudes = transform(crs, "EPSG:4326", np.zeros(len(edges)), edges)
    turned = (east - west + 180) % 360 - 180  # the middle of a map of the Pacific may lie on the date line
    return np.radians(latitudes), abs(float(np.radians(turned)))
