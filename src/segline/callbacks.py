"""What happens around the training steps: budget, checkpoints, signals, the table of epochs."""

from __future__ import annotations

import signal
import sys
import time
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, TQDMProgressBar
from pytorch_lightning.plugins import CheckpointIO

from segline import tables
from segline.card import Card
from segline.checkpoints import BEST, RESUME, read, write
from segline.module import as_segmentation
from segline.schedules import Schedule


class SameConfig(Callback):
    """Compare the config of all processes before the first step: they must train one and the same thing."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the first process.

        Raises:
            ValueError: The configs differ.
        """
        first = trainer.strategy.broadcast(self.fingerprint)
        if first != self.fingerprint:
            raise ValueError(
                f"process {trainer.global_rank} was started with another config than process 0; start them by one src/train.py"
            )


class Budget(Callback):
    """End training after a number of steps or a time, and say what share of it is spent.

    Args:
        max_steps: Optimizer steps; None for no limit.
        max_time: Time spent in training and validation, over all resumes; None for no limit.
        max_epochs: Only for the share: Lightning itself ends after them.
    """

    def __init__(
        self, max_steps: int | None = None, max_time: timedelta | None = None, max_epochs: int | None = None
    ) -> None:
        self.max_steps, self.max_time, self.max_epochs = max_steps, max_time, max_epochs
        self._before = 0.0  # seconds spent by runs that this one goes on from
        self._first_step, self._first_share = 0, 0.0  # where this process started
        self._started: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all resumes."""
        return self._before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def spent(self, trainer: pl.Trainer) -> float:
        """Share of the budget that is spent, 0 to 1."""
        if self.max_time is not None:
            return min(1.0, self.elapsed / self.max_time.total_seconds())
        steps = self.max_steps or (self.max_epochs or 1) * -(
            -int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        )
        return min(1.0, trainer.global_step / steps)

    def end(self, trainer: pl.Trainer) -> datetime | None:
        """When training will end at the rate so far; None before the first step."""
        if self.max_time is not None:
            left = self.max_time.total_seconds() - self.elapsed
        elif self._started is None or trainer.global_step == self._first_step:
            return None
        else:  # the rate since the start of this process: steps before a resume may have run on another machine
            rate = (self.spent(trainer) - self._first_share) / (time.monotonic() - self._started)
            left = (1.0 - self.spent(trainer)) / rate
        return datetime.now() + timedelta(seconds=max(left, 0.0))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._first_step, self._first_share = trainer.global_step, self.spent(trainer)
        self._started = time.monotonic()
        self._stop_when_spent(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop when the budget is spent; Lightning then validates once more."""
        self._stop_when_spent(trainer)

    def __str__(self) -> str:
        if self.max_time is not None:
            return f"{self.max_time} of training"
        return f"{self.max_steps} steps" if self.max_steps else f"{self.max_epochs} epochs"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._before, self._started = self.elapsed, None

    def _stop_when_spent(self, trainer: pl.Trainer) -> None:
        if (self.max_steps or self.max_time) and trainer.strategy.reduce_boolean_decision(
            self.spent(trainer) >= 1.0, all=False
        ):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Time spent."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the time spent."""
        self._before = float(state_dict["elapsed"])


class LearningRate(Callback):
    """Set the learning rate before each step: the optimizer's own times the schedule's factor at the share of the budget spent.

    Args:
        schedule: Factor from the share.
        budget: Knows the share.
        objective: Logged value that a schedule may look at after each validation.
        maximize: Whether more of the objective is better.
    """

    def __init__(self, schedule: Schedule, budget: Budget, objective: str, maximize: bool = True) -> None:
        self.schedule, self.budget, self.objective, self.maximize = schedule, budget, objective, maximize
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the config's options stand above those that a checkpoint brought back."""
        self._groups = list(zip(trainer.optimizers[0].param_groups, as_segmentation(pl_module).options, strict=True))
        for group, options in self._groups:
            group.update(options)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Set the rate of this step."""
        factor = self.schedule.factor(self.budget.spent(trainer))
        for group, options in self._groups:
            group["lr"] = options["lr"] * factor

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the schedule how good the weights are."""
        if trainer.state.fn == "fit" and self.objective in trainer.callback_metrics:
            value = float(trainer.callback_metrics[self.objective])
            self.schedule.observe(value if self.maximize else -value)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the rate of the epoch's last step."""
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the schedule's state."""
        self.schedule.load_state_dict(state_dict)


