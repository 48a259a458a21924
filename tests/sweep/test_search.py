"""Searches by Optuna over a made-up training: what is asked, what is told, and how they go on."""

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_up_sweep import begun, ended, start, sweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from segline.budget import Objective
from segline.config import compose
from segline.sweep.folder import SWEEP
from segline.sweep.pruning import Pruning
from segline.sweep.search import BEST, distribution, experiment, seed_of
from segline.tables import write_json

SEARCH = ["sweep=optuna", "+hydra.sweeper.sampler.n_startup_trials=3"]


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")


def asked(folder: Path) -> list[dict[str, Any]]:
    return [trial.params for trial in study(folder).trials]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss=ce,dice_ce", CategoricalDistribution(["ce", "dice_ce"])),
        ("model.channels=[8,16],[16,32]", CategoricalDistribution(["[8,16]", "[16,32]"])),
        ("a=choice(true,x,0.5)", CategoricalDistribution(["True", "x", "0.5"])),
        ("a=interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("a=tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("a=int(interval(1,8))", IntDistribution(1, 8)),
        ("a=tag(log,int(interval(1,8)))", IntDistribution(1, 8, log=True)),
        ("a=range(1,6)", IntDistribution(1, 5)),
        ("a=range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("a=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
    ],
)
def test_a_search_space_is_what_hydra_means(override: str, expected: Any) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override.replace("model.channels", "a")])
    found = distribution(parsed)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.slow
def test_trials_are_asked_trained_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "search"
    scores = sweep([*SEARCH, "hydra.sweeper.n_trials=12", f"hydra.sweep.dir={folder}"], tmp_path / "log")
    trials = study(folder).trials
    assert [trial.value for trial in trials] == scores
    assert len(ended(tmp_path / "log")) == 12
    assert study(folder).best_value > -0.02  # between 1e-4 and 1e-2 it is 1e-3 that is best
    assert {trial.user_attrs["run"] for trial in trials} == set(ended(tmp_path / "log"))
    printed = capsys.readouterr().out
    assert f"again     python src/train.py --config-dir {folder} experiment=best" in printed
    assert "12 finished" in printed


