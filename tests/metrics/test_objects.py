import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from segline.metrics.objects import Objects, count_objects

Places = set[tuple[int, ...]]


def row(*runs: tuple[int, int], size: int = 20) -> NDArray[np.bool_]:
    """A mask of one row with runs of pixels, each from the first to before the last."""
    mask = np.zeros((1, size), bool)
    for start, stop in runs:
        mask[:, start:stop] = True
    return mask


def counted(objects: Objects) -> tuple[int, int, int]:
    return objects.tp, objects.fp, objects.fn


def alike(a: Objects, b: Objects) -> bool:
    """Equal in all but the order of the objects."""
    return (
        counted(a) == counted(b)
        and a.iou_sum == pytest.approx(b.iou_sum)
        and sorted(zip(a.sizes, a.found, strict=True)) == sorted(zip(b.sizes, b.found, strict=True))
    )


def components_in_a_loop(mask: NDArray[np.bool_]) -> list[Places]:
    left = {tuple(map(int, place)) for place in np.argwhere(mask)}
    objects = []
    while left:
        grown: Places = set()
        edge = {left.pop()}
        while edge:
            grown |= edge
            edge = {p for p in left if any(max(abs(a - b) for a, b in zip(p, q, strict=True)) == 1 for q in edge)}
            left -= edge
        objects.append(grown)
    return objects


def best_matching(iou: dict[tuple[int, int], float], trues: list[int], used: frozenset[int] = frozenset()) -> Any:
    """Of all ways to match one to one: (number of pairs, sum of IoU, pairs) with the most pairs, then the largest sum."""
    if not trues:
        return 0, 0.0, ()
    ways = [best_matching(iou, trues[1:], used)]
    for (p, t), value in iou.items():
        if t == trues[0] and p not in used:
            count, total, pairs = best_matching(iou, trues[1:], used | {p})
            ways.append((count + 1, total + value, ((p, t), *pairs)))
    return max(ways, key=lambda way: (way[0], round(way[1], 9)))


