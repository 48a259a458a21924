"""A trained network measured on corrupted and on attacked cases, column by column of a table."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from segline import tables
from segline.data.cases import Case
from segline.data.datamodule import SegmentationDataModule
from segline.evaluation.evaluate import Evaluator, Options, as_batch
from segline.inference.journal import state
from segline.inference.members import locate_all
from segline.inference.predictor import Predictor, Settings, journal_settings
from segline.labels import Labels
from segline.metrics.overlap import FORMULAS, Overlap
from segline.robustness import report
from segline.robustness.attacked import Attacked, no_attacks
from segline.robustness.attacks import ATTACKS, COST
from segline.robustness.corrupted import STRENGTHS, CorruptedSource, check, check_size, fitting, generator

#: Raised when a corruption or an attack changes its meaning, so that what was measured before is measured anew.
_VERSION = 1
#: Decision and truth of a part of a case.
_Piece = tuple[NDArray[np.uint8], NDArray[np.uint8]]
#: The pieces of a case.
_Ask = Callable[[Case], Iterable[_Piece]]


@dataclass(frozen=True)
class Trial:
    """What a network is put to.

    Args:
        corruptions: Names; None for those that fit the data.
        attacks: Names.
        sizes: Of attacks, in deviations of the normalised image.
        metric: Name of a score of `segline.metrics.overlap`.
        limit: Cases that are measured, drawn evenly; None for all.
        seed: Of all that is drawn.
    """

    corruptions: Sequence[str] | None = None
    attacks: Sequence[str] = ("fgsm", "pgd")
    sizes: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2)
    metric: str = "iou"
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.attacks) - set(ATTACKS):
            raise ValueError(f"there is no attack {unknown.pop()!r}; expected some of {', '.join(ATTACKS)}")
        if not all(size > 0 for size in self.sizes) or (self.attacks and not self.sizes):
            raise ValueError(f"sizes is {list(self.sizes)}; expected numbers above 0, or attacks=[] for no attack")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; expected a number of cases, 1 or more")


def measure(
    settings: Settings,
    data: SegmentationDataModule,
    split: str,
    output: Path,
    trial: Trial,
    overlap: Any = Overlap,
    title: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a part of the data as it is, corrupted and attacked, and leave a table and pictures in a folder.

    What the folder holds already of the same settings is not measured again.

    Args:
        settings: How the networks are asked.
        data: Prepared, with the cases of the part; normalised as the card says.
        split: Name of the part.
        output: Where everything goes.
        trial: What they are put to.
        overlap: Makes the overlap metrics.
        title: Of the table.
        notes: What a reader must know before believing the scores.

    Returns:
        The summary, as `robustness.json` holds it.
    """
    paths = locate_all(settings.checkpoint)
    cases = _evenly(data.cases[split], trial.limit)
    names = _fitting(trial, data, cases)
    predictor = Predictor(paths, settings)
    _check_metric(trial.metric, predictor.labels)
    reason = no_attacks(paths, settings) if trial.attacks else None
    attacks = [] if reason else list(trial.attacks)
    if reason:
        notes = [*notes, f"Attacks are left out: {reason}."]
    rules = overlap(predictor.labels, 1)
    made_of = {
        **journal_settings(settings, paths),
        **_made_of(data, cases),
        "seed": trial.seed,
        "metrics": {name: getattr(rules, name) for name in ("absent", "case_mean")},
    }
    columns = _Columns(output / "robustness.json", made_of, cases, partial(overlap, predictor.labels, len(cases)))
    loop = _Loop(columns, Evaluator(predictor, data, Options(), overlap), trial.seed)
    attacked = Attacked(paths[0], settings, predictor, data, trial.seed) if attacks else None
    loop.run(names, attacked, attacks, trial.sizes)
    summary = {
        "title": title,
        "notes": list(notes),
        "split": split,
        "cases": len(cases),
        **report.sum_up(columns.scores, trial.metric, names, attacks, trial.sizes),
        **columns.content,
    }
    tables.write_json(columns.path, summary)
    report.write(output, summary, data, cases[0], partial(generator, trial.seed, cases[0].name))
    return summary


def _made_of(data: SegmentationDataModule, cases: Sequence[Case]) -> dict[str, Any]:
    """What scores depend on besides the networks: files as they are now, and how they are read."""
    files = {case.name: (*case.images, *case.masks) for case in cases}
    return {
        "version": _VERSION,
        "cases": [[name, *([str(file), *state(file)] for file in of_case)] for name, of_case in files.items()],
        "data": {**data.card_fields(), "burn": data.burn, "blocks": data.blocks},
    }


