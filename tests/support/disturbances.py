"""Callbacks of real runs: one lets a process die, one notes what each process trains with."""

import os
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from segline.tables import write_json


class Dies(Callback):
    """End one of the processes at a step, by an error or as the system does when memory runs out.

    Args:
        how: `error` or `killed`.
        rank: Of the process.
        step: After which it dies.
    """

    def __init__(self, how: str, rank: int = 1, step: int = 2) -> None:
        self.how, self.rank, self.step = how, rank, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("a process dies here")


class NotesRates(Callback):
    """Leave `rates.json` in the run's folder: the learning rate that each process of this training has."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rates = [None] * trainer.world_size
        own = trainer.optimizers[0].defaults["lr"]
        torch.distributed.all_gather_object(rates, own)
        if trainer.is_global_zero:
            write_json(Path(trainer.default_root_dir) / "rates.json", {"rates": rates})
