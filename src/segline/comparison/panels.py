"""Pictures of the cases where methods disagree most: image, truth, and where each errs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segline import pictures
from segline.comparison.compare import Comparison
from segline.comparison.methods import Method
from segline.comparison.runs import Run
from segline.config import OWN, compose
from segline.data.cases import SPLITS
from segline.data.datamodule import SegmentationDataModule
from segline.examples import choose_view, show_place
from segline.inference.predictor import Predictor, Settings
from segline.labels import IGNORE_INDEX
from segline.scoring import open_all
from segline.words import in_quotes

#: Cases and methods that are shown at most, and pixels of a picture's longer side.
_CASES, _METHODS, _SIDE = 4, 6, 480
NOTE = (
    "The cases in which the shown methods are furthest apart, by one run of each. "
    "Errors: blue is missed, orange invented, pink another class."
)


def draw_panels(comparison: Comparison, trust: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Of each case a `title`, and its pictures with `name` and `src`: image, truth, and errors of the best methods.

    Args:
        comparison: Whose runs predict them.
        trust: Packages besides segline's own whose networks the runs may have.

    Raises:
        ValueError: A run's data or weights are not there any more, its network is not trusted, or an evaluation is compared.
    """
    methods = comparison.methods[:_METHODS]
    scores = comparison.scores[:_METHODS]
    if len(methods) < 2:
        return []
    if comparison.split not in SPLITS:
        raise ValueError(
            f"pictures are of a part of the data ({', '.join(SPLITS)}), and not of the evaluation {comparison.split}"
        )
    spread = np.where(np.isnan(scores).any(0), -1, np.nan_to_num(scores).max(0) - np.nan_to_num(scores).min(0))
    chosen = [int(k) for k in np.argsort(-spread, kind="stable")[:_CASES] if spread[k] > 0]
    rows: list[dict[str, Any]] = [
        {"title": f"{comparison.names[k]}, {spread[k]:.3f} apart", "panels": []} for k in chosen
    ]
    for row, method in enumerate(methods):
        shown = dict(_predict(method, comparison.split, [comparison.names[k] for k in chosen], trust))
        for k, of_case in zip(chosen, rows, strict=True):
            drawn = shown[comparison.names[k]]
            if row == 0:
                of_case["panels"] += [_panel("image", drawn["rgb"]), _panel("truth", drawn["truth"])]
            of_case["panels"].append(_panel(f"{method.name}: {scores[row, k]:.3f}", drawn["error"]))
    return rows


def _predict(
    method: Method, split: str, names: Sequence[str], trust: Sequence[str]
) -> Iterator[tuple[str, dict[str, NDArray[np.uint8]]]]:
    """Pictures of what a method says of some cases, by the first of its runs that has each: of folds each tests others."""
    left = list(names)
    for run in method.runs:
        cases = run.cases(split)
        if own := [name for name in left if cases is not None and name in cases.names]:
            yield from zip(own, _predict_by(run, split, own, trust), strict=True)
            left = [name for name in left if name not in own]


def _predict_by(
    run: Run, split: str, names: Sequence[str], trust: Sequence[str]
) -> Iterator[dict[str, NDArray[np.uint8]]]:
    """Pictures of what a run says of some cases."""
    predictor, data = _open(run, split, trust)
    labels = data.labels
    by_name = {case.name: case for case in data.cases[split]}
    if gone := [name for name in names if name not in by_name]:
        raise ValueError(f"{gone[0]} is not in the {split} part of {run.folder}'s data any more")
    for name in names:
        case = by_name[name]
        view = choose_view(data.facts[name], data.open(case)[1], labels)
        shown = pictures.flat(show_place(case, view, predictor.decisions, data), labels)
        pred = np.where(shown["mask"] == IGNORE_INDEX, IGNORE_INDEX, shown["pred"])
        rgb = pictures.to_rgb(shown["image"], labels.counted(shown["mask"]))
        truth = pictures.overlay(rgb, shown["mask"], labels)
        yield {"rgb": rgb, "truth": truth, "error": pictures.error_map(shown["mask"], pred, labels)}


def _open(run: Run, split: str, trust: Sequence[str]) -> tuple[Predictor, SegmentationDataModule]:
    settings = Settings(str(run.folder), trust=trust)
    config = compose([f"checkpoint={in_quotes(str(run.folder))}", f"split={split}"], "eval", str(run.folder))
    paths, _, data, _ = open_all(config, OWN, settings)
    return Predictor(paths, settings), data


def _panel(name: str, picture: NDArray[np.uint8]) -> dict[str, str]:
    """A picture as an address that holds it."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(buffer, "webp", quality=80)
    return {"name": name, "src": "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()}
