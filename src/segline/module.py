"""The one LightningModule: any network, any loss, 2D and 3D, exclusive and overlapping labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from segline.labels import Labels
from segline.metrics import Overlap
from segline.optim import parameter_groups

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
        metrics: Further torchmetrics by name; they get the valid pixels, flattened, of prediction and mask.
        channels_last: Keep images and weights in the memory format that convolutions are fastest in.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        labels: Labels,
        cases: Mapping[str, list[str]],
        optimizer: Callable[..., torch.optim.Optimizer],
        metrics: Mapping[str, Metric] | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.labels, self.cases = network, loss, labels, cases
        self.optimizer = optimizer
        self.overlap = nn.ModuleDict(
            {f"{split}_overlap": Overlap(labels, len(names)) for split, names in cases.items()}
        )
        self.losses = nn.ModuleDict({f"{split}_loss": MeanMetric() for split in cases})
        self.extra = nn.ModuleDict(
            {f"{split}_{name}": m.clone() for split in ("val", "test") for name, m in (metrics or {}).items()}
        )
        self.channels_last = channels_last

    def forward(self, image: Tensor) -> Tensor:
        """Logits `[B, K, *S]` of images `[B, C, *S]`."""
        return self.network(image)  # type: ignore[no-any-return]

    # Training

    def training_step(self, batch: Batch, _: int) -> Tensor:
        logits = self(batch["image"])
        loss: Tensor = self.loss(logits, batch["mask"], batch.get("weight"))
        if not torch.isfinite(loss):
            raise ValueError(self._say_not_finite(loss, batch))
        self._measure("train", loss.detach(), logits.detach(), batch)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def on_train_epoch_end(self) -> None:
        self._report("train")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(parameter_groups(self.network))

    # Evaluation

    def validation_step(self, batch: Batch, _: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, _: int) -> None:
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _evaluate(self, split: str, batch: Batch) -> None:
        logits = self(batch["image"]).float()
        pred = self._measure(split, self.loss(logits, batch["mask"]), logits, batch)
        for key, metric in self.extra.items():
            if key.startswith(split):
                valid = self.labels.valid(batch["mask"])
                metric.update(pred[valid], batch["mask"][valid])

    def _measure(self, split: str, loss: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        pred: Tensor = self.labels.decide(self.labels.probs(logits))
        counted = self.labels.valid(batch["mask"]).sum()
        self.losses[f"{split}_loss"].update(loss, counted)
        self.overlap[f"{split}_overlap"].update(pred, batch["mask"], batch["case"])
        return pred

    def _report(self, split: str) -> None:
        """Log what was measured since the last report; classes that occur nowhere are left out."""
        loss, overlap = self.losses[f"{split}_loss"], self.overlap[f"{split}_overlap"]
        scores = {"loss": loss.compute(), **overlap.compute()}
        for key, metric in self.extra.items():
            if key.startswith(f"{split}_"):
                scores[key.removeprefix(f"{split}_")] = metric.compute()
                metric.reset()
        if split == "train":  # evaluation's states stay readable until the next evaluation, for tables and pictures
            loss.reset()
            overlap.reset()
        self.log_dict(
            {f"{split}/{name}": float(value) for name, value in scores.items() if value == value}, sync_dist=True
        )

    def on_validation_epoch_start(self) -> None:
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        self._reset("test")

    def _reset(self, split: str) -> None:
        self.losses[f"{split}_loss"].reset()
        self.overlap[f"{split}_overlap"].reset()

    # What was measured within an epoch, for a resume in its middle

    def measured(self) -> list[Tensor]:
        """Sums of the running epoch over all processes."""
        return [
            self.trainer.strategy.reduce(getattr(metric, name).clone(), reduce_op="sum")
            for metric, name in self._running()
        ]

    def restore_measured(self, sums: list[Tensor]) -> None:
        """Go on from sums that `measured` gave; on one process only."""
        for (metric, name), value in zip(self._running(), sums, strict=True):
            setattr(metric, name, value.to(self.device))
            metric._update_count = max(
                metric._update_count, 1
            )  # else torchmetrics warns of a compute without an update

    def _running(self) -> list[tuple[Metric, str]]:
        return [
            (metric, name)
            for metric in (self.losses["train_loss"], self.overlap["train_overlap"])
            for name in metric._defaults
        ]

    # Moving data

    def on_after_batch_transfer(self, batch: Batch, _: int) -> Batch:
        if self.channels_last:
            batch["image"] = batch["image"].to(memory_format=memory_format(batch["image"].ndim))
        return batch

    def _say_not_finite(self, loss: Tensor, batch: Batch) -> str:
        names = sorted({self.cases["train"][int(i)] for i in batch["case"]})
        broken = [name for name, p in self.network.named_parameters() if not torch.isfinite(p).all()]
        cause = f"; weights that are not finite: {', '.join(broken[:3])}" if broken else ""
        return (
            f"the loss is {float(loss)} at step {self.global_step} (epoch {self.current_epoch}) on {', '.join(names)}{cause}; "
            "training stopped before it reached the weights, the best checkpoint is whole; look at these files, or lower optimizer.lr"
        )


def memory_format(ndim: int) -> torch.memory_format:
    """The channels-last format of images `[B, C, *S]` with `ndim` axes in all."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d
