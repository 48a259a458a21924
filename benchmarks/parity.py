"""One prediction, the scores that five libraries give it, and ours with the switch that gives the same.

    python benchmarks/parity.py

Prints a Markdown table. Needs MONAI and segmentation-models-pytorch beside torchmetrics; nnU-Net's rule is written out here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import torch
from torch import Tensor

from segline.labels import Labels
from segline.metrics.overlap import Overlap

CLASSES = {"background": 0, "organ": 1, "lesion": 2}


def example() -> tuple[Tensor, Tensor]:
    """Prediction and truth `[4, 100, 100]`: a good one; a small organ missed; no organ, but some predicted; nothing, rightly."""
    mask = torch.zeros(4, 100, 100, dtype=torch.int64)
    mask[0, 20:80, 20:80] = 1
    mask[0, 30:40, 30:40] = 2
    mask[1, 10:13, 10:13] = 1
    mask[2, 50:60, 50:60] = 2
    pred = torch.zeros_like(mask)
    pred[0, 21:81, 20:80] = 1
    pred[0, 30:40, 33:43] = 2
    pred[2, 52:60, 50:60] = 2
    pred[2, 0, :3] = 1
    return pred, mask


def ours(name: str, background: bool = False, **rules: str) -> float:
    """Our score; the background is out of means unless asked for, as `data.labels.background` says in a config."""
    pred, mask = example()
    overlap = Overlap(Labels(CLASSES, background=None if background else "background"), len(mask), **rules)
    overlap.update(pred, mask, torch.arange(len(mask)))
    return overlap.compute()[name]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        package: Whose rule.
        call: How it is asked for there.
        theirs: Its value for prediction and truth.
        score: Name of ours.
        rules: Arguments of `ours` that give the same.
    """

    package: str
    call: str
    theirs: Callable[[Tensor, Tensor], float]
    score: str
    rules: dict[str, str | bool] = field(default_factory=dict)


def nnunet(pred: Tensor, mask: Tensor, formula: Callable[[int, int, int], float]) -> float:
    """nnU-Net's foreground mean: of each class, the mean over the images where it is in truth or prediction; then over classes."""
    means = []
    for k in (1, 2):
        scores = []
        for p, m in zip(pred.numpy() == k, mask.numpy() == k, strict=True):
            tp, fp, fn = (p & m).sum(), (p & ~m).sum(), (~p & m).sum()
            scores.append(formula(tp, fp, fn) if tp + fp + fn else np.nan)
        means.append(np.nanmean(scores))
    return float(np.mean(means))


def monai(metric: str, **arguments: bool) -> Callable[[Tensor, Tensor], float]:
    """A metric of MONAI, which wants both sides one-hot."""

    def theirs(pred: Tensor, mask: Tensor) -> float:
        import monai.metrics

        measured = getattr(monai.metrics, metric)(**arguments)
        measured(*(torch.nn.functional.one_hot(ids, len(CLASSES)).movedim(-1, 1) for ids in (pred, mask)))
        return float(measured.aggregate())

    return theirs


def smp(metric: str, reduction: str) -> Callable[[Tensor, Tensor], float]:
    """A metric of segmentation-models-pytorch."""

    def theirs(pred: Tensor, mask: Tensor) -> float:
        import segmentation_models_pytorch.metrics as metrics

        counts = metrics.get_stats(pred, mask, mode="multiclass", num_classes=len(CLASSES))
        return float(getattr(metrics, metric)(*counts, reduction=reduction))

    return theirs


def torchmetrics(metric: str, **arguments: str | bool) -> Callable[[Tensor, Tensor], float]:
    """A metric of torchmetrics."""

    def theirs(pred: Tensor, mask: Tensor) -> float:
        import torchmetrics.classification
        import torchmetrics.segmentation

        group = torchmetrics.segmentation if hasattr(torchmetrics.segmentation, metric) else torchmetrics.classification
        return float(getattr(group, metric)(num_classes=len(CLASSES), **arguments)(pred, mask))

    return theirs


IN, CLASSES_FIRST, TOGETHER = {"background": True}, {"case_mean": "classes_first"}, {"case_mean": "together"}
ONE, SKIP_ALL = {"absent": "one"}, {"absent": "skip_all"}
OUT, INDEX = {"include_background": False}, {"input_format": "index"}
ROWS = [
    Row("nnU-Net", "Dice", lambda p, m: nnunet(p, m, lambda tp, fp, fn: 2 * tp / (2 * tp + fp + fn)), "dice_case"),
    Row("nnU-Net", "IoU", lambda p, m: nnunet(p, m, lambda tp, fp, fn: tp / (tp + fp + fn)), "iou_case"),
    Row("MONAI", "DiceMetric()", monai("DiceMetric"), "dice_case", SKIP_ALL | CLASSES_FIRST | IN),
    Row(
        "MONAI",
        "DiceMetric(include_background=False)",
        monai("DiceMetric", **OUT),
        "dice_case",
        SKIP_ALL | CLASSES_FIRST,
    ),
    Row(
        "MONAI",
        "DiceMetric(include_background=False, ignore_empty=False)",
        monai("DiceMetric", **OUT, ignore_empty=False),
        "dice_case",
        ONE,
    ),
    Row("MONAI", "MeanIoU(include_background=False)", monai("MeanIoU", **OUT), "iou_case", SKIP_ALL | CLASSES_FIRST),
    Row("SMP", 'f1_score(reduction="macro-imagewise")', smp("f1_score", "macro-imagewise"), "dice_case", ONE | IN),
    Row("SMP", 'f1_score(reduction="macro")', smp("f1_score", "macro"), "dice", IN),
    Row("SMP", 'iou_score(reduction="macro")', smp("iou_score", "macro"), "iou", IN),
    Row("SMP", 'f1_score(reduction="micro")', smp("f1_score", "micro"), "accuracy"),
    Row("torchmetrics", "DiceScore()", torchmetrics("DiceScore", **INDEX), "dice_case", CLASSES_FIRST | IN),
    Row(
        "torchmetrics",
        "DiceScore(include_background=False)",
        torchmetrics("DiceScore", **INDEX, **OUT),
        "dice_case",
        CLASSES_FIRST,
    ),
    Row(
        "torchmetrics",
        'DiceScore(include_background=False, aggregation_level="global")',
        torchmetrics("DiceScore", **INDEX, **OUT, aggregation_level="global"),
        "dice",
    ),
    Row(
        "torchmetrics",
        "MeanIoU(include_background=False)",
        torchmetrics("MeanIoU", **INDEX, **OUT),
        "iou_case",
        TOGETHER,
    ),
    Row("torchmetrics", "MulticlassJaccardIndex()", torchmetrics("MulticlassJaccardIndex"), "iou", IN),
]


def main() -> None:
    print("| Library | Call | Its value | Ours | Our score | Switch |\n| --- | --- | ---: | ---: | --- | --- |")
    for row in ROWS:
        switches = [f"`{key}={value}`" for key, value in row.rules.items() if key != "background"]
        switches += ["`labels.background=null`"] if row.rules.get("background") else []
        values = f"{row.theirs(*example()):.4f} | {ours(row.score, **row.rules):.4f}"
        print(f"| {row.package} | `{row.call}` | {values} | `{row.score}` | {', '.join(switches) or 'default'} |")


if __name__ == "__main__":
    main()
