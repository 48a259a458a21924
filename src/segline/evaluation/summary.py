"""What many cases come to: scores of classes with intervals, and slices by group, object size and distance from the boundary."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.evaluation.measure import DISTANCES, CaseMeasures
from segline.labels import Labels
from segline.metrics.bootstrap import interval, interval_of, ratio_interval
from segline.metrics.objects import Objects

Row = Mapping[str, Any]
#: Parts of the objects by size: the smallest third, the middle one, the largest.
_SIZES = 3
#: Groups from which on bounds can be believed.
_ENOUGH_GROUPS = 15


def summarise_classes(
    rows: Sequence[Row],
    scores: Mapping[str, float],
    measures: Sequence[CaseMeasures],
    labels: Labels,
    case_mean: str = "cases_first",
) -> list[dict[str, Any]]:
    """A row for each class that enters means, and the last one for their mean.

    Scores of the data set and of cases are those of `segline.metrics.overlap`; `iou_low` and `iou_high`, `dice_case_low` and `..._high`
    are bounds of 95 % by resampling groups. Distances are means over the cases where both masks have a surface; `hd95_lost` counts
    those where only one has.

    Args:
        rows: Of the table of cases.
        scores: By logged name, without the split's.
        measures: Of each case.
        labels: Of the task.
        case_mean: How `dice_case` averages, as in `segline.metrics.overlap.Overlap`.
    """
    groups = [str(row["group"]) for row in rows]
    table = []
    for k in labels.shown:
        name = labels.names[k]
        table.append({"class": name, **_of_class(name, rows, scores, groups), **_of_objects(name, measures)})
    mean: dict[str, Any] = {key: _mean([row[key] for row in table]) for key in table[0] if key != "class"}
    mean |= {key: scores.get(key) for key in ("iou", "dice", "precision", "recall", "dice_case")}
    for key in ("cases", "hd95_lost", "objects", "objects_found", "objects_invented"):
        mean[key] = None
    names = [row["class"] for row in table]
    mean["iou_low"], mean["iou_high"] = _mean_iou_interval(rows, groups, names)
    mean["dice_case_low"], mean["dice_case_high"] = _mean_dice_interval(rows, groups, names, case_mean)
    if len(table) == 1:  # other draws of the same number would look like a fault
        mean |= {key: table[0][key] for key in ("iou_low", "iou_high", "dice_case_low", "dice_case_high")}
    return [*table, {"class": "mean", **mean}]


def _of_class(name: str, rows: Sequence[Row], scores: Mapping[str, float], groups: Sequence[str]) -> dict[str, Any]:
    tp, fp, fn = (_array([row[f"{part}/{name}"] for row in rows]) for part in ("tp", "fp", "fn"))
    _, iou_low, iou_high = ratio_interval(tp, tp + fp + fn, groups)
    _, dice_low, dice_high = interval(_array([row[f"dice/{name}"] for row in rows]), groups)
    found: dict[str, Any] = {
        key: scores.get(f"{key}/{name}") for key in ("iou", "dice", "precision", "recall", "dice_case")
    }
    found |= {"iou_low": iou_low, "iou_high": iou_high, "dice_case_low": dice_low, "dice_case_high": dice_high}
    found["cases"] = int(scores.get(f"cases/{name}", 0))
    for key in ("hd95", "assd", "surface_dice", "boundary_iou"):
        values = [row.get(f"{key}/{name}") for row in rows]
        found[key] = _mean([value for value in values if value is not None and np.isfinite(value)])
    found["hd95_lost"] = sum(row.get(f"hd95/{name}") == np.inf for row in rows)
    for key in ("size_true", "size_pred"):
        found[key] = _mean([row.get(f"{key}/{name}") for row in rows])
    return found


def _of_objects(name: str, measures: Sequence[CaseMeasures]) -> dict[str, Any]:
    total = _sum_objects([m.objects[name] for m in measures if name in m.objects])
    if total is None:
        names = ("objects", "objects_found", "objects_invented", "object_precision", "object_recall", "object_f1", "pq")
        return dict.fromkeys(names)
    return {
        "objects": total.tp + total.fn,
        "objects_found": total.tp,
        "objects_invented": total.fp,
        "object_precision": _finite(total.precision),
        "object_recall": _finite(total.recall),
        "object_f1": _finite(total.f1),
        "pq": _finite(total.pq),
    }


def _mean_iou_interval(rows: Sequence[Row], groups: Sequence[str], names: Sequence[str]) -> tuple[float, float]:
    counts = np.array(
        [[[row[f"{part}/{name}"] for part in ("tp", "fp", "fn")] for name in names] for row in rows], float
    )

    def mean_iou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any of the classes
            return np.asarray(np.nanmean(sums[..., 0] / sums.sum(-1), -1))

    return interval_of(mean_iou, counts, groups)


def _mean_dice_interval(
    rows: Sequence[Row], groups: Sequence[str], names: Sequence[str], case_mean: str
) -> tuple[float, float]:
    """Bounds of the very mean that `dice_case` is: sums of scores and of how many there are follow the draws of groups."""
    dice = np.array([[np.nan if row[f"dice/{n}"] is None else row[f"dice/{n}"] for n in names] for row in rows], float)
    if case_mean == "classes_first":  # one score a case
        dice = np.array([[np.nan if (mean := _mean(list(case))) is None else mean] for case in dice])
    there = np.isfinite(dice)
    totals = np.stack([np.where(there, dice, 0.0), there], -1)
    if case_mean == "together":
        totals = totals.sum(1, keepdims=True)

    def mean_dice(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any of the classes
            return np.asarray(np.nanmean(sums[..., 0] / sums[..., 1], -1))

    return interval_of(mean_dice, totals, groups)


def doubt_bounds(groups: int) -> list[str]:
    """What a reader must know of bounds that come from so many groups."""
    if groups == 1:
        return ["All cases are of one group, so that there are no bounds."]
    few = groups < _ENOUGH_GROUPS
    return [f"Bounds come from {groups} groups, and are rather too narrow than too wide."] if few else []


def slice_by_group(rows: Sequence[Row], labels: Labels) -> list[dict[str, Any]]:
    """Scores of each group, from its own counts; the worst first. Empty where every case is a group of its own."""
    of_group: dict[str, list[Row]] = {}
    for row in rows:
        of_group.setdefault(str(row["group"]), []).append(row)
    if len(of_group) in (1, len(rows)):
        return []
    names = [labels.names[k] for k in labels.shown]
    table = []
    for group, own in of_group.items():
        tp, fp, fn = (
            np.array([[row[f"{part}/{n}"] for n in names] for row in own], float).sum(0) for part in ("tp", "fp", "fn")
        )
        there = tp + fp + fn > 0
        if there.any():
            dice, iou = (2 * tp / (2 * tp + fp + fn + ~there))[there], (tp / (tp + fp + fn + ~there))[there]
            table.append({"group": group, "cases": len(own), "dice": float(dice.mean()), "iou": float(iou.mean())})
    return sorted(table, key=lambda row: row["dice"])


def slice_by_size(measures: Sequence[CaseMeasures], labels: Labels) -> list[dict[str, Any]]:
    """Share of the objects that were found, of each class by about thirds of their sizes in pixels: equal ones stay together."""
    table = []
    for k in labels.shown:
        name = labels.names[k]
        total = _sum_objects([m.objects[name] for m in measures if name in m.objects])
        if total is None or len(total.sizes) < 2 * _SIZES:
            continue
        order = np.argsort(total.sizes, kind="stable")
        for part in np.split(order, _cuts(total.sizes[order])):
            sizes, found = total.sizes[part], total.found[part]
            low, high = int(sizes.min()), int(sizes.max())
            table.append({"class": name, "low": low, "high": high, "objects": len(part), "found": float(found.mean())})
    return table


def _cuts(ranked: NDArray[Any]) -> list[int]:
    """Where sorted sizes are cut: at thirds, each moved to the nearer end of the run of equal sizes that it lies in."""
    cuts = set()
    for third in range(1, _SIZES):
        cut = third * len(ranked) // _SIZES
        ends = [int(np.searchsorted(ranked, ranked[cut], side)) for side in ("left", "right")]
        cuts.add(min(ends, key=lambda end: abs(end - cut)))
    return sorted(cuts - {0, len(ranked)})


def slice_by_distance(measures: Sequence[CaseMeasures]) -> list[dict[str, Any]]:
    """Share of wrong pixels by their distance from the boundary of the truth, in pixels."""
    if not measures:
        return []
    total = np.sum([m.near for m in measures], 0)
    lows, highs = [1, *(d + 1 for d in DISTANCES)], [*DISTANCES, None]
    return [
        {"low": low, "high": high, "pixels": int(counted), "error": float(wrong / counted) if counted else None}
        for low, high, (wrong, counted) in zip(lows, highs, total.tolist(), strict=True)
    ]


def _sum_objects(found: Sequence[Objects]) -> Objects | None:
    return sum(found[1:], found[0]) if found else None


def _array(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None and value == value]
    return float(np.mean(there)) if there else None


def _finite(value: float) -> float | None:
    return value if value == value else None
