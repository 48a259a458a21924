"""Runs put side by side: methods, their scores of the same cases, and which differences are real."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from segline.comparison.methods import Method, find_methods
from segline.comparison.notes import doubts, left_out, mixed, unsaid
from segline.comparison.runs import Cases, Run, find_runs
from segline.comparison.statistics import MOST_TESTED, Pair, compare, group_means
from segline.data.cases import SPLITS
from segline.words import count_of

#: What is said of a case by its name in the logged scores -> by its column in a run's table of cases. More is better, and a class that is
#: missed has 0.
METRICS = {"dice_case": "dice", "iou_case": "iou", "surface_dice": "surface_dice", "boundary_iou": "boundary_iou"}
#: Of a case that misses a class they are infinite, so that there is no mean difference.
_DISTANCES = ("hd95", "assd")


@dataclass(frozen=True)
class Comparison:
    """What runs come to, side by side.

    Args:
        metric: What is compared, of a case: `dice_case`, `iou_case`, `surface_dice`, `boundary_iou`, or one of them of one class,
            `dice_case/nucleus`.
        split: Part of the data, or the name of an evaluation.
        methods: What is compared, the best first.
        names: Of the cases, `[N]`.
        groups: What each belongs to, `[N]`.
        scores: Of methods and cases, a mean over seeds, `[M, N]`; nan where there is none.
        reached: By run folder, the mean over groups of the means of their cases.
        of_class: By class that enters means, the same of each method, `[M]`.
        pairs: Of methods, the one that reached more first; of all with one, that one second; of very many methods those of the best.
        against: The method that all others are compared with; None: the best with each other.
        notes: What a reader must know before believing it.
    """

    metric: str
    split: str
    methods: list[Method]
    names: list[str]
    groups: list[str]
    scores: NDArray[np.float64]
    reached: dict[Path, float]
    of_class: dict[str, list[float]]
    pairs: list[Pair]
    against: str | None
    notes: list[str]

    def known(self, method: Method) -> list[float]:
        """What the runs of a method have reached, of those that have a score."""
        return _known(method, self.reached)

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(set(self.groups))


def compare_runs(
    places: Sequence[str], metric: str = "dice_case", split: str | None = None, against: str | None = None
) -> Comparison:
    """Compare what runs have reached on the cases that they share.

    Args:
        places: Folders of runs, of sweeps, or patterns of such.
        metric: As of `Comparison`.
        split: As of `Comparison`; None: the test part where all have one, else the validation part.
        against: Method that all others are compared with, or one of its folders; None: all pairs.

    Raises:
        ValueError: There are no runs, no scores, or no such metric, split or method.
    """
    runs, empty = find_runs(places)
    finished = [run for run in runs if run.finished]
    if not finished:
        raise ValueError(
            f"none of {count_of(len(runs), 'run')} has ended, such as {runs[0].folder}; compare finished ones"
        )
    split = split or _shared_split(finished)
    methods = find_methods(finished)
    tables = _read_tables(finished, split, _column(metric))
    names, groups = _all_cases(tables.values())
    backgrounds = {run.background for run in finished}
    by_class = score_classes(list(tables.values()), names, metric, backgrounds)
    of_run = dict(zip(tables, _mean(np.stack(list(by_class.values())), 0), strict=True))
    members = np.unique(np.array(groups), return_inverse=True)[1]  # numbers are sorted faster than names, for each run
    reached = {folder: _mean_of_groups(of_cases, members) for folder, of_cases in of_run.items()}
    methods.sort(key=lambda method: -np.nan_to_num(mean_of(_known(method, reached))))
    scores = np.array([_mean(np.array([of_run[run.folder] for run in method.runs]), 0) for method in methods])
    notes = [
        *left_out("hold no run", empty),
        *left_out("have not ended", [run.name for run in runs if not run.finished]),
        *unsaid(methods),
        *mixed(finished, tables.values()),
        *doubts(methods, scores, groups, split, against),
    ]
    rows = {folder: row for row, folder in enumerate(tables)}
    of_class = {
        name: [_mean_of_groups(_mean(of_class[[rows[run.folder] for run in m.runs]], 0), members) for m in methods]
        for name, of_class in by_class.items()
    }
    against = None if against is None else _find(methods, against)
    by_name = {method.name: scores[k] for k, method in enumerate(methods if against else methods[:MOST_TESTED])}
    pairs = compare(by_name, groups, against=against) if methods[1:] else []
    return Comparison(metric, split, methods, names, groups, scores, reached, of_class, pairs, against, notes)


def score_classes(
    tables: Sequence[Cases], names: Sequence[str], metric: str, backgrounds: Collection[str] = ()
) -> dict[str, NDArray[np.float64]]:
    """Scores of each run's cases by class, `[R, N]`: of the one that the metric names, or of all that enter means; nan where there is none.

    A class that neither the truth nor a run's prediction has gives that run no score. Where another run predicts it there, which gives
    that one 0, the first was right: it gets 1, or what it does better would not be seen. A score that is not there for another reason,
    such as a surface that is hidden under ignored pixels, stays away.

    Args:
        tables: Of each run.
        names: Of the cases, `[N]`.
        metric: As of `Comparison`.
        backgrounds: Classes that stay out of means.

    Raises:
        ValueError: No such metric or class.
    """
    measure, _, one_class = metric.partition("/")
    prefix = _column(metric) + "/"
    known = list(
        dict.fromkeys(name.removeprefix(prefix) for t in tables for name in t.columns if name.startswith(prefix))
    )
    if one_class and one_class not in known:
        raise ValueError(
            f"metric is {metric!r}, but there is no class {one_class!r}; expected one of {', '.join(known)}"
        )
    classes = [one_class] if one_class else [name for name in known if name not in backgrounds]
    if not classes:
        raise ValueError(
            f"each of the classes {', '.join(known)} is the background of some run, so that none enters a mean; "
            f"name one: metric={measure}/{known[0]}"
        )
    places = {name: place for place, name in enumerate(names)}
    scores = {name: np.full((len(tables), len(names)), np.nan) for name in classes}
    absent = {name: np.zeros((len(tables), len(names)), bool) for name in classes}
    for run, table in enumerate(tables):
        where = np.array([places[name] for name in table.names])
        for name in classes:
            if prefix + name in table.columns:  # a run of other labels knows nothing of it
                own = scores[name][run, where] = table.columns[prefix + name]
                absent[name][run, where] = np.isnan(own) & np.isnan(table.columns.get(f"dice/{name}", own))
    for name, of_class in scores.items():
        of_class[absent[name] & ~np.isnan(of_class).all(0)] = 1.0
    return scores


def _column(metric: str) -> str:
    """Of a metric in tables of cases, without the class.

    Raises:
        ValueError: There is no such metric.
    """
    measure = metric.partition("/")[0]
    if measure in _DISTANCES:
        raise ValueError(
            f"metric is {metric!r}, which is infinite where a class is missed or invented, so that differences have no mean; "
            f"metric={metric.replace(measure, 'surface_dice')} is 0 there"
        )
    if measure not in METRICS:
        raise ValueError(
            f"metric is {metric!r}; expected one of {', '.join(METRICS)}, or one of a class: {next(iter(METRICS))}/CLASS; "
            "those of the whole data set, such as iou, have no cases that could be paired"
        )
    return METRICS[measure]


def _read_tables(runs: Sequence[Run], split: str, column: str) -> dict[Path, Cases]:
    """Cases of each run, by its folder.

    Raises:
        ValueError: A run has none of this split, or this was not measured of them.
    """
    tables = {run.folder: run.cases(split, column) for run in runs}
    if lacking := [run for run in runs if tables[run.folder] is None]:
        shared = [one for one in lacking[0].splits if all(one in run.splits for run in runs)]
        there = f"all runs have {', '.join(shared)}" if shared else f"it has {', '.join(lacking[0].splits)}"
        raise ValueError(f"{lacking[0].folder} has no cases of split={split}; {there}")
    read = {folder: cases for folder, cases in tables.items() if cases is not None}
    if without := [folder for folder, cases in read.items() if not cases.has(column)]:
        if split not in SPLITS or (without[0] / "eval" / split).exists():
            raise ValueError(
                f"the evaluation {without[0] / 'eval' / split} has no {column} of any case, as it is of too large ones"
            )
        where = (
            f"{without[0].parent}/*" if without[1:] and len({folder.parent for folder in without}) == 1 else without[0]
        )
        raise ValueError(
            f"{without[0]} has no {column} of its cases ({len(without)} of {count_of(len(read), 'run')} have none); it is measured by "
            f"python src/eval.py -m {shlex.quote(f'checkpoint={where}')} split={split}"
        )
    if column == "surface_dice" and "tolerance" not in split:
        spacings = dict.fromkeys(str(run.settings.get("data.spacing_mm")) for run in runs)
        if len(spacings) > 1:
            raise ValueError(
                f"surface_dice agrees up to the side of a pixel, which differs: data.spacing_mm is {' and '.join(spacings)}; evaluate all "
                "runs with one tolerance, such as tolerance=2, and compare split=val_tolerance-2"
            )
    return read


def _all_cases(tables: Iterable[Cases]) -> tuple[list[str], list[str]]:
    """Names and groups of the cases of all runs."""
    groups = {name: group for table in tables for name, group in zip(table.names, table.groups, strict=True)}
    return list(groups), list(groups.values())


def _shared_split(runs: Sequence[Run]) -> str:
    return "test" if all(any(name.startswith("test/") for name in run.scores) for run in runs) else "val"


def _find(methods: Sequence[Method], name: str) -> str:
    """The method of a name, or of a run's folder, however its path is written."""
    folder = Path(name).resolve()
    for method in methods:
        if name == method.name or any(
            name.rstrip("/") == run.name or folder == run.folder.resolve() for run in method.runs
        ):
            return method.name
    raise ValueError(
        f"there is no method {name!r}; expected one of {'; '.join(m.name for m in methods)}, or a run's folder"
    )


def mean_of(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return mean(values) if values else float("nan")


def _known(method: Method, reached: Mapping[Path, float]) -> list[float]:
    return [score for run in method.runs if (score := reached[run.folder]) == score]


def _mean_of_groups(scores: NDArray[np.float64], groups: NDArray[np.generic]) -> float:
    return float(_mean(group_means(scores, groups), 0))


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean of what there is; nan where there is nothing."""
    there = ~np.isnan(values)
    count = there.sum(axis)
    return np.where(count, np.where(there, values, 0).sum(axis) / np.maximum(count, 1), np.nan)
