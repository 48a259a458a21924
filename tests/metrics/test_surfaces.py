import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from segline.metrics.surfaces import (
    boundary_iou,
    boundary_width,
    hausdorff95,
    mean_surface_distance,
    measure_surfaces,
    surface_dice,
    surface_distances,
)

Mask = NDArray[np.bool_]


def edges_in_a_loop(mask: Mask, valid: Mask) -> NDArray[np.int64]:
    """Pixels of a mask, one a row, that have a face neighbour beyond the image, or one that counts and is outside of the mask."""
    rows = []
    for place in zip(*np.nonzero(mask & valid), strict=True):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            near = tuple(p + step * (a == axis) for a, p in enumerate(place))
            beyond = any(not 0 <= p < size for p, size in zip(near, mask.shape, strict=True))
            if beyond or (valid[near] and not mask[near]):
                rows.append(place)
                break
    return np.array(rows, np.int64).reshape(-1, mask.ndim)


def band_in_a_loop(mask: Mask, valid: Mask, width: int) -> Mask:
    """Pixels of a mask at most `width` from one beyond the image, or one that counts and is outside of the mask."""
    band = np.zeros_like(mask)
    for place in zip(*np.nonzero(mask & valid), strict=True):
        for steps in itertools.product(range(-width, width + 1), repeat=mask.ndim):
            near = tuple(p + step for p, step in zip(place, steps, strict=True))
            beyond = any(not 0 <= p < size for p, size in zip(near, mask.shape, strict=True))
            band[place] |= beyond or (valid[near] and not mask[near])
    return band


def percentile95(values: list[float]) -> float:
    """The value at 95 % of the way from the first to the last, between two in proportion."""
    values = sorted(values)
    place = 0.95 * (len(values) - 1)
    below = values[math.floor(place)]
    return below + (place - math.floor(place)) * (values[math.ceil(place)] - below)


def measured_in_loops(
    pred: Mask, true: Mask, spacing: tuple[float, ...], tolerance: float, width: int, valid: Mask
) -> dict[str, float]:
    edges = [edges_in_a_loop(mask, valid) for mask in (pred, true)]
    bands = [band_in_a_loop(mask, valid, width) for mask in (pred, true)]
    union = (bands[0] | bands[1]).sum()
    overlap = (bands[0] & bands[1]).sum() / union if union else math.nan
    if not all(map(len, edges)):
        neither = not any(map(len, edges))
        distance, share = (math.nan, math.nan) if neither else (math.inf, 0.0)
        return {"hd95": distance, "assd": distance, "surface_dice": share, "boundary_iou": overlap}
    directed = [
        [min(math.dist(np.multiply(a, spacing), np.multiply(b, spacing)) for b in end) for a in start]
        for start, end in (edges, edges[::-1])
    ]
    together = directed[0] + directed[1]
    return {
        "hd95": max(map(percentile95, directed)),
        "assd": sum(together) / len(together),
        "surface_dice": sum(d <= tolerance + 1e-9 for d in together) / len(together),
        "boundary_iou": overlap,
    }


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `measure_surfaces`: speckles and solid shapes, often at the border, some empty, some ignored."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    density = st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0])
    pred, true = (rng.random(shape) < draw(density) for _ in range(2))
    spacing = tuple(draw(st.sampled_from([0.5, 1.0, 2.5])) for _ in shape)
    return {
        "pred": pred,
        "true": true,
        "spacing": spacing,
        "tolerance": draw(st.sampled_from([0.0, 1.0, 2.5])),
        "width": draw(st.integers(1, 3)),
        "valid": rng.random(shape) >= draw(st.sampled_from([0.0, 0.2, 0.6, 1.0])),
    }


@given(scenes())
def test_all_metrics_equal_loops_over_pixels(scene: dict[str, Any]) -> None:
    expected = measured_in_loops(**scene)
    assert measure_surfaces(**scene) == pytest.approx(expected, nan_ok=True)
    valid = scene["valid"]
    assert boundary_iou(scene["pred"], scene["true"], scene["width"], valid) == pytest.approx(
        expected["boundary_iou"], nan_ok=True
    )
    distances = surface_distances(scene["pred"], scene["true"], scene["spacing"], valid)
    assert [len(d) for d in distances] == [len(edges_in_a_loop(scene[name], valid)) for name in ("pred", "true")]


@given(scenes(), st.integers(0, 99))
def test_both_masks_under_ignored_pixels_change_nothing(scene: dict[str, Any], seed: int) -> None:
    before = measure_surfaces(**scene)
    rng, ignored = np.random.default_rng(seed), ~scene["valid"]
    for name in ("pred", "true"):
        scene[name][ignored] = rng.random(ignored.sum()) < 0.5
    assert measure_surfaces(**scene) == pytest.approx(before, rel=0, abs=0, nan_ok=True)


