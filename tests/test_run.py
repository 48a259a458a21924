"""The main job through its real entry point, on tiny synthetic data of each domain."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from segline import tables
from segline.checkpoints import BEST, RESUME, read

SRC = Path(__file__).resolve().parents[1] / "src"
TINY = [
    "trainer=cpu",
    "trainer.precision=32",
    "logger=none",
    "model=unet",
    "model.channels=[4,8]",
    "data.steps_per_epoch=3",
    "data.batch_size=2",
    "data.num_workers=0",
]


def command(run_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(SRC / "train.py"), *TINY, f"hydra.run.dir={run_dir}", *overrides]


def train(run_dir: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(run_dir, *overrides), capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("data", ["satellite", "biomedical", "driving", "biomedical3d"])
def test_a_run_leaves_what_it_says_and_predicts(tmp_path: Path, data: str) -> None:
    window = "[16,32,32]" if data == "biomedical3d" else "[64,64]"
    margin = "[4,4,4]" if data == "biomedical3d" else "[8,8]"
    done = train(
        tmp_path / "run", f"data={data}", f"data.window={window}", f"data.margin={margin}", "trainer.max_epochs=2"
    )
    names = set(os.listdir(tmp_path / "run"))
    assert names >= {
        "config.yaml",
        "environment.json",
        BEST,
        RESUME,
        "metrics.csv",
        "cases.parquet",
        "scores.json",
        "curves.png",
        "cases.png",
    }
    assert "Dice" in done.stdout
    assert f"run: {tmp_path / 'run'}" in done.stdout

    rows = tables.read_rows(tmp_path / "run" / "metrics.csv")
    assert [row["epoch"] for row in rows] == [0, 1]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["val/iou"] == pytest.approx(max(row["val/iou"] for row in rows), abs=1e-9)

    cases = pq.read_table(tmp_path / "run" / "cases.parquet").to_pylist()
    assert {row["split"] for row in cases} <= {"val", "test"}
    assert len({row["case"] for row in cases}) == len(cases)


def states(run_dir: Path) -> dict[str, torch.Tensor]:
    return read(run_dir / RESUME)["state_dict"]


def assert_same_run(one: Path, other: Path) -> None:
    first, second = states(one), states(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    first_rows, second_rows = (tables.read_rows(run / "metrics.csv") for run in (one, other))
    assert [{**row, "seconds": 0} for row in first_rows] == [{**row, "seconds": 0} for row in second_rows]
    assert json.loads((one / "scores.json").read_text()) == json.loads((other / "scores.json").read_text())


RESUMABLE = [
    "data=satellite", "data.window=[64,64]", "data.margin=[8,8]", "trainer.max_epochs=3", "model.dropout=0.2", "data.steps_per_epoch=6",
    "callbacks.checkpoint_minutes=0.005", "callbacks.pictures=false", "callbacks.average_weights=0.9",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    start = time.monotonic()
    train(run_dir, *RESUMABLE)
    return run_dir, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, undisturbed: tuple[Path, float], seed: int) -> None:
    whole, seconds = undisturbed
    draw = random.Random(seed)
    run_dir = tmp_path / "run"
    for _ in range(3):
        process = subprocess.Popen(
            command(run_dir, *RESUMABLE, "resume=auto"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    train(run_dir, *RESUMABLE, "resume=auto")
    assert_same_run(whole, run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first_and_the_run_goes_on(
    tmp_path: Path, undisturbed: tuple[Path, float], signum: signal.Signals
) -> None:
    whole, _ = undisturbed
    run_dir = tmp_path / "run"
    # A terminal and a scheduler signal all processes of the job; the batches come from one of them.
    overrides = [*RESUMABLE, "callbacks.checkpoint_minutes=null", "data.num_workers=1"]
    process = subprocess.Popen(
        command(run_dir, *overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not (run_dir / "metrics.csv").exists():
        time.sleep(0.02)
        assert process.poll() is None
    os.killpg(process.pid, signum)
    assert process.wait(60) == 128 + signum
    assert (run_dir / RESUME).stat().st_mtime > (run_dir / "metrics.csv").stat().st_mtime
    done = subprocess.run(
        [sys.executable, str(SRC / "train.py"), f"resume={run_dir}"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, run_dir)


SATELLITE = ["data=satellite", "data.window=[64,64]", "data.margin=[8,8]"]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32"]


@pytest.mark.slow
def test_two_processes_measure_what_one_does_to_the_last_integer(tmp_path: Path) -> None:
    # Three tiles are left over by a batch of two on two processes: one of them gets samples that count nothing.
    common = [*SATELLITE, "data.batch_size=2", "trainer.max_epochs=1", "callbacks.pictures=false"]
    train(tmp_path / "one", *common)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name in ("cases.parquet", "scores.json"):
        (tmp_path / "two" / name).unlink()
    train(tmp_path / "two", *common, *TWO, "resume=auto")  # nothing is left to train: the best weights are tested again
    first, second = (pq.read_table(tmp_path / name / "cases.parquet").to_pylist() for name in ("one", "two"))
    assert first == second
    one, two = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two"))
    assert one.pop("val/loss") == pytest.approx(two.pop("val/loss"), rel=1e-5)
    assert one == two


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_the_same_windows_a_step(tmp_path: Path) -> None:
    """For a network without batch statistics: the windows of a step, and so its loss and gradient, are the same."""
    common = [*SATELLITE, "data.batch_size=4", "trainer.max_epochs=2", "trainer.precision=32", "model.norm=none"]
    common += ["callbacks.pictures=false", "loss=ce"]
    train(tmp_path / "one", *common)
    done = train(tmp_path / "two", *common, *TWO)
    assert "2 x cpu, 2 windows of a step each" in done.stdout
    one, two = (tables.read_rows(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert [row["train/loss"] for row in two] == pytest.approx([row["train/loss"] for row in one], rel=1e-4)
    first, second = states(tmp_path / "one"), states(tmp_path / "two")
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_accumulated_windows_train_as_a_step_with_all_of_them_does(tmp_path: Path) -> None:
    """In one process and in two, for a network without batch statistics and a loss that is a mean over pixels."""
    common = [*SATELLITE, "data/augment=none", "model.norm=none", "loss=ce", "callbacks.pictures=false"]
    common += ["trainer.max_epochs=2", "class_weights=false"]
    whole = [*common, "data.batch_size=4", "data.steps_per_epoch=4"]
    parts = [*common, "data.batch_size=2", "data.steps_per_epoch=8", "trainer.accumulate_grad_batches=2"]
    train(tmp_path / "whole", *whole)
    one = train(tmp_path / "one", *parts)
    assert "2 times 2 windows before the weights change" in one.stdout
    two = train(tmp_path / "two", *parts, *TWO)
    assert "2 x cpu, 1 windows of a step each, 2 times 2 windows before the weights change" in two.stdout
    expected, weights = tables.read_rows(tmp_path / "whole" / "metrics.csv"), states(tmp_path / "whole")
    for name in ("one", "two"):
        rows = tables.read_rows(tmp_path / name / "metrics.csv")
        for key in ("train/loss", "val/loss"):
            assert [row[key] for row in rows] == pytest.approx([row[key] for row in expected], rel=1e-4)
        for layer, values in states(tmp_path / name).items():
            torch.testing.assert_close(values, weights[layer], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_windows_that_processes_cannot_share_are_refused(tmp_path: Path) -> None:
    overrides = [*SATELLITE, *TWO, "data.batch_size=3", "trainer.max_epochs=1"]
    done = subprocess.run(command(tmp_path / "run", *overrides), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    said = "data.batch_size is 3, windows a step of all processes together, which 2 cannot share equally; set data.batch_size=2 or 4"
    assert said in done.stderr


@pytest.mark.slow
def test_two_processes_do_not_wait_for_gradients_that_never_come(tmp_path: Path) -> None:
    network = [
        "model=smp",
        "model.architecture=pspnet",
        "data.batch_size=4",
    ]  # has only the first stages of its encoder answer
    overrides = [*SATELLITE, *TWO, *network, "trainer.max_epochs=2", "callbacks.pictures=false"]
    words = [word for word in command(tmp_path / "run", *overrides) if word != "model.channels=[4,8]"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in tables.read_rows(tmp_path / "run" / "metrics.csv")] == [0, 1]


@pytest.mark.slow
def test_two_nodes_are_one_training(tmp_path: Path) -> None:
    """Two of torch's launchers with a process each, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    words = [*command(tmp_path / "run", *SATELLITE, "trainer.max_epochs=1", "callbacks.pictures=false")]
    nodes = [
        subprocess.Popen([words[0], *launcher, *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "2 x cpu, 1 windows of a step each" in "".join(said)
    assert (tmp_path / "run" / "scores.json").exists()


@pytest.mark.slow
def test_sigterm_to_a_run_of_two_processes_saves_first_and_it_goes_on(tmp_path: Path) -> None:
    overrides = [*SATELLITE, *TWO, "trainer.max_epochs=3", "data.steps_per_epoch=40", "callbacks.pictures=false"]
    overrides += ["callbacks.average_weights=0.9"]
    run_dir = tmp_path / "run"
    process = subprocess.Popen(command(run_dir, *overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run_dir / "metrics.csv").exists():
        time.sleep(0.02)
        assert process.poll() is None
    saved = (run_dir / RESUME).stat().st_mtime_ns if (run_dir / RESUME).exists() else 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert (run_dir / RESUME).stat().st_mtime_ns > saved
    done = subprocess.run(
        [sys.executable, str(SRC / "train.py"), f"resume={run_dir}"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in tables.read_rows(run_dir / "metrics.csv")] == [0, 1, 2]


@pytest.mark.slow
def test_a_point_of_a_search_goes_on_by_itself(tmp_path: Path) -> None:
    words = [word for word in command(tmp_path / "run", *SATELLITE, "trainer.max_epochs=1") if "run.dir" not in word]
    search = [*words, "sweep=optuna", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={tmp_path / 'search'}"]
    subprocess.run(search, check=True, capture_output=True, timeout=300)
    first, second = sorted(path.parent for path in (tmp_path / "search").glob("*/resume.ckpt"))
    done = subprocess.run(
        [sys.executable, str(SRC / "train.py"), f"resume={first}", "trainer.max_epochs=2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "pruned" not in done.stdout
    assert [row["epoch"] for row in tables.read_rows(first / "metrics.csv")] == [0, 1]
    assert [row["epoch"] for row in tables.read_rows(second / "metrics.csv")] == [0]


@pytest.mark.slow
def test_not_a_number_stops_at_that_step_and_names_the_samples(tmp_path: Path) -> None:
    train(tmp_path / "run", *SATELLITE, "trainer.max_epochs=1")
    best = (tmp_path / "run" / BEST).read_bytes()
    done = train(tmp_path / "run", *SATELLITE, "trainer.max_epochs=4", "resume=auto", "optimizer.lr=1e30", check=False)
    assert done.returncode == 1
    assert "the loss is nan at step" in done.stderr or "the loss is inf at step" in done.stderr, done.stderr
    assert "best checkpoint is whole" in done.stderr
    assert best == (tmp_path / "run" / BEST).read_bytes()


@pytest.mark.slow
def test_a_folder_in_use_or_of_another_model_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = [*SATELLITE, "trainer.max_epochs=1"]
    train(run_dir, *overrides)
    before = sorted((path.name, path.read_bytes()) for path in run_dir.iterdir() if path.is_file())
    again = train(run_dir, *overrides, "optimizer.lr=1", check=False)
    assert "holds a run already" in again.stderr
    assert sorted((path.name, path.read_bytes()) for path in run_dir.iterdir() if path.is_file()) == before
    other = train(run_dir, *overrides, "resume=auto", "model.channels=[4,4]", check=False)
    assert "another model" in other.stderr
    assert sorted((path.name, path.read_bytes()) for path in run_dir.iterdir() if path.is_file()) == before
    import fcntl

    with (run_dir / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = train(run_dir, *overrides, "resume=auto", check=False)
    assert "in use" in busy.stderr


@pytest.mark.slow
def test_a_loss_for_the_other_scheme_is_refused_with_one_that_works(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "data=satellite", "loss=bce", check=False)
    assert "set loss=dice_ce" in done.stderr
    assert "Traceback" not in done.stderr
