"""A street to drive through: its light, its houses and all that stands along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segline.data.synthetic.street import House, Painter, Thing
from segline.data.synthetic.texture import Field, fractal

#: Half the width of the carriageway, and the width of a paved walk; metres.
ROAD, WALK = 4.6, 2.6
_LENGTH = 210.0
_WALLS = [
    (0.62, 0.40, 0.30),
    (0.74, 0.66, 0.52),
    (0.55, 0.55, 0.56),
    (0.80, 0.78, 0.74),
    (0.48, 0.36, 0.32),
    (0.66, 0.58, 0.50),
    (0.42, 0.46, 0.52),
]
_PAINTS = [
    (0.75, 0.75, 0.77),
    (0.10, 0.10, 0.12),
    (0.60, 0.10, 0.10),
    (0.12, 0.22, 0.48),
    (0.36, 0.38, 0.40),
    (0.85, 0.85, 0.83),
    (0.14, 0.32, 0.22),
]


class Light(NamedTuple):
    """Colours of sun and sky, share of clouds, depth of shadows, sight in metres, share of lit windows, noise."""

    sun: tuple[float, float, float]
    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]
    cloud: tuple[float, float, float]
    clouds: float
    contrast: float
    sight: float
    lit: float
    noise: float


#: Noon, overcast, dusk, morning haze.
LIGHTS = (
    Light((1.12, 1.08, 1.0), (0.72, 0.80, 0.88), (0.26, 0.46, 0.76), (0.95, 0.95, 0.95), -0.05, 0.52, 420, 0.0, 0.012),
    Light((0.80, 0.83, 0.86), (0.74, 0.76, 0.78), (0.58, 0.61, 0.65), (0.82, 0.83, 0.85), 0.45, 0.14, 240, 0.05, 0.014),
    Light((0.52, 0.44, 0.44), (0.78, 0.50, 0.36), (0.24, 0.25, 0.42), (0.62, 0.38, 0.40), 0.10, 0.20, 320, 0.40, 0.020),
    Light((0.98, 0.90, 0.78), (0.84, 0.80, 0.74), (0.55, 0.63, 0.74), (0.90, 0.87, 0.82), 0.10, 0.36, 110, 0.03, 0.014),
)


@dataclass(frozen=True)
class Town:
    """One street and the car that drives along it; the sun stands on the left (-1) or the right (1)."""

    light: Light
    houses: list[House]
    things: list[Thing]
    grain: Field
    sun: int
    shift: float
    zoom: float
    stride: float
    green: tuple[bool, bool]
    bonnet: bool
    paint: NDArray[np.floating]

    def is_green(self, along: Field, lane: Field) -> NDArray[np.bool_]:
        """Where grass grows behind the walks."""
        return np.where(lane < 0, self.green[0], self.green[1]) & (along % 53 > 6)

    def shadow(self, painter: Painter, along: Field, x: Field) -> Field:
        """How dark the ground is: shadows of houses and trees across the street, and under cars; 0 to 1."""
        steps = np.arange(0, 2 * _LENGTH, 0.5)
        reach = np.zeros(len(steps))
        for house in self.houses:
            if np.sign(house.x) == self.sun:
                reach[(steps > house.near + 2) & (steps < house.far + 2)] = 0.62 * house.height - abs(house.x)
        edge = reach[np.clip((along * 2).astype(np.int64), 0, len(steps) - 1)]
        dark = (-x * self.sun < edge).astype(np.float32)
        for thing in self.things:
            if thing.kind == "tree":
                away = (
                    np.hypot((along - thing.z) / 0.45, (x - thing.x + self.sun * 0.35 * thing.size) / 0.7) / thing.size
                )
                dark = np.maximum(dark, away + 0.3 * painter.texture(along, x + 40, 6, thing.seed) < 0.9)
            elif thing.kind == "car":
                under = (np.abs(x - thing.x) < 1.1) & (along > thing.z - 0.4) & (along < thing.z + 4.5)
                dark = np.where(under, 1.4, dark)
        return dark.astype(np.float32)


def build_town(rng: np.random.Generator, light: Light) -> Town:
    """A street of some 200 m with everything in it."""
    shift = rng.uniform(1.2, 2.2)  # the middle of the road lies to the left or right of the car
    shift = float(-shift if rng.random() < 0.5 else shift)
    green = (bool(rng.random() < 0.6), bool(rng.random() < 0.6))
    houses = [house for side in (-1, 1) for house in _houses(rng, side, shift)]
    things = [thing for side in (-1, 1) for thing in _things(rng, side, shift, green[side > 0])]
    things += _traffic(rng, shift)
    return Town(
        light, houses, things, fractal(rng, (512, 512), 60, 0.55), sun=int(rng.choice([-1, 1])), shift=shift, zoom=rng.uniform(0.78, 0.95),
        stride=rng.uniform(9, 14), green=green, bonnet=bool(rng.random() < 0.4), paint=np.array(_PAINTS[rng.integers(len(_PAINTS))]),
    )  # fmt: skip


def _houses(rng: np.random.Generator, side: int, shift: float) -> list[House]:
    houses, z = [], -5.0
    while z < _LENGTH:
        length, height = rng.uniform(9, 26), rng.uniform(5.5, 17)
        x = shift + side * (ROAD + WALK + rng.uniform(0.4, 4.5))
        color = np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.normal(1, 0.06, 3)
        houses.append(House(x, z, z + length, height, color, rng.uniform(2.4, 3.8), int(rng.integers(1000))))
        z += length + (0 if rng.random() < 0.55 else rng.uniform(3, 16))
    return houses


def _things(rng: np.random.Generator, side: int, shift: float, green: bool) -> list[Thing]:
    """What stands along one side of the street."""
    things: list[Thing] = []

    def stand(
        kind: str,
        gap: tuple[float, float],
        out: tuple[float, float],
        size: tuple[float, float],
        colors: Sequence[tuple[float, ...]],
    ) -> None:
        z = rng.uniform(*gap)
        while z < _LENGTH:
            color = np.array(colors[int(rng.integers(len(colors)))]) * rng.normal(1, 0.1)
            x = shift + side * (ROAD + rng.uniform(*out))
            things.append(Thing(kind, x, z, rng.uniform(*size), color, int(rng.integers(1000))))
            z += rng.uniform(*gap)

    leaves = [(0.20, 0.32, 0.12), (0.28, 0.36, 0.13), (0.14, 0.26, 0.12), (0.36, 0.34, 0.12)]
    stand("tree", (7, 26) if green else (14, 50), (1.9, 3.6), (4.5, 9), leaves)
    stand("bush", (5, 16) if green else (20, 60), (2.4, 4.2), (0.7, 1.5), leaves)
    stand("pole", (9, 19), (0.35, 0.6), (3.2, 6.8), [(0.42, 0.43, 0.45), (0.26, 0.27, 0.27), (0.55, 0.55, 0.53)])
    clothes = [
        (0.65, 0.14, 0.16),
        (0.16, 0.22, 0.46),
        (0.72, 0.70, 0.66),
        (0.12, 0.12, 0.13),
        (0.70, 0.55, 0.20),
        (0.25, 0.40, 0.30),
    ]
    stand("pedestrian", (3, 15), (0.5, 2.4), (1.55, 1.9), clothes)
    stand("bin", (18, 60), (0.4, 0.7), (0.9, 1.2), [(0.18, 0.28, 0.22), (0.30, 0.30, 0.32)])
    stand("car", (5.4, 27), (-1.15, -1.0), (1.38, 1.85), _PAINTS)
    return things


def _traffic(rng: np.random.Generator, shift: float) -> list[Thing]:
    """Cars on the lane ahead and the other one, and someone who crosses."""
    things = []
    for z in np.arange(rng.uniform(14, 30), _LENGTH, rng.uniform(22, 34)):
        color = np.array(_PAINTS[rng.integers(len(_PAINTS))])
        x = rng.normal(0, 0.3) if rng.random() < 0.6 else 2 * shift + rng.normal(0, 0.3)
        things.append(Thing("car", float(x), float(z), rng.uniform(1.4, 1.9), color, int(rng.integers(1000))))
    for z in rng.uniform(12, _LENGTH, 5):
        things.append(
            Thing(
                "pedestrian",
                shift + rng.uniform(-3, 3),
                float(z),
                1.72,
                np.array([0.6, 0.2, 0.2]),
                int(rng.integers(1000)),
            )
        )
    return things
