"""What runs differ in: methods, which are runs that differ by their seeds or folds alone, and their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from segline.comparison.runs import Run

#: Settings that change nothing about what is learned, by their beginnings.
_IRRELEVANT = (
    "experiment",
    "sweep",
    "trial",
    "resume",
    "logger",
    "callbacks.pictures",
    "callbacks.checkpoint_minutes",
    "data.root",
    "data.origin",
    "data.num_workers",
    "trainer.log_every_n_steps",
)
#: Arguments of a network that the data decide.
_FOLLOWING = (".in_channels", ".num_classes", ".spatial_dims")
#: Settings by which runs of one method differ.
SEEDS = ("seed", "data.seed", "data.fold")
#: Groups whose choices name themselves.
_KNOWN = ("data", "model", "loss")


@dataclass(frozen=True)
class Method:
    """Runs of the same settings but for the seed.

    Args:
        name: By what it differs from the others.
        settings: What that is, by key.
        runs: Of it.
    """

    name: str
    settings: dict[str, Any]
    runs: list[Run]

    @property
    def num_repeats(self) -> int:
        """How many of its runs differ: by seed, or by fold."""
        return len({repr([run.settings.get(key) for key in SEEDS]) for run in self.runs})

    @property
    def seeds(self) -> list[Any]:
        """Of its runs."""
        return [run.settings.get("seed") for run in self.runs]


def find_methods(runs: Sequence[Run]) -> list[Method]:
    """Put runs of equal settings together, in the order of their first runs."""
    keys = [key for key in differing(runs) if key not in SEEDS]
    of_settings: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        of_settings.setdefault(tuple(repr(run.settings.get(key)) for key in keys), []).append(run)
    settings = [{key: alike[0].settings.get(key) for key in keys} for alike in of_settings.values()]
    names = _name_all(settings) if keys else [str(runs[0].settings["model"])]
    methods = [Method(*parts) for parts in zip(names, settings, of_settings.values(), strict=True)]
    # Values that are typed alike, such as a number and its text, differ nevertheless.
    return [replace(m, name=f"{m.name} ({m.runs[0].name})") if names.count(m.name) > 1 else m for m in methods]


def differing(runs: Sequence[Run]) -> list[str]:
    """Keys of the settings that are not the same in all runs; a group's choice stands for what comes with it.

    So `model` stands for all the arguments in which a U-Net and an FCN differ, and `model.channels` stands beside it only where runs of
    one model have several.
    """
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        if key.startswith(_IRRELEVANT) or key.endswith(_FOLLOWING):
            continue
        alike: dict[tuple[Any, ...], set[str]] = {}
        for run in runs:
            alike.setdefault(_chosen_above(run, key), set()).add(repr(run.settings.get(key)))
        if any(len(values) > 1 for values in alike.values()):
            found.append(key)
    return found


def _chosen_above(run: Run, key: str) -> tuple[Any, ...]:
    """What was chosen for each group that a key lies in."""
    parts = key.split(".")
    return tuple(repr(run.settings.get(".".join(parts[:n]))) for n in range(1, len(parts)))


def _name_all(settings: Sequence[dict[str, Any]]) -> list[str]:
    """What is special of each, in short.

    Where all others differ from one in a single setting each, as in an ablation, that one is `base` and they are named by that setting.
    """
    lasts = Counter(key.rsplit(".", 1)[-1] for key in settings[0])

    def say(key: str, value: Any) -> str:
        last = key.rsplit(".", 1)[-1]
        return say_value(value) if key in _KNOWN else f"{last if lasts[last] == 1 else key}={say_value(value)}"

    if len(settings[0]) > 1:
        for base in settings:
            changes = [[key for key in one if repr(one[key]) != repr(base[key])] for one in settings]
            if all(len(changed) <= 1 for changed in changes):
                return [
                    say(changed[0], one[changed[0]]) if changed else "base"
                    for one, changed in zip(settings, changes, strict=True)
                ]
    known_first = sorted(settings[0], key=lambda key: key not in _KNOWN)
    return [", ".join(say(key, one[key]) for key in known_first) for one in settings]


def say_value(value: Any) -> str:
    """A value as one would type it.

    >>> say_value([1, None, True]), say_value(0.001)
    ('[1,null,true]', '0.001')
    """
    if isinstance(value, list):
        return f"[{','.join(map(say_value, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
