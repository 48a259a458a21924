"""Run folders as a training leaves them, with scores that a test makes up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segline import tables


def write_run(
    folder: Path,
    dice: Mapping[str, Sequence[float | None]],
    *,
    groups: Sequence[str] | None = None,
    split: str = "val",
    finished: bool = True,
    seed: int = 0,
    costs: Mapping[str, float] | None = None,
    choices: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run whose cases have these scores by class; its Dice over the data set is their mean, its IoU half of each.

    Args:
        folder: Where it comes to lie.
        dice: By class, of each case.
        groups: What each case belongs to; None: each to itself.
        split: Part of the data that was measured.
        finished: Whether it has ended.
        seed: Of the training.
        costs: What it took.
        choices: Of config groups.
        settings: Parts of the config.
    """
    folder.mkdir(parents=True)
    chosen = {"data": "cells", "model": "unet", "loss": "dice_ce", **(choices or {})}
    labels = {"background": "background", "classes": {name: k for k, name in enumerate(["background", *dice])}}
    data = {"labels": labels, "seed": seed, "root": str(folder.parent), **settings.pop("data", {})}
    config = {"run": {"name": folder.name, "choices": chosen, "overrides": []}, "data": data, "seed": seed, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    tables.append_row(folder / "metrics.csv", {"epoch": 0, "step": 10, "seconds": 2.0, "train/loss": 0.5})
    if not finished:
        return folder
    length = len(next(iter(dice.values())))
    rows = []
    for number in range(length):
        group = groups[number] if groups else f"case {number}"
        row: dict[str, Any] = {"split": split, "case": f"case {number}", "group": group, "dice/background": 0.99}
        for name, values in dice.items():
            value = values[number]
            row |= {f"dice/{name}": value, f"iou/{name}": None if value is None else value / 2}
        rows.append(row)
    tables.write_cases(folder / "cases.parquet", rows)
    there = [value for values in dice.values() for value in values if value is not None]
    tables.write_json(folder / "scores.json", {f"{split}/dice": sum(there) / len(there)})
    if costs:
        tables.write_json(folder / "costs.json", costs)
    return folder
