"""Weights averaged over the steps of training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from segline.module import as_segmentation


class WeightAverage(Callback):
    """Validate, and keep as the best, an exponential moving average of the weights, while training goes on with the weights themselves.

        average <- d average + (1 - d) weights,  d = min(decay, (1 + steps) / (10 + steps))

    so that the average of a short run is not one of its beginning. Running statistics of norms are averaged likewise.

    Args:
        decay: Between 0 and 1; 0.999 looks back a thousand steps.

    Reference:
        Tarvainen and Valpola, Mean teachers, NeurIPS 2017. https://arxiv.org/abs/1703.01780. The rise of the decay is that of
        TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(
                f"callbacks.average_weights is {decay}; expected a decay between 0 and 1, such as 0.999, or null"
            )
        self.decay, self.steps = decay, 0
        self._average: dict[str, Tensor] | None = None
        self._swapped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the weights, unless a checkpoint brought an average."""
        weights = _weights(pl_module)
        self._average = {name: (self._average or weights)[name].to(w, copy=True) for name, w in weights.items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow a step of the optimizer."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(list(self.average.values()), list(_weights(pl_module).values()), 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in the weights' place; of running statistics, which differ by process, that of the first process."""
        if trainer.state.fn == "fit":
            if torch.distributed.is_initialized():
                for average in self.average.values():
                    torch.distributed.broadcast(average, src=0)
            self._swap(pl_module)

    # Not at the validation's end, when the best weights are written.

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the weights back."""
        self._put_back(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise, before a checkpoint to resume from is written."""
        self._put_back(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the weights' place, for the best weights where no validation came before the end."""
        self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What a resume goes on from."""
        return {"steps": self.steps, "average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps, self._average = state_dict["steps"], state_dict["average"]

    @property
    def average(self) -> dict[str, Tensor]:
        """By name, as in the network's state."""
        assert self._average is not None
        return self._average

    def _put_back(self, pl_module: pl.LightningModule) -> None:
        if self._swapped:
            self._swap(pl_module)

    def _swap(self, pl_module: pl.LightningModule) -> None:
        self._swapped = not self._swapped
        for name, weight in _weights(pl_module).items():
            average = self.average[name].clone()
            self.average[name].copy_(weight)
            weight.copy_(average)


def _weights(pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """Weights and running statistics, by name; counters are no numbers to average."""
    state = as_segmentation(pl_module).network.state_dict()
    return {name: weight for name, weight in state.items() if weight.is_floating_point()}
