import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import segline.run
from segline.cli import _given, going_on, listed, main
from segline.config import CONF_DIR, compose
from segline.refusals import Stopped, explained, nearest
from segline.run import _asked

SRC = Path(__file__).resolve().parents[1] / "src"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SRC / "train.py", *arguments], capture_output=True, text=True, timeout=120)


def run_light(*arguments: str, script: str = "train") -> subprocess.CompletedProcess[str]:
    """Run, and see to it that nothing was imported that takes seconds."""
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(SRC)!r}); sys.argv = ['{script}.py', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(SRC / f'{script}.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('HEAVY', sorted({'torch', 'pytorch_lightning', 'albumentations', 'wandb', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "HEAVY []" in done.stdout, done.stderr
    return done


def test_help_shows_every_group_and_choice_without_torch() -> None:
    shown = run_light("--help")
    for group in (
        "model",
        "loss",
        "data",
        "data/augment",
        "data/weight_map",
        "metrics",
        "optimizer",
        "scheduler",
        "trainer",
        "callbacks",
        "logger",
        "experiment",
    ):
        assert f"{group}: " in shown.stdout
    assert f"model: {', '.join(sorted(file.stem for file in (CONF_DIR / 'model').glob('*.yaml')))}" in shown.stdout


@pytest.mark.parametrize(
    ("script", "first", "taught"),
    [
        ("predict", "checkpoint", "tta=[]"),
        ("eval", "checkpoint", "calibrate=true"),
        ("robustness", "checkpoint", "band_shift"),
        ("explain", "checkpoint", "gradcam.png"),
        ("export", "checkpoint", "output="),
        ("models", "model", "size=[256,256]"),
    ],
)
def test_help_of_every_command_teaches_without_torch(script: str, first: str, taught: str) -> None:
    shown = run_light("--help", script=script).stdout
    assert f"python src/{script}.py {first}=" in shown
    assert taught in shown


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("model=attention_unett", "attention_unet"),
        ("data=satelite", "satellite"),
        ("modle=unet", "model"),
        ("optimizer.learning_rate=1", "optimizer.lr"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("data/augment=aeral", "aerial"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_at_once(override: str, hint: str) -> None:
    answer = run_light(override)
    assert answer.returncode == 1
    assert f"Did you mean {hint}" in answer.stderr or f" or {hint}" in answer.stderr, answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (
            "optimizer.weight_decay=${optimizer.lrr}",
            "optimizer.weight_decay refers to 'optimizer.lrr', which there is not. Did you mean optimizer.lr",
        ),
        (
            "data.root=${oc.env:NOWHERE}",
            "data.root refers to the environment variable NOWHERE, which there is not; export it",
        ),
    ],
)
def test_a_reference_to_nothing_is_answered(override: str, answer: str) -> None:
    done = run_light(override)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {answer}"), done.stderr


def test_a_folder_in_the_place_of_a_data_set_is_answered_with_how_to_name_it() -> None:
    done = run_light("data=/home/me/scans")
    said = "data=folder data.images=/home/me/scans/{name}.png data.masks=..."
    assert done.stderr.startswith("error: data=/home/me/scans is none of the data sets")
    assert said in done.stderr


def test_a_python_without_the_packages_is_answered_with_the_one_that_has_them() -> None:
    script = Path(__file__).parents[1] / "src" / "train.py"
    done = subprocess.run([sys.executable, "-S", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "has no hydra: `make train` sets up .venv" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_launcher_that_is_not_installed_is_answered_with_its_package() -> None:
    done = run_light("-m", "seed=0,1", "hydra/launcher=ray_gpu")
    assert done.returncode == 1
    said = "hydra/launcher=ray is one of hydra-ray-launcher, which is not installed: pip install hydra-ray-launcher"
    assert said in done.stderr


def test_several_values_without_a_sweep_are_answered_with_one() -> None:
    done = run_light("model=unet,attention_unet")
    said = "to train with each of these values, add -m; a list that is one value stands in brackets, key=[a,b]"
    assert done.stderr == f"error: model=unet,attention_unet: {said}\n"


def test_a_run_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = run("trainer=debug", f"hydra.run.dir={tmp_path}/file/run")
    assert answer.returncode == 1
    assert "file" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGLINE_CACHE", f"{tmp_path}/file/cache")
    answer = run("trainer=debug", "logger=none", f"hydra.run.dir={tmp_path}/run")
    assert answer.returncode == 1
    assert "set SEGLINE_CACHE" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    for wrong in (["trainer=cpu", "trainer.max_time=10"], ["data=folder", "data.images=x.png", "data.masks=y.png"]):
        done = subprocess.run(
            [sys.executable, SRC / "train.py", *wrong], capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert done.returncode == 1
        assert "expected DD:HH:MM:SS" in done.stderr or "no images found" in done.stderr
        assert done.stderr.startswith("error: ")  # and no words of Hydra's before
        assert not list((tmp_path / "runs").iterdir())
    (tmp_path / "mine").mkdir()  # one that was there before stays
    assert run("trainer=cpu", "trainer.max_time=10", f"hydra.run.dir={tmp_path}/mine").returncode == 1
    assert (tmp_path / "mine").is_dir()


def test_all_of_a_chain_of_errors_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904

    def job() -> None:
        try:
            fail()
        except ValueError as error:
            raise Stopped from error

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for call in (fail, job):
        with pytest.raises(SystemExit), explained("train", []):
            call()
        said = capsys.readouterr().err
        assert "KeyError: 'first'" in said
        assert said.rstrip().endswith("ValueError: second")


def test_processes_that_a_launcher_starts_find_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[str] = []

    def job() -> None:
        command = [sys.executable, "-c", "import segline; print(segline.__file__)"]
        found.append(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout.strip())

    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setattr(sys, "argv", ["predict.py"])
    monkeypatch.setattr(segline.run, "predict", job)
    main("predict")
    assert found == [segline.__file__]
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(SRC), "elsewhere"])
    main("predict")  # as a job of a launcher's
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(SRC), "elsewhere"])


@pytest.mark.slow
def test_a_path_may_hold_what_means_something_to_hydra(tmp_path: Path) -> None:
    folder = tmp_path / "0_loss=ce,model.channels=[8,16] {x} o'brien übung"
    folder.mkdir()
    done = run(f"resume={folder}")
    assert f"{folder} is not a run folder" in done.stderr
    done = subprocess.run(
        [sys.executable, SRC / "predict.py", f"checkpoint={folder}", "input=x.tif", f"output={folder}/masks"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"there is no checkpoint {folder}/best.ckpt" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("predict", [], "checkpoint= and input= and output= missing"),
        ("predict", ["checkpoint=x"], "input= and output= missing"),
        ("train", ["foo"], "foo: an override is key=value"),
    ],
)
def test_what_is_missing_is_said_at_once(script: str, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, SRC / f"{script}.py", *arguments], capture_output=True, text=True, timeout=120
    )
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_network_is_asked_in_a_precision_that_it_could_be_trained_in() -> None:
    needed = ["checkpoint=x", "input=x", "output=x"]
    asked = [_asked(compose([*needed, f"trainer.precision={p}"], "predict"))["precision"] for p in ("auto", 32, "bf16")]
    assert asked == [None, "32-true", "bf16-mixed"]
    for wrong in ("foo", "64"):
        with pytest.raises(ValueError, match=rf"trainer\.precision is {wrong}; expected auto, 32, bf16, 16"):
            _asked(compose([*needed, f"trainer.precision={wrong}"], "predict"))


