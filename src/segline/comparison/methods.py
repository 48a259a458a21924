"""What runs differ in: methods, which are runs that differ by their seeds or folds alone, and their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
#: Letters of a longer name, as of runs of different data, that nobody would read.
_LONGEST = 100
#: Groups whose choices name themselves.
_KNOWN = ("data", "model", "loss")


@dataclass(frozen=True)
class Method:
    """Runs of the same settings but for the seed.

    Args:
        name: By what it differs from the others.
        settings: What that is, by key.
        runs: Of it.
        unsaid: Of the settings those that its name leaves out, as most methods have them.
    """

    name: str
    settings: dict[str, Any]
    runs: list[Run]
    unsaid: dict[str, Any] = field(default_factory=dict)

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
    named = _name_all(settings) if keys else [(str(runs[0].settings["model"]), {})]
    if any(len(name) > _LONGEST for name, _ in named):
        chosen = [", ".join(say_value(own[key]) for key in _KNOWN if key in own) for own in settings]
        named = [
            (f"{known or 'run'} ({alike[0].name})", {})
            for known, alike in zip(chosen, of_settings.values(), strict=True)
        ]
    methods = [
        Method(name, own, alike, unsaid)
        for (name, unsaid), own, alike in zip(named, settings, of_settings.values(), strict=True)
    ]
    # Values that are typed alike, such as a number and its text, differ nevertheless.
    names = [method.name for method in methods]
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
            alike.setdefault(_chosen_above(run.settings, key), set()).add(repr(run.settings.get(key)))
        if any(len(values) > 1 for values in alike.values()):
            found.append(key)
    return found


def _chosen_above(settings: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """What was chosen for each group that a key lies in."""
    parts = key.split(".")
    return tuple(repr(settings.get(".".join(parts[:n]))) for n in range(1, len(parts)))


def _name_all(settings: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """What is special of each, in short, and the settings that this leaves out, as they are those of most.

    A setting is told only of methods whose like have several values of it, such as deep supervision of residual U-Nets, which others lack.
    """
    keys = sorted(settings[0], key=lambda key: _KNOWN.index(key) if key in _KNOWN else len(_KNOWN))
    lasts = Counter(key.rsplit(".", 1)[-1] for key in keys)
    values: dict[tuple[str, ...], Counter[str]] = {}
    for one in settings:
        for key in keys:
            values.setdefault((key, *_chosen_above(one, key)), Counter())[repr(one[key])] += 1

    def say(key: str, value: Any) -> str:
        last = key.rsplit(".", 1)[-1]
        return say_value(value) if key in _KNOWN else f"{last if lasts[last] == 1 else key}={say_value(value)}"

    told, usual = [], []
    for one in settings:
        of_key = {key: values[key, *_chosen_above(one, key)] for key in keys}
        told.append({key: one[key] for key in keys if len(of_key[key]) > 1})
        alike = {key: 2 * of_key[key][repr(one[key])] > of_key[key].total() for key in told[-1]}
        usual.append({key: value for key, value in told[-1].items() if key not in _KNOWN and alike[key]})
    # What is usual of some networks and not of others is said of all.
    several = {key for key in keys if len({repr(of_one[key]) for of_one in usual if key in of_one}) > 1}
    usual = [{key: value for key, value in of_one.items() if key not in several} for of_one in usual]
    # Most settings of an ablation are usual; of a grid none is, for there are as many of each value.
    if 2 * sum(map(len, usual)) <= sum(key not in _KNOWN for of_one in told for key in of_one):
        usual = [{} for _ in settings]
    names = [
        ", ".join(say(key, value) for key, value in of_one.items() if key not in left_out)
        for of_one, left_out in zip(told, usual, strict=True)
    ]
    return [(name or "base", left_out) for name, left_out in zip(names, usual, strict=True)]


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