def counted_in_loops(
    pred: NDArray[np.bool_],
    true: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    instances: NDArray[np.int64] | None,
    least_iou: float,
    least_pixels: int,
) -> tuple[tuple[int, int, int], float, list[int]]:
    """Counts, the sum of IoU, and the sizes of the truth's objects."""
    preds = components_in_a_loop(pred & valid)
    if instances is None:
        trues = components_in_a_loop(true & valid)
    else:
        numbers = np.where(true & valid, instances, 0)
        trues = [set(map(tuple, np.argwhere(numbers == n).tolist())) for n in set(numbers[numbers > 0].tolist())]
    preds, trues = ([o for o in objects if len(o) >= least_pixels] for objects in (preds, trues))
    iou = {}
    for (i, p), (j, t) in itertools.product(enumerate(preds), enumerate(trues)):
        if len(p & t) / len(p | t) > least_iou:
            iou[i, j] = len(p & t) / len(p | t)
    tp, total, _ = best_matching(iou, list(range(len(trues))))
    return (tp, len(preds) - tp, len(trues) - tp), total, sorted(map(len, trues))


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `count_objects`: speckles whose objects overlap in many ways."""
    shape = tuple(draw(st.sampled_from([(1, 12), (5, 5), (6, 4), (3, 2, 4)])))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    density = st.sampled_from([0.0, 0.2, 0.4, 0.7])
    true = rng.random(shape) < draw(density)
    # Often like the truth, so that there are matches of all qualities.
    pred = np.where(rng.random(shape) < draw(st.sampled_from([0.1, 0.3, 1.0])), rng.random(shape) < draw(density), true)
    return {
        "pred": pred,
        "true": true,
        "valid": rng.random(shape) >= draw(st.sampled_from([0.0, 0.2, 1.0])),
        "instances": rng.choice([3, 7, 2**60], shape) if draw(st.booleans()) else None,
        "least_iou": draw(st.sampled_from([0.0, 0.1, 0.25, 0.49, 0.5, 0.75])),
        "least_pixels": draw(st.integers(1, 3)),
    }


@given(scenes())
def test_counts_equal_loops_over_all_pairs(scene: dict[str, Any]) -> None:
    objects = count_objects(**scene)
    counts, iou_sum, sizes = counted_in_loops(**scene)
    assert counted(objects) == counts
    assert objects.iou_sum == pytest.approx(iou_sum)
    assert sorted(objects.sizes.tolist()) == sizes
    assert len(objects.found) == len(sizes)
    assert objects.found.sum() == objects.tp


@given(scenes(), st.integers(0, 99))
def test_what_lies_under_ignored_pixels_changes_nothing(scene: dict[str, Any], seed: int) -> None:
    before = count_objects(**scene)
    rng, ignored = np.random.default_rng(seed), ~scene["valid"]
    for name in ("pred", "true"):
        scene[name][ignored] = rng.random(ignored.sum()) < 0.5
    if scene["instances"] is not None:
        scene["instances"][ignored] = rng.integers(0, 5, ignored.sum())  # even none
    assert alike(count_objects(**scene), before)


def test_a_worked_example() -> None:
    true = row((0, 4), (6, 8), (10, 15))
    pred = row((0, 3), (7, 9), (10, 16), (18, 19))
    objects = count_objects(pred, true)  # IoU 3/4, 1/3, 5/6
    assert counted(objects) == (2, 2, 1)
    assert objects.precision == 2 / 4
    assert objects.recall == 2 / 3
    assert objects.f1 == pytest.approx(4 / 7)
    assert objects.pq == pytest.approx((3 / 4 + 5 / 6) / (2 + 2 / 2 + 1 / 2))
    assert objects.sizes.tolist() == [4, 2, 5]
    assert objects.found.tolist() == [True, False, True]
    assert counted(count_objects(pred, true, least_iou=0.3)) == (3, 1, 0)


def test_half_an_object_is_no_match() -> None:
    assert counted(count_objects(row((0, 2)), row((0, 4)))) == (0, 1, 1)
    assert counted(count_objects(row((0, 3)), row((0, 4)), least_iou=0.75)) == (0, 1, 1)


def test_objects_that_touch_are_one_unless_their_instances_are_known() -> None:
    true, instances = row((0, 6)), np.zeros((1, 20), np.int32)
    instances[0, :4], instances[0, 4:] = 9, 70000  # beyond the mask they count for nothing
    assert counted(count_objects(true, true)) == (1, 0, 0)
    objects = count_objects(true, true, instances=instances)
    assert counted(objects) == (1, 0, 1)
    assert objects.sizes.tolist() == [4, 2]
    assert objects.found.tolist() == [True, False]


def test_an_instance_may_have_several_parts() -> None:
    true = row((0, 4), (6, 7))
    assert counted(count_objects(true, true, instances=np.ones((1, 20), np.int64))) == (1, 1, 0)
    assert counted(count_objects(true, true)) == (2, 0, 0)


def test_one_object_matches_one_only() -> None:
    three = row((0, 4), (5, 9), (10, 14))
    assert counted(count_objects(row((0, 14)), three, least_iou=0.1)) == (1, 0, 2)
    assert counted(count_objects(three, row((0, 14)), least_iou=0.1)) == (1, 2, 0)


def test_as_many_as_possible_match_even_where_the_best_pair_is_in_the_way() -> None:
    true, pred = row((0, 10), (12, 20)), row((0, 1), (2, 13))  # IoU 1/10, 8/13 and 1/18
    objects = count_objects(pred, true, least_iou=0)
    assert counted(objects) == (2, 0, 0)
    assert objects.iou_sum == pytest.approx(1 / 10 + 1 / 18)
    objects = count_objects(pred, true, least_iou=0.08)
    assert counted(objects) == (1, 1, 1)
    assert objects.iou_sum == pytest.approx(8 / 13)  # the better one of two that exclude each other


@pytest.mark.parametrize("num_axes", [2, 3])
def test_objects_are_connected_over_corners(num_axes: int) -> None:
    mask = np.zeros((4,) * num_axes, bool)
    mask[(0,) * num_axes] = mask[(1,) * num_axes] = mask[(3,) * num_axes] = True
    objects = count_objects(mask, mask)
    assert counted(objects) == (2, 0, 0)
    assert sorted(objects.sizes.tolist()) == [1, 2]


def test_ignored_pixels_end_objects_and_hide_them() -> None:
    valid = ~row((4, 6), (10, 20))
    objects = count_objects(row((0, 9), (12, 14)), row((0, 9), (16, 19)), valid)
    assert counted(objects) == (2, 0, 0)
    assert objects.sizes.tolist() == [4, 3]


def test_small_objects_are_left_out_on_both_sides() -> None:
    true, pred = row((0, 4), (6, 8), (10, 12)), row((0, 4), (6, 9), (15, 16))
    assert counted(count_objects(pred, true)) == (2, 1, 1)
    objects = count_objects(pred, true, least_pixels=3)
    assert counted(objects) == (1, 1, 0)
    assert objects.sizes.tolist() == [4]
    assert objects.found.tolist() == [True]


@pytest.mark.parametrize(
    ("pred", "true", "expected"),
    [
        (row(), row(), (math.nan, math.nan, math.nan, math.nan)),
        (row((2, 4)), row(), (0, math.nan, 0, 0)),
        (row(), row((2, 4)), (math.nan, 0, 0, 0)),
        (row((2, 4)), row((2, 4)), (1, 1, 1, 1)),
    ],
)
@pytest.mark.parametrize("least_iou", [0.1, 0.5])
def test_without_objects_there_is_no_score(
    pred: NDArray[np.bool_], true: NDArray[np.bool_], expected: tuple[float, ...], least_iou: float
) -> None:
    objects = count_objects(pred, true, least_iou=least_iou)
    scores = (objects.precision, objects.recall, objects.f1, objects.pq)
    assert scores == pytest.approx(expected, nan_ok=True)


def test_cases_add_up_to_what_they_are_side_by_side() -> None:
    rng = np.random.default_rng(0)
    preds, trues = rng.random((2, 3, 12, 12)) < 0.3
    first, *others = (count_objects(p, t, least_iou=0.2) for p, t in zip(preds, trues, strict=True))
    beside = [np.concatenate([np.pad(mask, 1) for mask in masks], 1) for masks in (preds, trues)]
    assert alike(sum(others, first), count_objects(*beside, least_iou=0.2))


@pytest.mark.parametrize("least_iou", [0.1, 0.5])
def test_ten_thousand_objects_are_counted_at_once(least_iou: float) -> None:
    cell = np.zeros((6, 6), bool)
    cell[1:5, 1:5] = True
    true = np.tile(cell, (100, 100))
    pred = np.roll(true, 1, axis=1)  # IoU 12 / 20
    pred[:, :60] = False  # a tenth of them is missed
    objects = count_objects(pred, true, least_iou=least_iou)
    assert counted(objects) == (9000, 0, 1000)
    assert objects.pq == pytest.approx(0.6 * 9000 / 9500)


def test_what_does_not_fit_is_refused() -> None:
    mask = row((0, 4))
    with pytest.raises(ValueError, match=r"pred is bool \[1, 9\]; expected bool \[1, 20\]"):
        count_objects(mask[:, :9], mask)
    with pytest.raises(ValueError, match=r"true is uint8 \[1, 20\]; expected bool"):
        count_objects(mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="least_iou is 1; expected 0 to less than 1"):
        count_objects(mask, mask, least_iou=1)
    with pytest.raises(ValueError, match=r"instances has the shape \[20\]"):
        count_objects(mask, mask, instances=np.ones(20, int))
    with pytest.raises(ValueError, match="4 pixels of true have no instance number"):
        count_objects(mask, mask, instances=np.zeros((1, 20), int))


@pytest.mark.slow  # imports MONAI
@pytest.mark.parametrize("shape", [(40, 57), (8, 20, 25)])
@pytest.mark.parametrize("least_iou", [0.5, 0.7])
def test_panoptic_quality_is_monais(shape: tuple[int, ...], least_iou: float) -> None:
    import torch
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(2, *shape)), (0, *[1.5] * len(shape)))
    true, pred = noise[0] > 0.06, 0.9 * noise[0] + 0.2 * noise[1] > 0.06
    numbers = [ndimage.label(mask, np.ones((3,) * mask.ndim))[0] for mask in (pred, true)]
    tp, fp, fn, iou_sum = compute_panoptic_quality(
        *map(torch.from_numpy, numbers), match_iou_threshold=least_iou, output_confusion_matrix=True
    ).tolist()
    objects = count_objects(pred, true, least_iou=least_iou)
    assert counted(objects) == (tp, fp, fn)
    assert min(tp, fp, fn) > 0
    assert objects.iou_sum == pytest.approx(iou_sum, rel=1e-6)
