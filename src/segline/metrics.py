"""Overlap metrics from exact counts, over the data set and per case; every rule of averaging has a name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from segline.labels import IGNORE_INDEX, Labels

#: Score of each class from its true positives, false positives and false negatives.
FORMULAS = {
    "iou": lambda tp, fp, fn: tp / (tp + fp + fn),
    "dice": lambda tp, fp, fn: 2 * tp / (2 * tp + fp + fn),
    "precision": lambda tp, fp, fn: tp / (tp + fp),
    "recall": lambda tp, fp, fn: tp / (tp + fn),
}


class Overlap(Metric):
    """Dice, IoU, precision and recall from integer counts, the same for any batching and any number of processes.

    Over the data set, counts of all cases are summed before a score is taken (`iou`, `dice`: the benchmarks' mIoU). Per case, a
    score is taken of each case and class, averaged over the cases, then over the classes (`dice_case`: medicine's mean Dice).
    A class that is absent from both target and prediction has no score: it is left out of means, and `cases/<class>` says how many
    cases counted. Means over classes leave out `labels.background`.

    Args:
        labels: Names and scheme of the classes.
        num_cases: How many cases `case` of `update` may index.
    """

    full_state_update = False
    counts: Tensor
    confusion: Tensor

    def __init__(self, labels: Labels, num_cases: int) -> None:
        super().__init__()
        self.labels = labels
        k = labels.num_classes
        self.add_state("counts", torch.zeros(num_cases, k, 3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("confusion", torch.zeros(k, k, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Tensor, mask: Tensor, case: Tensor) -> None:
        """Count a batch.

        Args:
            pred: Class ids `[B, *S]`, or 0/1 for each class `[B, K, *S]`.
            mask: Of the same shape; 255 is ignored.
            case: Index of each sample's case, `[B]`.
        """
        if self.labels.exclusive:
            self._update_exclusive(pred, mask, case)
        else:
            self._update_overlapping(pred, mask, case)

    def _update_exclusive(self, pred: Tensor, mask: Tensor, case: Tensor) -> None:
        k, batch = self.labels.num_classes, len(mask)
        # One bincount for all: (sample, truth, prediction) as one number; ignored pixels go to a bin of their own, which needs no
        # gathering of the valid ones.
        sample = torch.arange(batch, device=mask.device).view(-1, *[1] * (mask.ndim - 1))
        code = torch.where(mask == IGNORE_INDEX, batch * k * k, (sample * k + mask) * k + pred)
        matrix = torch.bincount(code.flatten(), minlength=batch * k * k + 1)[:-1].view(batch, k, k)
        self.confusion += matrix.sum(0)
        tp = matrix.diagonal(dim1=1, dim2=2)
        self.counts.index_add_(0, case, torch.stack([tp, matrix.sum(1) - tp, matrix.sum(2) - tp], -1))

    def _update_overlapping(self, pred: Tensor, mask: Tensor, case: Tensor) -> None:
        valid, found, true = mask != IGNORE_INDEX, pred == 1, mask == 1
        parts = (found & true, found & ~true & valid, ~found & true)
        self.counts.index_add_(0, case, torch.stack([part.flatten(2).sum(-1) for part in parts], -1))

    def compute(self) -> dict[str, float]:
        """All scores by name; nan where nothing counts."""
        total = self.counts.sum(0)
        shown = self.labels.shown
        result: dict[str, float] = {}
        for name in FORMULAS:
            of_class = score(total, name)
            result[name] = _mean(of_class[shown])
            result |= {f"{name}/{c}": float(v) for c, v in zip(self.labels.names, of_class, strict=True)}
        if self.labels.exclusive:
            result["accuracy"] = float(self.confusion.diagonal().sum() / self.confusion.sum())
        for name in ("dice", "iou"):
            of_class = torch.nanmean(score(self.counts, name), 0)
            result[f"{name}_case"] = _mean(of_class[shown])
            result |= {f"{name}_case/{c}": float(v) for c, v in zip(self.labels.names, of_class, strict=True)}
        occurring = (self.counts.sum(-1) > 0).sum(0)
        result |= {f"cases/{c}": float(v) for c, v in zip(self.labels.names, occurring, strict=True)}
        return result

    def case_table(self) -> list[dict[str, Any]]:
        """One row a case: its index, and for each class Dice, IoU and the counts; None where a class does not occur."""
        scores = {name: score(self.counts, name).tolist() for name in ("dice", "iou")}
        counts = self.counts.tolist()
        rows = []
        for i in range(len(counts)):
            row: dict[str, Any] = {"case": i}
            for k, c in enumerate(self.labels.names):
                row |= {
                    f"{name}/{c}": None if value[i][k] != value[i][k] else value[i][k] for name, value in scores.items()
                }
                row |= {f"{part}/{c}": counts[i][k][j] for j, part in enumerate(("tp", "fp", "fn"))}
            rows.append(row)
        return rows


def score(counts: Tensor, name: str) -> Tensor:
    """Scores `[...]` of counts `[..., 3]` (true positives, false positives, false negatives); nan where the class is absent.

    >>> score(torch.tensor([[2, 1, 1], [0, 0, 0], [0, 3, 0]]), "dice").tolist()
    [0.6666666865348816, nan, 0.0]
    """
    tp, fp, fn = counts.to(torch.float64 if counts.device.type != "mps" else torch.float32).unbind(-1)
    return FORMULAS[name](tp, fp, fn).float()


def _mean(values: Tensor) -> float:
    return float(torch.nanmean(values))
