"""A search in Optuna's dashboard while it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_sweep import start
from servers import asked, free_port

pytestmark = pytest.mark.integration


def test_trials_of_a_running_search_are_shown(tmp_path: Path) -> None:
    search = start(tmp_path, "sweep=optuna", "hydra.sweeper.n_trials=1000", "hydra.sweep.dir=search")
    database = tmp_path / "search" / "study.db"
    port = free_port()
    try:
        while not database.exists() or not list((tmp_path / "search").glob("0003*/scores.json")):
            assert search.poll() is None, search.communicate()[0]
        words = [f"sqlite:///{database}", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name("optuna-dashboard")), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            (study,) = json.loads(asked(f"http://127.0.0.1:{port}/api/studies"))["study_summaries"]
            trials = json.loads(asked(f"http://127.0.0.1:{port}/api/studies/{study['study_id']}"))["trials"]
            assert search.poll() is None
        finally:
            server.terminate()
            server.wait(30)
    finally:
        search.kill()
        search.communicate()
    assert study["study_name"].startswith("search_")
    assert len(trials) >= 4
    assert {"loss", "optimizer.lr"} == {param["name"] for param in trials[0]["params"]}