@pytest.mark.slow
def test_a_search_that_was_stopped_asks_what_it_would_have_asked(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sweep([*SEARCH, "hydra.sweeper.n_trials=8", f"hydra.sweep.dir={whole}"], tmp_path / "log")
    for trials in (3, 4, 8):
        sweep([*SEARCH, f"hydra.sweeper.n_trials={trials}", f"hydra.sweep.dir={stopped}"], tmp_path / "log2")
    assert asked(stopped) == asked(whole)
    assert len(asked(whole)) == len({str(params) for params in asked(whole)}) == 8
    assert set(ended(tmp_path / "log2").values()) == {1}


@pytest.mark.slow
def test_the_best_trial_is_an_experiment(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    sweep(
        [*SEARCH, "model=unet", "model.channels=[4,8]", "hydra.sweeper.n_trials=4", f"hydra.sweep.dir={folder}"],
        tmp_path / "log",
    )
    text = (folder / BEST).read_text()
    assert text.startswith("# @package _global_\n# The best of 4 trials: val/iou ")
    best = study(folder).best_trial.params
    assert yaml.safe_load(text) == {
        "defaults": [{"override /model": "unet"}, {"override /loss": best["loss"]}],
        "model": {"channels": [4, 8]},
        "optimizer": {"lr": best["optimizer.lr"]},
    }
    config = compose([f"hydra.searchpath=[file://{folder}]", "experiment=best"])
    assert (config.optimizer.lr, config.model.channels) == (best["optimizer.lr"], [4, 8])


@pytest.mark.slow
def test_the_best_trial_of_an_experiment_goes_on_top_of_it(tmp_path: Path) -> None:
    """The experiment chooses the data and much else, which nothing on the command line says."""
    sweep(
        ["experiment=camvid_fast", *SEARCH, "hydra.sweeper.n_trials=3", f"hydra.sweep.dir={tmp_path / 'search'}"],
        tmp_path / "log",
    )
    plain = compose(["experiment=camvid_fast"])
    config = compose([f"hydra.searchpath=[file://{tmp_path / 'search'}]", "experiment=best"])
    best = study(tmp_path / "search").best_trial.params
    assert (config.model, config.data.root) == (plain.model, plain.data.root)
    assert config.optimizer.lr == best["optimizer.lr"] != plain.optimizer.lr


def test_a_choice_that_does_not_exist_is_said_before_any_trial(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nonsense"):
        sweep([*SEARCH, "loss=dice_ce,ce,nonsense", f"hydra.sweep.dir={tmp_path / 'search'}"], tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_values_of_all_kinds_read_back_from_an_experiment() -> None:
    content = experiment(
        ["data/augment=none", "data/weight_map=null", "a.b=null", "a.c=[1,x]", "a.d=1e-3", "+e=true", "sweep=optuna"]
    )
    assert content == {
        "defaults": [{"override /data/augment": "none"}, {"override /data/weight_map": None}],
        "a": {"b": None, "c": [1, "x"], "d": 1e-3},
        "e": True,
    }


@pytest.mark.slow
def test_trials_that_take_too_much_are_never_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "search"  # the best rate is 1e-3, whose network is made up to have 0.01 weights
    overrides = ["hydra.sweeper.constraints.weights=0.004", "hydra.sweeper.n_trials=10", f"hydra.sweep.dir={folder}"]
    sweep([*SEARCH, *overrides], tmp_path / "log")
    best = study(folder).best_trial
    assert best.params["optimizer.lr"] <= 4e-4
    within = [t.value for t in study(folder).trials if t.params["optimizer.lr"] <= 4e-4]
    assert best.value == max(v for v in within if v is not None)
    assert len(within) < 10


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_counts(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    with pytest.raises(ValueError, match=r"of 5 points failed"):
        sweep(["sweep=optuna", "seed=0,13", "hydra.sweeper.n_trials=5", f"hydra.sweep.dir={folder}"], tmp_path / "log")
    states = [trial.state for trial in study(folder).trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.FAIL}
    assert len(states) == 5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials is 0; expected 1 or more"),
        (["hydra.sweeper.params={}"], "there is nothing to search; give values or intervals"),
        (["optimizer.lr=interval(1,0.5)"], r"optimizer.lr=interval\(1,0.5\) is no interval"),
        (["optimizer.lr=tag(log,interval(0,1))"], "has no logarithm at its start; expected one above 0"),
        (["seed=tag(log,range(1,9))"], r"has steps; expected tag\(log,interval\(1,100\)\) without"),
        (
            ["+hydra.sweeper.constraints.weihgts=1"],
            "constraints.weihgts is 1; expected a number above 0 for some of weights, steps",
        ),
        (["hydra.sweeper.constraints.steps=0"], "constraints.steps is 0; expected a number above 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    start = ["hydra/sweeper=optuna"] if "params={}" in overrides[0] else ["sweep=optuna"]
    with pytest.raises(ValueError, match=said):
        sweep([*start, *overrides, f"hydra.sweep.dir={tmp_path / 'search'}"], tmp_path / "log")


class Scores:
    """Stands for the module and the trainer of a run."""

    def __init__(self, step: int, value: float) -> None:
        self.scores = {"val/iou": value}
        self.trainer: Any = SimpleNamespace(
            state=SimpleNamespace(fn="fit"), sanity_checking=False, is_global_zero=True, global_step=step, should_stop=False,
            strategy=SimpleNamespace(broadcast=lambda value: value),
        )  # fmt: skip


def test_a_trial_behind_the_median_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segline.sweep.pruning.as_segmentation", lambda module: module)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    monkeypatch.setenv("ADDRESS", storage)
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2, "n_warmup_steps": 15}
    write_json(tmp_path / SWEEP, {"search": {"pruner": pruner, "study": "search", "storage": "${oc.env:ADDRESS}"}})
    trials = optuna.create_study(storage=storage, study_name="search", direction="maximize")
    for number, values in enumerate([(0.2, 0.5), (0.3, 0.6), (0.1, 0.5), (0.1, 0.7)]):
        trials.ask()
        (tmp_path / str(number)).mkdir()
        callback = Pruning(tmp_path / str(number), number, Objective("val/iou"))
        stops = []
        for step, value in zip((10, 20), values, strict=True):
            run = Scores(step, value)
            callback.on_validation_end(run.trainer, run)  # type: ignore[arg-type]
            stops.append(run.trainer.should_stop)
        if number < 2:
            trials.tell(number, values[-1])
        # At step 10 nobody is pruned; at step 20 the median of the two that ended is 0.55.
        assert stops == [False, number == 2]
        assert (tmp_path / str(number) / "pruned.json").exists() == (number == 2)
    assert trials.trials[3].intermediate_values == {10: 0.1, 20: 0.7}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["TPESampler", "RandomSampler", "GPSampler", "CmaEsSampler"])
def test_any_sampler_of_optuna_asks_what_it_asks_without_us_even_if_it_was_stopped(
    tmp_path: Path, sampler: str
) -> None:
    kind = f"hydra.sweeper.sampler._target_=optuna.samplers.{sampler}"
    space = ["optimizer.lr=tag(log,interval(1e-4,1e-2))", "model.dropout=interval(0,0.5)", "loss=ce"]
    for name, parts in {"whole": [14], "stopped": [5, 14]}.items():
        for trials in parts:
            command = [
                "sweep=optuna",
                kind,
                *space,
                f"hydra.sweeper.n_trials={trials}",
                f"hydra.sweep.dir={tmp_path / name}",
            ]
            sweep(command, tmp_path / "log")
    plain = optuna.create_study(direction="maximize")
    searched = {"optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True), "model.dropout": FloatDistribution(0, 0.5)}
    for number in range(14):
        plain.sampler = getattr(optuna.samplers, sampler)(seed=seed_of(0, number))
        trial = plain.ask(searched)  # type: ignore[arg-type]
        plain.tell(trial, -((math.log10(trial.params["optimizer.lr"]) + 3) ** 2))
    expected = [trial.params for trial in plain.trials]
    assert asked(tmp_path / "whole") == expected
    assert asked(tmp_path / "stopped") == expected
    assert len({str(params) for params in expected}) == 14


@pytest.mark.slow
def test_searches_of_neighbouring_seeds_draw_nothing_in_common(tmp_path: Path) -> None:
    kind = [
        "sweep=optuna",
        "hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler",
        "loss=ce",
        "hydra.sweeper.n_trials=6",
    ]
    for seed in (0, 1):
        sweep([*kind, f"hydra.sweeper.seed={seed}", f"hydra.sweep.dir={tmp_path / str(seed)}"], tmp_path / "log")
    first, second = ({trial["optimizer.lr"] for trial in asked(tmp_path / str(seed))} for seed in (0, 1))
    assert len(first) == len(second) == 6
    assert not first & second


@pytest.mark.slow
def test_trials_of_a_batch_are_trained_at_once(tmp_path: Path) -> None:
    command = [*SEARCH, "hydra.sweep.dir=search", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(tmp_path, *command, "hydra.sweeper.n_trials=6", "hydra.sweeper.batch=2", seconds=1)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "one trial at a time" not in said
    assert [trial.state for trial in study(tmp_path / "search").trials] == [TrialState.COMPLETE] * 6
    assert set(ended(tmp_path / "log").values()) == {1}
    words = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert "begin begin" in " ".join(words)  # two were at work at a time
    process = start(tmp_path, *command, "hydra.sweeper.n_trials=7")
    said, _ = process.communicate(timeout=200)
    assert "the launcher gets one trial at a time; hydra.sweeper.batch=8" in said


@pytest.mark.slow
def test_several_commands_work_on_one_study(tmp_path: Path) -> None:
    processes = [start(tmp_path, *SEARCH, "hydra.sweeper.n_trials=12", "hydra.sweep.dir=shared") for _ in range(3)]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert len(study(tmp_path / "shared").trials) == 12
    assert all(trial.state is TrialState.COMPLETE for trial in study(tmp_path / "shared").trials)
    assert set(ended(tmp_path / "log").values()) == {1}
    assert len({str(params) for params in asked(tmp_path / "shared")}) == 12


@pytest.mark.slow
def test_a_search_that_is_killed_trains_each_trial_once(tmp_path: Path) -> None:
    for _ in range(6):
        before = begun(tmp_path / "log")
        process = start(tmp_path, *SEARCH, "hydra.sweeper.n_trials=8", "hydra.sweep.dir=search", seconds=1)
        while begun(tmp_path / "log") == before and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)
        process.kill()
        process.communicate()
    process = start(tmp_path, *SEARCH, "hydra.sweeper.n_trials=8", "hydra.sweep.dir=search")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert [trial.state for trial in study(tmp_path / "search").trials] == [TrialState.COMPLETE] * 8
    assert len(ended(tmp_path / "log")) == 8
    assert set(ended(tmp_path / "log").values()) == {1}
    assert begun(tmp_path / "log") == 8 + 6


@pytest.mark.slow
def test_a_trial_whose_values_were_not_drawn_when_its_command_was_killed_is_a_failed_one(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    command = [*SEARCH, f"hydra.sweep.dir={folder}"]
    sweep([*command, "hydra.sweeper.n_trials=2"], tmp_path / "log")
    study(folder).ask()
    sweep([*command, "hydra.sweeper.n_trials=4"], tmp_path / "log")
    states = [trial.state for trial in study(folder).trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


@pytest.mark.slow
def test_the_address_of_a_study_is_read_from_the_environment_and_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a command of a process of its own, for Hydra resolves what was typed where it is read."""
    address = f"sqlite:///{tmp_path / 'all1.db'}"
    monkeypatch.setenv("STUDY_PASSWORD", address)  # a name by which its value is one that nothing may keep
    command = [*SEARCH, "hydra.sweeper.storage='${oc.env:STUDY_PASSWORD}'", "hydra.sweeper.n_trials=2"]
    process = start(tmp_path, *command, "hydra.sweep.dir=search")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert len(optuna.load_study(study_name=None, storage=address).trials) == 2
    kept = [said, *(path.read_text() for path in (tmp_path / "search").rglob("*") if path.is_file())]
    assert not any(address in text for text in kept)


@pytest.mark.slow
def test_a_study_of_another_folder_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*SEARCH, f"hydra.sweeper.storage=sqlite:///{tmp_path / 'all.db'}"]
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):  # of one name, which the database tells apart
        sweep([*command, "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={tmp_path / name / 'search'}"], tmp_path / "log")
    named = [*command, "hydra.sweeper.study=mine"]
    sweep([*named, "hydra.sweeper.n_trials=2"], tmp_path / "log")
    (folder,) = (tmp_path / "runs").iterdir()
    with pytest.raises(ValueError, match=rf"the study 'mine' of that database is not of .*, but of {folder}; go on"):
        sweep([*named, "hydra.sweeper.n_trials=2"], tmp_path / "log")
    sweep([*named, "hydra.sweeper.n_trials=3"], tmp_path / "log")
    assert list((tmp_path / "runs").iterdir()) == [folder]
    assert len(list(folder.glob("*/scores.json"))) == 3
