"""Points of a grid: every combination of the values that are given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from hydra.core.override_parser.types import Override

from segline.sweep.points import Point


def grid(overrides: Sequence[Override]) -> list[Point]:
    """The points of overrides with lists, ranges or patterns of values; the last given varies fastest.

    Raises:
        ValueError: An interval, which has no end of values.
    """
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_interval_sweep():
            raise ValueError(
                f"{override.input_line} has infinitely many values; list some, as in {key}=1e-4,1e-3, or search: sweep=optuna"
            )
        values = (
            override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        )
        axes[key] = [f"{key}={value}" for value in values]
        if not axes[key]:
            raise ValueError(f"{override.input_line} stands for nothing")
    combinations = list(product(*axes.values()))
    varying = {key for key, values in axes.items() if len(values) > 1}
    digits = len(str(len(combinations) - 1))
    return [
        Point(point_name(number, digits, [o for key, o in zip(axes, one, strict=True) if key in varying]), one)
        for number, one in enumerate(combinations)
    ]


def point_name(number: int, digits: int, overrides: Sequence[str]) -> str:
    """A folder's name: the number, and what is special, in signs that folders may have.

    >>> point_name(3, 2, ["data/augment=none", "model.channels=[8,16]", "optimizer.lr=0.0012520653814999472"])
    '03_augment=none,channels=[8,16],lr=0.001252'
    """
    return cut(f"{number:0{digits}d}_{slug(overrides)}").rstrip("_")


def cut(name: str) -> str:
    """A folder's name that is not too long: file systems take 255 bytes, and temporary ones have more than these."""
    return name.encode()[:200].decode(errors="ignore")


def slug(overrides: Sequence[str]) -> str:
    """Overrides in signs that a folder's name may have, with the last part of each key.

    >>> slug(["data.fold=[0,5]", "seed=1"])
    'fold=0_of_5,seed=1'
    """
    pairs = (override.partition("=") for override in overrides)
    short = [f"{key.replace('/', '.').rsplit('.', 1)[-1]}={_short(key, value)}" for key, _, value in pairs]
    return ",".join(short).replace("/", ".").replace("'", "").replace('"', "")


def _short(key: str, value: str) -> str:
    """A number that was drawn with four digits, what a person types as it is, and a fold in words."""
    if fold := re.fullmatch(r"\[(\d+),(\d+)\]", value) if key == "data.fold" else None:
        return "{}_of_{}".format(*fold.groups())
    try:
        return value if len(value) < 12 else f"{float(value):.4g}"
    except ValueError:
        return value
