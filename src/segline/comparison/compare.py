"""Runs put side by side: methods, their scores of the same cases, and which differences are real."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from segline.comparison.methods import Method, find_methods, say_value
from segline.comparison.runs import Cases, Run, find_runs
from segline.comparison.statistics import Pair, compare, group_means, least_groups
from segline.words import count_of, in_quotes

#: What is said of a case by its name in the logged scores -> by its column in a run's table of cases. More is better, and a class that is
#: missed has 0.
METRICS = {"dice_case": "dice", "iou_case": "iou", "surface_dice": "surface_dice", "boundary_iou": "boundary_iou"}
#: Of a case that misses a class they are infinite, so that there is no mean difference.
_DISTANCES = ("hd95", "assd")

#: Of more methods only the best so many are tested against each other: a search of 200 runs has 19,900 pairs, of which no one reads
#: the table. All pairs of the best, not each against the very best: of 200 equal methods the luckiest is far above most others, but near
#: the next ones, so that picking the best raises no false alarms among them.
_TESTED = 30

#: Settings of a run that are its labels: the class that stays out of means, and how those begin that are classes.
_BACKGROUND, _CLASSES = "data.labels.background", "data.labels.classes."


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
    backgrounds = {str(run.settings.get(_BACKGROUND)) for run in finished}
    by_class = score_classes(list(tables.values()), names, metric, backgrounds)
    of_run = dict(zip(tables, _mean(np.stack(list(by_class.values())), 0), strict=True))
    members = np.unique(np.array(groups), return_inverse=True)[1]  # numbers are sorted faster than names, for each run
    reached = {folder: _mean_of_groups(of_cases, members) for folder, of_cases in of_run.items()}
    methods.sort(key=lambda method: -np.nan_to_num(mean_of(_known(method, reached))))
    scores = np.array([_mean(np.array([of_run[run.folder] for run in method.runs]), 0) for method in methods])
    notes = [
        *_left_out("hold no run", empty),
        *_left_out("have not ended", [run.name for run in runs if not run.finished]),
        *_unsaid(methods),
        *_mixed(finished, tables.values()),
        *_doubts(methods, scores, groups, split, against),
    ]
    rows = {folder: row for row, folder in enumerate(tables)}
    of_class = {
        name: [_mean_of_groups(_mean(of_class[[rows[run.folder] for run in m.runs]], 0), members) for m in methods]
        for name, of_class in by_class.items()
    }
    against = None if against is None else _find(methods, against)
    by_name = {method.name: scores[k] for k, method in enumerate(methods if against else methods[:_TESTED])}
    pairs = compare(by_name, groups, against=against) if methods[1:] else []
    return Comparison(metric, split, methods, names, groups, scores, reached, of_class, pairs, against, notes)


def score_classes(
    tables: Sequence[Cases], names: Sequence[str], metric: str, backgrounds: Collection[str] = ()
) -> dict[str, NDArray[np.float64]]:
    """Scores of each run's cases by class, `[R, N]`: of the one that the metric names, or of all that enter means; nan where there is none.

    A class that neither the truth nor a run's prediction has gives that run no score. Where another run predicts it there, which gives
    that one 0, the first was right: it gets 1, or what it does better would not be seen.

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
    seen = {name: np.zeros((len(tables), len(names)), bool) for name in classes}
    for run, table in enumerate(tables):
        where = np.array([places[name] for name in table.names])
        for name in classes:
            if prefix + name in table.columns:  # a run of other labels knows nothing of it
                seen[name][run, where] = True
                scores[name][run, where] = table.columns[prefix + name]
    for name, of_class in scores.items():
        of_class[np.isnan(of_class) & seen[name] & ~np.isnan(of_class).all(0)] = 1.0
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
    if lacking := [folder for folder, cases in tables.items() if cases is None]:
        raise ValueError(f"{lacking[0]} has no cases of the {split} part; set split to one that all runs have")
    read = {folder: cases for folder, cases in tables.items() if cases is not None}
    if lacking := [folder for folder, cases in read.items() if not cases.has(column)]:
        where = (
            ",".join(map(str, lacking)) if len({folder.parent for folder in lacking}) > 1 else f"{lacking[0].parent}/*"
        )
        raise ValueError(
            f"{lacking[0]} has no {column} of its cases ({len(lacking)} of {count_of(len(read), 'run')} have none); it is measured by "
            f"python src/eval.py -m checkpoint={in_quotes(where if lacking[1:] else str(lacking[0]))} split={split}"
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


def _left_out(why: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"Left out, for they {why}: {', '.join(names[:5])}{more}."]


def _unsaid(methods: Sequence[Method]) -> list[str]:
    """What names of methods take for granted."""
    settings = dict.fromkeys(f"{key}={say_value(value)}" for method in methods for key, value in method.unsaid.items())
    return [f"Where a name does not say otherwise: {', '.join(settings)}."] if settings else []


def _mixed(runs: Sequence[Run], tables: Iterable[Cases]) -> list[str]:
    """What makes cases of one name doubtful."""
    notes = []
    if len(data := dict.fromkeys(str(run.settings.get("data")) for run in runs)) > 1:
        notes.append(f"Runs are of different data ({', '.join(data)}): cases of one name are taken for the same.")
    labels = {
        (str(run.settings.get(_BACKGROUND)), *sorted(key for key in run.settings if key.startswith(_CLASSES)))
        for run in runs
    }
    if len(labels) > 1:
        notes.append(
            "Runs have different classes or backgrounds: the mean of each is over the classes that it knows, without any run's background."
        )
    groups: dict[str, set[str]] = {}
    for table in tables:
        for name, group in zip(table.names, table.groups, strict=True):
            groups.setdefault(name, set()).add(group)
    if any(len(of_case) > 1 for of_case in groups.values()):
        notes.append("Runs group their cases differently (data.group): the last run's groups are taken.")
    return notes


def _doubts(
    methods: Sequence[Method], scores: NDArray[np.float64], groups: Sequence[str], split: str, against: str | None
) -> list[str]:
    """What weakens the conclusions."""
    notes = [
        f"Of {method.name} some runs have one seed: they count as runs, and not as seeds."
        for method in methods
        if method.num_repeats < len(method.runs)
    ]
    if split.partition("_")[0] == "val":  # an evaluation of it, too, such as val_tta-flips
        notes.append(
            "Scores are of the validation part, which also picked the weights of each run: all are flattered a little."
        )
    sets = {tuple(sorted(map(str, method.seeds))) for method in methods}
    if len(methods) > 1 and any(method.num_repeats == 1 for method in methods):
        notes.append(
            "Where a method has one seed, a verdict is about the trained models at hand; another seed may turn it round. "
            "Train several: -m seed=0,1,2."
        )
    elif len(sets) > 1:
        notes.append("The methods have different seeds.")
    missing = int(np.isnan(scores).any(0).sum())
    if missing:
        notes.append(
            f"{count_of(missing, 'case')} of {scores.shape[1]} have no score of some method, and are left out of its pairs."
        )
    num_tested = min(len(methods), _TESTED)
    num_pairs = len(methods) - 1 if against else num_tested * (num_tested - 1) // 2
    if num_tested < len(methods) and not against:
        notes.append(
            f"Of {len(methods)} methods the {num_tested} with the highest scores are tested, each with each ({num_pairs} pairs, for which "
            "p is corrected); of the others only the scores are shown. The same cases picked them, so that the best is partly the "
            "luckiest: its score on other cases will be lower. against=METHOD tests one against all."
        )
    if num_pairs and len(set(groups)) < (needed := least_groups(num_pairs)):
        compared = count_of(len(methods) if against else num_tested, "method")
        fewer = "" if against or num_pairs < 2 else "; against=METHOD tests fewer pairs"
        notes.append(
            f"There are {count_of(len(set(groups)), 'group')}; with fewer than {needed} no test can show a difference of {compared}{fewer}."
        )
    return notes


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
