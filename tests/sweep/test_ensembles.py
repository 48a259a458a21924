"""Folds and seeds gathered, of made-up runs."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_up_runs import write_run
from omegaconf import OmegaConf

from segline.config import OWN, own_data
from segline.inference.members import is_of_folds, locate_all
from segline.inference.predictor import Settings
from segline.scoring import open_all
from segline.sweep.ensembles import are_repeats, write_ensembles
from segline.sweep.points import Point


def folds(folder: Path, model: str, count: int) -> list[Point]:
    """Runs of all folds but the last, which has not ended."""
    points = [Point(f"{model}_{k}", (f"model={model}", f"data.fold=[{k},{count}]", "seed=0")) for k in range(count)]
    for k, point in enumerate(points):
        write_run(folder / point.name, {"cell": [0.1 * k, 0.2]}, split="test", finished=k < count - 1)
        (folder / point.name / "best.ckpt").touch()
    return points


def test_folds_of_each_setting_are_one_ensemble(tmp_path: Path) -> None:
    points = [*folds(tmp_path, "unet", 4), *folds(tmp_path, "fcn", 4)]
    made = write_ensembles(tmp_path, points)
    assert [folder.name for folder in made] == ["ensemble_model=unet", "ensemble_model=fcn"]
    assert locate_all(str(made[0])) == [tmp_path / f"unet_{k}" / "best.ckpt" for k in range(3)]
    with pytest.raises(ValueError, match="is a sweep with ensemble_model=fcn, ensemble_model=unet in it"):
        locate_all(str(tmp_path))
    rows = pq.read_table(made[0] / "cases.parquet").to_pylist()
    assert [(row["fold"], row["run"], row["dice/cell"]) for row in rows] == [
        (fold, f"unet_{fold}", value) for fold in range(3) for value in (pytest.approx(0.1 * fold), 0.2)
    ]


def test_an_ensemble_of_folds_has_no_score_on_what_it_was_trained_on(tmp_path: Path) -> None:
    (folder,) = write_ensembles(tmp_path, folds(tmp_path, "unet", 3))
    config = OmegaConf.create({"split": None, "output": None})
    with pytest.raises(
        ValueError, match=r"was trained on cases that others are tested on.*cases.parquet; for other files set data="
    ):
        open_all(config, OWN, Settings(str(folder)))
    assert own_data(str(folder))["labels"]["background"] == "background"  # of its first member


def test_seeds_are_an_ensemble_without_a_table_of_their_own(tmp_path: Path) -> None:
    points = [Point(f"{seed}", (f"seed={seed}",)) for seed in range(2)]
    for point in points:
        write_run(tmp_path / point.name, {"cell": [0.5]})
    (folder,) = write_ensembles(tmp_path, points)
    assert folder.name == "ensemble"
    assert [path.name for path in folder.iterdir()] == ["members.json"]


def test_a_grid_without_repeats_has_none(tmp_path: Path) -> None:
    points = [Point(loss, (f"loss={loss}", "seed=0")) for loss in ("ce", "dice")]
    for point in points:
        write_run(tmp_path / point.name, {"cell": [0.5]})
    assert write_ensembles(tmp_path, points) == []


def test_an_ensemble_names_no_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "members.json").write_text('{"members": ["/etc/passwd", "../../x"]}')
    with pytest.raises(ValueError, match=f"there is no checkpoint {tmp_path}/passwd"):
        locate_all(str(tmp_path / "ensemble"))


def test_names_do_not_depend_on_what_has_ended_and_never_collide(tmp_path: Path) -> None:
    points = [Point(f"{model}_{k}", (f"model={model}", f"seed={k}")) for model in ("unet", "fcn") for k in range(2)]
    for point in points[:2]:
        write_run(tmp_path / point.name, {"cell": [0.5]})
    assert [folder.name for folder in write_ensembles(tmp_path, points)] == ["ensemble_model=unet"]
    alike = [Point(f"{key}_{k}", (f"{key}=0.1", f"seed={k}")) for key in ("a.rate", "b.rate") for k in range(2)]
    for point in alike:
        write_run(tmp_path / point.name, {"cell": [0.5]})
    assert [folder.name for folder in write_ensembles(tmp_path, alike)] == [
        "ensemble_rate=0.1_0",
        "ensemble_rate=0.1_1",
    ]


def test_seeds_of_one_fold_are_no_folds(tmp_path: Path) -> None:
    points = [Point(f"{seed}", ("data.fold=[0,5]", f"seed={seed}")) for seed in range(2)]
    for point in points:
        write_run(tmp_path / point.name, {"cell": [0.5]}, split="test")
    (folder,) = write_ensembles(tmp_path, points)
    assert not is_of_folds(folder)


def test_folds_of_other_numbers_are_other_ensembles(tmp_path: Path) -> None:
    whole = Point("whole", ("model=unet", "data.fold=null", "seed=0"))
    write_run(tmp_path / "whole", {"cell": [0.5]})
    three, two = folds(tmp_path, "unet", 3), folds(tmp_path, "fcn", 3)
    two = [Point(p.name, ("model=unet", p.overrides[1].replace(",3", ",4"), "seed=0")) for p in two]
    made = write_ensembles(tmp_path, [whole, *three, *two])
    assert [folder.name for folder in made] == ["ensemble_folds=3", "ensemble_folds=4"]
    assert are_repeats(three)
    assert not are_repeats([*three, *two])
    assert are_repeats([Point(f"{k}", (f"data.seed={k}",)) for k in range(2)])
