"""Street scenes from a car: colour frames with colour-coded masks.

Layout: `images/{sequence}_{frame}.png` and `masks/{sequence}_{frame}.png` (`seq1_0000`, `seq1_0001`, ...), four frames a
sequence; the sequence is the group. Both are 8-bit RGB, 240 x 160; a mask shows each class in its colour in `CLASSES`, and
`VOID`, which counts nowhere, for the bonnet of the car, sign plates and bins.

What makes them hard: a sequence has one street, one light (noon, overcast, morning haze, dusk with lit windows) and one
camera; facades, asphalt and pavement share their greys, shadows cut across everything, trees cover houses, parked cars cover
each other, and poles and people are a few pixels wide.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from segline.data.synthetic.canvas import Camera, Canvas, Painted
from segline.data.synthetic.publish import write_once
from segline.data.synthetic.street import Painter
from segline.data.synthetic.texture import Field, fractal
from segline.data.synthetic.town import LIGHTS, ROAD, WALK, Light, Town, build_town

#: Class -> colour in the masks.
CLASSES = {
    "road": "#804080",
    "pavement": "#f423e8",
    "building": "#464646",
    "vegetation": "#6b8e23",
    "sky": "#4682b4",
    "car": "#00008e",
    "pole": "#999999",
    "pedestrian": "#dc143c",
}
#: Colour of what counts nowhere.
VOID = "#000000"
FRAMES_PER_SEQUENCE, SHAPE = 4, (160, 240)

_IDS = {name: index for index, name in enumerate([*CLASSES, "void"])}
_PALETTE = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (*CLASSES.values(), VOID)], np.uint8)
_SHARP = 2  # frames are drawn this much larger, and averaged


def write_driving(root: Path, count: int = 32, seed: int = 0) -> Path:
    """Write `count` frames into `root`, once; returns `root`."""
    return write_once(root, partial(_write_frames, count=count, seed=seed))


def _write_frames(folder: Path, count: int, seed: int) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(count):
        sequence, frame = divmod(index, FRAMES_PER_SEQUENCE)
        town = build_town(np.random.default_rng([seed, 4, sequence]), LIGHTS[sequence % len(LIGHTS)])
        image, mask = make_frame(town, frame, np.random.default_rng([seed, 4, sequence, frame + 1]))
        name = f"seq{sequence + 1}_{frame:04d}.png"
        Image.fromarray(image).save(folder / "images" / name)
        Image.fromarray(_PALETTE[mask]).save(folder / "masks" / name)


def make_frame(town: Town, frame: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frame `[H, W, 3]` of a drive through a town, and its class indices `[H, W]`, void after the last."""
    height, width = (_SHARP * size for size in SHAPE)
    row, column = height * (0.46 + rng.normal(0, 0.02)), width * (0.5 + rng.normal(0, 0.05))
    canvas = Canvas(Camera((height, width), width * town.zoom, row, column))
    travelled = frame * town.stride + rng.uniform(0, 3)
    painter = Painter(_IDS, town.grain, town.light.lit, glow=np.array([0.95, 0.78, 0.45]) / town.light.sun)
    canvas.sky(_sky(town.light, canvas, rng), _IDS["sky"])
    canvas.ground(partial(_ground, town, painter, travelled))
    for house in town.houses:
        painter.house(
            canvas, house, travelled, shade=1 - town.light.contrast * (0.45 if np.sign(house.x) == town.sun else -0.1)
        )
    for thing in sorted(town.things, key=lambda thing: -thing.z):
        painter.thing(canvas, thing, travelled)
    image = _light_up(town.light, canvas)
    mask = canvas.label[_SHARP // 2 :: _SHARP, _SHARP // 2 :: _SHARP].copy()
    image = image.reshape(3, SHAPE[0], _SHARP, SHAPE[1], _SHARP).mean((2, 4))
    if town.bonnet:
        _draw_bonnet(town, image, mask)
    return _expose(rng, image, town.light), mask


def _sky(light: Light, canvas: Canvas, rng: np.random.Generator) -> Field:
    height, width = canvas.label.shape
    up = np.clip(1 - np.arange(height, dtype=np.float32) / canvas.camera.row, 0, 1)[None, :, None]
    clouds = np.clip(fractal(rng, (height, width), (120, 360), 1.0) * 0.5 + light.clouds, 0, 1)[None]
    color = np.array(light.horizon)[:, None, None] * (1 - up) + np.array(light.zenith)[:, None, None] * up
    return (color + (np.array(light.cloud)[:, None, None] - color) * clouds).astype(np.float32)


def _ground(town: Town, painter: Painter, travelled: float, x: Field, z: Field) -> Painted:
    """Carriageway with markings, kerb, paved walks, and grass or paving up to the houses."""
    along, side = z + travelled, np.abs(x - town.shift)
    lane = x - town.shift
    fine, coarse = painter.texture(along, x + 40, 14), painter.texture(along, x + 40, 2.5, 7)
    asphalt = 0.30 * (1 + 0.07 * fine + 0.10 * coarse)
    dashes = (np.abs(lane) < 0.08) & (along % 6 < 2.8)
    zebra = (np.abs(along % 64 - 24) < 1.6) & (lane % 1.0 < 0.5) & (side < ROAD - 0.4)
    edge = np.abs(side - ROAD + 0.35) < 0.06
    grey = np.where(dashes | zebra | edge, 0.62 * (1 + 0.15 * fine), asphalt)
    patch = (along % 37 < 7) & (lane > 0.3) & (lane < 2.4)
    grey = np.where(patch & ~dashes & ~zebra, grey * 0.8, grey)
    slabs = (along % 0.9 < 0.07) | (side % 0.9 < 0.06)
    paved = np.array([0.42, 0.40, 0.37])[:, None, None] * (1 + 0.06 * fine + 0.08 * coarse - 0.16 * slabs)
    kerb = np.array([0.55, 0.54, 0.52])[:, None, None]
    grass = np.array([0.22, 0.33, 0.13])[:, None, None] * (1 + 0.25 * fine + 0.15 * coarse)
    walk, verge = side > ROAD, (side > ROAD + WALK) & town.is_green(along, lane)
    color = np.where(walk, np.where(side < ROAD + 0.18, kerb, paved), grey)
    color = np.where(verge, grass, color)
    dark = town.shadow(painter, along, x)
    color = color * (1 - town.light.contrast * dark)
    label = np.where(verge, _IDS["vegetation"], np.where(walk, _IDS["pavement"], _IDS["road"])).astype(np.uint8)
    return np.ones(x.shape, bool), color, label


def _light_up(light: Light, canvas: Canvas) -> Field:
    """Colour of the light, and haze that grows with distance."""
    haze = np.where(np.isinf(canvas.depth), 0, 1 - np.exp(-canvas.depth / light.sight))
    tint = np.where(np.isinf(canvas.depth), 1, np.array(light.sun)[:, None, None])
    image = canvas.color * tint
    return (image + (np.array(light.horizon)[:, None, None] - image) * haze).astype(np.float32)


def _draw_bonnet(town: Town, image: Field, mask: NDArray[np.uint8]) -> None:
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    below = rows - (0.84 + 0.22 * columns**2)
    bonnet = below > 0
    shine = 0.12 + 0.5 * np.exp(-(((below - 0.05) / 0.06) ** 2)) + 0.1 * columns
    image[:, bonnet] = (town.paint[:, None, None] * shine * np.array(town.light.sun)[:, None, None])[:, bonnet]
    mask[bonnet] = _IDS["void"]


def _expose(rng: np.random.Generator, image: Field, light: Light) -> NDArray[np.uint8]:
    """Lens and sensor: vignette, a little blur, exposure, noise, gamma."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    seen = ndimage.gaussian_filter(image, (0, 0.35, 0.35)) * (1 - 0.16 * (rows**2 + columns**2))
    seen = seen * rng.uniform(0.88, 1.14) * rng.normal(1, 0.02, (3, 1, 1))
    seen = seen + rng.normal(0, 1, seen.shape) * np.sqrt(light.noise**2 + 2e-4 * np.maximum(seen, 0))
    return np.rint(np.clip(seen, 0, 1) ** (1 / 1.35) * 255).astype(np.uint8).transpose(1, 2, 0)
