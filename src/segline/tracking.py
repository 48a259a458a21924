"""Runs in Weights & Biases: each job its own run, offline where there is no key, the same one after a resume."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_SILENT", "true")  # read at the import; segline says itself where the run is

import wandb
import yaml
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from segline import pictures
from segline.labels import IGNORE_INDEX, Labels
from segline.report import Report
from segline.words import less_is_better

#: In a run's folder: the id of its run.
_ID = "wandb_id"


def wandb_run(
    config: DictConfig,
    run_dir: Path,
    project: str = "segline",
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: list[str] | None = None,
    init_timeout: float = 30,
    finish_timeout: float = 60,
) -> WandbRun:
    """A logger whose metrics are drawn against the epoch, with the best value of the objective as the run's summary.

    Training neither waits for a server that does not answer nor ends for one: the run then stays on the disk.

    Args:
        config: Of the run.
        run_dir: Where the run lies on the disk.
        project: Where it is shown.
        entity: Whose project; None: that of the key.
        group: What it belongs to; None: its sweep.
        job_type: Likewise; None: `sweep` or `train`.
        tags: To find it by; None: what was chosen for model, loss and data.
        init_timeout: Seconds to wait for the server at the start.
        finish_timeout: Likewise at the end, for what has not been sent yet.
    """
    sweep, choices = config.run.get("sweep"), config.run.choices
    make = partial(
        WandbRun,
        objective=config.objective,
        name=config.run.name,
        save_dir=str(run_dir),
        project=project,
        entity=entity,
        group=group or sweep,
        job_type=job_type or ("sweep" if sweep else "train"),
        tags=tags if tags is not None else [choices.model, choices.loss, choices.data],
        id=_identity(run_dir) if os.environ.get("RANK", "0") == "0" else None,  # other processes log nothing
        resume="allow",
        config=OmegaConf.to_container(config),
        settings=wandb.Settings(silent=True, console="off", init_timeout=init_timeout, finish_timeout=finish_timeout),
    )
    logger = make(mode=_mode())
    try:
        experiment = logger.experiment  # in other processes than the first a stand-in that takes anything
    except wandb.Error as error:
        print(f"W&B does not answer, so that this run stays offline: {str(error).splitlines()[0]}", file=sys.stderr)
        wandb.teardown()  # else the run's name would be in use
        logger = make(mode="offline")
        experiment = logger.experiment
    experiment.define_metric("*", step_metric="epoch")
    experiment.define_metric("loss", step_metric="trainer/global_step")
    summary = "min" if less_is_better(config.objective) else "max"
    experiment.define_metric(config.objective, step_metric="epoch", summary=summary)
    return logger


def logged_run(run_dir: Path) -> dict[str, Any]:
    """Where in W&B the training of a run folder has logged to, as arguments of `wandb.init`.

    Raises:
        ValueError: It has logged to no run.
    """
    config = run_dir / "config.yaml"
    if not (run_dir / _ID).is_file():
        raise ValueError(f"{run_dir} has logged to no run of W&B (logger=wandb in training); leave wandb=true out")
    content = yaml.safe_load(config.read_text()) if config.is_file() else None
    logger = (content or {}).get("logger") or {}
    place = {name: logger.get("wandb", {}).get(name) for name in ("project", "entity")}
    return {**place, "id": _identity(run_dir), "dir": run_dir}


def log_pictures(where: Mapping[str, Any], shown: Mapping[str, Path]) -> None:
    """Show pictures by their names in a run that was logged to before, as `logged_run` says it."""
    settings = wandb.Settings(silent=True, console="off")
    run = wandb.init(**where, resume="allow", mode=_mode(), settings=settings)
    try:
        run.log({name: wandb.Image(str(path)) for name, path in shown.items()})
    finally:
        _close(run)


def _mode() -> Any:
    """Online where there is a key, unless the environment says otherwise."""
    return os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")


def _close(run: Any, failed: bool = False) -> None:
    """Close a run; where it is offline, say how to look at it and how to send it."""
    if getattr(run, "offline", False):
        folder = Path(run.dir).parent
        print(f"W&B: offline; look: wandb leet {folder}; send: wandb sync {folder}")
    wandb.finish(exit_code=int(failed))


def _identity(run_dir: Path) -> str:
    """The id of the run folder's run, which a resume goes on in; that of the agent where a sweep of W&B's own started it."""
    path = run_dir / _ID
    if not path.exists():
        path.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return path.read_text()


class WandbRun(WandbLogger):
    """Lightning's logger that also takes the report and closes the run.

    Args:
        objective: What is logged of a single class, too, besides Dice and IoU.
        settings: Of Lightning's logger.
    """

    def __init__(self, *, objective: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.objective = objective

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log means over classes, and of each class Dice and IoU: a chart each; `metrics.csv` has them all."""
        super().log_metrics(
            {name: v for name, v in metrics.items() if name == self.objective or _is_charted(name)}, step
        )

    def log_report(self, report: Report, labels: Labels) -> None:
        """Show the scores of the best weights, the run's pictures, and the chosen cases under masks that can be switched."""
        self.experiment.summary.update({f"best/{name}": value for name, value in report.scores.items()})
        shown = {f"pictures/{path.stem}": wandb.Image(str(path)) for path in report.pictures}
        self.experiment.log({**shown, "cases": [_under_masks(case, labels) for case in report.cases]})

    @rank_zero_only
    def finish(self, failed: bool) -> None:
        """Close the run; where it is offline, say how to look at it and how to send it."""
        _close(self.experiment, failed)


def _is_charted(name: str) -> bool:
    """Whether a value `split/metric[/class]` has a chart."""
    parts = name.split("/")
    return len(parts) < 3 or parts[1] in ("iou", "dice")


def _under_masks(case: dict[str, Any], labels: Labels) -> wandb.Image:
    """A case with truth and prediction as masks of W&B; of a volume one slice, of overlapping classes the last one on top."""
    flat = pictures.flat(case, labels)
    names = dict(enumerate(labels.id_names)) | {IGNORE_INDEX: "ignored"}
    masks = {
        title: {"mask_data": labels.as_ids(flat[key]), "class_labels": names}
        for key, title in (("mask", "truth"), ("pred", "prediction"))
    }
    return wandb.Image(pictures.to_rgb(flat["image"]), masks=masks, caption=case["title"])
