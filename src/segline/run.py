"""The commands: what Hydra starts. Heavy imports happen inside, so that `--help` and a misspelt key answer at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from segline.config import CONF_DIR


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def train(config: DictConfig) -> float | None:
    """Train, then test the best checkpoint; the value of the objective is what a sweep maximises."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    choices = HydraConfig.get().runtime.choices
    resolved = _resolve(
        config, {"name": run_dir.name, **{group: choices[group] for group in ("data", "model", "loss")}}
    )
    path = run_dir / "config.yaml"
    OmegaConf.save(resolved, path)

    processes = _num_processes(resolved.trainer)
    if processes > 1:
        # Lightning's own launcher would start the whole command line, in a sweep the whole sweep, once more for each process.
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            "-m",
            "segline.job",
            str(path),
        ]
        search = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        code = subprocess.call(
            command, env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        )
        if code:
            sys.exit(code)
    else:
        from segline import job

        job.run(path)
    from segline.report import read_scores

    return read_scores(run_dir).get(resolved.objective)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="predict")
def predict(config: DictConfig) -> None:
    """Write masks of whole files, in the format that came in."""
    from segline.inference.predict import predict_files

    predict_files(**_plain(config))


def _resolve(config: DictConfig, run: dict[str, Any]) -> DictConfig:
    """The config without interpolations, with the name and the choices of the run."""
    from segline.data.folder import discover

    config.data = discover(config.data)
    return OmegaConf.create({"run": run, **_plain(config)})


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _num_processes(trainer: DictConfig) -> int:
    """How many processes the job takes: as asked for, or one for each GPU."""
    if trainer.devices != "auto":
        return int(trainer.devices)
    import torch

    return max(1, torch.cuda.device_count()) if trainer.accelerator in ("auto", "gpu") else 1
