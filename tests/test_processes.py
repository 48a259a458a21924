"""Trainings of several processes: they count what one counts, train with one setting, and end when one of them dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from validated_sizes import SIZES, write_images

from segline import tables
from segline.checkpoints import RESUME, read

SRC, SUPPORT = (Path(__file__).resolve().parents[1] / "src", Path(__file__).resolve().parent / "support")
TWO = [
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32", "logger=none", "callbacks.pictures=false",
    "data=satellite", "data.window=[64,64]", "data.margin=[8,8]", "data.steps_per_epoch=4", "data.batch_size=2", "data.num_workers=0",
    "model=unet", "model.channels=[4,8]",
]  # fmt: skip


def environment(*further: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SRC, SUPPORT, *further)))}


def pids(*words: str) -> list[int]:
    """Processes in whose command line all of these words stand."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        if all(word in said for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_validation_of_any_number_of_images_is_the_same_by_two_processes(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    script = [str(SUPPORT / "validated_sizes.py"), str(tmp_path / "images"), str(tmp_path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for how in ([], launcher):
        done = subprocess.run(
            [sys.executable, *how, *script], capture_output=True, text=True, timeout=300, env=environment()
        )
        assert done.returncode == 0, done.stderr
    one, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0_of_1", "0_of_2", "1_of_2")
    )
    assert list(one) == list(map(str, SIZES))
    for size, alone in one.items():
        assert len(alone["rows"]) == int(size)
        assert sum(map(sum, alone["confusion"])) > 100 * int(size)
        for several in (first[size], second[size]):
            assert several["rows"] == alone["rows"]
            assert several["confusion"] == alone["confusion"]
            assert several["scores"].pop("val/loss") == pytest.approx(alone["scores"]["val/loss"], rel=1e-6)
            expected = {name: value for name, value in alone["scores"].items() if name != "val/loss"}
            assert several["scores"] == pytest.approx(expected, abs=0, rel=0, nan_ok=True)


def rates_by_run(sweep: Path) -> list[list[float]]:
    """The learning rate of each process, of each training of two."""
    return [tables.read_json(path)["rates"] for path in sorted(sweep.rglob("rates.json"))]


