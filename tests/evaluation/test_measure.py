import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from segline.evaluation.measure import DISTANCES, Scale, errors_by_distance, measure_case, sizes_of
from segline.io.source import Geometry
from segline.labels import IGNORE_INDEX, Labels

RNG = np.random.default_rng(0)
LABELS = Labels({"soil": 0, "crop": 1, "weed": 2}, background="soil")
OVERLAPPING = Labels({"whole": [1, 2], "core": [2]}, scheme="overlapping")


def test_lengths_are_millimetres_of_volumes_metres_of_scenes_and_pixels_of_all_else() -> None:
    volume = Scale.of(Geometry(affine=((1.0,) * 4,) * 4, spacing=(3.0, 0.5, 0.5)), (4, 5, 6))
    assert (volume.unit, volume.size_unit, volume.spacing, volume.pixel) == ("mm", "mm³", (3.0, 0.5, 0.5), 3.0)
    assert volume.sizes.tolist() == [0.75] * 4
    utm = ((10.0, 0.0, 5e5), (0.0, -20.0, 5e6), (0.0, 0.0, 1.0))
    scene = Scale.of(Geometry(utm, CRS.from_epsg(32632).to_wkt(), (20.0, 10.0)), (7, 9))
    assert (scene.unit, scene.size_unit, scene.spacing) == ("m", "m²", (20.0, 10.0))
    assert scene.sizes.tolist() == [200.0] * 7
    photo = Scale.of(Geometry(), (7, 9))
    assert (photo.unit, photo.size_unit, photo.spacing, photo.sizes.sum()) == ("px", "px", (1.0, 1.0), 7)


# Lengths of a degree of latitude and of longitude on WGS 84, as the National Geospatial-Intelligence Agency tabulates them.
@pytest.mark.parametrize(("latitude", "expected"), [(0.0, (110.57, 111.32)), (60.0, (111.41, 55.80))])
def test_degrees_become_metres(latitude: float, expected: tuple[float, float]) -> None:
    step = 0.001
    place = ((step, 0.0, 9.0), (0.0, -step, latitude), (0.0, 0.0, 1.0))
    scale = Scale.of(Geometry(place, CRS.from_epsg(4326).to_wkt(), (step, step)), (10, 10))
    assert scale.unit == "m"
    assert scale.spacing == pytest.approx(expected, rel=7e-3)


def test_two_squares_by_hand() -> None:
    mask = np.zeros((20, 20), np.uint8)
    pred = mask.copy()
    mask[5:11, 5:11] = 1
    pred[5:11, 8:14] = 1
    scale = Scale((2.0, 2.0), "mm", np.full(20, 4.0))
    found = measure_case(pred, mask, LABELS, scale, None, 0.3).row
    halves = [sizes_of(pred[rows], mask[rows], LABELS, scale, rows) for rows in (slice(0, 9), slice(9, 20))]
    for name in ("size_true/crop", "size_pred/crop"):
        assert sum(half[name] for half in halves) == 36 * 4
    assert found["hd95/crop"] == pytest.approx(6.0)  # three pixels of 2 mm
    assert (found["objects_tp/crop"], found["objects_fp/crop"], found["objects_fn/crop"]) == (1, 0, 0)  # IoU 18 / 54
    assert found["hd95/weed"] is None
    assert "hd95/soil" not in found


@given(st.integers(0, 2**32 - 1), st.sampled_from([LABELS, OVERLAPPING]))
def test_what_is_said_of_ignored_pixels_changes_nothing(seed: int, labels: Labels) -> None:
    rng = np.random.default_rng(seed)
    shape = (14, 17) if labels.exclusive else (2, 14, 17)
    mask, pred = (rng.integers(0, 3 if labels.exclusive else 2, shape).astype(np.uint8) for _ in range(2))
    mask[rng.random(shape) < 0.3] = IGNORE_INDEX
    other = np.where(mask == IGNORE_INDEX, rng.integers(0, 2, shape), pred).astype(np.uint8)
    scale = Scale((1.0, 2.0), "mm", np.full(14, 2.0))
    one, two = (measure_case(said, mask, labels, scale, 1.0, 0.5) for said in (pred, other))
    assert one.row == two.row
    assert np.array_equal(one.near, two.near)


@pytest.mark.parametrize("labels", [LABELS, OVERLAPPING])
def test_errors_by_distance_are_those_of_brute_force(labels: Labels) -> None:
    shape = (25, 20)
    if labels.exclusive:
        mask = np.zeros(shape, np.uint8)
        mask[10:, 8:] = 1
        mask[20:, :5] = 2
    else:
        mask = np.zeros((2, *shape), np.uint8)
        mask[0, 10:, 8:] = 1
        mask[1, 15:20, 12:16] = 1
    mask[..., 3:6, 3:6] = IGNORE_INDEX
    pred = np.where(RNG.random(mask.shape) < 0.2, 1 - np.minimum(mask, 1), mask).astype(np.uint8)
    planes = mask[None] if labels.exclusive else mask
    expected = np.zeros((len(DISTANCES) + 1, 2), np.int64)
    for row in range(shape[0]):
        for column in range(shape[1]):
            if all(plane[row, column] == IGNORE_INDEX for plane in planes):
                continue
            distance = 99
            for plane in planes:
                for y, x in np.argwhere((plane != IGNORE_INDEX) & (plane[row, column] != IGNORE_INDEX)):
                    if plane[y, x] != plane[row, column]:
                        distance = min(distance, max(abs(y - row), abs(x - column)))
            part = int(np.searchsorted(DISTANCES, distance))
            wrong = any(
                p[row, column] != m[row, column] and m[row, column] != IGNORE_INDEX
                for p, m in zip(pred[None] if labels.exclusive else pred, planes, strict=True)
            )
            expected[part] += wrong, 1
    assert np.array_equal(errors_by_distance(pred, mask, labels), expected)
