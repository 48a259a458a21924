"""Sweeps on Ray: a cluster that the command starts, and one that is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers import TINY, TRAIN, free_port

RAY = str(Path(sys.executable).with_name("ray"))

pytestmark = pytest.mark.integration


def sweep(folder: Path, *overrides: str) -> str:
    """Train two points; what was said."""
    command = [sys.executable, TRAIN, "-m", *TINY, "logger=none", "seed=0,1", f"hydra.sweep.dir={folder}"]
    command += ["hydra/launcher=ray_gpu", "hydra.launcher.ray.remote.num_gpus=0"]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.parent.name for path in folder.glob("*/scores.json")) == ["0_seed=0", "1_seed=1"]
    return done.stdout


def test_a_sweep_starts_a_cluster(tmp_path: Path) -> None:
    assert "2 finished" in sweep(tmp_path / "sweep")
    assert "2 points, 2 of them done" in sweep(tmp_path / "sweep")


def test_a_sweep_uses_a_cluster_by_its_address(tmp_path: Path) -> None:
    # Its workers must find segline, which a cluster's machines have installed.
    environment = {**os.environ, "PYTHONPATH": str(Path(TRAIN).parent)}
    words = [
        "start",
        "--head",
        f"--port={free_port()}",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--block",
    ]
    cluster = subprocess.Popen(
        [RAY, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert cluster.stdout is not None
        found = (re.search(r"ray start --address='(.*?)'", line) for line in cluster.stdout)
        address = next(match.group(1) for match in found if match)
        said = sweep(tmp_path / "sweep", f"hydra.launcher.ray.init.address={address}")
    finally:
        cluster.terminate()
        cluster.communicate(timeout=60)
    assert "2 finished" in said
