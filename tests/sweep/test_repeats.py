"""Cross-validation and seeds by one command, of real trainings: each case tested once, and one ensemble that `predict` takes."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest

from segline import tables
from segline.data.synthetic.biomedical import write_biomedical

SRC = Path(__file__).resolve().parents[2] / "src"
WORDS = [
    "trainer=cpu", "trainer.max_epochs=1", "data=biomedical", "data.window=[64,64]", "data.margin=[8,8]", "data.steps_per_epoch=4",
    "data.num_workers=0", "model=unet", "model.channels=[4,8]", "logger=none", "callbacks.pictures=false",
]  # fmt: skip


def done(script: str, *words: str) -> str:
    """Run a command; what it says."""
    ended = subprocess.run([sys.executable, str(SRC / script), *words], capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def rows(path: Path, split: str) -> list[Mapping[str, Any]]:
    return pq.read_table(path, filters=[("split", "=", split)]).to_pylist()  # type: ignore[no-any-return]


@pytest.mark.slow
def test_folds_by_a_parallel_launcher_test_each_case_once_and_predict_as_an_ensemble(tmp_path: Path) -> None:
    write_biomedical(tmp_path / "data")
    images = sorted((tmp_path / "data" / "images").iterdir())
    sweep, launcher = tmp_path / "sweep", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    said = done("train.py", "folds=3", *WORDS, *launcher, f"data.root={tmp_path / 'data'}", f"hydra.sweep.dir={sweep}")

    tested = rows(sweep / "ensemble" / "cases.parquet", "test")
    assert sorted({row["case"] for row in tested}) == sorted(image.stem for image in images)
    of_case: dict[str, set[str]] = {}
    of_group: dict[str, set[str]] = {}
    for run in (sweep / "ensemble" / name for name in tables.read_json(sweep / "ensemble" / "members.json")["members"]):
        for row in rows(run.resolve() / "cases.parquet", "test"):
            of_case.setdefault(row["case"], set()).add(run.name)
            of_group.setdefault(row["group"], set()).add(run.name)
    assert len(of_case) == len(images)
    assert {len(runs) for runs in of_case.values()} == {len(runs) for runs in of_group.values()} == {1}
    assert 3 <= len(of_group) < len(images)

    scores = [tables.read_json(path)["val/iou"] for path in sweep.glob("*/scores.json")]
    assert len(scores) == 3
    assert " ± " in said
    done("predict.py", f"checkpoint={sweep / 'ensemble'}", f"input={images[0]}", f"output={tmp_path / 'masks'}")
    assert len(list((tmp_path / "masks").glob(f"{images[0].stem}*"))) == 1


@pytest.mark.slow
def test_seeds_are_one_method_with_its_deviation(tmp_path: Path) -> None:
    write_biomedical(tmp_path / "data")
    sweep = tmp_path / "sweep"
    said = done("train.py", "seeds=2", *WORDS, f"data.root={tmp_path / 'data'}", f"hydra.sweep.dir={sweep}")
    scores = [tables.read_json(path)["val/dice_case"] for path in sorted(sweep.glob("*/scores.json"))]
    assert len(scores) == 2
    assert f"{mean(scores):.4f} ± {stdev(scores):.4f}" in said
    assert len(tables.read_json(sweep / "ensemble" / "members.json")["members"]) == 2
