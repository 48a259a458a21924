from __future__ import annotations

import numpy as np
import pytest

from segline.data.synthetic.canvas import CAMERA_HEIGHT, Camera, Canvas, Painted
from segline.data.synthetic.texture import Field


def surface(label: int) -> object:
    def paint(first: Field, second: Field) -> Painted:
        return np.ones(first.shape, bool), np.full((3, *first.shape), label / 10, np.float32), label

    return paint


@pytest.fixture
def canvas() -> Canvas:
    return Canvas(Camera(shape=(40, 60), focal=50, row=18, column=30))


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_what_is_nearer_covers_what_is_farther_in_any_order(canvas: Canvas, order: tuple[int, int]) -> None:
    for label in order:
        canvas.board(0, depth=4.0 * label, width=2.0, height=1.5, surface=surface(label))  # type: ignore[arg-type]
    assert canvas.label[25, 30] == 1
    assert canvas.depth[25, 30] == 4.0
    assert canvas.color[0, 25, 30] == pytest.approx(0.1)


def test_a_board_is_as_large_as_its_distance_makes_it(canvas: Canvas) -> None:
    canvas.board(0, depth=5.0, width=2.0, height=1.5, surface=surface(3))  # type: ignore[arg-type]
    rows, columns = np.nonzero(canvas.label == 3)
    assert np.ptp(columns) + 1 == 20  # 50 pixels a radian: 2 m at 5 m
    assert np.ptp(rows) + 1 == 15
    assert rows.max() == 18 + 50 * CAMERA_HEIGHT / 5 - 1


def test_the_ground_reaches_its_horizon_and_its_depth_falls_with_the_row(canvas: Canvas) -> None:
    canvas.sky(np.ones((3, 1, 1)), 7)
    canvas.ground(surface(4), far=50)  # type: ignore[arg-type]
    assert (canvas.label[:19] == 7).all()
    assert (canvas.label[21:] == 4).all()
    assert canvas.depth[30, 10] == pytest.approx(CAMERA_HEIGHT * 50 / (30.5 - 18))


@pytest.mark.parametrize(("x", "side"), [(-2.0, slice(0, 30)), (2.0, slice(30, 60))])
def test_a_wall_stands_on_its_side_between_its_ends(canvas: Canvas, x: float, side: slice) -> None:
    canvas.wall(x, near=5, far=20, height=3, surface=surface(5))  # type: ignore[arg-type]
    seen = canvas.label == 5
    assert seen.any()
    assert seen.sum() == seen[:, side].sum()
    columns = np.nonzero(seen.any(0))[0]
    assert np.abs(columns + 0.5 - 30).max() == pytest.approx(50 * 2 / 5, abs=1)
    assert np.abs(columns + 0.5 - 30).min() == pytest.approx(50 * 2 / 20, abs=1)
    assert canvas.depth[seen].min() >= 5
    assert canvas.depth[seen].max() <= 20