def _fitting(trial: Trial, data: SegmentationDataModule, cases: Sequence[Case]) -> list[str]:
    """The corruptions that are asked for, or those that fit the first case; refused before hours are spent where one cannot be."""
    for case in cases:  # opened one by one: a process may hold only so many files
        source = data.open(case)[0]
        check_size(source)
        check(trial.corruptions or (), source)
    if trial.corruptions is not None:
        return list(trial.corruptions)
    return fitting(data.open(cases[0])[0], outdoors=data.outdoors)


def _evenly(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """So many cases at most, from the first to the last in even steps."""
    if limit is None or limit >= len(cases):
        return list(cases)
    return [cases[i] for i in np.linspace(0, len(cases) - 1, limit).round().astype(int)]


def _check_metric(name: str, labels: Labels) -> None:
    known = [*FORMULAS, "iou_case", "dice_case", *(["accuracy"] if labels.exclusive else [])]
    of_class = [f"{metric}/{c}" for metric in known if metric != "accuracy" for c in labels.names]
    if name not in (*known, *of_class):
        (close,) = difflib.get_close_matches(name, [*known, *of_class], n=1, cutoff=0)
        raise ValueError(
            f"there is no metric {name!r}; did you mean {close}? There are {', '.join(known)}, and those of a class, as {of_class[0]}"
        )


class _Columns:
    """Scores by the name of a column, kept in a file: those of the same settings need not be measured again."""

    def __init__(
        self, path: Path, made_of: Mapping[str, Any], cases: Sequence[Case], overlap: Callable[[], Overlap]
    ) -> None:
        self.path, self.cases, self.overlap = path, cases, overlap
        before = tables.read_json(path)
        same = before.get("made_of") == json.loads(json.dumps(made_of))
        self.scores: dict[str, dict[str, float]] = {
            name: {key: np.nan if value is None else value for key, value in scores.items()}
            for name, scores in (before["columns"] if same else {}).items()
        }
        self.content = {"made_of": dict(made_of), "columns": self.scores}

    def add(self, name: str, ask: _Ask, bar: tqdm[Any]) -> None:
        """Measure all cases for a column."""
        overlap = self.overlap()
        for index, case in enumerate(self.cases):
            for pred, truth in ask(case):
                overlap.update(as_batch(pred), as_batch(truth), torch.tensor([index]))
            bar.update()
        self.scores[name] = overlap.compute()
        tables.write_json(self.path, self.content)


class _Loop:
    """Measures the columns that are not there yet."""

    def __init__(self, columns: _Columns, evaluator: Evaluator, seed: int) -> None:
        self.columns, self.evaluator, self.seed = columns, evaluator, seed

    def run(
        self, names: Sequence[str], attacked: Attacked | None, attacks: Sequence[str], sizes: Sequence[float]
    ) -> None:
        """Measure what is asked for; the cases as they are come first, by which it is known how long the rest takes."""
        corrupted = {
            f"{name}/{s}": partial(self._corrupted, name=name, strength=s) for name in names for s in STRENGTHS
        }
        left = len(corrupted.keys() - self.columns.scores.keys())
        seconds = self._add("clean", {"clean": self._clean}) * left
        if attacked is not None:
            costs = [COST[a] for a in attacks for size in sizes if f"{a}/{size:g}" not in self.columns.scores]
            plain = {"attacks/0": partial(attacked.pieces, attack="", size=0.0)}
            seconds += self._add("float32", plain) * sum(costs)
        if seconds > 60:
            print(f"all else will take about {seconds / 60:,.0f} minutes; limit=N measures N cases only")
        self._add("corruptions", corrupted)
        if attacked is not None:
            for name in attacks:
                self._add(name, {f"{name}/{s:g}": partial(attacked.pieces, attack=name, size=s) for s in sizes})

    def _add(self, title: str, asked: Mapping[str, _Ask]) -> float:
        """Measure columns under one bar; the seconds that it took."""
        missing = {name: ask for name, ask in asked.items() if name not in self.columns.scores}
        started = time.monotonic()
        if missing:
            with tqdm(total=len(missing) * len(self.columns.cases), unit="case", desc=title) as bar:
                for name, ask in missing.items():
                    bar.set_postfix_str(name, refresh=False)
                    self.columns.add(name, ask, bar)
        return time.monotonic() - started if missing else 0.0

    def _clean(self, case: Case) -> Iterable[_Piece]:
        for _, probs, truth in self.evaluator.pieces(*self.evaluator.data.open(case)):
            yield self.evaluator.predictor.decide(probs), truth

    def _corrupted(self, case: Case, name: str, strength: int) -> Iterable[_Piece]:
        source, mask_source, _ = self.evaluator.data.open(case)
        source = CorruptedSource(source, name, strength, generator(self.seed, case.name, name))
        # Statistics of a case are those of the image that is there: a network that divides by them may get over it.
        for _, probs, truth in self.evaluator.pieces(source, mask_source, None):
            yield self.evaluator.predictor.decide(probs), truth
