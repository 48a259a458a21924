"""What a robustness run leaves for people: tables, curves, and one case as the network saw it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from segline import pictures, tables
from segline.commit import committed
from segline.data.cases import Case
from segline.data.datamodule import SegmentationDataModule
from segline.io.source import whole
from segline.robustness.corrupted import CORRUPTIONS, STRENGTHS
from segline.robustness.corruptions import levels

#: Told apart by colour-blind readers, too (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b0a000")
_MARKERS = "os^Dv<>P*X"
_DPI = 110
#: Pixels that an example is drawn with along an axis at most, and those between two.
_DRAWN, _GAP = 360, 6

ABOUT_STRENGTHS = "Strengths 1 to 5, those of values by each image's own spread:"
ABOUT_SIZES = (
    "Sizes of attacks are in deviations of the normalised image: no pixel changes by more. Attacks are measured in float32, and so is "
    "their clean column."
)


def sum_up(
    columns: Mapping[str, Mapping[str, float]],
    metric: str,
    names: Sequence[str],
    attacks: Sequence[str],
    sizes: Sequence[float],
) -> dict[str, Any]:
    """The scores of one metric as plain data: those of a corruption by strength, those of an attack by size."""
    corruptions = {name: [columns[f"{name}/{s}"][metric] for s in STRENGTHS] for name in names}
    return {
        "metric": metric,
        "clean": columns["clean"][metric],
        "corruptions": corruptions,
        "mean": float(np.mean(list(corruptions.values()))) if corruptions else None,
        "sizes": list(sizes) if attacks else [],
        "attacks_clean": columns["attacks/0"][metric] if attacks else None,
        "attacks": {name: [columns[f"{name}/{size:g}"][metric] for size in sizes] for name in attacks},
    }


def score_tables(summary: Mapping[str, Any], style: str) -> list[str]:
    """One table of corruptions and one of attacks, where there are any: `plain` or `markdown`."""
    found = []
    if rows := summary["corruptions"]:
        lines = [_line(name, summary["clean"], values) for name, values in rows.items()]
        means = _line("mean", summary["clean"], np.mean(list(rows.values()), 0).tolist())
        head = [summary["metric"], "clean", *map(str, STRENGTHS), "mean"]
        found.append(tables.aligned([head, *lines, means], style))
    if rows := summary["attacks"]:
        lines = [_line(name, summary["attacks_clean"], values) for name, values in rows.items()]
        head = [summary["metric"], "clean", *(f"{size:g}" for size in summary["sizes"]), "mean"]
        found.append(tables.aligned([head, *lines], style, total=False))
    return found


def _line(name: str, clean: float, values: Sequence[float]) -> list[str]:
    numbers = [clean, *values, float(np.mean(values))]
    return [name, *("–" if value != value else f"{value:.3f}" for value in numbers)]


def _explained(names: Iterable[str]) -> str:
    """What is done to an image, and what its strengths are: the first line of each corruption's own words."""
    return "\n".join(f"- {name}: {inspect.cleandoc(CORRUPTIONS[name].__doc__ or '').splitlines()[0]}" for name in names)


def write(
    output: Path,
    summary: Mapping[str, Any],
    data: SegmentationDataModule,
    case: Case,
    generator: Callable[[str], np.random.Generator],
) -> None:
    """Leave tables and pictures in a folder, and print the tables.

    Args:
        output: The folder.
        summary: As `segline.robustness.measure.measure` makes it.
        data: Where the case comes from.
        case: What is shown.
        generator: Of a corruption's name: what draws for it.
    """
    about = [ABOUT_STRENGTHS, _explained(summary["corruptions"])] if summary["corruptions"] else []
    about += [ABOUT_SIZES] * bool(summary["attacks"])
    with committed(output / "robustness.md") as temporary:
        parts = [f"# {summary['title']}", *summary["notes"], *score_tables(summary, "markdown"), *about]
        temporary.write_text("\n\n".join(parts) + "\n")
    pictures.save(curves(summary), output / "robustness.png")
    if summary["corruptions"]:
        pictures.save(examples(list(summary["corruptions"]), data, case, generator), output / "examples.png")
    for table in score_tables(summary, "plain"):
        print("\n" + table)
    print("\n".join(["", *summary["notes"], *about, f"robustness: {output}"]))