def test_two_squares_three_pixels_apart_have_their_worked_values() -> None:
    pred, true = np.zeros((2, 9, 12), bool)
    pred[2:7, 2:7], true[2:7, 5:10] = True, True
    # Of 16 edge pixels each: 5 at 3 pixels, 2 at two, 5 at one, 4 on the other one's.
    scores = measure_surfaces(pred, true, spacing=(2, 2), tolerance=2, width=1)
    assert scores == pytest.approx({"hd95": 6, "assd": 3, "surface_dice": 9 / 16, "boundary_iou": 4 / (16 + 16 - 4)})


def test_a_mask_has_no_surface_where_it_runs_into_ignored_pixels() -> None:
    pred, true, valid = np.zeros((3, 7, 9), bool)
    pred[1:6, 2:], true[2:5, 2:], valid[:, :6] = True, True, True
    distances = surface_distances(pred, true, (1, 1), valid)
    assert [len(d) for d in distances] == [4 + 3 + 4, 4 + 1 + 4]
    assert surface_dice(*distances, 0) == (3 + 3) / (11 + 9)


def test_three_pixels_of_a_tenth_are_within_three_tenths() -> None:
    pred, true = np.zeros((2, 8, 8), bool)
    pred[3, 1], true[3, 4] = True, True
    distances = surface_distances(pred, true, (0.1, 0.1))
    assert distances[0][0] > 0.3  # by rounding alone
    assert surface_dice(*distances, 0.3) == 1
    assert surface_dice(*distances, 0.299) == 0


def test_the_95th_percentile_is_taken_each_way() -> None:
    """Of both ways together it would be 0: the large mask is right nearly everywhere, the small part far away is 6 of 100 pixels."""
    to_true, to_pred = np.zeros(400), np.r_[np.zeros(94), np.full(6, 30.0)]
    assert hausdorff95(to_true, to_pred) == hausdorff95(to_pred, to_true) == 30
    assert mean_surface_distance(to_true, to_pred) == 180 / 500


@pytest.mark.parametrize("shape", [(6, 8), (4, 6, 8)])
@pytest.mark.parametrize("missing", [("pred",), ("true",), ("pred", "true")])
def test_masks_without_a_surface_have_the_values_of_the_docstring(shape: tuple[int, ...], missing: tuple[str]) -> None:
    masks = {name: np.zeros(shape, bool) for name in ("pred", "true")}
    for name in masks.keys() - missing:
        masks[name][..., 2:5, 3:5] = True
    scores = measure_surfaces(**masks, spacing=(1,) * len(shape), tolerance=1)
    absent = len(missing) == 2
    distance, overlap = (math.nan, math.nan) if absent else (math.inf, 0)
    expected = {"hd95": distance, "assd": distance, "surface_dice": overlap, "boundary_iou": overlap}
    assert scores == pytest.approx(expected, nan_ok=True)


def test_a_truth_that_is_all_ignored_is_empty() -> None:
    mask = np.ones((4, 4), bool)
    assert all(map(math.isnan, measure_surfaces(mask, mask, (1, 1), 1, valid=~mask).values()))


def test_a_mask_amid_ignored_pixels_has_no_surface() -> None:
    mask = np.pad(np.ones((3, 3), bool), 6)
    assert all(map(math.isnan, measure_surfaces(mask, mask, (1, 1), 1, width=3, valid=mask).values()))
    assert math.isnan(boundary_iou(mask, mask, 3, valid=mask))


@pytest.mark.parametrize("ignored", [False, True])
def test_a_small_organ_in_a_large_volume_costs_what_it_costs_alone(
    ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pred, true = np.zeros((2, 60, 70, 80), bool)
    pred[20:25, 30:36, 40:47], true[21:26, 30:36, 40:47] = True, True
    valid = None
    if ignored:  # a prediction far away that does not count
        valid = np.ones(pred.shape, bool)
        pred[:2], valid[:2] = True, False
    erosion, sizes = ndimage.binary_erosion, []
    monkeypatch.setattr(ndimage, "binary_erosion", lambda x, *a, **k: sizes.append(x.shape) or erosion(x, *a, **k))
    far = measure_surfaces(pred, true, (3, 1, 1), 1, width=2, valid=valid)
    surface_distances(pred, true, (3, 1, 1), valid)
    assert sizes == [(6 + 2, 6 + 2, 7 + 2)] * 4
    alone = np.s_[15:30, 25:40, 35:50]
    assert measure_surfaces(pred[alone], true[alone], (3, 1, 1), 1, width=2) == far


def boundary_of_the_authors(mask: Mask, width: int) -> Mask:
    """`mask_to_boundary` of github.com/bowenc0221/boundary-iou-api, with the width in pixels."""
    import cv2

    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
    return (mask.astype(np.uint8) - eroded[1:-1, 1:-1]) > 0


def blobs(shape: tuple[int, ...], seed: int, share: float = 0.4) -> Mask:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 1 - share)


