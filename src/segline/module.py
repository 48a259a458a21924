"""The one LightningModule: any network, any loss, 2D and 3D, exclusive and overlapping labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from segline.labels import Labels
from segline.losses import DeepSupervision
from segline.metrics.overlap import Overlap
from segline.optim import parameter_groups
from segline.precision import memory_format

#: One batch: `image` [B, C, *S], `mask` [B, *S] or [B, K, *S], `case` [B], and what a data set adds.
Batch = dict[str, Tensor]


class SegmentationModule(pl.LightningModule):
    """Train, validate and test `[B, C, *S]` -> `[B, K, *S]`.

    Args:
        network: Maps images to logits of the same size.
        loss: `forward(logits, mask, weight=None)` -> scalar.
        labels: How logits become a decision.
        cases: Split -> names of its cases; `case` of a batch is an index into them.
        optimizer: Makes an optimizer from parameter groups.
        overlap: Makes the overlap metrics of `labels` and a number of cases.
        further: More torchmetrics by name, for evaluation; they get the pixels that count, flattened, of prediction and mask.
        channels_last: Keep images and weights in the memory format that convolutions are fastest in.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        labels: Labels,
        cases: Mapping[str, list[str]],
        optimizer: Callable[..., torch.optim.Optimizer],
        overlap: Callable[[Labels, int], Overlap] = Overlap,
        further: Mapping[str, Metric] | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.network, self.labels, self.cases = network, labels, cases
        self.loss = DeepSupervision(loss, getattr(network, "output_weights", None))
        self.optimizer = optimizer
        self.group_options: list[dict[str, Any]] = []  # of the optimizer's groups, as configured
        self.scores: dict[str, float] = {}  # by logged name, of the running epoch; nan where nothing counts
        self.counted: dict[str, tuple[list[dict[str, Any]], Tensor]] = {}  # split -> row of each case, confusion
        self.channels_last = channels_last
        self._meters = nn.ModuleDict()
        for split, names in cases.items():
            more = {} if split == "train" or further is None else further
            meters = Meters(labels, overlap(labels, len(names)), more)
            self._meters[f"in_{split}"] = meters  # "train" alone would clash with the method of that name

    def meters(self, split: str) -> Meters:
        """What was measured in the running or the last epoch of a split."""
        return cast(Meters, self._meters[f"in_{split}"])

    def forward(self, image: Tensor) -> Any:
        """Logits `[B, K, *S]` of images `[B, C, *S]`; in training several, finest first, of a network that gives them."""
        return self.network(image)

    # Training

    def on_train_epoch_start(self) -> None:
        self.scores = {}

    def training_step(self, batch: Batch, _: int) -> Tensor:
        outputs = self(batch["image"])
        loss: Tensor = self.loss(outputs, batch["mask"], batch.get("weight"))
        if not torch.isfinite(loss):
            raise ValueError(self._say_not_finite(loss, "train", batch))
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        self.meters("train").update(loss.detach(), logits.detach(), batch)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self._log("train")
        self.meters("train").reset()  # not at an epoch's start: a resume may start in its middle

    def configure_optimizers(self) -> torch.optim.Optimizer:
        try:
            optimizer = self.optimizer(parameter_groups(self.network))
        except ValueError as error:  # torch's own, without the name of the setting
            raise ValueError(f"optimizer: {error}") from error
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_factor", 1.0)
        self.group_options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return optimizer

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self.meters("val").reset()

    def validation_step(self, batch: Batch, _: int) -> None:
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log("val")

    def on_test_epoch_start(self) -> None:
        self.meters("test").reset()

    def test_step(self, batch: Batch, _: int) -> None:
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log("test")

    def _evaluate(self, split: str, batch: Batch) -> None:
        logits = self(batch["image"]).float()
        # One by one: some losses look at the batch as a whole, and the value must not depend on who shares it.
        losses = torch.stack([self.loss(logits[i, None], batch["mask"][i, None]) for i in range(len(logits))])
        if not torch.isfinite(losses).all():  # a decision on logits that are not finite would be scored like any other
            raise ValueError(self._say_not_finite(losses.sum(), split, batch))
        self.meters(split).update(losses, logits, batch)

    def _log(self, split: str) -> None:
        """Log what was measured in this epoch; classes that occur nowhere have no value."""
        scores = {f"{split}/{name}": v for name, v in self.meters(split).compute().items()}  # the same on every process
        self.scores |= scores
        # Now and not later: Lightning ends by moving all to the CPU, where NCCL cannot reach.
        if self.trainer.state.fn != "fit":
            overlap = self.meters(split).overlap
            with overlap.sync_context():
                self.counted[split] = overlap.case_table(), overlap.confusion.cpu().clone()
        # Not once more to the loggers when the best weights are tested at the end, which would be a point after the last epoch.
        live = self.trainer.state.fn != "validate"
        self.log_dict({name: v for name, v in scores.items() if v == v}, logger=live)

    # Moving data

    def on_after_batch_transfer(self, batch: Batch, _: int) -> Batch:
        if self.channels_last:
            batch["image"] = batch["image"].to(memory_format=memory_format(batch["image"].ndim))
        return batch

    def _say_not_finite(self, loss: Tensor, split: str, batch: Batch) -> str:
        names = sorted({self.cases[split][int(i)] for i in batch["case"]})
        broken = [name for name, p in self.network.named_parameters() if not torch.isfinite(p).all()]
        cause = f"; weights that are not finite: {', '.join(broken[:3])}" if broken else ""
        return (
            f"the loss is {float(loss.detach())} at step {self.global_step} (epoch {self.current_epoch}) on {', '.join(names)}{cause}; "
            "the best checkpoint is whole; look at these files, lower optimizer.lr, or set trainer.precision=32"
        )


