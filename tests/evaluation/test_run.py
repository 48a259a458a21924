"""Training and evaluation say the same."""

import json
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
