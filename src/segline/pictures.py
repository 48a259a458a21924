"""Pictures of what the network sees, says and gets wrong. Arrays in, matplotlib figures out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from segline.labels import IGNORE_INDEX, Labels

_IGNORED = (128, 128, 128)
#: Right, missed, invented, taken for another class: told apart by colour-blind readers, too (Okabe and Ito).
_ERRORS = {
    "right": (235, 235, 235),
    "missed": (0, 114, 178),
    "invented": (213, 94, 0),
    "another class": (204, 121, 167),
    "ignored": _IGNORED,
}
_DPI = 110


def to_rgb(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Show an image `[C, H, W]` of any number of bands: grey for one, the first three of several, stretched from 2 to 98 %."""
    shown = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, 0)
    low, high = np.nanpercentile(shown, [2, 98], axis=(1, 2), keepdims=True) if shown.size else (0, 1)
    stretched = (shown - low) / np.maximum(high - low, 1e-6)
    return (np.nan_to_num(np.clip(stretched, 0, 1)) * 255).astype(np.uint8).transpose(1, 2, 0)


def flat(sample: Mapping[str, NDArray[Any]], labels: Labels) -> dict[str, NDArray[Any]]:
    """Image, mask and perhaps prediction in two dimensions: of a volume, the slice with the most foreground."""
    if sample["image"].ndim == 3:
        return dict(sample)
    mask = sample["mask"]
    foreground = np.isin(mask, labels.shown) if labels.exclusive else (mask == 1).any(0)
    depth = int(foreground.sum((1, 2)).argmax())
    return {name: array[..., depth, :, :] if name != "title" else array for name, array in sample.items()}


def colorize(mask: NDArray[Any], labels: Labels) -> NDArray[np.uint8]:
    """Class colours of a mask; ignored pixels are grey; of overlapping classes the last one is seen."""
    if labels.exclusive:
        table = np.full((256, 3), _IGNORED, np.uint8)
        table[: labels.num_classes] = labels.palette
        return table[mask]
    shown = np.zeros((*mask.shape[1:], 3), np.uint8)
    for k, color in enumerate(labels.palette):
        shown[mask[k] == 1] = color
    shown[(mask == IGNORE_INDEX).any(0)] = _IGNORED
    return shown


def overlay(rgb: NDArray[np.uint8], mask: NDArray[Any], labels: Labels, alpha: float = 0.45) -> NDArray[np.uint8]:
    """Class colours over a picture; background and ignored pixels stay plain."""
    covered = np.isin(mask, labels.shown) if labels.exclusive else (mask == 1).any(0)
    mixed = (1 - alpha) * rgb + alpha * colorize(mask, labels)
    return np.where(covered[..., None], mixed, rgb).astype(np.uint8)


def error_map(mask: NDArray[Any], pred: NDArray[Any], labels: Labels) -> NDArray[np.uint8]:
    """Where a prediction is right, misses a class, invents one, or takes one for another; ignored pixels are grey."""
    if labels.exclusive:
        background = labels.names.index(labels.background) if labels.background else -1
        true, found, ignored = mask != background, pred != background, mask == IGNORE_INDEX
        wrong = mask != pred
    else:
        true, found, ignored = (mask == 1).any(0), (pred == 1).any(0), (mask == IGNORE_INDEX).all(0)
        wrong = ((mask != pred) & (mask != IGNORE_INDEX)).any(0)
    shown = np.full((*true.shape, 3), _ERRORS["right"], np.uint8)
    shown[wrong & true & found] = _ERRORS["another class"]
    shown[wrong & true & ~found] = _ERRORS["missed"]
    shown[wrong & ~true & found] = _ERRORS["invented"]
    shown[ignored] = _ERRORS["ignored"]
    return shown


def case_grid(cases: Sequence[Mapping[str, Any]], labels: Labels) -> Figure:
    """A row a case: image, truth, prediction and error side by side; each case has image, mask, pred and title."""
    figure = Figure(figsize=(13, 3.5 * max(len(cases), 1) + 0.7), dpi=_DPI, layout="constrained")
    axes = figure.subplots(max(len(cases), 1), 4, squeeze=False)
    for row, case in zip(axes, cases, strict=False):
        shown = flat({name: case[name] for name in ("image", "mask", "pred")}, labels)
        rgb = to_rgb(shown["image"])
        panels = [
            rgb,
            colorize(shown["mask"], labels),
            colorize(shown["pred"], labels),
            error_map(shown["mask"], shown["pred"], labels),
        ]
        for axis, panel, title in zip(row, panels, ("image", "truth", "prediction", "error"), strict=True):
            axis.imshow(panel, interpolation="nearest")
            axis.set_title(case["title"] if title == "image" else title, fontsize=9, loc="left")
            axis.set_axis_off()
    colors = {
        **dict(zip(labels.names, labels.palette, strict=True)),
        **{k: v for k, v in _ERRORS.items() if k != "right"},
    }
    handles = [
        Patch(facecolor=tuple(np.array(color) / 255), edgecolor="0.4", label=name) for name, color in colors.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 9), frameon=False, fontsize=9)
    return figure


def augmented_grid(samples: Sequence[Mapping[str, NDArray[Any]]], labels: Labels) -> Figure:
    """Augmented windows above, the same with their masks below."""
    figure = Figure(figsize=(2.2 * len(samples), 4.6), dpi=_DPI, layout="constrained")
    for column, sample in enumerate(samples):
        shown = flat(sample, labels)
        rgb = to_rgb(shown["image"])
        for row, panel in enumerate((rgb, overlay(rgb, shown["mask"], labels))):
            axis = figure.add_subplot(2, len(samples), row * len(samples) + column + 1)
            axis.imshow(panel, interpolation="nearest")
            axis.set_axis_off()
    return figure


def curves(rows: Sequence[Mapping[str, float]], objective: str) -> Figure:
    """Loss, objective and learning rate against the epoch."""
    figure = Figure(figsize=(13, 3.6), dpi=_DPI, layout="constrained")
    name = objective.split("/", 1)[1]
    groups = [("loss", ["train/loss", "val/loss"]), (name, [f"train/{name}", objective]), ("learning rate", ["lr"])]
    for axis, (title, keys) in zip(figure.subplots(1, 3), groups, strict=True):
        for key in keys:
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 15 else None, markersize=3, label=key)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("epoch", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(keys) > 1 and axis.lines:
            axis.legend(frameon=False, fontsize=9)
    return figure


def confusion_matrix(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Share of each true class (row) that was taken for each class (column), in percent."""
    size = 2.5 + 0.55 * len(names)
    figure = Figure(figsize=(size + 1, size), dpi=_DPI, layout="constrained")
    axis = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    shown = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    if len(names) <= 25:
        for (row, column), value in np.ndenumerate(share):
            axis.text(
                column,
                row,
                f"{100 * value:.0f}" if value >= 0.005 else "·",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.55 else "0.2",
            )
    figure.colorbar(shown, ax=axis, shrink=0.8, format=lambda v, _: f"{100 * v:.0f} %")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
