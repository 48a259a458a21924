"""Folds and seeds of one setting, gathered: their cases in one table, and a folder that stands for all of their networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segline import tables
from segline.comparison.methods import SEEDS
from segline.inference.members import MEMBERS
from segline.sweep.points import Point
from segline.tables import SCORES


def write_ensembles(folder: Path, points: Sequence[Point]) -> list[Path]:
    """Leave a folder for each setting that was trained on several folds or with several seeds; those folders.

    Each names its members, for `predict` and `eval`; of folds, which test each case once, `cases.parquet` has the cases of all.

    Args:
        folder: Of the sweep.
        points: Of it; those that have not ended are left out.
    """
    alike: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        alike.setdefault(_setting(point), []).append(point)
    made = []
    for settings, of_setting in alike.items():
        members = [point for point in of_setting if (folder / point.name / SCORES).exists()]
        if len(members) < 2:
            continue
        made.append(folder / _name(settings, list(alike)))
        made[-1].mkdir(exist_ok=True)
        rows = list(_out_of_fold(folder, members))
        tables.write_json(
            made[-1] / MEMBERS,
            {"members": [f"../{point.name}" for point in members], "folds": len({row["fold"] for row in rows}) > 1},
        )
        if rows:
            tables.write_cases(made[-1] / tables.CASES, rows)
    return made


def are_repeats(points: Sequence[Point]) -> bool:
    """Whether points are one setting, with several seeds or on several folds."""
    return len(points) > 1 and len({_setting(point) for point in points}) == 1


def _setting(point: Point) -> tuple[str, ...]:
    """The overrides of a point but for those by which members of an ensemble differ; of a fold, of how many it is one."""
    settings = []
    for override in point.overrides:
        key, _, value = override.partition("=")
        if key == "data.fold" and "," in value:
            settings.append(f"folds={value.strip('[]').split(',')[1].strip()}")
        elif key not in SEEDS:
            settings.append(override)
    return tuple(settings)


def _name(settings: tuple[str, ...], all_settings: Sequence[tuple[str, ...]]) -> str:
    """`ensemble`, and what is special of it where there are several: then with a number, too, where that does not tell them apart."""
    from segline.sweep.grid import cut, slug

    names = []
    for one in all_settings:
        special = [override for override in one if not all(override in others for others in all_settings)]
        names.append(cut("_".join(["ensemble", *([slug(special)] if special else [])])))
    number = all_settings.index(settings)
    return names[number] if names.count(names[number]) == 1 else f"{names[number]}_{number}"


def _out_of_fold(folder: Path, members: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """Rows of the test parts of folds, each with its fold."""
    import pyarrow.parquet as pq

    for point in members:
        fold = next((o.partition("=")[2] for o in point.overrides if o.startswith("data.fold=")), "")
        if "," in fold:
            for row in pq.read_table(folder / point.name / tables.CASES, filters=[("split", "=", "test")]).to_pylist():
                yield {**row, "run": point.name, "fold": int(fold.strip("[]").split(",")[0])}