def test_one_name_is_a_list_of_one() -> None:
    asked = _asked(compose(["checkpoint=x", "input=x", "output=x", "trust=mine", "also=gpkg"], "predict"))
    assert (asked["trust"], asked["also"]) == (["mine"], ["gpkg"])


def test_a_point_of_a_sweep_is_resumed_without_the_sweep(tmp_path: Path) -> None:
    started = {"overrides": ["sweep=optuna", "optimizer.lr=0.1", "trial=3", "resume=auto"], "config_dir": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run": started}))
    arguments = going_on([f"resume={tmp_path}", "seed=1"])
    assert arguments == [
        "sweep=optuna", "optimizer.lr=0.1", "trial=3", "hydra.mode=RUN", "trial=null", f"resume={tmp_path}", "seed=1",
        f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip


def test_resume_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    answer = run(f"resume={tmp_path}")
    assert answer.returncode == 1
    assert "not a run folder" in answer.stderr
    assert os.listdir(tmp_path) == []


def test_a_name_is_offered_once() -> None:
    assert nearest("optimzer.lr", ["optimizer", "optimizer.lr", "optimizer"]).count("optimizer") == 2


def test_a_sweep_over_checkpoints_takes_patterns_and_folders_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["2_loss=ce,lr=1", "10_loss=ce,lr=2", "it's"]
    for name in names:
        (tmp_path / "sweep" / name).mkdir(parents=True)
        (tmp_path / "sweep" / name / "best.ckpt").touch()
    (tmp_path / "sweep" / "ensemble").mkdir()
    (tmp_path / "sweep" / "sweep.json").touch()
    several = ["checkpoint='sweep/2_loss=ce,lr=1','sweep/10_loss=ce,lr=2'", r",'sweep/it\'s'"]
    assert listed("checkpoint='sweep/*'") == "".join(several)
    assert listed("checkpoint=sweep/2_loss=ce,lr=1,sweep/10_loss=ce,lr=2") == several[0]
    assert listed("checkpoint=sweep/10*") == "checkpoint='sweep/10_loss=ce,lr=2'"
    assert listed("checkpoint='sweep/2*','sweep/10*'") == several[0]
    for name in ("a[1]", "a1", "a,b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.ckpt").touch()
    left = (
        "checkpoint=sweep/2_loss=ce,lr=1,sweep/11",
        "checkpoint=[a,b]",
        "input=sweep/*",
        "checkpoint=a[1]",
        "checkpoint=a,b",
    )
    for one in left:
        assert listed(one) == one
    assert [_given([one], "checkpoint") for one in left[3:]] == ["a[1]", "a,b"]
    assert _given(["checkpoint=a[1]*"], "checkpoint") == "a1"


def test_networks_of_a_sweep_do_not_write_into_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.ckpt").touch()
    monkeypatch.setattr(sys, "argv", ["eval.py", "-m", f"checkpoint={tmp_path}/*", "output=here"])
    with pytest.raises(SystemExit):
        main("eval")
    assert "output=here is one place for several checkpoints" in capsys.readouterr().err


def test_a_search_that_cannot_be_is_answered_at_once() -> None:
    assert (
        "hydra.sweeper.n_trials is 0; expected 1 or more"
        in run_light("sweep=optuna", "hydra.sweeper.n_trials=0").stderr
    )


def test_points_whose_settings_refer_to_nothing_are_answered(tmp_path: Path) -> None:
    done = run("-m", "seed=0,1", "optimizer.lr=${model.widht}", "logger=none", f"hydra.sweep.dir={tmp_path}")
    assert "0_seed=0 and 1 other: optimizer.lr refers to 'model.widht', which there is not. Did you mean" in done.stderr
    assert f"({tmp_path}/0_seed=0/error.txt)" in done.stderr
