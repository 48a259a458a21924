"""Pictures of the inside of a network, each beside the image. Arrays in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from segline.interpretation.features import FeatureMap
from segline.labels import Labels
from segline.pictures import overlay
from segline.words import count_of

_DPI = 110
# Inches.
_PANEL, _SMALL = 2.9, 1.45
#: Channels that are shown of a level, and bands of a first layer.
_CHANNELS, _BANDS = 8, 16
#: Told apart by colour-blind readers, too: sequential, and of two signs.
_SEQUENTIAL, _SIGNED = "viridis", "PuOr"
_OUTER, _INNER = "#56b4e9", "#e69f00"  # of Okabe and Ito


@dataclass(frozen=True)
class Canvas:
    """What is drawn of an image.

    Args:
        rgb: `[H, W, 3]`.
        name: What it is, such as `image`, or which slice of a volume.
        depth: Slice of a volume; None for an image.
    """

    rgb: NDArray[np.uint8]
    name: str = "image"
    depth: int | None = None

    def of(self, feature: FeatureMap) -> tuple[NDArray[np.float32], tuple[float, float, float, float]]:
        """Of a map the part that is drawn, `[C, h, w]`, and where: left, right, bottom and top in pixels of the image."""
        values = feature.values.cpu().numpy()
        if self.depth is not None:
            place = int((self.depth + 0.5 - feature.start[0]) / feature.step[0])
            values = values[:, min(max(place, 0), values.shape[1] - 1)]
        (top, left), (down, right) = feature.start[-2:], feature.step[-2:]
        return values, (left, left + right * values.shape[-1], top + down * values.shape[-2], top)

    @property
    def shape(self) -> float:
        """How many times as high as wide it is."""
        return self.rgb.shape[0] / self.rgb.shape[1]

    @property
    def grey(self) -> NDArray[np.uint8]:
        """Without its colours, for what is laid over it, `[H, W, 3]`."""
        return np.repeat(self.rgb.mean(2, keepdims=True), 3, 2).astype(np.uint8)

    def frame(self, axis: Axes, title: str = "", place: tuple[int, int, int, int] | None = None) -> None:
        """Let an axis show the image's place, or from top to bottom and from left to right another one.

        A volume is seen as by radiologists: anterior above, the patient's right on the left.
        """
        top, bottom, left, right = place or (0, self.rgb.shape[0], 0, self.rgb.shape[1])
        axis.set(xlim=(left, right), ylim=(bottom, top))
        if self.depth is not None:
            axis.set(xlim=(right, left), ylim=(top, bottom))
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_axis_off()

    def show(self, axis: Axes, rgb: NDArray[np.uint8], title: str = "") -> None:
        """Draw the image, or one of its size."""
        axis.imshow(rgb, extent=(0, rgb.shape[1], rgb.shape[0], 0), interpolation="nearest")
        self.frame(axis, title)


def filters(weights: NDArray[np.float32], name: str) -> Figure:
    """The kernels `[O, I, *k]` of a first layer: a mosaic for each band, in which a filter has the same place."""
    what = "x".join(map(str, weights.shape[2:]))
    if weights.ndim == 5:
        weights, what = weights[:, :, weights.shape[2] // 2], f"{what}, middle slice"
    number, bands = weights.shape[:2]
    shown = min(bands, _BANDS)
    across = max(8, int(np.ceil(np.sqrt(2 * number) / 8)) * 8) if number > 8 else number
    columns = min(shown, 4 if across <= 8 else 2)
    rows = -(-shown // columns)
    panel = max(_PANEL if across <= 8 else 2 * _PANEL, 5.5 / columns)  # the title is wide
    tall = -(-number // across) / across * panel * weights.shape[2] / weights.shape[3] + 0.35
    figure = Figure(figsize=(columns * panel + 1.1, rows * tall + 0.6), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    most = float(np.abs(weights).max()) or 1.0
    for band, axis in enumerate(axes):
        axis.set_axis_off()
        if band < shown:
            drawn = axis.imshow(_mosaic(weights[:, band], across), cmap=_SIGNED, vmin=-most, vmax=most)
            axis.set_title(f"band {band + 1}", loc="left", fontsize=9)
    figure.colorbar(drawn, ax=axes.tolist(), label="weight", shrink=0.9, aspect=15)
    left_out = f"; the first {shown} of {bands} bands" if shown < bands else ""
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    _title(figure, f"{name}: {count_of(number, 'filter')} of {what}{left_out}")
    return figure


def _mosaic(kernels: NDArray[np.float32], across: int) -> NDArray[np.float32]:
    """Kernels `[O, h, w]` row by row, with a gap of nan between them."""
    number, height, width = kernels.shape
    canvas = np.full((-(-number // across) * (height + 1) - 1, across * (width + 1) - 1), np.nan, np.float32)
    for i, kernel in enumerate(kernels):
        top, left = i // across * (height + 1), i % across * (width + 1)
        canvas[top : top + height, left : left + width] = kernel
    return canvas


def features(canvas: Canvas, maps: Sequence[FeatureMap]) -> Figure:
    """A row a level, from the image down and up again: the image as coarse as the level is, and the channels that vary most."""
    tall = _SMALL * canvas.shape
    size = ((1 + _CHANNELS) * _SMALL + 1.0, len(maps) * (tall + 0.3) + 0.5)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    rows = figure.subplots(len(maps), 1 + _CHANNELS, squeeze=False)
    for row, one in zip(rows, maps, strict=True):
        values, extent = canvas.of(one)
        height, width = canvas.rgb.shape[:2]
        coarse = (max(1, round(width / one.step[-1])), max(1, round(height / one.step[-2])))
        small = np.asarray(Image.fromarray(canvas.rgb).resize(coarse, Image.Resampling.BOX))
        row[0].imshow(small, extent=(0, width, height, 0), interpolation="nearest")
        canvas.frame(row[0], " ")  # room for what may be wider than the panel
        line = f"{one.name}: {count_of(len(values), 'channel')} of {_say_size(one)}{_say_step(one)}"
        row[0].text(0, 1.03, line, transform=row[0].transAxes, fontsize=9).set_in_layout(False)
        chosen = np.sort(np.argsort(-values.std((1, 2)), kind="stable")[:_CHANNELS])
        low, high = np.percentile(values[chosen], [1, 99])
        for axis in row[1:]:
            axis.set_axis_off()
        for axis, k in zip(row[1:], chosen, strict=False):
            drawn = axis.imshow(
                values[k], cmap=_SEQUENTIAL, extent=extent, vmin=low, vmax=high, interpolation="nearest"
            )
            canvas.frame(axis)
            number = axis.text(
                0.97, 0.97, str(k), transform=axis.transAxes, ha="right", va="top", fontsize=7, color="w"
            )
            number.set_path_effects([withStroke(linewidth=2, foreground="0.2")])
        bar = figure.colorbar(drawn, ax=row.tolist(), aspect=12, pad=0.005, extend="both")
        bar.ax.tick_params(labelsize=7)
    _title(
        figure, f"Feature maps of the {canvas.name}: at each level the channels that vary most; colours are activations"
    )
    return figure


def attention(canvas: Canvas, maps: Sequence[FeatureMap]) -> Figure:
    """What gates let through, of each gate, over the image."""
    figure, axes = _row(canvas.shape, 1 + len(maps), bar=0.6)
    canvas.show(axes[0], canvas.rgb, canvas.name)
    for axis, one in zip(axes[1:], maps, strict=True):
        values, extent = canvas.of(one)
        canvas.show(axis, canvas.grey)
        drawn = axis.imshow(values[0], cmap="inferno", alpha=0.6, extent=extent, interpolation="nearest")
        canvas.frame(axis, f"{one.name}, {_say_size(one)}{_say_step(one)}")
        figure.colorbar(drawn, ax=axis, shrink=0.8, aspect=15, pad=0.02).ax.tick_params(labelsize=7)
    _title(figure, "Attention gates, coarsest first: the share of the skip's features that goes on, 0 to 1")
    return figure


def cams(canvas: Canvas, maps: Mapping[int, FeatureMap], mask: NDArray[np.uint8], labels: Labels, title: str) -> Figure:
    """Grad-CAM of each class over the image, with the outline of the pixels that it is of.

    Args:
        canvas: Of the image.
        maps: Class -> its map, of one channel.
        mask: The decision, `[H, W]` or `[K, H, W]`.
        labels: Of the mask.
        title: Of the picture.
    """
    figure, axes = _row(canvas.shape, 2 + len(maps), bar=0.0, legend=0.3)
    canvas.show(axes[0], canvas.rgb, canvas.name)
    canvas.show(axes[1], overlay(canvas.rgb, mask, labels), "prediction")
    for axis, (k, one) in zip(axes[2:], maps.items(), strict=True):
        (values, *_), extent = canvas.of(one)
        most = float(one.values.max())
        canvas.show(axis, canvas.grey)
        drawn = axis.imshow(
            values / (most or 1.0), cmap="inferno", vmin=0, vmax=1, alpha=0.6, extent=extent, interpolation="bilinear"
        )
        where = labels.of_class(mask, k)
        if where.any() and not where.all():
            rows, columns = (np.arange(n) + 0.5 for n in where.shape)
            axis.contour(columns, rows, where, levels=[0.5], colors="white", linewidths=0.6)
        canvas.frame(axis, labels.names[k] if most else f"{labels.names[k]}: nothing speaks for it here")
    if maps:
        figure.colorbar(drawn, ax=axes, label="share of its largest value", shrink=0.8, aspect=20, pad=0.01)
    colors = labels.palette / 255
    seen = [k for k in labels.shown if labels.of_class(mask, k).any()]
    handles = [Patch(facecolor=colors[k], edgecolor="0.4", lw=0.5, label=labels.names[k]) for k in seen]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=8, frameon=False, fontsize=8)
    _title(figure, title)
    return figure


def receptive_field(
    canvas: Canvas,
    share: NDArray[np.float64],
    center: tuple[int, int],
    side: int,
    reach: Sequence[tuple[int, int]] | None,
    lines: Sequence[str],
) -> Figure:
    """The fields of the central pixel over each other, over the image and over the gradient.

    Args:
        canvas: Of the image.
        share: Of the gradient, `[H, W]`.
        center: Row and column of the pixel.
        side: Of the effective field.
        reach: Pixels before and behind the central one, along rows and columns; None where the field is not limited.
        lines: What is said below.
    """
    height, width = canvas.rgb.shape[:2]
    row, column = center
    boxes = {_INNER: [(row - side // 2, row + side // 2 + 1), (column - side // 2, column + side // 2 + 1)]}
    if reach:
        boxes[_OUTER] = [(c - before, c + behind + 1) for c, (before, behind) in zip(center, reach, strict=True)]
    top, bottom, left, right = _around([[(0, height), (0, width)], *boxes.values()])
    shape = (bottom - top) / (right - left)
    figure, axes = _row(shape, 2, bar=1.0, legend=0.2 + 0.2 * len(lines), panel=1.4 * _PANEL)
    canvas.show(axes[0], canvas.rgb)
    positive = share[share > 0]
    most = np.log10(positive.max()) if positive.size else 0.0
    logs = np.log10(np.maximum(share, 10 ** (most - 4)))
    drawn = axes[1].imshow(logs, cmap=_SEQUENTIAL, extent=(0, width, height, 0), vmin=most - 4, vmax=most)
    bar = figure.colorbar(drawn, ax=axes[1], shrink=0.8, aspect=18, pad=0.02, extend="min")
    bar.set_label("share of the gradient (log 10)", fontsize=8)
    for axis, name in zip(axes, (canvas.name, "gradient"), strict=True):
        canvas.frame(axis, name, (top, bottom, left, right))
        for color, ((low, high), (first, last)) in boxes.items():
            box = Rectangle((first, low), last - first, high - low, fill=False, edgecolor=color, lw=2, clip_on=False)
            axis.add_patch(box)
        axis.plot([column + 0.5], [row + 0.5], "+", color="white", markersize=8)
    colors = (_OUTER if reach else "none", _INNER, "none")
    handles = [Patch(fill=False, edgecolor=c, lw=2, label=line) for c, line in zip(colors, lines, strict=True)]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    _title(figure, "Receptive field of the pixel at the cross")
    return figure


def _around(boxes: Sequence[Sequence[tuple[int, int]]]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of boxes, given as their rows and columns."""
    rows, columns = zip(*boxes, strict=True)
    return min(r[0] for r in rows), max(r[1] for r in rows), min(c[0] for c in columns), max(c[1] for c in columns)


def _row(shape: float, count: int, bar: float, legend: float = 0.0, panel: float = _PANEL) -> tuple[Figure, Any]:
    """A figure with so many panels, `shape` times as high as wide, at most five in a row.

    `bar` inches beside each panel are left to a colour bar, `legend` inches below all to words.
    """
    rows = -(-count // 5)
    columns = -(-count // rows)
    tall = panel * shape
    size = (columns * (panel + bar) + (0.0 if bar else 0.9), rows * (tall + 0.3) + 0.35 + legend)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count].tolist()


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, weight="bold")


def _say_size(one: FeatureMap) -> str:
    return " x ".join(map(str, one.values.shape[1:]))


def _say_step(one: FeatureMap) -> str:
    steps = [f"{step:g}" for step in one.step]
    return f", {steps[0] if len(set(steps)) == 1 else ' x '.join(steps)} px each"
