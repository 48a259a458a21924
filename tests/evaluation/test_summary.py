from typing import Any

import numpy as np
import pytest
import torch

from segline.evaluation.measure import CaseMeasures
from segline.evaluation.summary import doubt_bounds, slice_by_distance, slice_by_group, slice_by_size, summarise_classes
from segline.labels import Labels
from segline.metrics.objects import Objects
from segline.metrics.overlap import Overlap

RNG = np.random.default_rng(0)
LABELS = Labels({"soil": 0, "crop": 1, "weed": 2}, background="soil")


def measured(cases: int, groups: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and scores of random masks."""
    overlap = Overlap(LABELS, cases)
    mask = torch.from_numpy(RNG.integers(0, 3, (cases, 12, 12)))
    pred = torch.where(torch.rand(mask.shape) < 0.7, mask, torch.from_numpy(RNG.integers(0, 3, mask.shape)))
    overlap.update(pred, mask, torch.arange(cases))
    rows = [{**row, "case": f"c{i}", "group": f"g{i % groups}"} for i, row in enumerate(overlap.case_table())]
    return rows, overlap.compute()


def test_scores_are_those_of_the_counts_and_lie_within_their_bounds() -> None:
    rows, scores = measured(40, 20)
    crop, weed, mean = summarise_classes(rows, scores, [], LABELS)
    assert (crop["class"], weed["class"], mean["class"]) == ("crop", "weed", "mean")
    for row, name in ((crop, "/crop"), (weed, "/weed"), (mean, "")):
        assert (row["iou"], row["dice_case"]) == (scores[f"iou{name}"], scores[f"dice_case{name}"])
        assert row["iou_low"] < row["iou"] < row["iou_high"]
        assert row["dice_case_low"] < row["dice_case"] < row["dice_case_high"]
        assert row["iou_high"] - row["iou_low"] < 0.1
    assert mean["iou"] == pytest.approx((crop["iou"] + weed["iou"]) / 2)
    # Of two classes that vary by themselves the mean varies less.
    assert mean["iou_high"] - mean["iou_low"] < max(row["iou_high"] - row["iou_low"] for row in (crop, weed))


@pytest.mark.parametrize("case_mean", ["cases_first", "classes_first", "together"])
def test_bounds_are_those_of_the_mean_that_is_shown(case_mean: str) -> None:
    """A class that most cases lack: means in another order are other numbers, and bounds of one exclude the other."""
    cases = 60
    mask = torch.ones(cases, 4, 10, dtype=torch.long)
    mask[:6, 2:] = 2  # weed, which is never found
    pred = torch.ones_like(mask)
    pred[:, 0] = torch.from_numpy(RNG.integers(0, 2, (cases, 10)))
    overlap = Overlap(LABELS, cases, case_mean=case_mean)
    overlap.update(pred, mask, torch.arange(cases))
    rows = [{**row, "case": str(i), "group": str(i)} for i, row in enumerate(overlap.case_table())]
    scores = overlap.compute()
    mean = summarise_classes(rows, scores, [], LABELS, case_mean)[-1]
    assert mean["dice_case_low"] <= scores["dice_case"] <= mean["dice_case_high"]
    assert mean["dice_case_high"] - mean["dice_case_low"] < 0.2
    others = {"cases_first", "classes_first", "together"} - {case_mean}
    bounds = [summarise_classes(rows, scores, [], LABELS, other)[-1]["dice_case_low"] for other in others]
    assert mean["dice_case_low"] not in bounds


def test_distances_are_means_of_what_can_be_measured_and_lost_surfaces_are_counted() -> None:
    rows, scores = measured(4, 4)
    for row, value in zip(rows, (1.0, 3.0, np.inf, None), strict=True):
        row |= {"hd95/crop": value, "size_true/crop": 10.0}
    crop = summarise_classes(rows, scores, [], LABELS)[0]
    assert (crop["hd95"], crop["hd95_lost"], crop["size_true"]) == (2.0, 1, 10.0)
    assert crop["assd"] is crop["object_f1"] is None


def test_objects_add_up_over_cases() -> None:
    found = Objects(1, 1, 0, 0.8, np.array([9]), np.array([True]))
    missed = Objects(0, 0, 2, 0.0, np.array([4, 5]), np.array([False, False]))
    rows, scores = measured(2, 2)
    crop = summarise_classes(rows, scores, [CaseMeasures(objects={"crop": o}) for o in (found, missed)], LABELS)[0]
    assert crop["objects"] == 3
    assert crop["object_f1"] == pytest.approx(2 / (2 + 1 + 2))
    assert crop["pq"] == pytest.approx(0.8 / 2.5)


def test_groups_are_scored_by_their_own_counts_the_worst_first() -> None:
    rows, _ = measured(6, 2)
    table = slice_by_group(rows, LABELS)
    assert [row["cases"] for row in table] == [3, 3]
    assert table[0]["dice"] <= table[1]["dice"]
    for row in table:
        own = [r for r in rows if r["group"] == row["group"]]
        iou = []
        for name in ("crop", "weed"):
            tp, wrong = (sum(r[f"{p}/{name}"] for r in own for p in parts) for parts in (("tp",), ("fp", "fn")))
            iou.append(tp / (tp + wrong))
        assert row["iou"] == pytest.approx(np.mean(iou))
    assert slice_by_group(measured(3, 3)[0], LABELS) == []  # each a group of its own: that is the table of cases


def test_objects_are_cut_into_thirds_by_size() -> None:
    sizes = np.arange(1, 10)
    one = CaseMeasures(objects={"crop": Objects(5, 0, 4, 4.0, sizes, sizes > 4)})
    table = slice_by_size([one], LABELS)
    assert [(row["low"], row["high"], row["objects"]) for row in table] == [(1, 3, 3), (4, 6, 3), (7, 9, 3)]
    assert [row["found"] for row in table] == [0, pytest.approx(2 / 3), 1]


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ([3, 1, 1, 2, 1, 1, 1, 3, 18], [(1, 1, 5), (2, 2, 1), (3, 18, 3)]),
        ([*[1] * 67, *range(2, 35)], [(1, 1, 67), (2, 34, 33)]),
        ([*range(1, 35), *[99] * 66], [(1, 33, 33), (34, 34, 1), (99, 99, 66)]),
        ([1] * 9, [(1, 1, 9)]),
    ],
)
def test_objects_of_one_size_lie_in_one_part(sizes: list[int], rows: list[tuple[int, int, int]]) -> None:
    found = np.array(sizes)
    one = CaseMeasures(objects={"crop": Objects(len(sizes), 0, 0, 1.0, found, found > 1)})
    table = slice_by_size([one], LABELS)
    assert [(row["low"], row["high"], row["objects"]) for row in table] == rows


def test_errors_of_all_cases_are_put_together_by_distance() -> None:
    cases = [CaseMeasures(near=np.array([[1, 2], [0, 4], [0, 0], [1, 8], [0, 6]])) for _ in range(2)]
    table = slice_by_distance(cases)
    assert [(row["low"], row["high"]) for row in table] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, None)]
    assert [row["error"] for row in table] == [0.5, 0, None, 0.125, 0]
    assert [row["pixels"] for row in table] == [4, 8, 0, 16, 12]


@pytest.mark.parametrize(
    ("groups", "said"), [(1, "no bounds"), (2, "from 2 groups"), (14, "from 14 groups"), (15, None)]
)
def test_a_reader_is_told_of_bounds_from_few_groups(groups: int, said: str | None) -> None:
    notes = doubt_bounds(groups)
    assert [said in note for note in notes if said] == [True] * (said is not None)
    assert bool(notes) == (said is not None)
