"""A run as W&B itself wrote it down, offline."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TRAIN = Path(__file__).resolve().parents[1] / "src" / "train.py"
TINY = [
    "trainer=cpu", "trainer.max_epochs=2", "model=unet", "model.channels=[4,8]", "data.steps_per_epoch=2", "data.batch_size=2",
    "data.window=[64,64]", "data.margin=[8,8]", "data.num_workers=0",
]  # fmt: skip


def train(run_dir: Path, *overrides: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
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
    said = train(tmp_path / "run", "logger=wandb")
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
    assert not any(name.startswith("val/recall/") for row in rows for name in row)

    drawn_against = {(r.metric.name or r.metric.glob_name): r.metric.step_metric for r in found if r.HasField("metric")}
    assert drawn_against["*"] == "epoch"
    (objective,) = (r.metric for r in found if r.HasField("metric") and r.metric.name == "val/iou")
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