@pytest.mark.slow
def test_processes_of_a_trial_train_with_what_the_study_asked(tmp_path: Path) -> None:
    import optuna

    command = [
        sys.executable,
        str(SRC / "train.py"),
        "sweep=optuna",
        "hydra.sweeper.n_trials=2",
        *TWO,
        "trainer.max_epochs=1",
    ]
    command += [f"hydra.sweep.dir={tmp_path / 'sweep'}", "+callbacks.further.rates._target_=disturbances.NotesRates"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    asked = [trial.params["optimizer.lr"] for trial in study.trials]
    assert len(set(asked)) == 2
    assert rates_by_run(tmp_path / "sweep") == [pytest.approx([rate, rate]) for rate in asked]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_trial_that_is_pruned_is_so_for_good(tmp_path: Path, processes: int) -> None:
    import optuna
    from optuna.trial import TrialState

    sweep = tmp_path / "sweep"
    # No score is as good as this pruner wants it.
    pruner = ["_target_=optuna.pruners.ThresholdPruner", "lower=2"]
    command = [
        sys.executable, str(SRC / "train.py"), "sweep=optuna", "hydra.sweeper.n_trials=1", *TWO,
        *(f"++hydra.sweeper.pruner.{setting}" for setting in pruner), "~hydra.sweeper.pruner.n_startup_trials",
        f"trainer.devices={processes}", "trainer.max_epochs=4", f"hydra.sweep.dir={sweep}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    assert "1 pruned" in done.stdout
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{sweep / 'study.db'}")
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED]
    assert not list(sweep.glob("*/scores.json"))
    (pruned,) = sweep.glob("*/pruned.json")
    assert len(tables.read_rows(pruned.parent / "metrics.csv")) == 1  # of four epochs
    before = pruned.stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert again.returncode == 0, again.stderr
    assert "1 of 1 trials there" in again.stdout
    assert before == pruned.stat().st_mtime_ns


@pytest.mark.slow
def test_processes_of_plain_hydra_and_lightning_do_not(tmp_path: Path) -> None:
    """The fault that the test above is there for: Lightning starts the command, and so the search, once more for the second process."""
    plain = SUPPORT / "plain"
    command = [
        sys.executable,
        str(plain / "train.py"),
        "-m",
        "hydra.sweeper._target_=hydra_plugins.plain_optuna.PlainOptunaSweeper",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(plain),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        while not rates_by_run(tmp_path):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        first, second = rates_by_run(tmp_path)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert first != second


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "killed"])
def test_a_process_that_dies_ends_the_run_within_a_minute(tmp_path: Path, how: str) -> None:
    command = [
        sys.executable,
        str(SRC / "train.py"),
        *TWO,
        "trainer.max_epochs=1000",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    command += ["+callbacks.further.dies._target_=disturbances.Dies", f"+callbacks.further.dies.how={how}"]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert time.monotonic() - start < 60
    assert done.returncode == 1, done.stderr
    said = done.stderr
    if how == "error":
        first = said[said.index("Traceback") :]
        assert first.index("RuntimeError: a process dies here") < first.find("Traceback", 1) % len(first)
    else:
        assert "SIGKILL" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_any_process_saves_and_stops_all(tmp_path: Path, rank: int) -> None:
    run_dir = tmp_path / "run"
    words = [*TWO, "data.steps_per_epoch=500", "trainer.max_epochs=2", f"hydra.run.dir={run_dir}"]
    process = subprocess.Popen(
        [sys.executable, str(SRC / "train.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    while "best      by" not in (line := process.stdout.readline()):  # the last line before the first step
        assert line, process.wait()
    time.sleep(2)
    ranks = sorted(set(pids("segline.job", str(run_dir))) - set(pids("torch.distributed.run")))
    assert len(ranks) == 2
    os.kill(ranks[rank], signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "SIGTERM: saving at the end of this step" in said
    assert re.search(r"saved; resume=\S+ goes on after step \d+", said)
    assert 0 < read(run_dir / RESUME)["training"]["batches"] < 500
    assert not pids("segline.job", str(run_dir))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_a_cluster_takes_away_saves_and_goes_on_when_it_is_requeued(tmp_path: Path, processes: int) -> None:
    sweep, steps = tmp_path / "sweep", 300
    words = [
        *TWO,
        f"data.steps_per_epoch={steps}",
        "trainer.max_epochs=2",
        "model.dropout=0.2",
        f"trainer.devices={processes}",
    ]
    command = [
        sys.executable,
        str(SRC / "train.py"),
        "-m",
        *words,
        "seed=0",
        f"hydra.sweep.dir={sweep}",
        "hydra/launcher=submitit_local",
    ]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        while not list(sweep.glob("*/resume.ckpt")):  # of the first epoch
            time.sleep(0.05)
            assert process.poll() is None, process.communicate()[0]
        time.sleep(
            1
        )  # into the second epoch, which takes several seconds: at its very start nothing tells it from the first one's end
        (job,) = pids("submitit.core._submit", str(sweep))
        os.kill(job, signal.SIGUSR2)  # as SLURM does
        said, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, said
    printed = "".join(path.read_text() for path in sweep.glob(".submitit/**/*_log.out"))
    step = int(re.search(r"resume    after step (\d+)", printed).group(1))  # type: ignore[union-attr]
    assert step % steps  # not from the epoch's end, but from where it was taken away
    (run,) = sweep.glob("*/scores.json")
    assert [row["epoch"] for row in tables.read_rows(run.parent / "metrics.csv")] == [0, 1]
    assert not pids("segline.job", str(sweep))


@pytest.mark.slow
def test_processes_whose_sweep_was_killed_finish_their_point_and_nobody_else_does(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = [*TWO, "data.steps_per_epoch=200", "trainer.max_epochs=3", "seed=0", f"hydra.sweep.dir={sweep}"]
    command = [sys.executable, str(SRC / "train.py"), "-m", *words]
    with (tmp_path / "said").open("w") as said:
        killed = subprocess.Popen(command, env=environment(), stdout=said, stderr=said)
        while not list(sweep.glob("*/resume.ckpt")):
            time.sleep(0.05)
            assert killed.poll() is None, (tmp_path / "said").read_text()
        killed.kill()
        killed.wait()
    assert pids("segline.job", str(sweep))
    meanwhile = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert meanwhile.returncode == 0, meanwhile.stderr
    assert "1 at work elsewhere" in meanwhile.stdout
    while pids("segline.job", str(sweep)):
        time.sleep(0.1)
    after = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert after.returncode == 0, after.stderr
    assert "1 point, 1 of them done" in after.stdout
    (run,) = sweep.glob("*/scores.json")
    assert [row["epoch"] for row in tables.read_rows(run.parent / "metrics.csv")] == [0, 1, 2]


@pytest.mark.slow
def test_a_job_of_a_cluster_is_one_process_whatever_the_cluster_has_set(tmp_path: Path) -> None:
    """Lightning by itself refuses to train where SLURM was asked for more tasks than it knows of."""
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    slurm |= {"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "node1"}
    command = [
        sys.executable,
        str(SRC / "train.py"),
        *TWO,
        "trainer.devices=1",
        "trainer.max_epochs=1",
        f"hydra.run.dir={tmp_path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment() | slurm)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scores.json").exists()