@pytest.mark.parametrize("shape", [(90, 131), (20, 35, 50)])
def test_distances_are_those_of_a_distance_transform(shape: tuple[int, ...]) -> None:
    spacing = (3.3, 0.7, 1.1)[-len(shape) :]
    pred, true = (blobs(shape, seed) for seed in (0, 1))
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (pred, true)]
    expected = [ndimage.distance_transform_edt(~end, spacing)[start] for start, end in (edges, edges[::-1])]
    for ours, theirs in zip(surface_distances(pred, true, spacing), expected, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_boundary_iou_is_that_of_its_authors_code(width: int, share: float) -> None:
    pred, true = (blobs((40, 57), seed, share) for seed in (0, 1))
    ours, theirs = boundary_of_the_authors(pred, width), boundary_of_the_authors(true, width)
    assert boundary_iou(pred, true, width) == pytest.approx((ours & theirs).sum() / (ours | theirs).sum())


def test_the_width_of_the_band_is_two_hundredths_of_the_diagonal() -> None:
    assert boundary_width((300, 400)) == 10
    assert boundary_width((5, 7)) == 1  # never none
    pred, true = np.zeros((2, 300, 400), bool)
    pred[50:250, 50:350], true[60:250, 50:350] = True, True
    scores = [measure_surfaces(pred, true, (1, 1), 1, width)["boundary_iou"] for width in (None, 10, 9)]
    assert scores[0] == scores[1] != scores[2]


def test_what_does_not_fit_is_refused() -> None:
    mask = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match=r"pred is bool \[4, 3\]; expected bool \[4, 4\]"):
        surface_distances(mask[:, :3], mask, (1, 1))
    with pytest.raises(ValueError, match=r"valid is uint8 \[4, 4\]; expected bool"):
        boundary_iou(mask, mask, 1, mask.astype(np.uint8))
    with pytest.raises(ValueError, match=r"spacing is \[1, 1, 1\] but a mask has 2 axes"):
        measure_surfaces(mask, mask, (1, 1, 1), 1)
    with pytest.raises(ValueError, match="tolerance is -1; expected 0 or more"):
        measure_surfaces(mask, mask, (1, 1), -1)
    with pytest.raises(ValueError, match="width is 0; expected 1 pixel or more"):
        measure_surfaces(mask, mask, (1, 1), 1, width=0)


def pixel(shape: tuple[int, ...], *place: int) -> Mask:
    mask = np.zeros(shape, bool)
    mask[place] = True
    return mask


def framed(mask: Mask) -> Mask:
    """Without the pixels at the border."""
    return np.pad(mask[(slice(1, -1),) * mask.ndim], 1)


PAIRS = {
    "wide": (blobs((24, 41), 0), blobs((24, 41), 1)),  # both touch the border
    "inside": (framed(blobs((24, 41), 0)), framed(blobs((24, 41), 1))),
    "volume": (blobs((7, 18, 25), 2), blobs((7, 18, 25), 3)),
    "full": (np.ones((9, 14), bool), blobs((9, 14), 4)),
    "pixel": (pixel((9, 14), 2, 3), blobs((9, 14), 4)),
    "two pixels": (pixel((5, 9, 14), 0, 0, 0), pixel((5, 9, 14), 4, 8, 13)),
    "alike": (blobs((24, 41), 0), blobs((24, 41), 0)),
    "neither": (np.zeros((6, 8), bool), np.zeros((6, 8), bool)),
    "no pred": (np.zeros((6, 8), bool), pixel((6, 8), 2, 3)),
    "no true": (blobs((5, 6, 8), 5), np.zeros((5, 6, 8), bool)),
}


@pytest.mark.slow  # imports MONAI
@pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class:UserWarning")  # of empty masks
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.3, 0.7, 1.1)])
def test_surface_metrics_are_monais(name: str, spacing: tuple[float, ...]) -> None:
    import torch
    from monai import metrics as monai_metrics

    pred, true = PAIRS[name]
    spacing, tolerance = spacing[-pred.ndim :], 2.2  # just two pixels of 1.1
    given = [torch.from_numpy(mask)[None, None] for mask in (pred, true)]
    alike = {"include_background": True, "spacing": spacing}
    expected = {
        "hd95": monai_metrics.compute_hausdorff_distance(*given, percentile=95, **alike),
        "assd": monai_metrics.compute_average_surface_distance(*given, symmetric=True, **alike),
        "surface_dice": monai_metrics.compute_surface_dice(*given, [tolerance], **alike),
    }
    scores = measure_surfaces(pred, true, spacing, tolerance)
    if pred.any() != true.any():  # where only one is empty, MONAI interpolates between inf and inf
        assert expected.pop("hd95").isnan()
        assert scores["hd95"] == math.inf
    assert {key: scores[key] for key in expected} == pytest.approx(
        {key: value.item() for key, value in expected.items()}, rel=1e-6, nan_ok=True
    )
