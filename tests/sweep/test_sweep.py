"""Sweeps of a made-up training, by our sweepers and Hydra's own launcher: each point once, whatever happens."""

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import InstantiationException
from hydra.types import RunMode
from made_up_sweep import begun, ended, start, sweep
from omegaconf import OmegaConf

from segline.config import CONF_DIR, build
from segline.locks import locked
from segline.sweep.folder import SWEEP, sweep_folder
from segline.sweep.grid import point_name
from segline.sweep.points import ERROR, Point, State, once, state_of
from segline.sweep.run import Sweep, _reasons, _why
from segline.tables import read_json, write_json

GRID = ["seed=0,1,2", "loss=ce,dice_ce", "optimizer.lr=1e-3,1e-2"]


def test_every_combination_is_trained_in_a_folder_of_its_own(tmp_path: Path) -> None:
    scores = sweep([*GRID, f"hydra.sweep.dir='{tmp_path / 'a=b c'}'"], tmp_path / "log")
    names = [
        f"{k:02d}_seed={seed},loss={loss},lr={rate}"
        for k, (seed, loss, rate) in enumerate(
            (seed, loss, rate) for seed in range(3) for loss in ("ce", "dice_ce") for rate in ("0.001", "0.01")
        )
    ]
    folders = sorted(folder.name for folder in (tmp_path / "a=b c").iterdir() if folder.is_dir())
    assert folders == [
        *names,
        *sorted(f"ensemble_loss={loss},lr={rate}" for loss in ("ce", "dice_ce") for rate in ("0.001", "0.01")),
    ]
    assert ended(tmp_path / "log") == Counter(names)
    assert scores == [-seed - worse for seed in range(3) for _ in range(2) for worse in (0, 1)]


@pytest.mark.slow
def test_the_same_command_does_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(GRID, tmp_path / "log")
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "03_seed=0,loss=dice_ce,lr=0.01" / "scores.json").unlink()
    sweep(GRID, tmp_path / "log")
    assert "12 points, 11 of them done" in capsys.readouterr().out
    assert [f.name for f in (tmp_path / "runs").iterdir()] == [folder.name]
    assert {name for name, count in ended(tmp_path / "log").items() if count > 1} == {"03_seed=0,loss=dice_ce,lr=0.01"}
    sweep(["seed=0"], tmp_path / "log")  # another one
    sweep(GRID, tmp_path / "log")  # and one that begins anew, as the first is done
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_a_point_that_fails_is_named_and_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    with pytest.raises(ValueError, match=r"1 of 3 points failed; .*\n  1_seed=13: ValueError: thirteen"):
        sweep(["seed=0,13,1", f"hydra.sweep.dir={folder}"], tmp_path / "log")
    assert "2 finished, 1 failed" in capsys.readouterr().out
    assert ended(tmp_path / "log") == Counter(["0_seed=0", "2_seed=1"])
    assert state_of(folder / "1_seed=13") is State.FAILED
    with pytest.raises(ValueError, match="1 of 3 points failed"):  # which is tried again
        sweep(["seed=0,13,1", f"hydra.sweep.dir={folder}"], tmp_path / "log")
    assert (tmp_path / "log").read_text().splitlines().count("begin 1_seed=13") == 2
    assert ended(tmp_path / "log") == Counter(["0_seed=0", "2_seed=1"])


def test_a_failing_sweep_ends_with_an_error_code(tmp_path: Path) -> None:
    process = start(tmp_path, "seed=13,0")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "0_seed=13: ValueError: thirteen" in said


