import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from segline.io.area import row_areas
from segline.io.source import Geometry


def at(crs: str, *affine: float) -> Geometry:
    rows = (affine[:3], affine[3:], (0.0, 0.0, 1.0))
    return Geometry(rows, CRS.from_user_input(crs).to_wkt())


def integrated(south: float, north: float, width: float, axis: float, inverse: float) -> float:
    """Area between parallels, in degrees, by summing narrow bands: radius of the parallel times length along the meridian."""
    squared = (2 - 1 / inverse) / inverse
    edges = np.radians(np.linspace(south, north, 200_001))
    middle, narrow = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    n = axis / np.sqrt(1 - squared * np.sin(middle) ** 2)
    m = axis * (1 - squared) / (1 - squared * np.sin(middle) ** 2) ** 1.5
    return float((n * np.cos(middle) * np.radians(width) * m * narrow).sum())


WGS84 = (6378137.0, 298.257223563)


def test_the_whole_globe_is_that_of_the_ellipsoid() -> None:
    areas = row_areas(at("EPSG:4326", 0.5, 0, -180, 0, -0.25, 90), (720, 720))
    assert areas is not None
    assert (areas.shape, areas.dtype) == ((720,), np.float64)
    assert areas.sum() * 720 == pytest.approx(510_065_621.724e6, rel=1e-11)
    np.testing.assert_allclose(areas, areas[::-1], rtol=1e-9)  # the north is as large as the south


def test_a_cell_in_degrees_is_as_large_as_on_the_ellipsoid() -> None:
    areas = row_areas(at("EPSG:4326", 1, 0, 7, 0, -1, 90), (90, 4))
    assert areas is not None
    # 111.3195 km along the equator, 110.5744 km along the meridian, less what parallels shorten by up to one degree.
    assert areas[-1] / 1e6 == pytest.approx(111.3195 * 110.5744 * np.sin(np.radians(1)) / np.radians(1), abs=0.05)
    for row in (0, 1, 29, 44, 70):
        assert areas[row] == pytest.approx(integrated(89 - row, 90 - row, 1, *WGS84), rel=1e-9)
    small = row_areas(at("EPSG:4326", 1e-4, 0, 7, 0, 1e-4, 51), (3, 4))  # from the south upwards
    assert small is not None
    assert small[2] == pytest.approx(integrated(51.0002, 51.0003, 1e-4, *WGS84), rel=1e-7)


def test_the_ellipsoid_and_the_unit_are_those_of_the_crs() -> None:
    grads = row_areas(at("EPSG:4807", 1, 0, 0, 0, -1, 50), (1, 1))  # NTF (Paris): 400 grads a circle, Clarke 1880
    assert grads is not None
    assert grads[0] == pytest.approx(integrated(44.1, 45, 0.9, 6378249.2, 293.466021293627), rel=1e-9)
    sphere = row_areas(at("+proj=longlat +R=6371000", 1, 0, 0, 0, -1, 60), (1, 1))
    assert sphere is not None
    expected = 6371000**2 * np.radians(1) * (np.sin(np.radians(60)) - np.sin(np.radians(59)))
    assert sphere[0] == pytest.approx(expected, rel=1e-12)


def test_cells_centred_on_a_pole_end_there() -> None:
    areas = row_areas(at("EPSG:4326", 1, 0, 0, 0, -1, 90.5), (181, 360))
    assert areas is not None
    assert areas[0] == pytest.approx(integrated(89.5, 90, 1, *WGS84), rel=1e-8)
    assert areas.sum() * 360 == pytest.approx(510_065_621.724e6, rel=1e-11)


