"""Training and evaluation say the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import segline


@pytest.mark.slow
def test_validation_in_training_and_evaluation_agree_to_the_last_integer(tmp_path: Path) -> None:
    scripts, run = Path(segline.__file__).parents[1], tmp_path / "run"
    train = [
        "data=satellite",
        "model=smp",
        "trainer=cpu",
        "trainer.max_steps=6",
        "data.batch_size=3",
        "logger=none",
        "callbacks.pictures=false",
        f"hydra.run.dir={run}",
    ]
    for script, arguments in (("train", train), ("eval", [f"checkpoint={run}", "trainer=cpu", "batch_size=3"])):
        subprocess.run([sys.executable, str(scripts / f"{script}.py"), *arguments], check=True, cwd=tmp_path)
    trained = pq.read_table(run / "cases.parquet").to_pylist()
    evaluated = pq.read_table(run / "eval" / "val" / "cases.parquet").to_pylist()
    assert len(trained) == len(evaluated) > 1
    for one, other in zip(trained, evaluated, strict=True):
        assert one == {key: other[key] for key in one}
    scores = json.loads((run / "scores.json").read_text())
    summary = json.loads((run / "eval" / "val" / "summary.json").read_text())
    assert {f"val/{name}": value for name, value in summary["scores"].items()}.items() <= scores.items()


@pytest.mark.slow
def test_a_sweep_over_runs_evaluates_each_on_its_own_data_and_they_are_compared(tmp_path: Path) -> None:
    scripts = Path(segline.__file__).parents[1]

    def call(script: str, *arguments: str) -> str:
        command = [sys.executable, str(scripts / f"{script}.py"), *arguments]
        return subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout

    plain = [
        "model=unet",
        "model.channels=[4,8]",
        "trainer=cpu",
        "trainer.max_steps=1",
        "logger=none",
        "callbacks.pictures=false",
    ]
    for data in ("satellite", "biomedical"):
        call("train", f"data={data}", *plain, "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path / data}")
    call(
        "eval",
        "-m",
        "checkpoint=*/*seed=[01]",
        "split=val",
        "trainer=cpu",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    )
    for data in ("satellite", "biomedical"):
        for seed in (0, 1):
            run = tmp_path / data / f"{seed}_seed={seed}"
            trained, measured = (pq.read_table(one / "cases.parquet") for one in (run, run / "eval" / "val"))
            assert trained["case"].to_pylist() == measured["case"].to_pylist()
        means = [
            json.loads((tmp_path / data / f"{seed}_seed={seed}/eval/val/summary.json").read_text()) for seed in (0, 1)
        ]
        expected = [row["surface_dice"] for one in means for row in one["classes"][:1]]
        first = means[0]["classes"][0]["class"]
        said = call("compare", data, f"metric=surface_dice/{first}", "output=table.md")
        assert f"surface_dice/{first} is a mean over cases" in said
        assert f"{sum(expected) / 2:.4f} ±" in said
    # One after another in one process; a checkpoint outside of a run folder has no data, and holds up no other.
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "satellite" / "0_seed=0" / "best.ckpt", tmp_path / "bare")
    several = ["checkpoint=bare,satellite/0*,biomedical/0*", "split=train", "trainer=cpu", "data.batch_size=1"]
    command = [sys.executable, str(scripts / "eval.py"), "-m", *several]
    assert (
        "there is no 'data.batch_size'" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr
    )
    for data in ("satellite", "biomedical"):
        assert (tmp_path / data / "0_seed=0" / "eval" / "train" / "summary.json").exists()
