"""What a reader must know of a comparison before believing it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from segline.comparison.methods import Method, say_value
from segline.comparison.runs import Cases, Run
from segline.comparison.statistics import MOST_TESTED, least_groups
from segline.words import count_of

#: How settings of a run begin that are its classes.
_CLASSES = "data.labels.classes."
#: Parts of the data that the networks know.
_FLATTERED = {
    "train": "Scores are of the very cases that the networks were trained on.",
    "val": "Scores are of the validation part, which also picked the weights of each run: all are flattered a little.",
    "all": "Scores are of all cases, most of which the networks were trained on.",
}


def left_out(why: str, names: Sequence[str]) -> list[str]:
    """Places that were named and are not compared."""
    if not names:
        return []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"Left out, for they {why}: {', '.join(names[:5])}{more}."]


def unsaid(methods: Sequence[Method]) -> list[str]:
    """What names of methods take for granted."""
    settings = dict.fromkeys(f"{key}={say_value(value)}" for method in methods for key, value in method.unsaid.items())
    return [f"Where a name does not say otherwise: {', '.join(settings)}."] if settings else []


def mixed(runs: Sequence[Run], tables: Iterable[Cases]) -> list[str]:
    """What makes cases of one name doubtful."""
    notes = []
    if len(data := dict.fromkeys(str(run.settings.get("data")) for run in runs)) > 1:
        notes.append(f"Runs are of different data ({', '.join(data)}): cases of one name are taken for the same.")
    labels = {(run.background, *sorted(key for key in run.settings if key.startswith(_CLASSES))) for run in runs}
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


def doubts(
    methods: Sequence[Method], scores: NDArray[np.float64], groups: Sequence[str], split: str, against: str | None
) -> list[str]:
    """What weakens the conclusions."""
    notes = [
        f"Of {method.name} some runs have one seed: they count as runs, and not as seeds."
        for method in methods
        if method.num_repeats < len(method.runs)
    ]
    if flattered := _FLATTERED.get(split.partition("_")[0]):  # evaluations of it, too, such as val_tta-flips
        notes.append(flattered)
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
    num_tested = min(len(methods), MOST_TESTED)
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
