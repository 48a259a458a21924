"""Sweeps on Ray: on a cluster that the command starts, and on one that is there, by its address."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from servers import TINY, TRAIN, free_port

pytestmark = pytest.mark.integration
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}


@pytest.fixture
def address() -> Iterator[str]:
    """Of a cluster that asks for a token."""
    from ray.util import get_node_ip_address

    place = f"{get_node_ip_address()}:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # names of sockets are short
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--include-dashboard=false", f"--port={place.rpartition(':')[2]}", f"--temp-dir={folder}"]
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        with subprocess.Popen(command, env=os.environ | TOKEN, **settings) as cluster:
            try:
                while "Ray runtime started" not in (line := cluster.stdout.readline()):
                    assert line, cluster.wait()
                yield place
            finally:
                os.killpg(cluster.pid, signal.SIGKILL)


def sweep(folder: Path, *overrides: str, variables: Mapping[str, str] | None = None) -> str:
    """Train two points; what was said."""
    command = [sys.executable, TRAIN, "-m", *TINY, "logger=none", "seed=0,1", f"hydra.sweep.dir={folder}"]
    command += ["hydra/launcher=ray_gpu", "hydra.launcher.ray.remote.num_gpus=0", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | (variables or {}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.parent.name for path in folder.glob("*/scores.json")) == ["0_seed=0", "1_seed=1"]
    return done.stdout


def test_a_sweep_starts_a_cluster(tmp_path: Path) -> None:
    assert "2 finished" in sweep(tmp_path / "sweep")
    assert "2 points, 2 of them done" in sweep(tmp_path / "sweep")


def test_a_sweep_trains_on_a_cluster_by_its_address(tmp_path: Path, address: str) -> None:
    assert "2 finished" in sweep(tmp_path / "sweep", f"hydra.launcher.ray.init.address={address}", variables=TOKEN)
