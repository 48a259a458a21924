"""A run as W&B itself wrote it down, offline."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml

from segline import tables
from segline.config import compose

TRAIN = Path(__file__).resolve().parents[1] / "src" / "train.py"
TINY = [
    "trainer=cpu", "trainer.max_epochs=2", "model=unet", "model.channels=[4,8]", "data.steps_per_epoch=2", "data.batch_size=2",
    "data.window=[64,64]", "data.margin=[8,8]", "data.num_workers=0",
]  # fmt: skip


def train(run_dir: Path, *overrides: str, code: int = 0, **variables: str) -> str:
    """All that a training says that ends with a code."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | variables
    command = [sys.executable, str(TRAIN), *TINY, f"hydra.run.dir={run_dir}", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


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


def history(found: list[Any]) -> list[dict[str, Any]]:
    """The rows that were logged."""
    items = [record.history.item for record in found if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in items]


def exit_codes(found: list[Any]) -> list[int]:
    return [record.exit.exit_code for record in found if record.HasField("exit")]


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

    rows = history(found)
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


@pytest.mark.slow
def test_a_job_that_fails_ends_its_run_and_the_next_has_one_of_its_own(tmp_path: Path) -> None:
    """The first of two points dies while it trains; both are trained by one process."""
    dies = "{_target_: support.disturbances.Dies, how: error, rank: 0, step: 2}"
    said = train(
        tmp_path,
        "-m",
        f"+callbacks.further.dies={dies},null",
        f"hydra.sweep.dir={tmp_path}/sweep",
        "logger=wandb",
        "callbacks.pictures=false",
        code=1,
        PYTHONPATH=str(Path(__file__).parent),
    )
    assert "1 of 2 points failed" in said
    runs = {}
    for folder in sorted((tmp_path / "sweep").glob("?_*")):
        (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        found = list(records(path))
        (run,) = (record.run for record in found if record.HasField("run"))
        assert run.display_name == folder.name
        runs[run.run_id] = exit_codes(found)
    assert list(runs.values()) == [[1], [0]]


class _Wandb(BaseHTTPRequestHandler):
    """As much of W&B's server as starting a run asks for; from the first row that is sent on it is out of order."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/file_stream"):
            server.broken.set()
        if server.broken.is_set() and server.behaviour == "stalls":
            server.over.wait()
        if server.broken.is_set():
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        bucket = {"id": "1", "name": "run", "project": {"name": "segline", "entity": {"name": "me"}}}
        answer = json.dumps({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def server_for_a_while(behaviour: str) -> Iterator[str]:
    """Address of a server of W&B's on this machine that takes a run, and then resets connections or never answers."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Wandb)
    server.behaviour, server.broken, server.over, server.daemon_threads = behaviour, Event(), Event(), True
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    asked = server.broken.is_set()
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()
    assert asked, "nothing was sent"


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
        over, kept = Event(), []

        def accept() -> None:
            while not over.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    if behaviour == "resets":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        connection.close()
                    else:
                        kept.append(connection)

        thread = Thread(target=accept)
        thread.start()
        yield address
        over.set()
        thread.join()
        for connection in kept:
            connection.close()


QUICK = ["logger.wandb.init_timeout=4", "logger.wandb.finish_timeout=4", "callbacks.pictures=false"]


def assert_logged_whole(run_dir: Path, mode: str) -> None:
    """The run that was logged by W&B has each epoch's values as the table has them, and its end."""
    (path,) = (run_dir / "wandb").glob(f"{mode}-*/*.wandb")
    found = list(records(path))
    assert set(exit_codes(found)) == {0}  # W&B notes it again where the server was waited for in vain
    table = tables.read_rows(run_dir / "metrics.csv")
    assert [row["epoch"] for row in table] == [0, 1]
    logged = [row for row in history(found) if "trainer/global_step" in row]
    assert len(logged) == 2 * len(table)  # of each epoch one by training, and one by validation
    for row in table:
        of_epoch = [line for line in logged if line["epoch"] == row["epoch"]]
        assert {line["trainer/global_step"] + 1 for line in of_epoch} == {row["step"]}
        values = {name: value for line in of_epoch for name, value in line.items() if "/" in name or name == "lr"}
        del values["trainer/global_step"]
        assert {name for name in row if name.startswith("val/") and name.count("/") == 1} <= values.keys()
        assert values == pytest.approx({name: row[name] for name in values}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["refuses", "resets", "stalls"])
def test_a_server_that_does_not_answer_stops_no_training(tmp_path: Path, behaviour: str) -> None:
    with server(behaviour) as address:
        start = time.monotonic()
        said = train(tmp_path / "run", "logger=wandb", *QUICK, WANDB_BASE_URL=address, WANDB_API_KEY="0123456789" * 4)
        assert time.monotonic() - start < 90
    assert "W&B does not answer, so that this run stays offline" in said
    assert_logged_whole(tmp_path / "run", "offline-run")


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["resets", "stalls"])
def test_a_server_that_answers_no_more_stops_no_training(tmp_path: Path, behaviour: str) -> None:
    with server_for_a_while(behaviour) as address:
        start = time.monotonic()
        train(tmp_path / "run", "logger=wandb", *QUICK, WANDB_BASE_URL=address, WANDB_API_KEY="0123456789" * 4)
        assert time.monotonic() - start < 90
    assert_logged_whole(tmp_path / "run", "run")


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


def assert_nowhere(folder: Path, said: str) -> None:
    """No planted key is in a file or its name, in a packed one neither, nor in what was said."""
    for path in folder.rglob("*"):
        content = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content += b"".join(archive.read(name) for name in archive.namelist())
        for name, key in PLANTED.items():
            assert key.encode() not in content, f"{name} is in {path}"
    assert not any(key in said for key in PLANTED.values())


@pytest.mark.slow
def test_no_key_of_the_environment_is_in_what_a_run_leaves(tmp_path: Path) -> None:
    said = train(
        tmp_path / "run", "logger=[wandb,tensorboard,csv]", "trainer.max_epochs=1", WANDB_MODE="offline", **PLANTED
    )
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    assert any(path.suffix == ".wandb" for path in files)
    assert (tmp_path / "run" / "csv" / "metrics.csv").exists()
    assert_nowhere(tmp_path, said)


ROUTES = {
    "referred to": (["+logger.comet.api_key='${oc.env:COMET_API_KEY}'"], "logger.comet.api_key"),
    "referred to by another name": (["+logger.note='see ${oc.env:HF_TOKEN}'"], "logger.note"),
    "typed": (["+logger.comet.api_key={COMET_API_KEY}"], "logger.comet.api_key"),
    "typed in a list": (["logger.wandb.tags=[a,{GITHUB_TOKEN}]"], "logger.wandb.tags"),
    "in an address": (["logger=mlflow", "logger.mlflow.tracking_uri='https://{HF_TOKEN}@127.0.0.1'"], "tracking_uri"),
    "for Hydra": (["+hydra.job.env_set.WANDB_API_KEY={WANDB_API_KEY}"], "hydra.job.env_set.WANDB_API_KEY"),
    "of a sweep": (["-m", "seed=0,1", "+logger.comet.api_key={COMET_API_KEY}"], "logger.comet.api_key"),
    "as a point": (["-m", "+logger.comet.api_key={COMET_API_KEY},a"], "logger.comet.api_key"),
    "of points": (["-m", "seed=0,1", "+logger.comet.api_key='${oc.env:COMET_API_KEY}'"], "logger.comet.api_key"),
}


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_a_key_among_the_settings_is_refused_and_kept_nowhere(tmp_path: Path, route: str) -> None:
    words, setting = ROUTES[route]
    for name, key in PLANTED.items():
        words = [word.replace(f"{{{name}}}", key) for word in words]
    # What is typed under a telling name is known without the environment, which holds no key in its place.
    known = PLANTED if "oc.env" in words[-1] or route == "typed in a list" else {}
    folders = [f"hydra.sweep.dir={tmp_path}/sweep", "hydra.output_subdir=.hydra"]
    said = train(tmp_path / "run", *folders, *words, code=1, **known)
    assert setting in said
    assert re.search(r" holds (a password|the value of [A-Z_]+)", said)
    assert_nowhere(tmp_path, said)


@pytest.mark.slow
def test_a_key_in_a_config_of_ones_own_is_refused_and_kept_nowhere(tmp_path: Path) -> None:
    own = tmp_path / "conf" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(f"# @package _global_\nlogger: {{comet: {{api_key: {PLANTED['COMET_API_KEY']}}}}}\n")
    folders = [f"hydra.searchpath=[file://{tmp_path}/conf]", "hydra.output_subdir=.hydra"]
    said = train(tmp_path / "run", "experiment=mine", *folders, code=1)
    assert "logger.comet.api_key holds a password" in said
    own.unlink()
    assert_nowhere(tmp_path, said)


@pytest.mark.slow
def test_a_password_in_an_address_reaches_no_config(tmp_path: Path) -> None:
    command = [sys.executable, str(TRAIN), *TINY, f"hydra.run.dir={tmp_path}/run", "logger=mlflow"]
    command.append("logger.mlflow.tracking_uri='http://me:planted-secret@127.0.0.1:1/'")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "logger.mlflow.tracking_uri holds a password" in done.stderr
    assert "planted-secret" not in done.stderr
    assert not list((tmp_path / "run").rglob("config.yaml"))
