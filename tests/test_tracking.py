"""A run as W&B itself wrote it down, offline."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from segline.config import compose

TRAIN = Path(__file__).resolve().parents[1] / "src" / "train.py"
TINY = [
    "trainer=cpu", "trainer.max_epochs=2", "model=unet", "model.channels=[4,8]", "data.steps_per_epoch=2", "data.batch_size=2",
    "data.window=[64,64]", "data.margin=[8,8]", "data.num_workers=0",
]  # fmt: skip


def train(run_dir: Path, *overrides: str, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | variables
    command = [sys.executable, str(TRAIN), *TINY, f"hydra.run.dir={run_dir}", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full or last
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.slow
def test_a_run_without_a_key_is_offline_and_readable_as_it_comes(tmp_path: Path) -> None:
    said = train(tmp_path / "run", "logger=wandb", "objective=val/recall/road")
    assert "wandb sync" in said
    assert "wandb leet" in said
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    found = list(records(path))

    (run,) = (r.run for r in found if r.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["model"]["channels"] == [4, 8]

    rows: list[dict[str, Any]] = []
    for record in found:
        if record.HasField("history"):
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
    # No third by the final test of the best weights.
    assert [row["epoch"] for row in rows if "val/dice/building" in row] == [0, 1]
    assert [row["epoch"] for row in rows if "train/iou/road" in row] == [0, 1]
    assert {name for row in rows for name in row if name.startswith("val/recall/")} == {
        "val/recall/road"
    }  # it is asked for

    drawn_against = {(r.metric.name or r.metric.glob_name): r.metric.step_metric for r in found if r.HasField("metric")}
    assert drawn_against["*"] == "epoch"
    (objective,) = (r.metric for r in found if r.HasField("metric") and r.metric.name == "val/recall/road")
    assert objective.summary.max

    shown = rows[-1]
    for name in ("curves", "cases", "confusion", "augmented"):
        assert (path.parent / "files" / shown[f"pictures/{name}/path"]).exists()
    assert shown["cases/count"] == 2
    assert set(shown["cases/all_masks"][0]) == {"truth", "prediction"}


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path: Path) -> None:
    train(tmp_path / "run", "logger=wandb", "trainer.max_epochs=1", "callbacks.pictures=false")
    train(tmp_path / "run", "logger=wandb", "resume=auto", "callbacks.pictures=false")
    paths = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(paths) == 2
    assert len({path.stem for path in paths}) == 1


@pytest.mark.slow
def test_two_processes_are_one_run_of_wandb(tmp_path: Path) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    train(tmp_path / "run", "logger=wandb", *two, "trainer.max_epochs=1", "callbacks.pictures=false")
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.slow
def test_nothing_of_wandb_is_imported_without_it(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(TRAIN.parent)!r}); from segline.cli import main\n"
        "main('train'); assert 'wandb' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *TINY, f"hydra.run.dir={tmp_path}/run", "logger=none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "cases.png").exists()


@pytest.mark.slow
def test_runs_of_a_sweep_are_a_group(tmp_path: Path) -> None:
    train(tmp_path, "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep", "logger=wandb", "trainer.max_epochs=1")
    folders = sorted((tmp_path / "sweep").glob("?_seed=?"))
    assert len(folders) == 2
    started = []
    for folder in folders:
        (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        started += [record.run for record in records(path) if record.HasField("run")]
    assert {run.run_group for run in started} == {"sweep"}
    assert {run.job_type for run in started} == {"sweep"}
    assert {run.display_name for run in started} == {"0_seed=0", "1_seed=1"}
    assert len({run.run_id for run in started}) == 2
    assert all("dice_ce" in run.tags for run in started)


@contextmanager
def server(behaviour: str) -> Iterator[str]:
    """Address of a server on this machine that refuses, resets or never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if behaviour == "refuses":
            listener.close()
            yield address
            return
        listener.listen()
        listener.settimeout(0.1)
        over, kept = threading.Event(), []

        def accept() -> None:
            while not over.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    if behaviour == "resets":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        connection.close()
                    else:
                        kept.append(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield address
        over.set()
        thread.join()
        for connection in kept:
            connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["refuses", "resets", "stalls"])
def test_a_server_that_does_not_answer_stops_no_training(tmp_path: Path, behaviour: str) -> None:
    quick = [
        "logger.wandb.init_timeout=4",
        "logger.wandb.finish_timeout=4",
        "trainer.max_epochs=1",
        "callbacks.pictures=false",
    ]
    with server(behaviour) as address:
        start = time.monotonic()
        train(tmp_path / "run", "logger=wandb", *quick, WANDB_BASE_URL=address, WANDB_API_KEY="0123456789" * 4)
        assert time.monotonic() - start < 90
    logged = [
        item.key or "/".join(item.nested_key)
        for path in (tmp_path / "run" / "wandb").glob("*run-*/*.wandb")
        for record in records(path)
        if record.HasField("history")
        for item in record.history.item
    ]
    assert "val/iou" in logged


def test_a_sweep_of_wandb_composes_what_it_says() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((TRAIN.parents[1] / "docs" / "wandb_sweep.yaml").read_text())
    chosen = {"model": "unet", "optimizer.lr": 0.0003, "trainer.max_epochs": 10}
    assert chosen.keys() == sweep["parameters"].keys()
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    assert create_sweep_command(sweep["command"])[-1] == "${args_no_hyphens}"
    config = compose(arguments["args_no_hyphens"])
    assert config.optimizer.lr == 0.0003
    assert config.model._target_.endswith("unet.UNet")
    assert sweep["metric"] == {"name": config.objective, "goal": "maximize"}


PLANTED = {
    name: f"planted-{number}-5fa1b2c3d4"
    for number, name in enumerate(
        ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY")
    )
} | {"WANDB_API_KEY": "5e" * 20}


@pytest.mark.slow
def test_no_key_of_the_environment_is_in_what_a_run_leaves(tmp_path: Path) -> None:
    said = train(
        tmp_path / "run", "logger=[wandb,tensorboard,csv]", "trainer.max_epochs=1", WANDB_MODE="offline", **PLANTED
    )
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    assert any(path.suffix == ".wandb" for path in files)
    assert (tmp_path / "run" / "csv" / "metrics.csv").exists()
    for path in files:
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content += b"".join(archive.read(name) for name in archive.namelist())
        for name, key in PLANTED.items():
            assert key.encode() not in content, f"{name} is in {path}"
    assert not any(key in said for key in PLANTED.values())


@pytest.mark.slow
def test_a_password_in_an_address_reaches_no_config(tmp_path: Path) -> None:
    command = [sys.executable, str(TRAIN), *TINY, f"hydra.run.dir={tmp_path}/run", "logger=mlflow"]
    command.append("logger.mlflow.tracking_uri='http://me:planted-secret@127.0.0.1:1/'")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "logger.mlflow.tracking_uri holds a password" in done.stderr
    assert "planted-secret" not in done.stderr
    assert not list((tmp_path / "run").rglob("config.yaml"))
