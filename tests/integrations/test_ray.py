"""Sweeps on Ray, on a cluster that the command starts."""

import subprocess
import sys
from pathlib import Path

import pytest
from servers import TINY, TRAIN

pytestmark = pytest.mark.integration


def sweep(folder: Path) -> str:
    """Train two points; what was said."""
    command = [sys.executable, TRAIN, "-m", *TINY, "logger=none", "seed=0,1", f"hydra.sweep.dir={folder}"]
    command += ["hydra/launcher=ray_gpu", "hydra.launcher.ray.remote.num_gpus=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.parent.name for path in folder.glob("*/scores.json")) == ["0_seed=0", "1_seed=1"]
    return done.stdout


def test_a_sweep_starts_a_cluster(tmp_path: Path) -> None:
    assert "2 finished" in sweep(tmp_path / "sweep")
    assert "2 points, 2 of them done" in sweep(tmp_path / "sweep")
