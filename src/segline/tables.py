"""Tables: one row an epoch, one row a case, and the one that goes into a paper."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segline.commit import committed
from segline.labels import Labels

#: What a run reached, of each case too, and what it took, in its folder.
SCORES, CASES, COSTS = "scores.json", "cases.parquet", "costs.json"
#: What is counted in the latter: the memory is that of the GPU, or of the process.
COSTED = ("weights", "steps", "seconds", "processes", "memory_mb")
_COLUMNS = {
    "IoU": "iou",
    "Dice": "dice",
    "Precision": "precision",
    "Recall": "recall",
    "Dice/case": "dice_case",
    "Cases": "cases",
}


def class_table(scores: Mapping[str, float], labels: Labels, split: str, style: str = "plain") -> str:
    """Scores of each class and their mean, fit for a paper: `plain`, `markdown` or `latex`.

    The last row is the mean over classes (without the background, which is said); a dash stands where a class does not occur.
    """
    rows = [["Class" if style != "plain" else split, *_COLUMNS]]
    for name in labels.names:
        rows.append([name, *(_number(scores.get(f"{key}/{name}"), key) for key in _COLUMNS.values())])
    mean = "mean" if labels.background is None else f"mean without {labels.background}"
    rows.append([mean, *(_number(scores.get(key), key) for key in _COLUMNS.values())])
    return rendered(rows, style, total=True)


def rendered(rows: Sequence[Sequence[str]], style: str, total: bool = False) -> str:
    """A table of cells, `plain`, `markdown` or `latex`, whose first row is the head; the last row may be a total."""
    if style != "latex":
        return aligned(rows, style, total)
    head, *body = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
    body[-1:] = [r"\hline", body[-1]] if total else body[-1:]
    columns = "l" + "r" * (len(rows[0]) - 1)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]
    )


def further_table(summary: Mapping[str, Any]) -> str:
    """What an evaluation says of classes besides Dice and IoU, as plain text: intervals, surfaces and objects."""
    unit, tolerance = summary["unit"], summary["tolerance"]
    near = f"Surface Dice ({tolerance:g} {unit})" if tolerance is not None else "Surface Dice"
    rows = [["", "IoU 95 %", "Dice/case 95 %", f"HD95, {unit}", near, "Boundary IoU", "Object F1", "PQ"]]
    for row in summary["classes"]:
        lost = f" +{row['hd95_lost']}" if row["hd95_lost"] else ""
        rows.append(
            [
                row["class"],
                bounds(row["iou_low"], row["iou_high"]),
                bounds(row["dice_case_low"], row["dice_case_high"]),
                (f"{row['hd95']:.2f}" if row["hd95"] is not None else "–") + lost,
                *(_number(row[key], key) for key in ("surface_dice", "boundary_iou", "object_f1", "pq")),
            ]
        )
    return aligned(rows, "plain")


def bounds(low: float, high: float) -> str:
    """An interval for people: – where there is none."""
    return "–" if low != low else f"{low:.3f} to {high:.3f}"


def aligned(rows: Sequence[Sequence[str]], style: str, total: bool = True) -> str:
    """Columns of equal width, `plain` or `markdown`; in plain text the last row stands below a rule if it is a total."""
    if style == "markdown":
        rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    if style == "markdown":
        rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
    rule = ["-" * w for w in widths]
    last = [rule, lines[-1]] if total else [lines[-1]]
    return "\n".join("  ".join(line) for line in (lines[0], rule, *lines[1:-1], *last))


def _number(value: float | None, key: str) -> str:
    if value is None or value != value:
        return "–" if key != "cases" else ""
    return f"{value:.0f}" if key == "cases" else f"{value:.3f}"


def _latex(text: str) -> str:
    """Text with the signs that mean something to LaTeX said otherwise."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text).replace("–", "--")


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """Add a row to a CSV; new columns are added to those there are, and what was written survives a kill."""
    _write(path, [*read_rows(path), row])


def drop_epochs_from(path: Path, epoch: int) -> None:
    """Drop the rows of an epoch and later ones, which are about to be trained again."""
    rows = read_rows(path)
    if any(row["epoch"] >= epoch for row in rows):
        _write(path, [row for row in rows if row["epoch"] < epoch])


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV as numbers; cells without a value are left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _write(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the table anew; it is small."""
    with committed(path) as temporary, temporary.open("w", newline="") as file:
        # A row may lack values that others have: not every epoch validates.
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows({name: _exact(name, value) for name, value in row.items()} for row in rows)


def _exact(name: str, value: float) -> str:
    """A number that reads back as the same float; counts are whole."""
    return str(int(value)) if name in ("epoch", "step") else repr(float(value))


def write_cases(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a case as Parquet, whole or not at all; a row may lack columns that others have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
    # A class that occurs in no case has no score, but its column is one of numbers nevertheless.
    columns = {name: c.cast(pa.float64()) if c.type == pa.null() else c for name, c in columns.items()}
    with committed(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def digest(path: Path) -> str | None:
    """Of a file's bytes; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote; nothing where there is no file."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data, whole or not at all; numbers that JSON lacks become null, and infinity a text."""
    with committed(path) as temporary:
        temporary.write_text(json.dumps(_plain(data), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
