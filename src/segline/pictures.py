"""Pictures of what the network sees, says and gets wrong. Arrays in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from segline.commit import committed
from segline.labels import IGNORE_INDEX, Labels
from segline.words import less_is_better

Colors = dict[str, tuple[int, ...]]

_IGNORED = (128, 128, 128)
#: Told apart by colour-blind readers, too (Okabe and Ito).
_ERRORS: Colors = {
    "right": (235, 235, 235),
    "missed": (0, 114, 178),
    "invented": (213, 94, 0),
    "wrong class": (204, 121, 167),
    "ignored": _IGNORED,
}
_DPI = 110
# Inches.
_PANEL, _GAP, _LINE = 3.1, 0.1, 0.26


def to_rgb(image: NDArray[np.float32], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Show an image `[C, H, W]` of any number of bands: the first of one or two as grey, else the first three.

    Each band is stretched from 2 to 98 % of its values, those where `valid` `[H, W]` if there are any.
    """
    shown = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, 0)
    counted = shown[:, valid] if valid is not None and valid.any() else shown.reshape(len(shown), -1)
    counted = np.where(np.isfinite(counted), counted, np.nan)
    if np.isnan(counted).all(1).any():
        counted = np.nan_to_num(counted)
    low, high = np.nanpercentile(counted, [2, 98], axis=1)[:, :, None, None]
    stretched = (shown - low) / np.maximum(high - low, 1e-6)
    return (np.clip(np.nan_to_num(stretched), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def flat(sample: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
    """A sample with its arrays in two dimensions: of a volume, the axial slice with the most foreground.

    A slice is seen as radiologists do: anterior above, the patient's right on the left.
    """
    if sample["image"].ndim == 3:
        return dict(sample)
    depth = _fullest(sample["mask"], labels)
    arrays = {name: value for name, value in sample.items() if isinstance(value, np.ndarray)}
    return {**sample, **{name: array[..., depth, ::-1, ::-1] for name, array in arrays.items()}}


def colorize(mask: NDArray[Any], labels: Labels) -> NDArray[np.uint8]:
    """Class colours of a mask; ignored pixels are grey; of overlapping classes the last one is seen."""
    table = np.full((256, 3), _IGNORED, np.uint8)
    table[: len(labels.id_palette)] = labels.id_palette
    return table[labels.as_ids(mask)]


def overlay(rgb: NDArray[np.uint8], mask: NDArray[Any], labels: Labels, alpha: float = 0.45) -> NDArray[np.uint8]:
    """Class colours over a picture; background and ignored pixels stay plain."""
    mixed = (1 - alpha) * rgb + alpha * colorize(mask, labels)
    return np.where(labels.foreground(mask)[..., None], np.rint(mixed), rgb).astype(np.uint8)


def error_map(mask: NDArray[Any], pred: NDArray[Any], labels: Labels) -> NDArray[np.uint8]:
    """Where a prediction is right, misses a class, invents one, or takes one for another; ignored pixels are grey."""
    valid = labels.counted(mask)
    pred = np.where(mask == IGNORE_INDEX, IGNORE_INDEX, pred)
    missed, invented = np.zeros_like(valid), np.zeros_like(valid)
    for k in labels.shown:
        true, said = labels.of_class(mask, k), labels.of_class(pred, k)
        missed |= true & ~said
        invented |= said & ~true
    shown = np.full((*valid.shape, 3), _ERRORS["right"], np.uint8)
    shown[missed] = _ERRORS["missed"]
    shown[invented] = _ERRORS["invented"]
    shown[missed & invented] = _ERRORS["wrong class"]
    shown[~valid] = _ERRORS["ignored"]
    return shown


def case_grid(cases: Sequence[Mapping[str, Any]], labels: Labels) -> Figure:
    """A row a case: image, truth, prediction and error side by side; each case has image, mask, pred and title."""
    rows, titles = [], []
    for case in cases:
        # What is said of ignored pixels counts nowhere, so it is not shown either.
        pred = np.where(case["mask"] == IGNORE_INDEX, IGNORE_INDEX, case["pred"])
        shown = flat({"image": case["image"], "mask": case["mask"], "pred": pred}, labels)
        rgb = to_rgb(shown["image"], labels.counted(shown["mask"]))
        truth, said = colorize(shown["mask"], labels), colorize(shown["pred"], labels)
        rows.append([rgb, truth, said, error_map(shown["mask"], shown["pred"], labels)])
        titles.append(_shorten(case["title"], 130))
    classes = _occurring(_class_colors(labels), [panel for row in rows for panel in row[1:3]])
    legends = [(0, 3, classes), (3, 1, _occurring(_ERRORS, [row[3] for row in rows]))]
    return _grid(rows, titles, ["image", "truth", "prediction", "error"], legends)


def augmented_grid(samples: Sequence[Mapping[str, NDArray[Any]]], labels: Labels) -> Figure:
    """Augmented windows above, the same with their masks below, and their weights where they have some."""
    panels, colored = [], []
    most = max((float(sample["weight"].max()) for sample in samples if "weight" in sample), default=1.0)
    for sample in samples:
        shown = flat(sample, labels)
        rgb = to_rgb(shown["image"], labels.counted(shown["mask"]))
        weights = [colormaps["magma"](shown["weight"] / most, bytes=True)[..., :3]] if "weight" in shown else []
        panels.append((rgb, overlay(rgb, shown["mask"], labels), *weights))
        colored.append(np.where(labels.foreground(shown["mask"])[..., None], colorize(shown["mask"], labels), 0))
    rows = [list(row) for row in zip(*panels, strict=True)]
    shown_classes = {labels.names[k]: _class_colors(labels)[labels.names[k]] for k in labels.shown}
    legends = [(0, len(samples), _occurring(shown_classes, colored))]
    titles = ["training windows as augmented", "with their masks", f"and weights, from black for 0 to {most:.3g}"]
    return _grid(rows, titles[: len(rows)], [], legends, panel=2.0)


def curves(rows: Sequence[Mapping[str, float]], objective: str) -> Figure:
    """Loss, objective and learning rate against the epoch; the best epoch by the objective is marked."""
    figure = Figure(figsize=(13, 3.6), dpi=_DPI, layout="constrained")
    name = objective.split("/", 1)[1]
    groups = {"loss": ["train/loss", "val/loss"], name: [f"train/{name}", objective], "learning rate": ["lr"]}
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, (title, keys) in zip(axes, groups.items(), strict=True):
        for key in keys:
            points = [(row["epoch"], row[key]) for row in rows if key in row and np.isfinite(row[key])]
            if not points:
                continue
            color = "#0072b2" if key.startswith("train/") else "#d55e00" if key.startswith("val/") else "0.3"
            dots = {"marker": "o", "markersize": 3} if len(points) < 15 else {}
            axis.plot(*zip(*points, strict=True), color=color, label=key.split("/")[0], **dots)
            if key == objective:
                _mark_best(axis, points, color, least=less_is_better(name))
        _plain(axis, title)
        if len(keys) > 1 and axis.lines:
            axis.legend(frameon=False, fontsize=9)
    return figure


def reliability(bins: Sequence[Mapping[str, Any]], error: float) -> Figure:
    """Share of right decisions against how sure they were, with the share of all pixels below; on the diagonal both agree.

    Args:
        bins: `low`, `high`, `count`, `confidence` and `accuracy`, as `segline.metrics.calibration.Reliability` gives them.
        error: Expected calibration error.
    """
    figure = Figure(figsize=(4.6, 4.9), dpi=_DPI, layout="constrained")
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    filled = [row for row in bins if row["count"]]
    axis.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    sure, right = ([row[key] for row in filled] for key in ("confidence", "accuracy"))
    axis.plot(sure, right, "o-", color="#0072b2", markersize=4)
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="right")
    axis.set_title(f"calibration error {error:.3f}", loc="left", fontsize=10)
    total = max(sum(row["count"] for row in bins), 1)
    below.bar(
        [row["low"] for row in bins],
        [row["count"] / total for row in bins],
        [row["high"] - row["low"] for row in bins],
        align="edge",
        color="0.75",
    )
    below.set(xlabel="how sure", ylabel="of all pixels")
    for one in (axis, below):
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return figure


def confusion_matrix(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Share of each true class (row) that was taken for each class (column), in percent; a row of – has no pixels."""
    numbered = len(names) <= 25
    cell, fontsize = (0.55, 9) if numbered else (0.2, 7)
    size = 2.2 + cell * len(names)
    figure = Figure(figsize=(size + (0 if numbered else 1), size), dpi=_DPI, layout="constrained")
    axis = figure.subplots()
    total = matrix.sum(1, keepdims=True)
    share = matrix / np.maximum(total, 1)
    shown = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=fontsize)
    axis.set_yticks(range(len(names)), names, fontsize=fontsize)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    axis.set_title("% of the true pixels", loc="left", fontsize=10)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if not numbered:
        figure.colorbar(shown, ax=axis, shrink=0.6, format=lambda v, _: f"{100 * v:.0f} %")
        return figure
    for (row, column), value in np.ndenumerate(share):
        # Nothing for no pixel at all, a dot for a few.
        number = f"{100 * value:.0f}" if value >= 0.005 else "·" if value > 0 else ""
        text = number if total[row] else "–"
        color = "white" if value > 0.55 else "0.2"
        axis.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with committed(path) as temporary:
        figure.savefig(temporary, format="png")


# What is shown of a sample


def _fullest(mask: NDArray[Any], labels: Labels) -> int:
    """The slice of a volume with the most foreground; the middle one where there is none."""
    pixels = labels.foreground(mask).sum((1, 2))
    return int(pixels.argmax()) if pixels.any() else len(pixels) // 2


def _class_colors(labels: Labels) -> Colors:
    return {name: tuple(map(int, color)) for name, color in zip(labels.names, labels.palette, strict=True)}


# How it is laid out


def _grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    titles: Sequence[str],
    columns: Sequence[str],
    legends: Sequence[tuple[int, int, Colors]],
    panel: float = _PANEL,
) -> Figure:
    """Panels in rows as high as their pictures are, each under its title, and legends under them.

    A legend is the column that it starts at, the columns that it spans, and its colours.
    """
    heights = [panel * min(max(p.shape[0] / p.shape[1] for p in row), 1.5) for row in rows]
    step = panel + _GAP
    per_line = [max(1, int(span * step / (0.6 + 0.09 * max(map(len, c), default=0)))) for _, span, c in legends]
    lines = max(-(-len(colors) // most) for (*_, colors), most in zip(legends, per_line, strict=True))
    width, bottom = max([len(columns), *map(len, rows)]) * step + _GAP, (lines + 0.6) * _LINE
    height = bottom + sum(heights) + (1.5 * len(rows) + bool(columns) + 0.2) * _LINE
    figure = Figure(figsize=(width, height), dpi=_DPI)
    top = height - 0.2 * _LINE
    for i, name in enumerate(columns):
        figure.text((_GAP + i * step) / width, (top - _LINE) / height, name, fontsize=11, weight="bold")
    top -= _LINE * bool(columns)
    for row, title, tall in zip(rows, titles, heights, strict=True):
        figure.text(_GAP / width, (top - 1.1 * _LINE) / height, title, fontsize=10, color="0.25")
        top -= tall + 1.5 * _LINE
        for i, picture in enumerate(row):
            place = ((_GAP + i * step) / width, top / height, panel / width, tall / height)
            axis = figure.add_axes(place, anchor="NW")
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for (column, _, colors), most in zip(legends, per_line, strict=True):
        handles = [
            Patch(facecolor="#{:02x}{:02x}{:02x}".format(*c), edgecolor="0.4", lw=0.5, label=n)
            for n, c in colors.items()
        ]
        corner = ((_GAP + column * step) / width, bottom / height)
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=corner,
            ncols=most,
            frameon=False,
            fontsize=10,
            borderpad=0.4,
        )
    return figure


def _occurring(colors: Colors, panels: Iterable[NDArray[np.uint8]]) -> Colors:
    """The colours that some picture has: a legend of 59 classes would hide the few that matter."""
    seen = {tuple(color) for panel in panels for color in np.unique(panel.reshape(-1, 3), axis=0).tolist()}
    return {name: color for name, color in colors.items() if color in seen}


def _shorten(text: str, most: int) -> str:
    """Leave out the middle of a long name: its ends tell it from its like."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - most // 2 :]}"


def _mark_best(axis: Axes, points: Sequence[tuple[float, float]], color: str, least: bool) -> None:
    epoch, value = (min if least else max)(points, key=lambda point: point[1])
    axis.plot([epoch], [value], "o", color=color, markersize=6, markerfacecolor="white")
    axis.set_title(f"best {value:.3f} in epoch {epoch:.0f}", loc="right", fontsize=9, color=color)


def _plain(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=11, weight="bold")
    axis.set_xlabel("epoch", fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
