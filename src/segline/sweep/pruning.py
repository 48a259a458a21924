"""Ending a trial of a search that is worse than others were."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback

from segline import tables
from segline.budget import Objective
from segline.config import build
from segline.module import as_segmentation
from segline.sweep.folder import SWEEP, study_address, study_name
from segline.sweep.points import PRUNED


class Pruning(Callback):
    """Report the objective to the study after each validation, and stop if the study's pruner says so.

    The first process asks, and all do as it is told.

    Args:
        folder: Of the run, in that of its sweep, which says what the study and its pruner are.
        number: Of the trial.
        objective: What is reported.
    """

    def __init__(self, folder: Path, number: int, objective: Objective) -> None:
        self.folder, self.number, self.objective = folder, number, objective
        self.pruned = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report and ask."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = as_segmentation(pl_module).scores.get(self.objective.name, float("nan"))
        asked = trainer.is_global_zero and value == value and self._should_prune(trainer.global_step, value)
        self.pruned = trainer.strategy.broadcast(asked)
        if self.pruned:
            trainer.should_stop = True
            if trainer.is_global_zero:
                said = {"step": trainer.global_step, self.objective.name: value}
                print(
                    f"pruned: {self.objective.name} is {value:.3f}, behind other trials at step {trainer.global_step}"
                )
                tables.write_json(self.folder / PRUNED, said)

    def _should_prune(self, step: int, value: float) -> bool:
        import optuna

        search = tables.read_json(self.folder.parent / SWEEP)["search"]
        study = optuna.load_study(
            study_name=study_name(self.folder.parent),
            storage=study_address(self.folder.parent),
            pruner=build(OmegaConf.create(search["pruner"])),
        )
        trial = optuna.trial.Trial(study, study.trials[self.number]._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a step that was reported before a resume
            trial.report(value, step)
        return bool(trial.should_prune())
