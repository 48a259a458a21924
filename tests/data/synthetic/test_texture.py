from __future__ import annotations

import numpy as np
import pytest

from segline.data.synthetic.texture import cells, curve_distance, fractal, scattered, turned


@pytest.mark.parametrize("shape", [(64,), (48, 33), (12, 20, 17)])
def test_a_fractal_has_mean_0_and_deviation_1(shape: tuple[int, ...]) -> None:
    field = fractal(np.random.default_rng(0), shape, 10)
    assert field.shape == shape
    assert field.dtype == np.float32
    assert field.mean() == pytest.approx(0, abs=1e-4)
    assert field.std() == pytest.approx(1, abs=1e-4)


def test_a_fractal_of_longer_waves_is_smoother_and_streaks_run_along_the_longer_axis() -> None:
    def step(scale: object, smoothness: float = 0.9, axis: int = 0) -> float:
        field = fractal(np.random.default_rng(1), (96, 96), scale, smoothness)  # type: ignore[arg-type]
        return float(np.abs(np.diff(field, axis=axis)).mean())

    assert step(4) > 1.5 * step(40)
    assert step(40, 0.5) > 2 * step(40, 1.5)
    assert step((4, 40), axis=0) > 1.5 * step((4, 40), axis=1)


def test_scattered_points_leave_no_hole() -> None:
    points = scattered(np.random.default_rng(0), (50, 70), 10)
    places = np.stack(np.meshgrid(np.arange(50), np.arange(70), indexing="ij"), -1).reshape(-1, 1, 2)
    nearest = np.linalg.norm(places - points, axis=-1).min(1)
    assert nearest.max() < 10 * 0.95 * 2**0.5  # half a step, and its jitter, along both axes


def test_cells_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    points, at = rng.uniform(0, 20, (12, 2)), rng.uniform(0, 20, (6, 5, 2))
    index, distance, border = cells(points, at)
    away = np.linalg.norm(at[:, :, None] - points, axis=-1)
    order = np.argsort(away, axis=-1)[..., :2]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(distance, away.min(-1), rtol=1e-5)
    first, second = points[order[..., 0]], points[order[..., 1]]
    normal = (second - first) / np.linalg.norm(second - first, axis=-1, keepdims=True)
    np.testing.assert_allclose(border, (((first + second) / 2 - at) * normal).sum(-1), rtol=1e-4, atol=1e-5)


def test_turned_coordinates_keep_distances_and_start_downwards() -> None:
    rows, columns = np.indices((5, 7), np.float32)
    along, across = turned(rows, columns, 0.0)
    np.testing.assert_array_equal(along, rows)
    np.testing.assert_array_equal(across, columns)
    along, across = turned(rows, columns, 0.7)
    np.testing.assert_allclose(np.hypot(along, across), np.hypot(rows, columns), rtol=1e-5, atol=1e-6)


def test_a_curve_crosses_each_row_once_within_its_swing() -> None:
    rows, columns = np.indices((200, 161), np.float32)
    distance = curve_distance(np.random.default_rng(0), rows, columns - 80, swing=20, wavelength=100)
    crossings = np.diff(np.signbit(distance), axis=1).sum(1)
    assert (crossings == 1).all()
    place = np.abs(distance).argmin(1) - 80
    assert 15 < np.abs(place).max() < 40
    assert np.abs(np.diff(place)).max() < 6
