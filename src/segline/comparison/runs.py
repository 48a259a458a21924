"""Run folders as they lie on the disk: what was set, what was reached, and what it took."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segline import tables
from segline.config import CONFIG
from segline.words import natural


@dataclass(frozen=True)
class Run:
    """A folder that a training leaves.

    Args:
        folder: Where it lies.
        config: Of the run, resolved.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether its best weights have been measured."""
        return bool(self.scores)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config by dotted keys, the names of what was chosen for its groups among them."""
        chosen = {group.replace("/", "."): choice for group, choice in self.config["run"]["choices"].items()}
        fold = self.config.get("data", {}).get("fold")
        return (
            {"folds": fold[1] if fold else None}
            | dict(_flat({key: value for key, value in self.config.items() if key != "run"}))
            | chosen
        )

    @cached_property
    def scores(self) -> dict[str, float]:
        """What the best weights reached, by logged name; empty of a run that has not ended."""
        return tables.read_json(self.folder / tables.SCORES)

    @cached_property
    def costs(self) -> dict[str, float]:
        """What it took: `weights`, `steps`, `seconds` of training, `memory_mb` at most; empty of a run that has not ended."""
        return tables.read_json(self.folder / tables.COSTS)

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """A row for each epoch."""
        return tables.read_rows(self.folder / "metrics.csv")

    @property
    def background(self) -> str:
        """The class that stays out of means."""
        return str(self.settings.get("data.labels.background"))

    @property
    def splits(self) -> list[str]:
        """Parts of the data that were measured, and evaluations by the names of their folders in `eval/`."""
        own = [name.partition("/")[0] for name in self.scores]
        return list(dict.fromkeys([*own, *(p.parent.name for p in (self.folder / "eval").glob(f"*/{tables.CASES}"))]))

    def cases(self, split: str, measure: str = "dice") -> Cases | None:
        """What was measured of cases, by training or, where it does not measure this, by `src/eval.py`; None where they were not measured.

        Args:
            split: Part of the data, or an evaluation by its name, such as `val_tta-flips`.
            measure: What is wanted of them, such as `surface_dice`.

        Raises:
            ValueError: The evaluation is of other weights than the run has now, or of other cases.
        """
        own = _read_cases(self.folder / tables.CASES, split)
        if own is not None and own.has(measure):
            return own
        folder = self.folder / "eval" / split
        evaluated = _read_cases(folder / tables.CASES)
        if evaluated is None:
            return own
        stale = tables.read_json(folder / "summary.json").get("run") != tables.digest(self.folder / tables.CASES)
        if stale or (own is not None and set(own.names) != set(evaluated.names)):
            what = "weights that the run no longer has" if stale else "other cases than the run's own"
            raise ValueError(f"{folder} is of {what}; evaluate it again by src/eval.py")
        return evaluated


@dataclass(frozen=True)
class Cases:
    """What a run measured of cases.

    Args:
        names: Of each, `[N]`.
        groups: What each belongs to, `[N]`.
        columns: Values of each by measure and class, such as `dice/nucleus`, `[N]`; nan where a case has none.
    """

    names: list[str]
    groups: list[str]
    columns: dict[str, NDArray[np.float64]]

    def has(self, measure: str) -> bool:
        """Whether this was measured of any class."""
        return any(name.startswith(f"{measure}/") for name in self.columns)


def find_runs(places: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs of folders: each a run's, or one that holds such, as a sweep does; `*` and the like stand for any names.

    Returns:
        The runs, and the places that hold none.

    Raises:
        ValueError: A place does not exist, none holds a run, or a run's config cannot be read.
    """
    empty = []
    found: dict[Path, Run] = {}
    for place in places:
        # A name may hold signs of a pattern itself.
        folders = [Path(place)] if Path(place).exists() else [Path(one) for one in sorted(glob.glob(place))]
        runs = {path.parent.resolve(): path for folder in folders for path in _configs(folder)}
        if not runs:
            empty.append(place)
        if not folders or (place == places[-1] and not found | runs):
            what = "holds no run" if folders else "does not exist"
            raise ValueError(
                f"{place} {what}; expected folders that src/train.py has left, such as runs/*, each with its {CONFIG}"
            )
        found |= {folder: _read(path) for folder, path in runs.items() if folder not in found}
    return list(found.values()), empty


def _read_cases(path: Path, split: str | None = None) -> Cases | None:
    """A table of cases, or its part of a split; None where there is none."""
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    rows = pq.read_table(path, filters=[("split", "=", split)] if split else None)
    if not len(rows):
        return None
    columns = {name: rows[name] for name in rows.column_names}
    names, groups = (columns.pop(key).to_pylist() for key in ("case", "group"))
    numbers = {
        name: column.to_numpy().astype(np.float64) for name, column in columns.items() if column.type != "string"
    }
    return Cases(names, [str(group) for group in groups], numbers)


def _configs(folder: Path) -> Iterator[Path]:
    """Configs of the runs in a folder, of itself before those below it."""
    if (folder / CONFIG).is_file():
        yield folder / CONFIG
    elif folder.is_dir():
        for below in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
            if not below.name.startswith("."):
                yield from _configs(below)


def _read(path: Path) -> Run:
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or "choices" not in (config.get("run") or {}):
        raise ValueError(f"{path} is not the config of a run: it has no run.choices")
    return Run(path.parent, config)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; lists are leaves."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _flat(below, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
