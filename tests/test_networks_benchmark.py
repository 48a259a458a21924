"""The benchmark of networks repeats nothing that is there, and says what the runs reached."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "networks.py"


def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("networks", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "networks", module)  # where its dataclass looks
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With trainings that leave what real ones do: scores that grow with the seed, and 100 steps more for each."""
    module = load(monkeypatch)

    def call(run: object, command: str, *overrides: str) -> None:
        given = dict(word.split("=", 1) for word in overrides)
        module.calls.append((command, given))
        if command == "train":
            folder, seed = Path(given["hydra.run.dir"]), int(given["seed"])
            folder.mkdir(parents=True)
            (folder / "scores.json").write_text(json.dumps({"val/iou": 0.5 + 0.1 * seed, "val/dice_case": 0.9}))
            with (folder / "metrics.csv").open("w") as file:
                csv.writer(file).writerows([["step", "loss"], [7, 1.0], [100 * (1 + seed), 0.5]])
        else:
            folder = Path(given["output"])
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps({"scores": {"iou": 0.75}}))

    module.calls = []
    monkeypatch.setattr(module.Run, "_call", call)
    monkeypatch.setattr(module.Run, "million_weights", lambda run, runs: 1.234)
    return module


def test_what_is_there_is_not_made_again(networks: ModuleType, tmp_path: Path) -> None:
    plain = networks.Run("dsb2018", 1, ("model=unet",))
    mirrored = networks.Run("dsb2018", 1, ("model=unet",), ("tta=[flips]",))
    assert plain.score(tmp_path) is None
    plain.make(tmp_path, 1.5)
    (command, given), *rest = networks.calls
    assert (command, rest) == ("train", [])
    assert given["experiment"] == "dsb2018"
    assert given["trainer.max_time"] == "00:00:01:30"
    assert given["resume"] == "auto"  # one that was stopped goes on
    assert plain.score(tmp_path) == pytest.approx(0.6)
    assert mirrored.score(tmp_path) is None
    for _ in range(2):
        plain.make(tmp_path, 1.5)
        mirrored.make(tmp_path, 1.5)
    assert [command for command, _ in networks.calls] == ["train", "eval"]  # the evaluation is of the same training
    assert networks.calls[1][1]["tta"] == "[flips]"
    assert networks.calls[1][1]["checkpoint"] == given["hydra.run.dir"]
    assert mirrored.score(tmp_path) == 0.75
    assert plain.score(tmp_path) == pytest.approx(0.6)


def test_a_row_has_mean_and_deviation_of_the_seeds_that_are_there(networks: ModuleType, tmp_path: Path) -> None:
    runs = [networks.Run("dsb2018", seed, ("model=unet",)) for seed in range(3)]
    assert networks.row("unet", runs, tmp_path) is None
    runs[0].make(tmp_path, 3)
    assert networks.row("unet", runs, tmp_path) == "| unet | 0.500 | 1 | 1.23 | 100 |"
    for run in runs:
        run.make(tmp_path, 3)
    assert (
        networks.row("unet", runs, tmp_path) == "| unet | 0.600 ± 0.100 | 3 | 1.23 | 200 |"
    )  # of a sample: over n - 1


def test_the_command_goes_on_where_it_was_stopped_and_prints_the_table(
    networks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["networks.py", "--data", "hippocampus", "--networks", "unet", "unet_plus_plus", "--runs", str(tmp_path)]
    monkeypatch.setenv("SEGLINE_DATA", "somewhere")
    for more, trained in ((["--seeds", "0"], 2), (["--seeds", "0", "1"], 4), (["--print"], 4)):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        networks.main()
        assert len(networks.calls) == trained
    assert [given["seed"] for _, given in networks.calls] == ["0", "0", "1", "1"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-4] == "| hippocampus, model= | `dice_case` | seeds | million weights | steps |"
    assert printed[-1] == "| unet_plus_plus | 0.900 ± 0.000 | 2 | 1.23 | 150 |"
