"""What stands in a street: facades, trees, cars, poles and people, as surfaces for a canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segline.data.synthetic.canvas import Canvas, Painted
from segline.data.synthetic.texture import Field

Color = NDArray[np.floating]


@dataclass(frozen=True)
class Thing:
    """Something that stands at (x, z) in metres; `seed` keeps its looks the same from frame to frame."""

    kind: str
    x: float
    z: float
    size: float
    color: Color
    seed: int


@dataclass(frozen=True)
class House:
    """A building along one side of the street: `x` of its front, its stretch in z, its height; metres."""

    x: float
    near: float
    far: float
    height: float
    color: Color
    pitch: float
    seed: int


class Painter:
    """Paints the things of a street, given the class ids, one noise texture and the light.

    Args:
        ids: Class -> id.
        grain: Square fractal texture of mean 0, used by everything.
        lit: Share of windows that shine; lamps do above 0.2.
        glow: Colour of what shines, `[3]`.
    """

    def __init__(self, ids: dict[str, int], grain: Field, lit: float, glow: Color) -> None:
        self.ids, self.grain, self.lit, self.glow = ids, grain, lit, glow[:, None, None]

    def texture(self, first: Field, second: Field, scale: float, seed: int = 0) -> Field:
        """The noise at places in metres, `scale` texels a metre."""
        size = len(self.grain)
        rows = (first * scale + 37 * seed).astype(np.int64) % size
        columns = (second * scale + 91 * seed).astype(np.int64) % size
        return self.grain[rows, columns]

    def house(self, canvas: Canvas, house: House, travelled: float, shade: float) -> None:
        """Front with windows, and the end wall that shows in gaps."""
        near, far = house.near - travelled, house.far - travelled

        def front(z: Field, y: Field) -> Painted:
            along = z + travelled - house.near
            floor, bay = np.floor((y - 3.4) / 3.1), np.floor(along / house.pitch)
            in_floor, in_bay = (y - 3.4) / 3.1 - floor, along / house.pitch - bay
            shop = y < 3.2
            window = np.where(
                shop,
                (np.abs(in_bay - 0.5) < 0.40) & (y > 0.5) & (y < 2.7),
                (np.abs(in_bay - 0.5) < 0.24) & (in_floor > 0.28) & (in_floor < 0.78) & (y < house.height - 0.8),
            )
            chance = ((floor * 57 + bay * 131 + house.seed * 17) * 0.6180339) % 1
            ledge = (np.abs(in_floor) < 0.06) | (y > house.height - 0.5)
            wall = (
                house.color[:, None, None]
                * shade
                * (1 + 0.10 * self.texture(z + travelled, y, 9, house.seed) - 0.10 * ledge)
            )
            wall = np.where(shop, wall * 0.82, wall)
            glass = np.array([0.13, 0.16, 0.20])[:, None, None] * (1 + 0.9 * chance) * (0.6 + 0.6 * shade)
            glass = np.where(chance < self.lit, self.glow * (0.7 + 0.3 * chance), glass)
            return np.ones(z.shape, bool), np.where(window, glass, wall), self.ids["building"]

        def end(x: Field, y: Field) -> Painted:
            wall = house.color[:, None, None] * 0.75 * (1 + 0.08 * self.texture(x, y, 9, house.seed))
            return np.ones(x.shape, bool), wall, self.ids["building"]

        canvas.wall(house.x, near, far, house.height, front)
        depth = 9.0
        canvas.board(house.x + np.sign(house.x) * depth / 2, near, depth, house.height, end)

    def thing(self, canvas: Canvas, thing: Thing, travelled: float) -> None:
        """Whatever it is."""
        depth = thing.z - travelled
        nearest = 6.0 if thing.kind == "pedestrian" else 0.8  # nobody is run over
        if nearest < depth < 130:
            getattr(self, f"_{thing.kind}")(canvas, thing, depth)

    def _tree(self, canvas: Canvas, tree: Thing, depth: float) -> None:
        def surface(x: Field, y: Field) -> Painted:
            crown = 0.62 * tree.size
            away = np.hypot(x / (0.40 * tree.size), (y - crown) / (0.36 * tree.size))
            leaves = self.texture(x + 50, y, 22, tree.seed)
            inside = away + 0.22 * self.texture(x + 50, y, 9, tree.seed + 3) + 0.10 * leaves < 0.9
            trunk = (np.abs(x - 0.04 * np.sin(y)) < 0.022 * tree.size) & (y < crown)
            light = 0.75 + 0.35 * np.clip((y - crown) / (0.4 * tree.size), -1, 1) + 0.22 * leaves
            bark = np.array([0.22, 0.17, 0.13])[:, None, None] * (1 + 0.2 * leaves)
            color = np.where(inside, tree.color[:, None, None] * np.clip(light, 0.25, None), bark)
            return inside | trunk, color, self.ids["vegetation"]

        canvas.board(tree.x, depth, tree.size, 1.05 * tree.size, surface)

    def _bush(self, canvas: Canvas, bush: Thing, depth: float) -> None:
        def surface(x: Field, y: Field) -> Painted:
            leaves = self.texture(x + 50, y, 25, bush.seed)
            away = np.hypot(x / (0.8 * bush.size), y / bush.size) + 0.2 * self.texture(x + 50, y, 11, bush.seed + 5)
            color = bush.color[:, None, None] * np.clip(0.6 + 0.4 * y / bush.size + 0.22 * leaves, 0.2, None)
            return away < 0.85, color, self.ids["vegetation"]

        canvas.board(bush.x, depth, 1.9 * bush.size, 1.2 * bush.size, surface)

    def _pole(self, canvas: Canvas, pole: Thing, depth: float) -> None:
        """A lamp post, or a shorter post with a plate that has no class."""
        if depth > 55:
            return
        lamp, inward = pole.seed % 2 == 0, -np.sign(pole.x)

        def surface(x: Field, y: Field) -> Painted:
            post = (np.abs(x) < 0.075) & (y < pole.size)
            arm = lamp & (x * inward > 0) & (x * inward < 1.4) & (np.abs(y - pole.size + 0.1) < 0.07)
            plate = (not lamp) & (np.abs(x) < 0.36) & (np.abs(y - pole.size + 0.4) < 0.36)
            head = lamp & (np.abs(x * inward - 1.3) < 0.3) & (np.abs(y - pole.size + 0.12) < 0.12)
            metal = pole.color[:, None, None] * (1 + 0.3 * np.clip(x / 0.075, -1, 1))
            sign = np.array([[0.15, 0.25, 0.65], [0.75, 0.12, 0.12], [0.85, 0.8, 0.2]][pole.seed % 3])[:, None, None]
            color = np.where(plate, sign * np.where(np.abs(x) < 0.2, 1.25, 0.8), metal)
            color = np.where(head & (self.lit > 0.2), self.glow, color)
            label = np.where(plate, self.ids["void"], self.ids["pole"]).astype(np.uint8)
            return post | arm | head | plate, color, label

        canvas.board(pole.x, depth, 3.4, pole.size + 0.1, surface)

    def _pedestrian(self, canvas: Canvas, walker: Thing, depth: float) -> None:
        stride = 0.11 + 0.05 * (walker.seed % 3)

        def surface(x: Field, y: Field) -> Painted:
            tall = y / walker.size
            legs = (np.abs(np.abs(x) - stride * (0.5 - tall) * 1.6) < 0.085) & (tall < 0.5)
            body = (np.abs(x) < 0.23 - 0.10 * np.clip((tall - 0.74) / 0.1, 0, 1)) & (tall >= 0.46) & (tall < 0.84)
            head = np.hypot(x, y - 0.915 * walker.size) < 0.125
            skin, trousers = np.array([0.62, 0.46, 0.36]), np.array([0.16, 0.17, 0.24]) * (1 + walker.seed % 3)
            fold = 1 + 0.15 * self.texture(x + 9, y, 40, walker.seed)
            color = (
                np.where(
                    head, skin[:, None, None], np.where(body, walker.color[:, None, None], trousers[:, None, None])
                )
                * fold
            )
            return legs | body | head, color, self.ids["pedestrian"]

        canvas.board(walker.x, depth, 0.9, walker.size, surface)

    def _bin(self, canvas: Canvas, box: Thing, depth: float) -> None:
        def surface(x: Field, y: Field) -> Painted:
            return (
                np.ones(x.shape, bool),
                box.color[:, None, None] * np.where(y > 0.8 * box.size, 0.6, 1),
                self.ids["void"],
            )

        canvas.board(box.x, depth, 0.6, box.size, surface)

    def _car(self, canvas: Canvas, car: Thing, depth: float) -> None:
        """A back and the flank that the camera sees; `size` is the height."""
        length, half = 2.9 * car.size, 0.9
        glass = np.array([0.10, 0.12, 0.15])[:, None, None]
        paint = car.color[:, None, None]

        def back(x: Field, y: Field) -> Painted:
            tall = y / car.size
            cabin = np.abs(x) < half * (1 - 0.35 * np.clip((tall - 0.62) / 0.38, 0, 1) ** 1.5)
            shape = cabin & (tall > 0.14) | ((np.abs(np.abs(x) - 0.68) < 0.14) & (tall <= 0.14))
            window = (np.abs(x) < 0.66 - 0.25 * (tall - 0.6)) & (tall > 0.64) & (tall < 0.92)
            lamp = (np.abs(np.abs(x) - 0.74) < 0.13) & (np.abs(tall - 0.52) < 0.08)
            plate = (np.abs(x) < 0.26) & (np.abs(tall - 0.38) < 0.05)
            color = paint * (0.72 + 0.35 * tall)
            color = np.where(window, glass * (1 + tall), np.where(tall < 0.24, 0.07, color))
            color = np.where(plate, 0.75, color)
            red = np.array([0.95 if self.lit > 0.2 else 0.6, 0.10, 0.08])[:, None, None]
            return shape, np.where(lamp, red, color), self.ids["car"]

        def flank(z: Field, y: Field) -> Painted:
            along, tall = (z - depth) / length, y / car.size
            cabin = (along > 0.03 + 0.25 * (tall - 0.62)) & (along < 0.72 - 0.5 * (tall - 0.62))
            wheel = np.hypot(np.minimum(np.abs(along - 0.2), np.abs(along - 0.8)) * length, y - 0.3)
            shape = np.where(tall < 0.62, tall > 0.14, cabin) | (wheel < 0.33)
            window = (tall > 0.66) & (tall < 0.92) & (np.abs(along - 0.37) > 0.02)
            color = np.where(window, glass * 1.3, paint * (0.6 + 0.3 * tall))
            color = np.where(wheel < 0.33, np.where(wheel < 0.17, 0.4, 0.05), color)
            return shape, color, self.ids["car"]

        inner = car.x - half * np.sign(car.x)
        canvas.board(car.x, depth, 2 * half, car.size, back)
        if np.sign(inner) == np.sign(car.x):
            canvas.wall(inner, depth, depth + length, car.size, flank)