class EpochTable(Checkpoint):
    """One row of metrics an epoch in `metrics.csv`, none twice.

    A `Checkpoint` to Lightning, which calls those last: after the module has logged the epoch's values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop rows of epochs that are about to be trained again."""
        if trainer.is_global_zero:
            tables.truncate_after(self.path, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row."""
        if trainer.is_global_zero:
            values = {
                name: float(value)
                for name, value in sorted(trainer.callback_metrics.items())
                if "/" in name or name == "lr"
            }
            tables.append_row(self.path, {"epoch": trainer.current_epoch, "step": trainer.global_step, **values})


class Checkpoints(Checkpoint):
    """Keep the best weights, and a checkpoint to resume from.

    The latter at each epoch's end, every so many minutes, and before SIGTERM or Ctrl-C ends the run. A signal is obeyed at the end
    of the running step, or of the running validation; a second one at once.

    Args:
        folder: Where `best.ckpt` and `resume.ckpt` are kept.
        card: What the checkpoints say of themselves.
        objective: Logged value that decides which weights are the best.
        maximize: Whether more of the objective is better.
        every_minutes: Also save within an epoch, this often; None for epochs only.
    """

    def __init__(
        self, folder: Path, card: Card, objective: str, maximize: bool = True, every_minutes: float | None = None
    ) -> None:
        self.folder, self.card, self.objective, self.maximize = folder, card, objective, maximize
        self.every_minutes = every_minutes
        self.best: float | None = None
        self._saved = time.monotonic()
        self._signal: int | None = None
        self._restored: dict[str, Any] | None = None

    # The best

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep these weights if they are the best so far."""
        if trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.objective)
        if value is None:
            logged = ", ".join(
                sorted(
                    name
                    for name in map(str, trainer.callback_metrics)
                    if name.startswith("val/") and name.count("/") == 1
                )
            )
            raise ValueError(
                f"the objective {self.objective!r} was not logged; these were: {logged}; set objective= to one of them"
            )
        if self.best is None or (float(value) > self.best if self.maximize else float(value) < self.best):
            self.best = float(value)
            if trainer.is_global_zero:
                weights = {f"network.{name}": w for name, w in as_segmentation(pl_module).network.state_dict().items()}
                scores = {name: float(v) for name, v in trainer.callback_metrics.items()}
                content = {
                    "card": self.card.to_dict(),
                    "state_dict": weights,
                    "epoch": trainer.current_epoch,
                    "scores": scores,
                }
                write(content, self.folder / BEST)

    # Resuming

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random numbers last, when nothing draws from them any more before the first step; listen to signals."""
        if self._restored is not None:
            torch.set_rng_state(self._restored["rng"][trainer.global_rank % len(self._restored["rng"])])
            if trainer.is_global_zero:
                as_segmentation(pl_module).meters("train").go_on(self._restored["measured"])
            trainer.should_stop |= self._restored["stopped"]
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._notice)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save when minutes have passed or a signal came; the epoch's last step leaves that to the epoch's end."""
        if trainer.is_last_batch:
            return
        interrupted = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        minutes = (time.monotonic() - self._saved) / 60
        due = self.every_minutes is not None and trainer.strategy.reduce_boolean_decision(
            minutes >= self.every_minutes, all=False
        )
        if interrupted or due:
            self._save(trainer)
        if interrupted:
            raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and obey a signal that came meanwhile."""
        self._save(trainer)
        if trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out."""
        checkpoint["card"] = self.card.to_dict()
        checkpoint["training"] = {
            "best": self.best,
            "rng": _gather(trainer, torch.get_rng_state()),
            "measured": as_segmentation(pl_module).meters("train").sums(partial(_reduce, trainer)),
            "stopped": trainer.should_stop,
            "epoch": _processed(trainer.fit_loop.epoch_progress),
            "batches": 0 if trainer.is_last_batch else _processed(trainer.fit_loop.epoch_loop.batch_progress),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take back what `on_save_checkpoint` added."""
        self._restored = checkpoint["training"]
        self.best = self._restored["best"]

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / RESUME, weights_only=False)
        self._saved = time.monotonic()

    def _notice(self, signum: int, _: Any) -> None:
        if self._signal is not None:
            raise SystemExit(128 + signum)
        self._signal = signum
        print(f"\n{signal.Signals(signum).name}: saving at the end of this step; once more to stop at once", flush=True)


class WholeCheckpointIO(CheckpointIO):
    """Lets Lightning write and read checkpoints through `write` and `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write as `write` does."""
        write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read as `read` does, whatever was asked for."""
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint file."""
        Path(path).unlink(missing_ok=True)


class Progress(TQDMProgressBar):
    """Lightning's bar with the rate, the loss, the objective and the time of day when training will end.

    In a log file, where a bar would fill pages, it is a line an epoch.

    Args:
        objective: Logged value to show.
        budget: Knows how much of the training is done.
    """

    def __init__(self, objective: str, budget: Budget) -> None:
        self._drawn = sys.stderr.isatty()
        super().__init__(refresh_rate=1 if self._drawn else 0)
        self.objective, self.budget = objective, budget

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the epoch's bar, or write its line."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self._drawn and trainer.is_global_zero:
            shown = self.get_metrics(trainer, pl_module)
            values = "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            print(f"epoch {trainer.current_epoch}, step {trainer.global_step}  {values}", flush=True)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands at the bar's end."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if self.objective in trainer.callback_metrics:
            shown[self.objective] = f"{float(trainer.callback_metrics[self.objective]):.3f}"
        if end := self.budget.end(trainer):
            shown["end"] = f"{end:%H:%M}"
        return shown


def _processed(progress: Any) -> int:
    """How many of Lightning's epochs or batches were worked through."""
    return int(progress.current.processed)


def _reduce(trainer: pl.Trainer, value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    total: torch.Tensor = trainer.strategy.reduce(value, reduce_op="sum")
    return total


def _gather(trainer: pl.Trainer, state: torch.Tensor) -> list[torch.Tensor]:
    """The state of each process, in the order of their ranks."""
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states