class Meters(nn.Module):
    """Loss, overlap and further metrics of one epoch of one split.

    Args:
        labels: How logits become a decision.
        overlap: Of the split's cases.
        further: More torchmetrics by name.
    """

    def __init__(self, labels: Labels, overlap: Overlap, further: Mapping[str, Metric]) -> None:
        super().__init__()
        self.labels = labels
        self.loss, self.overlap = MeanMetric(), overlap
        self.further = nn.ModuleDict({name: metric.clone() for name, metric in further.items()})

    @property
    def names(self) -> list[str]:
        """Of all that `compute` gives."""
        return ["loss", *type(self.overlap).compute(self.overlap), *self.further]

    def update(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        """Measure logits `[B, K, *S]` with their loss: one of the batch, or one of each sample [B]."""
        mask, pred = batch["mask"], self.labels.decide(self.labels.probs(logits))
        valid = self.labels.valid(mask)
        counts = valid.flatten(1).sum(1)
        self.loss.update(loss, counts if loss.ndim else counts.sum())
        self.overlap.update(pred, mask, batch["case"])
        for metric in self._further():
            metric.update(pred[valid], mask[valid])

    def compute(self) -> dict[str, float]:
        """All values by name, over all processes; nan where nothing counts."""
        further = {name: float(cast(Metric, metric).compute()) for name, metric in self.further.items()}
        return {"loss": float(self.loss.compute()), **self.overlap.compute(), **further}

    def reset(self) -> None:
        """Forget everything."""
        for metric in (self.loss, self.overlap, *self._further()):
            metric.reset()

    def _further(self) -> list[Metric]:
        return [cast(Metric, metric) for metric in self.further.values()]

    # The sums of an epoch that a resume goes on within

    def sums(self, reduce: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Sums so far, each reduced over all processes."""
        return [reduce(getattr(metric, name).clone()) for metric, name in self._states()]

    def go_on(self, sums: list[Tensor]) -> None:
        """Go on from sums that `sums` gave; on one process only."""
        for (metric, name), value in zip(self._states(), sums, strict=True):
            setattr(metric, name, value.to(metric.device))
            metric._update_count = max(
                metric._update_count, 1
            )  # else torchmetrics warns of a compute without an update

    def _states(self) -> list[tuple[Metric, str]]:
        return [(metric, name) for metric in (self.loss, self.overlap) for name in metric._defaults]


def as_segmentation(module: Any) -> SegmentationModule:
    """Lightning hands its hooks a module of any kind; ours is this one."""
    assert isinstance(module, SegmentationModule)
    return module
