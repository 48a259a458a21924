"""Overlap metrics from exact counts, over the data set and per case; every rule of averaging has a name."""

from __future__ import annotations

from collections.abc import Callable
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

_ABSENT = ("skip", "one", "skip_all")
#: How scores of cases and classes `[N, K]` become values whose mean is `iou_case` or `dice_case`.
_CASE_MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "cases_first": lambda scores: torch.nanmean(scores, 0),
    "classes_first": lambda scores: torch.nanmean(scores, 1),
    "together": torch.flatten,
}


class Overlap(Metric):
    """Dice, IoU, precision and recall from integer counts, the same for any batching and any number of processes.

    Over the data set, counts of all cases are summed before a score is taken (`iou`, `dice`: the benchmarks' mIoU). Per case, a
    score is taken of each case and class, averaged over the cases, then over the classes (`dice_case`: medicine's mean Dice).
    A class that is absent from both truth and prediction has no score: it is left out of means, and `cases/<class>` says how many
    cases counted; nor has precision where nothing was predicted, nor recall where nothing was there. Means over classes leave out
    `labels.background`.

    Args:
        labels: Names and scheme of the classes.
        num_cases: How many cases `case` of `update` may index.
        absent: What counts for a class that the truth of a case (or of the data set) lacks. Where the prediction lacks it, too:
            `skip` gives no score, `one` gives 1; both give 0 where it is predicted. `skip_all` gives no score in either case.
        case_mean: `iou_case` and `dice_case` average over `cases_first` (then over classes), over `classes_first` (then over
            cases), or over all scores `together`. benchmarks/parity.py shows which library does what.

    Raises:
        ValueError: A rule that does not exist.
    """

    full_state_update = False
    counts: Tensor
    confusion: Tensor

    def __init__(self, labels: Labels, num_cases: int, absent: str = "skip", case_mean: str = "cases_first") -> None:
        super().__init__()
        for name, value, known in (("absent", absent, _ABSENT), ("case_mean", case_mean, _CASE_MEANS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        self.labels, self.absent, self.case_mean = labels, absent, case_mean
        k = labels.num_classes
        self.add_state("counts", torch.zeros(num_cases, k, 4, dtype=torch.int64), dist_reduce_fx="sum")
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
        fp, fn = matrix.sum(1) - tp, matrix.sum(2) - tp
        tn = matrix.sum((1, 2))[:, None] - tp - fp - fn
        self.counts.index_add_(0, case, torch.stack([tp, fp, fn, tn], -1))

    def _update_overlapping(self, pred: Tensor, mask: Tensor, case: Tensor) -> None:
        valid, found, true = mask != IGNORE_INDEX, pred == 1, mask == 1
        parts = (found & true, found & ~true & valid, ~found & true, ~found & ~true & valid)
        self.counts.index_add_(0, case, torch.stack([part.flatten(2).sum(-1) for part in parts], -1))

    def compute(self) -> dict[str, float]:
        """All scores by name; nan where nothing counts."""
        shown = self.labels.shown
        result: dict[str, float] = {}

        def put(name: str, mean: Tensor, of_class: Tensor) -> None:
            result[name] = float(mean)
            result.update({f"{name}/{c}": float(v) for c, v in zip(self.labels.names, of_class, strict=True)})

        total = self.counts.sum(0)
        for name in FORMULAS:
            of_class = score(total, name, self.absent)
            put(name, torch.nanmean(of_class[shown]), of_class)
        if self.labels.exclusive:
            result["accuracy"] = float(self.confusion.diagonal().sum() / self.confusion.sum())
        for name in ("dice", "iou"):
            of_case = score(self.counts, name, self.absent)
            mean = torch.nanmean(_CASE_MEANS[self.case_mean](of_case[:, shown]))
            put(f"{name}_case", mean, torch.nanmean(of_case, 0))
        counting = torch.isfinite(score(self.counts, "iou", self.absent)).sum(0)
        return result | {f"cases/{c}": float(n) for c, n in zip(self.labels.names, counting, strict=True)}

    def case_table(self) -> list[dict[str, Any]]:
        """One row a case: its index, and for each class Dice, IoU and the counts; None where a class has no score."""
        scores = {name: score(self.counts, name, self.absent).tolist() for name in ("dice", "iou")}
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


def score(counts: Tensor, name: str, absent: str = "skip") -> Tensor:
    """Scores `[...]` of counts `[..., 4]` (true positives, false positives, false negatives, true negatives), on the CPU.

    nan where there is none; `absent` as in `Overlap`, a case without any pixel has no score by any rule.

    >>> score(torch.tensor([[2, 1, 1, 5], [0, 0, 0, 9], [0, 3, 0, 6]]), "dice").tolist()
    [0.6666666666666666, nan, 0.0]
    """
    tp, fp, fn, tn = counts.cpu().double().unbind(-1)
    scores = FORMULAS[name](tp, fp, fn)
    if absent == "one":
        scores = scores.masked_fill((tp + fp + fn == 0) & (tn > 0), 1.0)
    elif absent == "skip_all":
        scores = scores.masked_fill(tp + fn == 0, torch.nan)
    return scores