def test_a_turned_grid_in_degrees_goes_by_the_latitude_of_each_row() -> None:
    turned = Affine.translation(10, 50) @ Affine.rotation(30) @ Affine.scale(0.01, -0.01)
    areas = row_areas(at("EPSG:4326", *turned[:6]), (40, 60))
    assert areas is not None
    for row in (0, 39):
        _, latitude = turned @ (30, row + 0.5)
        assert areas[row] == pytest.approx(integrated(latitude - 0.005, latitude + 0.005, 0.01, *WGS84), rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "square"),
    [("EPSG:32616", 1), ("EPSG:2263", (1200 / 3937) ** 2), ("EPSG:5972", 1)],
    ids=["UTM", "US survey feet", "with heights"],
)
def test_on_a_map_the_area_is_the_determinant_in_metres(crs: str, square: float) -> None:
    areas = row_areas(at(crs, 1.9, 0.4, 733000, 0.4, -1.9, 3725000), (3, 5))
    assert areas is not None
    np.testing.assert_allclose(areas, [(1.9**2 + 0.4**2) * square] * 3, rtol=1e-12)


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:3395", "EPSG:3832"])
def test_web_maps_are_measured_on_the_ground(crs: str) -> None:
    from rasterio.warp import transform

    top = 8_399_737.0  # about 60° north
    areas = row_areas(at(crs, 10, 0, 1000, 0, -10, top), (100, 5))
    assert areas is not None
    for row in (0, 99):
        edges = [top - 10 * row, top - 10 * row - 10]
        longitudes, latitudes = transform(crs, "EPSG:4326", [0, 10], edges)
        width = abs(longitudes[1] - longitudes[0])
        assert areas[row] == pytest.approx(integrated(latitudes[1], latitudes[0], width, *WGS84), rel=1e-5)
    assert areas[0] == pytest.approx(25, rel=0.02)  # not 100
    assert (np.diff(areas) > 0).all()  # larger to the south


def test_an_axis_in_feet_is_taken_to_metres() -> None:
    for version in ("WKT1_GDAL", "WKT2_2019"):  # Clarke 1858 in metres, and in feet
        trinidad = CRS.from_epsg(4302).to_wkt(version=version)
        assert ("20926348" in trinidad) == (version == "WKT2_2019")
        areas = row_areas(Geometry(((1.0, 0.0, -61.0), (0.0, -1.0, 11.0), (0.0, 0.0, 1.0)), trinidad), (1, 1))
        assert areas is not None
        assert areas[0] == pytest.approx(integrated(10, 11, 1, 6378293.64520876, 294.260676369261), rel=1e-9)


@pytest.mark.parametrize("crs", ["EPSG:8857", "EPSG:4979"], ids=["Equal Earth", "degrees with heights"])
def test_what_the_older_wkt_cannot_say_has_areas(crs: str) -> None:
    step = 1000.0 if crs == "EPSG:8857" else 0.5
    areas = row_areas(at(crs, step, 0, 10, 0, -step, 50), (4, 5))
    assert areas is not None
    plain = row_areas(at("EPSG:4326", step, 0, 10, 0, -step, 50), (4, 5)) if step < 1 else [step**2] * 4
    np.testing.assert_allclose(areas, plain, rtol=1e-12)


@pytest.mark.parametrize("crs", ["EPSG:3994", "ESRI:54004", "+proj=merc +lat_ts=30 +ellps=GRS80", "+proj=webmerc"])
def test_every_upright_mercator_is_measured_on_the_ground(crs: str) -> None:
    areas = row_areas(at(crs, 10, 0, 1000, 0, -10, 4e6), (2, 5))
    assert areas is not None
    assert areas[1] > areas[0]


@pytest.mark.parametrize("crs", ["EPSG:32616", "EPSG:3375"], ids=["transverse", "oblique"])
def test_no_other_mercator_is_taken_for_one_of_web_maps(crs: str) -> None:
    areas = row_areas(at(crs, 10, 0, 500000, 0, -10, 500000), (2, 5))
    assert areas is not None
    np.testing.assert_allclose(areas, 100)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(),
        Geometry(affine=((2.0, 0.0, 0.0), (0.0, -2.0, 0.0), (0.0, 0.0, 1.0))),
        Geometry(crs=CRS.from_epsg(32616).to_wkt()),
        at('LOCAL_CS["microscope",UNIT["metre",1]]', 1, 0, 0, 0, 1, 0),
    ],
    ids=["photograph", "no CRS", "no transform", "not on Earth"],
)
def test_what_lies_nowhere_on_earth_has_no_area(geometry: Geometry) -> None:
    assert row_areas(geometry, (4, 5)) is None
