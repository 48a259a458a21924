"""Satellite scenes: GeoTIFFs of farmland and villages along a river, seen from above.

Layout: `scenes/{scene}.tif` and `masks/{scene}.tif` (`scene_00`, `scene_01`, ...), each scene its own group. Scenes are uint16
reflectance x 10,000 in the bands red, green, blue and near infrared, EPSG:32633, 2 m a pixel, no data 0 (a wedge in every
third scene). Masks are uint8 ids as in `CLASSES`, 255 where there is no data.

What makes them hard: roofs, roads, ploughed fields and ripe crops share their spectra, shadows look like water, shallow
water like mud, weeds in it like fields, thin haze lies over some scenes, and light and atmosphere differ between scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

from segline.data.synthetic import spectra
from segline.data.synthetic.publish import write_once
from segline.data.synthetic.texture import Field, cells, curve_distance, fractal, scattered, turned
from segline.data.synthetic.village import Village, halls, villages

#: Class -> id in the masks.
CLASSES = {"vegetation": 0, "water": 1, "building": 2, "road": 3, "bare_soil": 4}
#: Class -> colour for pictures.
COLORS = {"vegetation": "#4e9a3b", "water": "#2f7fd0", "building": "#d1413a", "road": "#f2c43d", "bare_soil": "#b58a5e"}
BANDS = ("red", "green", "blue", "near_infrared")
NODATA, IGNORED, PIXEL_M = 0, 255, 2.0


@dataclass
class Scene:
    """A scene while it is painted: reflectance `[4, H, W]`, class ids and heights in pixels `[H, W]`."""

    image: Field
    mask: NDArray[np.uint8]
    height: Field

    def paint(
        self, where: NDArray[np.bool_], color: Field | tuple[float, ...], name: str, texture: Field | None = None
    ) -> None:
        """Give pixels a colour, `[4]` or `[4, pixels]`, and a class."""
        values = np.asarray(color, np.float32).reshape(4, -1)
        self.image[:, where] = values if texture is None else values * (1 + texture[where])
        self.mask[where] = CLASSES[name]


def write_satellite(root: Path, count: int = 12, seed: int = 0) -> Path:
    """Write `count` scenes of 320 x 320 to 384 x 448 pixels into `root`, once; returns `root`."""
    return write_once(root, partial(_write_scenes, count=count, seed=seed))


def _write_scenes(folder: Path, count: int, seed: int) -> None:
    for name in ("scenes", "masks"):
        (folder / name).mkdir()
    for index in range(count):
        rng = np.random.default_rng([seed, 3, index])
        image, mask = make_scene(rng, wedge=index % 3 == 2)
        east, north = 380_000 + 2_000 * (index % 4), 5_820_000 - 2_000 * (index // 4)
        for kind, bands, nodata in (("scenes", image, NODATA), ("masks", mask[None], IGNORED)):
            _write_tif(folder / kind / f"scene_{index:02d}.tif", bands, nodata, east, north)


def _write_tif(path: Path, bands: NDArray[np.unsignedinteger], nodata: int, east: int, north: int) -> None:
    count, height, width = bands.shape
    profile = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": bands.dtype,
        "nodata": nodata,
    }
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate", "predictor": 2}
    place = {"crs": "EPSG:32633", "transform": Affine(PIXEL_M, 0, east, 0, -PIXEL_M, north)}
    with rasterio.open(path, "w", **profile, **tiles, **place) as raster:
        raster.write(bands)
        raster.descriptions = BANDS if count == len(BANDS) else ("class",)


def make_scene(rng: np.random.Generator, wedge: bool = False) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """One scene `[4, H, W]` and its mask `[H, W]`; with `wedge`, a corner has no data."""
    shape = tuple(int(size) for size in rng.choice([320, 352, 384, 416, 448], 2))
    rows, columns = np.indices(shape, np.float32)
    scene = Scene(np.zeros((4, *shape), np.float32), np.zeros(shape, np.uint8), np.zeros(shape, np.float32))
    field_angle = rng.uniform(0, np.pi)
    _paint_fields(rng, scene, rows, columns, field_angle)
    _paint_woods(rng, scene)
    _paint_water(rng, scene, rows, columns)
    places = villages(rng, shape, dry=scene.mask != CLASSES["water"])
    _paint_roads(rng, scene, rows, columns, places)
    _paint_buildings(rng, scene, places)
    _paint_street_trees(rng, scene, places)
    return _photograph(rng, scene, wedge)


def _paint_fields(rng: np.random.Generator, scene: Scene, rows: Field, columns: Field, angle: float) -> None:
    """Boxy fields, each with a crop, its own tint and drilling rows; tracks and hedges between some."""
    shape = scene.mask.shape
    along, across = turned(rows, columns, angle)
    along = along + 3 * fractal(rng, shape, 150, 1.4)
    across = across * rng.uniform(1.2, 1.9) + 3 * fractal(rng, shape, 150, 1.4)
    at = np.stack([along, across], -1)
    low, high = at.min((0, 1)), at.max((0, 1))
    points = low + scattered(rng, high - low, step=rng.uniform(62, 85), jitter=0.28)
    index, _, border = cells(points, at)
    field, neighbour = index[..., 0], index[..., 1]
    kinds = rng.choice(len(spectra.CROPS), len(points), p=spectra.CROP_SHARES)
    colors = np.array([color for color, _ in spectra.CROPS.values()], np.float32)
    labels = np.array([CLASSES[name] for _, name in spectra.CROPS.values()], np.uint8)
    tint = rng.normal(1, 0.1, (len(points), 1)) * rng.normal(1, 0.05, (len(points), 4))
    color = (colors[kinds] * tint)[field].transpose(2, 0, 1)
    heading = np.where(rng.random(len(points)) < 0.5, 1.0, 0.0)[field]
    pitch = rng.uniform(3.2, 7, len(points))[field]
    drills = (
        np.sin(2 * np.pi * (heading * along + (1 - heading) * across) / pitch)
        * rng.uniform(0, 0.12, len(points))[field]
    )
    patches = 0.10 * fractal(rng, shape, 60, 0.7) + 0.05 * fractal(rng, shape, 6, 0.4)
    scene.image[:] = color * (1 + drills + patches)
    # Patchy crops: soil shines through without a change of class.
    thin = np.clip(fractal(rng, shape, 50) - 0.9, 0, 1) * 0.45
    scene.image += (np.array(spectra.CROPS["ploughed"][0], np.float32)[:, None, None] - scene.image) * thin
    scene.mask[:] = labels[kinds][field]
    fate = (np.minimum(field, neighbour) * 7919 + np.maximum(field, neighbour) * 104729) % 100
    margin = fractal(rng, shape, 12, 0.6)
    scene.paint(border < 1.2, spectra.GRASS, "vegetation", 0.15 * margin)
    scene.paint((border < 1.3) & (fate < 16), spectra.GRAVEL, "road", 0.08 * margin)
    _plant(rng, scene, (border < 3 + 1.2 * margin) & (fate >= 72), crown=5.0)


def _plant(rng: np.random.Generator, scene: Scene, where: NDArray[np.bool_], crown: float) -> None:
    """Cover an area with tree crowns `crown` pixels wide: domes in the height field, each with its own green."""
    points = scattered(rng, scene.mask.shape, crown)
    index, distance, _ = cells(points, np.argwhere(where).astype(np.float32))
    dome = np.clip(1 - (distance / (0.75 * crown)) ** 2, 0, 1).astype(np.float32)
    green = rng.normal(1, 0.16, (len(points), 1)) * rng.normal(1, 0.07, (len(points), 4))
    color = np.array(spectra.CROWN, np.float32)[:, None] * green[index[:, 0]].T * (0.6 + 0.55 * dome)
    scene.paint(where, color.astype(np.float32), "vegetation")
    scene.height[where] = 3 + 3 * dome


def _paint_woods(rng: np.random.Generator, scene: Scene) -> None:
    shape = scene.mask.shape
    density = fractal(rng, shape, 170, 0.85) + rng.uniform(-1.5, -0.9)
    meadow = density > -0.25
    scene.paint(meadow, spectra.GRASS, "vegetation", 0.13 * fractal(rng, shape, 25, 0.6))
    _plant(rng, scene, density > 0, crown=rng.uniform(6, 8))


def _paint_water(rng: np.random.Generator, scene: Scene, rows: Field, columns: Field) -> None:
    """A river in most scenes, ponds in others, with sand banks, muddy shallows and a soft shore."""
    shape = scene.mask.shape
    shore = 5 * fractal(rng, shape, 60, 1.25)
    level = np.full(shape, -99, np.float32)
    if rng.random() < 0.75:
        along, across = turned(
            rows - shape[0] * rng.uniform(0.3, 0.7), columns - shape[1] * rng.uniform(0.3, 0.7), rng.uniform(0, np.pi)
        )
        width = rng.uniform(9, 22) + 3 * np.sin(along / 60)
        level = (
            width - np.abs(curve_distance(rng, along, across, rng.uniform(18, 42), rng.uniform(240, 420))) + 0.5 * shore
        )
    for _ in range(rng.integers(1, 5)):
        row, column, radius = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(9, 34)
        away = np.hypot((rows - row) * rng.uniform(0.7, 1.4), columns - column)
        level = np.maximum(level, radius - away + shore)
    bank = (level > -rng.uniform(2, 5) - np.abs(shore) * 0.5) & (shore > -2)
    scene.paint(bank & (level > -20), spectra.SAND, "bare_soil", 0.10 * fractal(rng, shape, 8, 0.5))
    water = level > 0
    depth = np.clip(level / rng.uniform(6, 16), 0, 1)[water]
    turbid = np.clip(0.35 + 0.35 * fractal(rng, shape, 120), 0.05, 0.9)[water] * rng.uniform(0.3, 1)
    mix = np.clip(turbid + (1 - depth) * 0.55, 0, 1)
    color = np.outer(spectra.DEEP, 1 - mix) + np.outer(spectra.MUDDY, mix)
    # Weeds near the shore have the spectrum of a field, and glitter that of grey roofs.
    weeds = np.clip(fractal(rng, shape, 45, 0.8) - 0.2, 0, 1)[water] * (1 - 0.8 * depth) * rng.uniform(0.2, 1)
    glitter = 0.12 * np.clip(fractal(rng, shape, (30, 80), 0.7) - 0.7, 0, 1)[water] * rng.uniform(0, 1)
    color = color + (np.array(spectra.WEEDS)[:, None] - color) * weeds + glitter
    ripple = 0.08 * fractal(rng, shape, (4, 14), 0.5)
    scene.paint(water, color.astype(np.float32), "water", ripple)
    scene.height[level > -1] = 0


def _paint_roads(rng: np.random.Generator, scene: Scene, rows: Field, columns: Field, places: list[Village]) -> None:
    """A curving main road to each village and its streets; bridges over water."""
    wear = 0.07 * fractal(rng, scene.mask.shape, 9, 0.5)
    for place in places:
        along, across = turned(rows - place.row, columns - place.column, place.angle)
        street = place.streets(along, across) & (scene.mask != CLASSES["water"])
        main = np.abs(curve_distance(rng, along, across, rng.uniform(4, 16), rng.uniform(260, 420)))
        if place is places[-1] and len(places) > 1:  # the last one lies at the end of its road
            main = np.where(along < place.radius, main, np.inf)
        scene.paint(
            (main < place.road_width + 1.2) & (scene.mask != CLASSES["water"]), spectra.GRASS, "vegetation", wear
        )
        for where, spectrum in (
            (street, spectra.CONCRETE if rng.random() < 0.4 else spectra.ASPHALT),
            (main < place.road_width, spectra.ASPHALT),
        ):
            scene.paint(where, tuple(rng.normal(1, 0.12) * np.array(spectrum)), "road", wear)
            scene.height[where] = 0
        cars = (main < place.road_width - 0.4) & (rng.random(scene.mask.shape) < 0.012)
        scene.image[:, cars] = rng.choice([0.05, 0.15, 0.4, 0.5], int(cars.sum()))


def _paint_buildings(rng: np.random.Generator, scene: Scene, places: list[Village]) -> None:
    """Houses with gable roofs in touching rows, and a few large flat halls with their yards."""
    free = ~np.isin(scene.mask, [CLASSES["water"], CLASSES["road"]])
    lots = [lot for place in places for lot in place.houses(rng)] + halls(rng, scene.mask.shape)
    for lot in lots:
        window, u, v = lot.window(scene.mask.shape)
        if u.size == 0:
            continue
        walls = np.maximum(np.abs(u) - lot.length / 2, np.abs(v) - lot.depth / 2) < 0
        if (
            not walls.any()
            or not free[window][walls].all()
            or (scene.mask[window][walls] == CLASSES["building"]).mean() > 0.1
        ):
            continue
        view = Scene(scene.image[:, *window], scene.mask[window], scene.height[window])
        if lot.flat:
            yard = (np.abs(u) < lot.length / 2 + 6) & (np.abs(v) < lot.depth / 2 + 9) & free[window]
            view.paint(
                yard,
                tuple(np.array(spectra.GRAVEL) * rng.normal(0.95, 0.1)),
                "bare_soil",
                0.1 * fractal(rng, yard.shape, 6, 0.5),
            )
            view.height[yard] = 0
        roof = spectra.ROOFS[
            rng.choice(len(spectra.ROOFS), p=(0.05, 0.05, 0.15, 0.1, 0.4, 0.25) if lot.flat else lot.roofs)
        ]
        rows_of_tiles = 0.04 * np.sin(v * 2.1) + rng.normal(0, 0.05, u.shape)
        view.paint(
            walls,
            tuple(roof * rng.normal(1, 0.12) * rng.normal(1, 0.03, 4)),
            "building",
            rows_of_tiles.astype(np.float32),
        )
        gable = 0 if lot.flat else 2.2 * (1 - np.abs(v) / (lot.depth / 2))
        view.height[walls] = np.broadcast_to(lot.height + gable, u.shape)[walls]


def _paint_street_trees(rng: np.random.Generator, scene: Scene, places: list[Village]) -> None:
    """Single garden trees, some of which hang over roads."""
    for place in places:
        for _ in range(int(place.radius * 0.7)):
            row, column = rng.normal((place.row, place.column), place.radius * 0.6)
            top, left, reach = int(row) - 5, int(column) - 5, rng.uniform(1.5, 3.6)
            if not (0 <= top < scene.mask.shape[0] - 11 and 0 <= left < scene.mask.shape[1] - 11):
                continue
            window = np.s_[top : top + 11, left : left + 11]
            offset_row, offset_column = np.indices((11, 11), np.float32)
            away = np.hypot(offset_row + top - row, offset_column + left - column) / reach
            crown = (away < 1) & ~np.isin(scene.mask[window], [CLASSES["building"], CLASSES["water"]])
            view = Scene(scene.image[:, *window], scene.mask[window], scene.height[window])
            view.paint(crown, tuple(np.array(spectra.CROWN) * rng.normal(1.1, 0.15)), "vegetation", 0.3 * (0.5 - away))
            view.height[crown] = (2 + 2.5 * (1 - away**2))[crown]


def _photograph(rng: np.random.Generator, scene: Scene, wedge: bool) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Sun, shadows, haze, optics and sensor."""
    shape = scene.mask.shape
    sun, slope = rng.uniform(0.6, 2.2), rng.uniform(0.7, 1.2)
    toward = (np.sin(sun), np.cos(sun))  # from the south-east to the south-west, as on the northern hemisphere
    slope_rows, slope_columns = np.gradient(scene.height)
    lit = 1 + 0.28 * np.clip(-slope_rows * toward[0] - slope_columns * toward[1], -1, 0.8)
    lit *= 1 - 0.62 * ndimage.gaussian_filter(_shadow(scene.height, toward, slope), 0.6)
    air = np.array([0.018, 0.024, 0.036, 0.008], np.float32)[:, None, None] * rng.uniform(0.5, 1.8)
    image = scene.image * lit * (rng.uniform(0.82, 1.2) * rng.normal(1, 0.03, (4, 1, 1))) + air
    if rng.random() < 0.45:
        haze = np.clip(0.2 * fractal(rng, shape, 260, 1.0) + rng.uniform(-0.1, 0.15), 0, 0.45)
        image += (np.array([0.36, 0.37, 0.39, 0.38], np.float32)[:, None, None] - image) * haze
    image = ndimage.gaussian_filter(image, (0, 0.65, 0.65))
    image += rng.normal(0, 1, image.shape) * np.sqrt(4e-6 + 6e-5 * np.maximum(image, 0))
    digital = np.clip(np.rint(image * 10_000), 1, 65_535).astype(np.uint16)
    mask = scene.mask.copy()
    if wedge:
        rows, columns = np.indices(shape, np.float32)
        along, _ = turned(rows - shape[0] / 2, columns - shape[1] / 2, rng.uniform(0, 2 * np.pi))
        empty = along > np.quantile(along, rng.uniform(0.84, 0.95))
        digital[:, empty], mask[empty] = NODATA, IGNORED
    return digital, mask


def _shadow(height: Field, toward: tuple[float, float], slope: float) -> Field:
    """1 where something between a pixel and the sun stands higher than the ray of light."""
    shadow = np.zeros_like(height)
    for step in range(1, int(height.max() / slope) + 1):
        moved = ndimage.shift(height, (-step * toward[0], -step * toward[1]), order=1, mode="nearest")
        shadow = np.maximum(shadow, moved > height + step * slope + 0.3)
    return shadow.astype(np.float32)
