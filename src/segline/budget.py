"""How long training lasts, how fast it learns meanwhile, and what it is for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from segline.module import as_segmentation
from segline.schedules import Schedule
from segline.words import less_is_better


@dataclass(frozen=True)
class Objective:
    """The logged value that picks the best weights; of a loss, less is better."""

    name: str

    @property
    def maximize(self) -> bool:
        """Whether more is better."""
        return not less_is_better(self.name)

    def gain(self, scores: Mapping[str, float]) -> float:
        """The value, negative where less is better; nan where it has none."""
        value = scores.get(self.name, float("nan"))
        return value if self.maximize else -value


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
        self.spent = 0.0  # share of the budget, 0 to 1, at the end of the last step; the same on every process
        self._before = 0.0  # seconds spent by runs that this one goes on from
        self._started: float | None = None
        self._spent_before = 0.0  # share that was spent when this process started

    def __str__(self) -> str:
        if self.max_time is not None:
            return f"{self.max_time} of training"
        return f"{self.max_steps} steps" if self.max_steps else f"{self.max_epochs} epochs"

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all resumes."""
        return self._before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def end(self) -> datetime | None:
        """When training will end at the rate so far; None before the first step."""
        if self.max_time is not None:
            left = self.max_time.total_seconds() - self.elapsed
        elif self._started is None or self.spent == self._spent_before:
            return None
        else:  # the rate of this process: steps before a resume may have run on another machine
            rate = (self.spent - self._spent_before) / (time.monotonic() - self._started)
            left = (1.0 - self.spent) / rate
        return datetime.now() + timedelta(seconds=max(left, 0.0))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._measure(trainer)
        self._spent_before = self.spent

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop when the budget is spent; Lightning then validates once more."""
        self._measure(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._before, self._started = self.elapsed, None

    def _measure(self, trainer: pl.Trainer) -> None:
        if self.max_time is not None:  # by the clock of process 0: rates of their own would drive the weights apart
            self.spent = trainer.strategy.broadcast(min(1.0, self.elapsed / self.max_time.total_seconds()))
        else:
            epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
            self.spent = min(1.0, trainer.global_step / (self.max_steps or (self.max_epochs or 1) * epoch))
        if (self.max_steps or self.max_time) and self.spent >= 1.0:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Time spent."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the time spent."""
        self._before = float(state_dict["elapsed"])


class Patience(EarlyStopping):
    """Lightning's early stopping. After a resume the config's patience holds, so that a larger one lets training go on.

    Args:
        objective: What must get better.
        settings: `patience`, validations without a gain; `min_delta`, the least gain; and what else Lightning's takes.
    """

    def __init__(self, objective: Objective, **settings: Any) -> None:
        mode = "max" if objective.maximize else "min"
        super().__init__(objective.name, mode=mode, **{"check_finite": False, "strict": False, **settings})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the run that this one goes on from was stopped."""
        holds = {
            EarlyStoppingReason.NOT_STOPPED: False,
            EarlyStoppingReason.PATIENCE_EXHAUSTED: self.wait_count >= self.patience,
            EarlyStoppingReason.STOPPING_THRESHOLD: self.stopping_threshold is not None,
            EarlyStoppingReason.DIVERGENCE_THRESHOLD: self.divergence_threshold is not None,
            EarlyStoppingReason.NON_FINITE_METRIC: self.check_finite,
        }
        trainer.should_stop |= holds[self.stopping_reason]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was counted."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def read_budget(settings: Any) -> Budget:
    """The one budget of `trainer`'s settings that holds: time before steps before epochs.

    Raises:
        ValueError: There is none, or one that cannot be.
    """
    limit = settings.max_time
    for key in ("max_epochs", "max_steps"):
        if settings[key] is not None and (not isinstance(settings[key], int) or settings[key] < 1):
            raise ValueError(f"trainer.{key} is {settings[key]}; expected 1 or more, or null for another budget")
    if limit is None and not settings.max_steps and not settings.max_epochs:
        raise ValueError(
            "there is no budget; set trainer.max_epochs=10, trainer.max_steps=1000 or trainer.max_time=00:00:10:00"
        )
    if limit is None:
        return Budget(max_steps=settings.max_steps) if settings.max_steps else Budget(max_epochs=settings.max_epochs)
    try:
        days, hours, minutes, seconds = (int(part) for part in str(limit).split(":"))
    except ValueError:
        raise ValueError(
            f"trainer.max_time is {limit!r}; expected DD:HH:MM:SS, such as 00:00:10:00 for ten minutes"
        ) from None
    time = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if time <= timedelta(0):
        raise ValueError(f"trainer.max_time is {limit}, which is no time; expected DD:HH:MM:SS, such as 00:00:10:00")
    return Budget(max_time=time)


class LearningRate(Callback):
    """Set the learning rate before each step: the optimizer's own times the schedule's factor at the share of the budget spent.

    Args:
        schedule: Factor from the share.
        budget: Knows the share.
        objective: What a schedule may look at after each validation.
    """

    def __init__(self, schedule: Schedule, budget: Budget, objective: Objective) -> None:
        self.schedule, self.budget, self.objective = schedule, budget, objective
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the config's options stand above those that a checkpoint brought back."""
        configured = as_segmentation(pl_module).group_options
        self._groups = list(zip(trainer.optimizers[0].param_groups, configured, strict=True))
        for group, options in self._groups:
            group.update(options)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Set the rate of this step."""
        factor = self.schedule.factor(self.budget.spent)
        for group, options in self._groups:
            group["lr"] = options["lr"] * factor

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the schedule how good the weights are."""
        gain = self.objective.gain(as_segmentation(pl_module).scores)
        if trainer.state.fn == "fit" and gain == gain:
            self.schedule.observe(gain)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the rate of the epoch's last step."""
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the schedule's state."""
        self.schedule.load_state_dict(state_dict)