def curves(summary: Mapping[str, Any]) -> Figure:
    """Score against strength, one line a corruption, and against size, one line an attack; the clean score is a level line."""
    sides = [
        ("strength of corruption", STRENGTHS, summary["corruptions"], summary["clean"]),
        ("size of attack, deviations", summary["sizes"], summary["attacks"], summary["attacks_clean"]),
    ]
    sides = [side for side in sides if side[2]]
    figure = Figure(figsize=(6.6 * max(len(sides), 1), 4.4), dpi=_DPI, layout="constrained")
    for axis, (title, places, rows, clean) in zip(
        figure.subplots(1, max(len(sides), 1), squeeze=False, sharey=True)[0], sides, strict=False
    ):
        _curve(axis, title, [f"{place:g}" for place in places], rows, clean)
        axis.set_ylabel(summary["metric"])
    return figure


def _curve(axis: Axes, title: str, places: Sequence[str], rows: Mapping[str, Sequence[float]], clean: float) -> None:
    x = range(1, len(places) + 1)
    axis.axhline(clean, color="0.5", lw=1.2, ls="--", label=f"clean {clean:.3f}")
    for i, (name, values) in enumerate(sorted(rows.items(), key=lambda row: -float(np.nan_to_num(row[1][-1])))):
        marker = _MARKERS[i % len(_MARKERS)]
        axis.plot(x, values, color=_COLORS[i % len(_COLORS)], marker=marker, markersize=5, lw=1.4, label=name)
    axis.set_xticks(list(x), places)
    axis.set_xlabel(title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def examples(
    names: Sequence[str], data: SegmentationDataModule, case: Case, generator: Callable[[str], np.random.Generator]
) -> Figure:
    """One case: a row a corruption, from the clean image over all strengths; all are stretched as the clean image is."""
    source, mask_source, _ = data.open(case)
    image, mask = source.read(whole(source.shape)), mask_source.read(whole(source.shape))
    step = -(-max(image.shape[-2:]) // _DRAWN)

    def drawn(values: NDArray[np.float32]) -> NDArray[np.float32]:
        flat: NDArray[np.float32] = pictures.flat({"image": values, "mask": mask}, data.labels)["image"]
        return flat[:, ::step, ::step]

    clean = drawn(image)
    _, height, width = clean.shape
    figure = Figure(
        figsize=(9.6, (9.6 / 6 * height / width + 0.22) * len(names) + 0.25), dpi=_DPI, layout="constrained"
    )
    for axis, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        seen = [clean, *(drawn(CORRUPTIONS[name](image, s, generator(name))) for s in STRENGTHS)]
        axis.imshow(_strip(seen), interpolation="antialiased")
        axis.set_xticks([(width + _GAP) * i + width / 2 for i in range(len(seen))], ["clean", *map(str, STRENGTHS)])
        axis.set_yticks([])
        axis.set_ylabel(name, fontsize=9)
        axis.tick_params(length=0, labelsize=8)
        axis.spines[:].set_visible(False)
    figure.suptitle(case.name, fontsize=9)
    return figure


def _strip(images: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Images `[C, H, W]` beside each other, stretched by the levels of the first; three bands by common ones, which keeps their colours."""
    low, high, _ = levels(images[0])
    if len(low) == 3:
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    span, gap = np.where(high > low, high - low, 1), np.full((*images[0].shape[1:-1], _GAP, 3), 255, np.uint8)
    parts = []
    for image in images:
        shown = np.nan_to_num(np.clip((image - low) / span, 0, 1))
        shown = shown[:3] if len(shown) >= 3 else np.repeat(shown[:1], 3, 0)
        parts += [(shown * 255).astype(np.uint8).transpose(1, 2, 0), gap]
    return np.concatenate(parts[:-1], 1)
