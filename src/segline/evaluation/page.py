"""One self-contained HTML page of an evaluation, which opens from a disk."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from segline import pictures
from segline.commit import committed
from segline.labels import Labels
from segline.tables import bounds

_TEMPLATE = Path(__file__).with_name("page.html")
#: Cases in the page's table at most; all of them are in cases.parquet.
_LISTED = 2000


def write(
    path: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    confusion: NDArray[np.int64] | None,
    labels: Labels,
    shown: Sequence[Mapping[str, Any]],
    suspects: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page.

    Args:
        path: Of the file.
        summary: As `evaluate` gives it.
        rows: Of the table of cases.
        confusion: Pixels, truth x prediction, `[K, K]`; None for overlapping labels.
        labels: Of the task.
        shown: Best, median and worst case: image, mask, pred and title.
        suspects: Likewise, of places where network and label disagree.
    """
    import jinja2

    figures = {
        "cases": pictures.case_grid(shown, labels) if shown else None,
        "suspects": pictures.case_grid(suspects, labels) if suspects else None,
        "reliability": pictures.reliability(summary["reliability"], summary["ece"]),
        "confusion": None if confusion is None else pictures.confusion_matrix(confusion, labels.names),
    }
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "bounds": bounds}
    template = environment.from_string(_TEMPLATE.read_text())
    text = template.render(
        **summary,
        colors={
            name: "#{:02x}{:02x}{:02x}".format(*color) for name, color in zip(labels.names, labels.palette, strict=True)
        },
        figures={name: _embedded(figure) for name, figure in figures.items() if figure is not None},
        rows=_table(rows, labels),
        num_rows=len(rows),
        background=labels.background,
    )
    with committed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _table(rows: Sequence[Mapping[str, Any]], labels: Labels) -> list[dict[str, Any]]:
    """What the page's table of cases shows: the mean over classes of Dice and HD95, and Dice of each; the worst first."""
    names = [labels.names[k] for k in labels.shown]
    table = []
    for row in rows:
        dice = [row[f"dice/{name}"] for name in names]
        there = [value for value in dice if value is not None]
        distances = [d for name in names if (d := row.get(f"hd95/{name}")) is not None]
        table.append(
            {
                "case": row["case"],
                "group": row["group"],
                "dice": sum(there) / len(there) if there else None,
                "hd95": sum(distances) / len(distances) if distances else None,
                "classes": dice if len(names) > 1 else [],
            }
        )
    table.sort(key=lambda row: (row["dice"] is None, row["dice"]))
    return table[:_LISTED]


def _embedded(figure: Figure) -> str:
    """A figure as an address that holds it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", pil_kwargs={"quality": 85})
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: float | None, digits: int = 3) -> str:
    """A number for people: – where there is none."""
    if value is None or value != value:
        return "–"
    if value in (float("inf"), float("-inf")):
        return "∞"
    return f"{value:,.{digits}f}"
