"""One self-contained HTML page of a comparison, which opens from a disk and asks no server."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from segline.commit import committed
from segline.comparison import text
from segline.comparison.compare import Comparison, mean_of
from segline.comparison.importance import importances
from segline.comparison.methods import SEEDS, differing, say_value
from segline.comparison.runs import Run
from segline.comparison.statistics import Pair
from segline.words import count_of

_TEMPLATE = Path(__file__).with_name("page.html")
#: Groups in the page's table at most, and methods beside each other.
_LISTED, _BESIDE = 300, 12
#: Pairs whose intervals are drawn, before it is only those of the best method.
_DRAWN = 15
#: Settings with axes of their own, at most.
_SWEPT = 10
#: Values of the learning curves besides what the runs were to reach.
_CURVES = ("train/loss", "val/loss", "val/iou", "val/dice", "val/iou_case", "val/dice_case", "lr")


def write_with_panels(path: Path, comparison: Comparison, trust: Sequence[str] = ()) -> None:
    """Write the page with pictures of the cases where the methods disagree most, where the runs and their data are still there.

    Args:
        path: Of the file.
        comparison: What it shows.
        trust: Packages besides segline's own whose networks the runs may have.
    """
    write(path, comparison)  # it is there whatever becomes of the pictures
    try:
        from segline.comparison.panels import NOTE, draw_panels

        panels = draw_panels(comparison, trust)
        note = NOTE if panels else ""
    except Exception as error:  # networks and data of any kind fail in any way, which the page can say
        why = (
            str(error) if isinstance(error, ValueError | OSError) and str(error) else f"{type(error).__name__}: {error}"
        )
        panels, note = [], f"Without pictures: {why}"
        print(f"without pictures: {why}", file=sys.stderr)
    if note:
        write(path, comparison, panels, note)


def write(path: Path, comparison: Comparison, panels: Sequence[Mapping[str, Any]] = (), panels_note: str = "") -> None:
    """Write the page.

    Args:
        path: Of the file.
        comparison: What it shows.
        panels: Of cases: `title`, and `panels` of `name` and `src` each.
        panels_note: What they show, or why there are none.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    runs = [run for method in comparison.methods for run in method.runs]
    swept = [key for key in differing(runs) if key not in SEEDS]
    scored = [run for run in runs if comparison.reached[run.folder] == comparison.reached[run.folder]]
    shares = importances([{key: run.settings.get(key) for key in swept} for run in scored], _scores(comparison, scored))
    data = json.dumps(_finite(_data(comparison, runs, swept, shares)), separators=(",", ":"), allow_nan=False)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(_TEMPLATE.read_text()).render(
        title=_title(comparison, runs),
        split=comparison.split,
        metric=comparison.metric,
        num_cases=count_of(len(comparison.names), "case"),
        num_groups=count_of(comparison.num_groups, "group"),
        sections=_sections(comparison, bool(swept), bool(panels)),
        methods=text.method_rows(comparison),
        pairs=text.pair_rows(comparison),
        matrix=_matrix(comparison),
        last=comparison.methods[:_BESIDE][-1].name,
        forest=len(_shown(comparison)),
        verdicts=text.verdicts(comparison),
        copies={style: text.said(comparison, style) for style in ("markdown", "latex")},
        notes=comparison.notes,
        runs=_run_rows(comparison, runs, swept[:_SWEPT]),
        classes=_class_rows(comparison),
        groups=_group_rows(comparison),
        num_listed=comparison.num_groups,
        swept=min(len(swept), _SWEPT),
        importance=shares,
        panels=panels,
        panels_note=panels_note,
        diff=_diff_rows(comparison, swept),
        # What stands in a script ends at the first tag that ends it.
        data=data.replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
    )
    with committed(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sections(comparison: Comparison, swept: bool, panels: bool) -> list[tuple[str, str]]:
    """Parts of the page that there are: anchor and name."""
    names = {
        "methods": "Methods",
        "pairs": "Which is better" if comparison.pairs else None,
        "runs": "Runs",
        "curves": "Learning curves",
        "cost": "Cost",
        "settings": "Settings" if swept else None,
        "classes": "Classes" if len(comparison.of_class) > 1 else None,
        "groups": "Groups",
        "cases": "Pictures" if panels else None,
        "diff": "Differences" if swept else None,
    }
    return [(anchor, name) for anchor, name in names.items() if name]


def _title(comparison: Comparison, runs: Sequence[Run]) -> str:
    data = dict.fromkeys(str(run.settings.get("data")) for run in runs)
    return f"{count_of(len(comparison.methods), 'method')}, {count_of(len(runs), 'run')} on {', '.join(data)}"


def _scores(comparison: Comparison, runs: Sequence[Run]) -> list[float]:
    return [comparison.reached[run.folder] for run in runs]


def _data(
    comparison: Comparison, runs: Sequence[Run], swept: Sequence[str], shares: Mapping[str, float]
) -> dict[str, Any]:
    """What the page's charts are drawn from."""
    places = {run.folder: k for k, run in enumerate(runs)}
    return {
        "metric": comparison.metric,
        "swept": list(swept[:_SWEPT]),
        "importance": [{"key": key, "share": round(share, 4)} for key, share in shares.items()],
        "methods": [
            {
                "name": method.name,
                "runs": [places[run.folder] for run in method.runs],
                "score": mean_of(comparison.known(method)),
            }
            for method in comparison.methods
        ],
        "runs": [
            {
                "name": run.name,
                "score": comparison.reached[run.folder],
                "settings": {key: run.settings.get(key) for key in swept},
                "costs": _costs(run),
                "history": _history(run),
            }
            for run in runs
        ],
        "forest": [asdict(pair) for pair in _shown(comparison)],
    }


def _costs(run: Run) -> dict[str, float]:
    """What a run took, in units for people."""
    units = {
        "minutes": ("seconds", 60),
        "million weights": ("weights", 1e6),
        "memory, MB": ("memory_mb", 1),
        "steps": ("steps", 1),
    }
    return {name: _short(run.costs[key] / unit) for name, (key, unit) in units.items() if key in run.costs}


def _history(run: Run) -> dict[str, list[float | None]]:
    """Learning curves by name; None where an epoch has no value."""
    wanted = dict.fromkeys([str(run.settings.get("objective")), *_CURVES])
    columns = {name: [row.get(name) for row in run.history] for name in ("step", "epoch", *wanted)}
    if all("seconds" in row for row in run.history):
        columns["minutes"] = [row["seconds"] / 60 for row in run.history]
    return {
        name: [None if value is None else _short(value) for value in values]
        for name, values in columns.items()
        if any(value is not None for value in values)
    }


def _run_rows(comparison: Comparison, runs: Sequence[Run], swept: Sequence[str]) -> list[list[str]]:
    costs = list(dict.fromkeys(name for run in runs for name in _costs(run)))
    head = [
        "Run",
        *(key.rsplit(".", 1)[-1] if len(key) > 20 else key for key in swept),
        "seed",
        comparison.metric,
        *costs,
    ]
    rows = [head]
    for run, score in zip(runs, _scores(comparison, runs), strict=True):
        own = _costs(run)
        settings = [say_value(run.settings.get(key)) for key in (*swept, "seed")]
        rows.append(
            [run.name, *settings, _number(score), *(f"{own[name]:,.4g}" if name in own else "–" for name in costs)]
        )
    return rows


def _shown(comparison: Comparison) -> list[Pair]:
    """Pairs whose intervals are drawn: all or, of many, those of the best method."""
    best = comparison.methods[0].name
    return [pair for pair in comparison.pairs if len(comparison.pairs) <= _DRAWN or best in (pair.one, pair.other)]


def _matrix(comparison: Comparison) -> list[list[tuple[str, str]]]:
    """Differences of methods, row less column, with their verdicts; empty for a single pair, or where all are compared with one."""
    names = [method.name for method in comparison.methods[:_BESIDE]]
    if comparison.against or len(names) < 3:
        return []
    cells = {
        (p.one, p.other): ("–" if p.difference != p.difference else f"{p.difference:+.4f}", p.verdict)
        for p in comparison.pairs
    }
    return [[(name, ""), *(cells.get((name, other), ("", "")) for other in names[1:])] for name in names[:-1]]


def _class_rows(comparison: Comparison) -> list[list[str]]:
    """Methods by classes; empty where there is one class only."""
    if len(comparison.of_class) < 2:
        return []
    rows = [["Method", *comparison.of_class]]
    for k, method in enumerate(comparison.methods):
        rows.append([method.name, *(_number(values[k]) for values in comparison.of_class.values())])
    return rows


def _group_rows(comparison: Comparison) -> list[list[str]]:
    """Groups by methods, those first where these are furthest from each other."""
    names, places = np.unique(np.asarray(comparison.groups), return_inverse=True)
    counts = np.bincount(places)
    there = ~np.isnan(comparison.scores)
    sums = np.array([np.bincount(places, np.where(t, s, 0)) for t, s in zip(there, comparison.scores, strict=True)])
    found = np.array([np.bincount(places, t) for t in there])
    values = np.where(found > 0, sums / np.maximum(found, 1), np.nan)
    lows, highs = np.where(np.isnan(values), np.inf, values).min(0), np.where(np.isnan(values), -np.inf, values).max(0)
    spread = np.where(highs >= lows, highs - lows, 0)
    order = np.argsort(-spread, kind="stable")[:_LISTED]
    rows = [["Group", "Cases", "Spread", *(method.name for method in comparison.methods[:_BESIDE])]]
    rows += [[str(names[g]), str(counts[g]), _number(spread[g]), *map(_number, values[:_BESIDE, g])] for g in order]
    return rows


def _diff_rows(comparison: Comparison, swept: Sequence[str]) -> list[list[str]]:
    methods = comparison.methods[:_BESIDE]
    rows = [["Setting", *(method.name for method in methods)]]
    return [*rows, *([key, *(say_value(method.settings.get(key)) for method in methods)] for key in swept)]


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"


def _short(value: float) -> float:
    """Five digits, which is what a chart shows."""
    return float(f"{value:.5g}")


def _finite(value: Any) -> Any:
    """Plain data with None for all that JSON has no number for: a rate that diverged, a class without a score."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
