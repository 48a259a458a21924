"""Runs in MLflow: a database in a file, and its server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from servers import TINY, TRAIN, asked, free_port

from segline import tables

pytestmark = pytest.mark.integration


def test_a_run_is_in_the_database_and_on_the_page(tmp_path: Path) -> None:
    command = [sys.executable, TRAIN, *TINY, "logger=[mlflow,csv]", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    address = f"http://127.0.0.1:{free_port()}"
    words = [
        "ui",
        "--backend-store-uri",
        "sqlite:///runs/mlflow.db",
        "--port",
        address.rpartition(":")[2],
        "--workers",
        "1",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert b"<title>MLflow" in asked(address)
        api = f"{address}/api/2.0/mlflow"
        experiment = json.loads(asked(f"{api}/experiments/get-by-name?experiment_name=segline"))["experiment"]
        (run,) = json.loads(asked(f"{api}/runs/search", {"experiment_ids": [experiment["experiment_id"]]}))["runs"]
        history = json.loads(asked(f"{api}/metrics/get-history?run_id={run['info']['run_id']}&metric_key=val/iou"))
    finally:
        server.terminate()
        server.wait(30)
    assert run["info"]["status"] == "FINISHED"
    assert {"key": "model/channels", "value": "[4, 8]"} in run["data"]["params"]
    rows = tables.read_rows(tmp_path / "run" / "metrics.csv")
    assert [one["value"] for one in history["metrics"]] == pytest.approx([row["val/iou"] for row in rows])
