"""What happens around the training steps: checkpoints, signals, the table of epochs, the progress bar."""

from __future__ import annotations

import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, TQDMProgressBar
from pytorch_lightning.plugins import CheckpointIO

from segline import tables
from segline.budget import Budget, Objective
from segline.card import Card
from segline.checkpoints import BEST, RESUME, read, write
from segline.module import as_segmentation
from segline.processes import launchers_handlers


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


class EpochTable(Checkpoint):
    """One row of metrics an epoch in `metrics.csv`, none twice.

    A `Checkpoint` to Lightning, which calls those last: after the module has logged the epoch's values.

    Args:
        path: Of the table.
        budget: Knows how long training has lasted.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self.path, self.budget = path, budget

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop rows of epochs that are about to be trained again."""
        if trainer.is_global_zero:
            tables.drop_epochs_from(self.path, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row."""
        if trainer.is_global_zero:
            scores = as_segmentation(pl_module).scores
            values = {name: scores[name] for name in sorted(scores) if scores[name] == scores[name]}
            counts = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": self.budget.elapsed}
            tables.append_row(self.path, {**counts, "lr": trainer.optimizers[0].param_groups[0]["lr"], **values})


class Checkpoints(Checkpoint):
    """Keep the best weights, and a checkpoint to resume from.

    The latter at each epoch's end, every so many minutes, and before a signal ends the run: SIGTERM, Ctrl-C, or the one by which a
    cluster says that it takes the job away. A signal is obeyed at the end of the running step, or of the running validation; the
    same one again at once.

    Args:
        folder: Where `best.ckpt` and `resume.ckpt` are kept.
        card: What the checkpoints say of themselves.
        objective: What decides which weights are the best.
        every_minutes: Also save within an epoch, this often; None for epochs only.
    """

    def __init__(self, folder: Path, card: Card, objective: Objective, every_minutes: float | None = None) -> None:
        self.folder, self.card, self.objective = folder, card, objective
        self.every_minutes = every_minutes
        self.best: float | None = None  # gain of the best weights so far
        self._within_epoch = True
        self._saved = time.monotonic()
        self._signal: int | None = None
        self._launchers = launchers_handlers()
        self._handlers: dict[int, Any] = {}
        self._restored: dict[str, Any] | None = None

    # The best

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep these weights if they are the best so far; after training, if there are none yet."""
        if trainer.state.fn != "fit" and self.best is not None:
            return
        module = as_segmentation(pl_module)
        gain = self.objective.gain(module.scores)
        # Any weights are better than none, and a value better than not a number.
        if self.best is None or self.best != self.best or gain > self.best:
            self.best = gain
            if trainer.is_global_zero:
                content = {
                    "card": self.card.to_dict(),
                    "state_dict": {f"network.{name}": w for name, w in module.network.state_dict().items()},
                    "epoch": trainer.current_epoch,
                    "scores": dict(module.scores),
                }
                write(content, self.folder / BEST)

    # Resuming

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random numbers last, when nothing draws from them any more before the first step; listen to signals."""
        if self._restored is not None:
            _restore_random_state(self._restored["rng"][trainer.global_rank % len(self._restored["rng"])])
            if trainer.is_global_zero:
                as_segmentation(pl_module).meters("train").go_on(self._restored["measured"])
        heard = {signal.SIGTERM, signal.SIGINT, *self._launchers}
        self._handlers = {signum: signal.signal(signum, self._notice) for signum in heard}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave signals to who had them before: nothing is lost any more."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self.on_train_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when minutes have passed or a signal came; the epoch's last step leaves that to the epoch's end."""
        # Between two steps of the optimizer there would be a part of a gradient to save.
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        interrupted = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        minutes = (time.monotonic() - self._saved) / 60
        due = self.every_minutes is not None and trainer.strategy.reduce_boolean_decision(
            minutes >= self.every_minutes, all=False
        )
        if interrupted or due:
            self._save(trainer, within_epoch=True)
        if interrupted:
            self._obey(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and obey a signal that came meanwhile."""
        self._save(trainer, within_epoch=False)
        if trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            self._obey(trainer)

    def _save(self, trainer: pl.Trainer, within_epoch: bool) -> None:
        self._within_epoch = within_epoch
        trainer.save_checkpoint(self.folder / RESUME, weights_only=False)
        self._saved = time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out."""
        batches = int(trainer.fit_loop.epoch_loop.batch_progress.current.processed)  # type: ignore[attr-defined]
        checkpoint["card"] = self.card.to_dict()
        checkpoint["training"] = {
            "best": self.best,
            "rng": _gather(trainer, _random_state()),
            "measured": as_segmentation(pl_module).meters("train").sums(partial(_reduce, trainer)),
            "epoch": int(trainer.fit_loop.epoch_progress.current.processed),  # type: ignore[attr-defined]
            "batches": batches if self._within_epoch else 0,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take back what `on_save_checkpoint` added."""
        self._restored = checkpoint["training"]
        self.best = self._restored["best"]

    def _obey(self, trainer: pl.Trainer) -> None:
        """End, or leave it to the launcher whether to: it may requeue the job, or await another signal."""
        signum, self._signal = self._signal or signal.SIGTERM, None
        if signum not in self._launchers:
            if trainer.is_global_zero:
                print(f"\nsaved; resume={self.folder} goes on after step {trainer.global_step}", flush=True)
            raise SystemExit(128 + signum)
        self._launchers[signum](signum, None)

    def _notice(self, signum: int, _: Any) -> None:
        if signum in self._launchers:  # the last of them counts: the launcher may let the first ones pass
            self._signal = signum
            print(f"\n{signal.Signals(signum).name}: saving at the end of this step", flush=True)
        elif self._signal is None:
            self._signal = signum
            print(
                f"\n{signal.Signals(signum).name}: saving at the end of this step; once more to stop at once",
                flush=True,
            )
        elif self._signal == signum:  # not another one: torch's launcher sends SIGTERM after a Ctrl-C
            raise SystemExit(128 + signum)


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
        objective: What to show the last value of.
        budget: Knows how much of the training is done.
    """

    def __init__(self, objective: Objective, budget: Budget) -> None:
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
        if (name := self.objective.name) in trainer.callback_metrics:
            shown[name] = f"{float(trainer.callback_metrics[name]):.3f}"
        if end := self.budget.end():
            shown["end"] = f"{end:%H:%M}"
        return shown


def _reduce(trainer: pl.Trainer, value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    total: torch.Tensor = trainer.strategy.reduce(value, reduce_op="sum")
    return total


def _random_state() -> list[torch.Tensor]:
    """Of the CPU, and of this process's GPU where there is one."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _restore_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def _gather(trainer: pl.Trainer, state: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The state of each process, in the order of their ranks."""
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states