@pytest.mark.slow
def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    sweep(["seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")
    with pytest.raises(
        ValueError, match=r"sweep holds another sweep: its overrides is .*seed=0,1.* set another hydra.sweep.dir"
    ):
        sweep(["seed=0,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["optimizer.lr=interval(0,1)"],
            r"optimizer.lr=interval\(0,1\) has infinitely many values; .* search: sweep=optuna",
        ),
        (["loss=glob(nothing*)"], r"loss=glob\(nothing\*\) stands for nothing"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sweep([*overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")
    assert not (tmp_path / "sweep").exists()


def test_what_is_misspelt_is_said_before_any_point_begins(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nonsense"):
        sweep(["seed=0,1", "loss=ce,nonsense", f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lr", "architectures", "losses", "augment"])
def test_ready_made_sweeps_have_several_points(name: str, tmp_path: Path) -> None:
    scores = sweep([f"sweep={name}", "data=biomedical", f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")
    assert len(scores) > 3


def test_overrides_of_any_length_are_one_name_of_a_folder() -> None:
    name = point_name(999, 3, ["data/augment=none", f"a={300 * 'ü'}", "data.root='/a/b'"])
    assert name.startswith("999_augment=none,a=ü")
    assert "/" not in name
    assert len(name.encode()) <= 255


def test_a_point_is_done_by_one_process(tmp_path: Path) -> None:
    seen: list[str] = []

    def outer() -> None:
        once(tmp_path, lambda: seen.append("inner"))
        seen.append(state_of(tmp_path).value)

    once(tmp_path, outer)
    assert seen == ["at work elsewhere"]
    (tmp_path / "scores.json").write_text("{}")
    once(tmp_path, lambda: seen.append("again"))
    assert seen == ["at work elsewhere"]


def test_an_error_of_a_former_try_is_forgotten(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        once(tmp_path, lambda: 1 / 0)
    assert "ZeroDivisionError" in (tmp_path / ERROR).read_text()
    once(tmp_path, lambda: None)
    assert not (tmp_path / ERROR).exists()


@pytest.mark.slow
def test_several_commands_share_a_sweep(tmp_path: Path) -> None:
    processes = [start(tmp_path, *GRID, "hydra.sweep.dir=shared") for _ in range(3)]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert set(ended(tmp_path / "log").values()) == {1}
    assert len(ended(tmp_path / "log")) == 12


@pytest.mark.slow
def test_two_sweeps_that_start_at_once_share_nothing(tmp_path: Path) -> None:
    processes = [start(tmp_path, *GRID) for _ in range(2)]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert len(list((tmp_path / "runs").glob(f"*/{SWEEP}"))) == 2
    assert set(ended(tmp_path / "log").values()) == {2}


@pytest.mark.slow
def test_a_sweep_that_is_killed_twenty_times_does_each_point_once(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(20):
        process = start(tmp_path, *GRID, "hydra.sweep.dir=sweep", seconds=0.5)
        time.sleep(rng.uniform(0.5, 2.5))
        process.kill()
        process.communicate()
    process = start(tmp_path, *GRID, "hydra.sweep.dir=sweep")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    points = [path for path in (tmp_path / "sweep").glob("[0-9]*") if path.is_dir()]
    assert [state_of(point) for point in points] == [State.FINISHED] * 12
    # One that was killed between its end and its scores is the only one that may end twice; here that takes microseconds.
    assert len(ended(tmp_path / "log")) == 12
    assert set(ended(tmp_path / "log").values()) == {1}
    assert begun(tmp_path / "log") > 12  # some were killed at work
    assert json.loads((tmp_path / "sweep" / SWEEP).read_text())["overrides"] == GRID


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=2"],
    ],
)
def test_other_launchers_train_each_point_once_too(tmp_path: Path, launcher: list[str]) -> None:
    process = start(tmp_path, "seed=0,13,1,2", "hydra.sweep.dir=sweep", *launcher)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert "1 of 4 points failed" in said
    assert ended(tmp_path / "log") == Counter(["0_seed=0", "2_seed=1", "3_seed=2"])


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_point(tmp_path: Path) -> None:
    process = start(
        tmp_path, "seed=0,99,1,2", "hydra.sweep.dir=sweep", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"
    )
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert "1_seed=99: it ended without a word" in said
    assert set(ended(tmp_path / "log")) == {"0_seed=0", "2_seed=1", "3_seed=2"}


def launches(monkeypatch: pytest.MonkeyPatch, ends: str) -> list[int]:
    """Let launches end as the letters say: (i)dle by an error, by one (a)fter the first job, and then well; how many jobs each got."""
    real, sizes = Plugins.instantiate_launcher, []

    def instantiate(self: Plugins, **settings: Any) -> Any:
        launcher = real(self, **settings)

        def launch(jobs: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
            sizes.append(len(jobs))
            end = ends[len(sizes) - 1 : len(sizes)]
            if end != "i":
                done = launcher.launch(jobs[:1] if end else jobs, initial_job_idx=initial_job_idx)
            if end:
                raise OSError("a worker died while it imported")
            return done

        return SimpleNamespace(launch=launch)

    monkeypatch.setattr(Plugins, "instantiate_launcher", instantiate)
    return sizes


def test_jobs_that_die_before_they_begin_are_launched_again_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = launches(monkeypatch, "i")
    sweep(["seed=0,1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")
    assert sizes == [3, 3]
    assert len(ended(tmp_path / "log")) == 3


def test_only_launches_in_a_row_that_start_nothing_end_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = launches(monkeypatch, "iai")
    sweep(["seed=0,1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")
    assert sizes == [3, 3, 2, 2]
    assert ended(tmp_path / "log") == Counter(["0_seed=0", "1_seed=1", "2_seed=2"])


def test_a_trial_whose_job_dies_before_it_begins_is_trained_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = launches(monkeypatch, "i")
    start = ["sweep=optuna", "optimizer.lr=interval(1e-3,1e-2)", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    sweep([*start, "hydra.sweeper.n_trials=2"], tmp_path / "log")
    assert sizes == [1, 1, 1]
    assert len(ended(tmp_path / "log")) == 2


def test_a_launcher_that_starts_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SLURM there is no srun."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"the launcher ended with .*srun.*; nothing was started"):
        sweep(["seed=0,1", "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")


def test_a_launcher_that_starts_nothing_more_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the cluster's scheduler goes away: trials of a search must not be used up for it."""
    start = ["sweep=optuna", "optimizer.lr=interval(1e-3,1e-2)", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    sweep([*start, "hydra.sweeper.n_trials=1"], tmp_path / "log")

    def fail(jobs: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        raise OSError("srun is gone")

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda self, **_: SimpleNamespace(launch=fail))
    with pytest.raises(ValueError, match=r"the launcher ended with .*srun.*; nothing was started"):
        sweep([*start, "hydra.sweeper.n_trials=9"], tmp_path / "log")
    monkeypatch.undo()
    sweep([*start, "hydra.sweeper.n_trials=3"], tmp_path / "log")
    assert len(ended(tmp_path / "log")) == 3


def test_asking_for_a_point_holds_nobody_up(tmp_path: Path) -> None:
    """Of many that ask while others claim, none takes an idle point for one at work."""
    (tmp_path / ".claim").touch()
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda _: state_of(tmp_path), range(400)))
    once(tmp_path, lambda: None)
    assert set(states) == {State.OPEN}


def test_points_that_ended_without_their_command_are_put_together_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(["seed=0,1"], tmp_path / "log")
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / ".ended").unlink()  # as where jobs of a cluster go on when the command is stopped
    (folder / "ensemble" / "members.json").unlink()
    sweep(["seed=0,1"], tmp_path / "log")
    assert list((tmp_path / "runs").iterdir()) == [folder]
    assert (folder / "ensemble" / "members.json").exists()
    assert ended(tmp_path / "log") == Counter(["0_seed=0", "1_seed=1"])


@pytest.mark.slow
def test_a_sweep_does_not_go_on_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path / "conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    command = ["experiment=mine", "seed=0,1", f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]
    for rate in ("1e-2", "1e-3"):
        experiment.write_text(f"# @package _global_\noptimizer: {{lr: {rate}}}\n")
        sweep(command, tmp_path / "log")
        if rate == "1e-2":
            (first,) = (tmp_path / "runs").iterdir()
            (first / ".ended").unlink()  # it was stopped
    assert len(list((tmp_path / "runs").iterdir())) == 2
    with pytest.raises(
        ValueError, match=r"holds another sweep: the settings that are the same for all .* have changed"
    ):
        sweep([*command, f"hydra.sweep.dir={first}"], tmp_path / "log")


def test_a_password_and_another_launcher_are_refused_before_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"logger.uri holds a password in an address.* MLFLOW_TRACKING_PASSWORD"):
        sweep(["+logger.uri='https://me:secret@host'", "seed=0,1"], tmp_path / "log")
    with pytest.raises(ValueError, match=r"hydra.sweeper.storage holds a password.*'\$\{oc.env:ADDRESS\}'"):
        sweep(["sweep=optuna", "hydra.sweeper.storage='postgresql://me:secret@host/db'"], tmp_path / "log")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match=r"leave torchrun out, and set trainer=ddp trainer\.devices=N"):
        sweep(["seed=0,1"], tmp_path / "log")
    assert list(tmp_path.iterdir()) == []


def test_points_that_had_not_begun_when_another_was_killed_are_launched_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[list[str]] = []

    def launch(self: Sweep, folder: Path, points: Sequence[Point], first: int) -> set[str]:
        launched.append([point.name for point in points])
        begun = points if len(launched) > 1 else points[:1]
        for point in begun:
            (folder / point.name).mkdir(exist_ok=True)
            (folder / point.name / ".claim").touch()
            if len(launched) > 1:
                write_json(folder / point.name / "scores.json", {"val/iou": 0.5})
        return {point.name for point in begun}

    monkeypatch.setattr(Sweep, "launch", launch)
    sweep(["seed=0,1,2,3", f"hydra.sweep.dir={tmp_path / 'sweep'}"], tmp_path / "log")
    names = [f"{seed}_seed={seed}" for seed in range(4)]
    assert launched == [names, names[1:], names[:1]]


def test_why_a_point_failed_is_said_even_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("2 faults in the data:\n  a\n  b")

    for broken in (False, True):
        if broken:
            monkeypatch.setattr(
                "segline.sweep.points.committed", lambda path: (_ for _ in ()).throw(OSError(28, "full"))
            )
        with pytest.raises(ValueError, match="2 faults"):
            once(tmp_path, fail)
        assert "failed    " in capsys.readouterr().err
        assert _why(tmp_path).startswith("it ended without" if broken else "ValueError: 2 faults in the data:")


def test_what_many_points_failed_for_is_said_once(tmp_path: Path) -> None:
    reasons = ["2 faults:\n  a", "no disk", "2 faults:\n  b", "2 faults:\n  a"]
    for name, reason in enumerate(reasons):
        with pytest.raises(OSError, match=reason[:5]):
            once(tmp_path / str(name), lambda reason=reason: (_ for _ in ()).throw(OSError(reason)))  # type: ignore[misc]
    assert _reasons(tmp_path, ["0", "1", "2", "3", "4"]) == [
        f"0 and 1 other: OSError: 2 faults: ({tmp_path}/0/error.txt)",
        f"1: OSError: no disk ({tmp_path}/1/error.txt)",
        f"2: OSError: 2 faults: ({tmp_path}/2/error.txt)",
        "4: it ended without a word, as if it was killed",
    ]
    for name in range(20, 35):
        with pytest.raises(OSError):  # noqa: PT011
            once(tmp_path / str(name), lambda name=name: (_ for _ in ()).throw(OSError(name)))  # type: ignore[misc]
    assert _reasons(tmp_path, [str(name) for name in range(20, 35)])[10:] == ["and 5 further reasons"]


def test_why_a_point_failed_is_what_its_network_says(tmp_path: Path) -> None:
    target = {
        "_target_": "segline.models.attention_unet.AttentionUNet",
        "in_channels": 3,
        "num_classes": 2,
        "channels": [4, 8],
    }
    with pytest.raises(InstantiationException):
        once(tmp_path, lambda: build(OmegaConf.create(target)))
    assert _why(tmp_path).startswith("channels is [4, 8], which leaves no skip to be gated")
    assert "Traceback" in (tmp_path / "error.txt").read_text()


def test_a_sweep_whose_points_are_at_work_elsewhere_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a command is stopped and typed again while its jobs on a cluster go on."""
    monkeypatch.chdir(tmp_path)

    def only_make(self: Sweep, folder: Path, points: Sequence[Point], first: int) -> set[str]:
        for point in points:
            (folder / point.name).mkdir(exist_ok=True)
        return {point.name for point in points}

    with monkeypatch.context() as patched:
        patched.setattr(Sweep, "launch", only_make)
        with pytest.raises(ValueError, match="2 of 2 points failed"):
            sweep(["seed=0,1"], tmp_path / "log")
    (folder,) = (tmp_path / "runs").iterdir()
    # The second by processes whose sweep was killed: they hold the run's folder, and nobody its point any more.
    with locked(folder / "0_seed=0" / ".claim"), locked(folder / "1_seed=1" / ".lock"):
        sweep(["seed=0,1"], tmp_path / "log")
        assert not (tmp_path / "log").exists()
    sweep(["seed=0,1"], tmp_path / "log")
    assert list((tmp_path / "runs").iterdir()) == [folder]
    assert ended(tmp_path / "log") == Counter(["0_seed=0", "1_seed=1"])


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF_DIR / "sweep").glob("*.yaml")))
def test_a_ready_made_sweep_needs_its_name_alone(name: str) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", [f"sweep={name}"], return_hydra_config=True)
    assert config.hydra.mode is RunMode.MULTIRUN


def test_sweeps_of_the_same_moment_have_folders_of_their_own(tmp_path: Path) -> None:
    asked, command = tmp_path / "now", {"overrides": ["seed=0,1"]}
    with (
        sweep_folder(asked, False, command, lambda folder: False) as first,
        sweep_folder(asked, False, command, lambda folder: False) as second,
    ):
        assert (first.name, second.name) == ("now", "now_2")
        ids = {read_json(folder / SWEEP)["id"] for folder in (first, second)}
    assert len(ids) == 2
