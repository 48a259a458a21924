"""Runs in Weights & Biases: each job its own run, offline where there is no key, the same one after a resume."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("WANDB_SILENT", "true")  # read at the import; segline says itself where the run is

import wandb
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger


def wandb_run(
    config: DictConfig,
    run_dir: Path,
    project: str = "segline",
    entity: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    tags: list[str] | None = None,
) -> WandbRun:
    """A logger whose metrics are drawn against the epoch, with the best value of the objective as the run's summary."""
    identity = run_dir / "wandb_id"
    if not identity.exists():
        identity.write_text(secrets.token_hex(4))
    logger = WandbRun(
        name=config.run.name,
        save_dir=str(run_dir),
        project=project,
        entity=entity,
        group=group,
        job_type=job_type,
        tags=tags or [],
        id=identity.read_text(),
        resume="allow",
        mode=os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline"),
        config=OmegaConf.to_container(config),
        settings=wandb.Settings(silent=True, console="off"),
    )
    experiment = logger.experiment
    if hasattr(experiment, "define_metric"):  # other processes than the first hold a stand-in
        experiment.define_metric("*", step_metric="epoch")
        experiment.define_metric(
            config.objective, step_metric="epoch", summary="min" if config.objective.endswith("loss") else "max"
        )
    return logger


class WandbRun(WandbLogger):
    """Lightning's logger that also takes the report's pictures and closes the run."""

    def log_pictures(self, paths: Sequence[Path]) -> None:
        """Show pictures in the run."""
        self.experiment.log({f"pictures/{path.stem}": wandb.Image(str(path)) for path in paths})

    def finish(self) -> None:
        """Close the run; where it is offline, say how to look at it and how to send it."""
        experiment = self.experiment
        if getattr(experiment, "offline", False):
            folder = Path(experiment.dir).parent
            print(f"W&B: offline; look: wandb leet {folder}; send: wandb sync {folder}")
        wandb.finish()
