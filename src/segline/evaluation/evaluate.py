"""A trained network measured on whole cases, through the tiles that predict them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from segline import tables
from segline.commit import committed
from segline.data.cases import Case
from segline.data.datamodule import SegmentationDataModule
from segline.evaluation import page
from segline.evaluation.measure import CaseMeasures, Scale, measure_case, sizes_of
from segline.evaluation.summary import doubt_bounds, slice_by_distance, slice_by_group, slice_by_size, summarise_classes
from segline.evaluation.suspects import Suspect, find_suspects, sure_and_wrong
from segline.examples import examples, show_place
from segline.inference.members import locate_all
from segline.inference.predictor import Predictor, Settings
from segline.io.normalize import BandStatistics
from segline.io.open import open_image
from segline.io.source import MaskSource, Source, Window, whole
from segline.labels import IGNORE_INDEX, Labels
from segline.metrics.calibration import Reliability
from segline.metrics.overlap import Overlap

#: Pixels of a case up to which surfaces and objects are measured, for which the whole mask lies in memory.
_LARGEST = 2**27
_SUSPECTS = 8
#: Settings that no score depends on, and the checkpoints, which are written by the names of their files.
_NOT_OF_SCORES = ("checkpoint", "also", "cog", "trust")


@dataclass
class Evaluation:
    """What was measured on a part of the data.

    Args:
        scores: Of `segline.metrics.overlap`, as validation logs them.
        rows: One plain row a case.
        measures: Of the cases that are not too large for it.
        reliability: Of all pixels.
        suspects: The largest places where the network is sure and the label says otherwise.
        unit: Of distances; that of sizes is its square or cube.
        size_unit: Likewise.
        confusion: Pixels, truth x prediction, `[K, K]`; None for overlapping labels.
        large: Names of the cases that are too large.
        case_mean: How scores of cases are averaged, as `segline.metrics.overlap` does.
    """

    reliability: Reliability
    scores: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    measures: list[CaseMeasures] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    unit: str = ""
    size_unit: str = ""
    confusion: NDArray[np.int64] | None = None
    large: list[str] = field(default_factory=list)
    case_mean: str = ""


@dataclass(frozen=True)
class Options:
    """What is measured besides Dice and IoU.

    Args:
        tolerance: Of surface Dice, in mm, m or pixels; None: the longest side of a pixel.
        object_iou: Least IoU of an object and what finds it.
    """

    tolerance: float | None = None
    object_iou: float = 0.5

    def __post_init__(self) -> None:
        if self.tolerance is not None and self.tolerance < 0:
            raise ValueError(
                f"tolerance is {self.tolerance}; expected a distance of 0 or more, or null for the side of a pixel"
            )
        if not 0 <= self.object_iou < 1:
            raise ValueError(f"object_iou is {self.object_iou}; expected a share from 0 to less than 1")


class Evaluator:
    """Measures the cases of a data module with a predictor.

    Args:
        predictor: Trained networks.
        data: Prepared, and normalised as the card says.
        options: What is measured.
        overlap: Makes the overlap metrics, as the run's config has them.
    """

    def __init__(
        self, predictor: Predictor, data: SegmentationDataModule, options: Options, overlap: Any = Overlap
    ) -> None:
        self.predictor, self.data, self.options, self.overlap = predictor, data, options, overlap
        self.labels = predictor.labels

    def measure(self, split: str, cases: Sequence[Case]) -> Evaluation:
        """Measure the cases of a part, each as a whole.

        Raises:
            ValueError: The pixels of some cases are measured in metres, those of others are not.
        """
        overlap, evaluation = self.overlap(self.labels, len(cases)), Evaluation(Reliability(self.labels))
        evaluation.unit, evaluation.size_unit = self._units(cases)
        extra: list[dict[str, Any]] = []
        with tqdm(total=len(cases), unit="case", desc=f"evaluate {split}") as bar:
            for index, case in enumerate(cases):
                extra.append(self._measure_case(index, case, overlap, evaluation))
                bar.update()
        evaluation.scores, evaluation.case_mean = overlap.compute(), overlap.case_mean
        evaluation.confusion = overlap.confusion.numpy() if self.labels.exclusive else None
        for case, counted, more in zip(cases, overlap.case_table(), extra, strict=True):
            counted.pop("case")
            evaluation.rows.append({"split": split, "case": case.name, "group": case.group, **counted, **more})
        evaluation.suspects = sorted(evaluation.suspects, key=lambda s: -s.pixels)[:_SUSPECTS]
        return evaluation

    def _units(self, cases: Sequence[Case]) -> tuple[str, str]:
        """Units of distances and of sizes, which all cases must share: metres and pixels have no mean."""
        found: dict[str, tuple[Case, Scale]] = {}
        # Blocks of a file have its unit.
        for case in {case.images: case for case in cases}.values():
            source = open_image(case.images, bands=self.data.bands, spacing_mm=self.data.spacing_mm)
            scale = Scale.of(source.geometry, source.shape)
            found.setdefault(scale.unit, (case, scale))
        if len(found) > 1:
            (unit, (case, _)), (other_unit, (other, _)) = list(found.items())[:2]
            raise ValueError(
                f"distances are in {unit} in {case.name} ({case.images[0]}) but in {other_unit} in {other.name} "
                f"({other.images[0]}), as one of them does not say where it lies; evaluate them apart, or give all files a CRS"
            )
        ((_, scale),) = found.values()
        return scale.unit, scale.size_unit

    def _measure_case(self, index: int, case: Case, overlap: Overlap, evaluation: Evaluation) -> dict[str, Any]:
        """Count a case, and measure what needs it as a whole; what comes into its row besides counts."""
        source, mask_source, statistics = self.data.open(case)
        scale = Scale.of(source.geometry, source.shape)
        large = int(np.prod(source.shape)) * self.labels.num_planes > _LARGEST
        planes = (self.labels.num_planes, *source.shape) if not self.labels.exclusive else source.shape
        arrays = (
            None if large else (np.zeros(planes, np.uint8), np.zeros(planes, np.uint8), np.zeros(source.shape, bool))
        )
        sizes: dict[str, float] = {}
        for place, probs, truth in self.pieces(source, mask_source, statistics):
            pred = self.predictor.decide(probs)
            for name, size in sizes_of(pred, truth, self.labels, scale, place[0]).items():
                sizes[name] = sizes.get(name, 0.0) + size
            overlap.update(as_batch(pred), as_batch(truth), torch.tensor([index]))
            evaluation.reliability.update(probs, truth)
            if arrays is not None:
                where: Any = (..., *place)
                arrays[0][where], arrays[1][where] = pred, truth
                arrays[2][place] = sure_and_wrong(probs, pred, truth, self.labels)
        if arrays is None:
            evaluation.large.append(case.name)
            return dict(sizes)
        pred, truth, places = arrays
        instances = mask_source.instances(whole(source.shape)) if hasattr(mask_source, "instances") else None
        options = self.options
        measures = measure_case(pred, truth, self.labels, scale, options.tolerance, options.object_iou, instances)
        evaluation.measures.append(measures)
        evaluation.suspects += find_suspects(case.name, places, pred, truth, self.labels)
        return {**sizes, **measures.row}

    def pieces(
        self, source: Source, mask_source: MaskSource, statistics: BandStatistics | None
    ) -> Iterator[tuple[Window, NDArray[np.float32], NDArray[np.uint8]]]:
        """Probabilities `[K, *piece]` and truth of a case, piece by piece; where there is no data the truth is ignored."""
        for place, values in self.predictor.pieces(source, statistics):
            probs, truth = values[: self.labels.num_classes], mask_source.read(place)
            truth[..., np.isnan(probs).all(0)] = IGNORE_INDEX
            yield place, probs, truth


def as_batch(mask: NDArray[np.uint8]) -> torch.Tensor:
    """A mask as a batch of one, of the type that its counts are taken in."""
    return torch.from_numpy(np.ascontiguousarray(mask, np.int64))[None]


def evaluate(
    settings: Settings,
    data: SegmentationDataModule,
    split: str,
    output: Path,
    options: Options,
    overlap: Any = Overlap,
    title: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a part of the data, and leave tables, pictures and one page in a folder.

    Args:
        settings: How the networks are asked.
        data: Prepared, with the cases of the part; normalised as the card says.
        split: Name of the part.
        output: Where everything goes.
        options: What is measured.
        overlap: Makes the overlap metrics.
        title: Of the page.
        notes: What a reader must know before believing the scores.

    Returns:
        The summary, as `summary.json` holds it.
    """
    paths = locate_all(settings.checkpoint)
    predictor = Predictor(paths, settings)
    cases, labels = data.cases[split], predictor.labels
    evaluation = Evaluator(predictor, data, options, overlap).measure(split, cases)
    summed_up = _summarise(evaluation, cases, labels, options)
    summary = {
        "title": title,
        "notes": [*notes, *doubt_bounds(summed_up["groups"])],
        "split": split,
        "calibrated": settings.calibrated,
        "checkpoints": [str(path) for path in paths],
        # By its table a run is known again: what it reached with other weights was other.
        "run": tables.digest(paths[0].parent / tables.CASES),
        "settings": {name: value for name, value in asdict(settings).items() if name not in _NOT_OF_SCORES},
        **summed_up,
    }
    output.mkdir(parents=True, exist_ok=True)
    _write_tables(output, evaluation, summary, labels)
    _write_page(output / "report.html", predictor, data, evaluation, summary)
    print("\n" + tables.class_table(evaluation.scores, labels, split))
    print("\n" + tables.further_table(summary))
    print("\n".join([*summary["notes"], f"report: {output / 'report.html'}"]))
    return summary


def _write_tables(output: Path, evaluation: Evaluation, summary: Mapping[str, Any], labels: Labels) -> None:
    tables.write_cases(output / tables.CASES, evaluation.rows)
    tables.write_json(output / "summary.json", summary)
    for style, ending in (("markdown", "md"), ("latex", "tex")):
        text = tables.class_table(evaluation.scores, labels, summary["split"], style)
        with committed(output / f"scores.{ending}") as temporary:
            temporary.write_text(text + "\n")


def _write_page(
    path: Path, predictor: Predictor, data: SegmentationDataModule, evaluation: Evaluation, summary: Mapping[str, Any]
) -> None:
    """The page, for which the cases and places that it shows are predicted once more."""
    labels, cases = predictor.labels, data.cases[summary["split"]]

    shown = examples(cases, evaluation.rows, predictor.decisions, data)
    by_name = {case.name: case for case in cases}
    places = [
        {**show_place(by_name[s.case], s.window, predictor.decisions, data), "title": _say(s)}
        for s in evaluation.suspects
    ]
    page.write(path, summary, evaluation.rows, evaluation.confusion, labels, shown, places)


def _summarise(evaluation: Evaluation, cases: Sequence[Case], labels: Labels, options: Options) -> dict[str, Any]:
    """All numbers of an evaluation as plain data."""
    rows, measures = evaluation.rows, evaluation.measures
    return {
        "cases": len(cases),
        "groups": len({case.group for case in cases}),
        "unit": evaluation.unit,
        "size_unit": evaluation.size_unit,
        "tolerance": options.tolerance,
        "object_iou": options.object_iou,
        "scores": {name: value for name, value in evaluation.scores.items() if value == value},
        "classes": summarise_classes(rows, evaluation.scores, measures, labels, evaluation.case_mean),
        "by_group": slice_by_group(rows, labels),
        "by_size": slice_by_size(measures, labels),
        "by_distance": slice_by_distance(measures),
        "ece": evaluation.reliability.ece,
        "max_calibration_error": evaluation.reliability.max_error,
        "reliability": evaluation.reliability.bins,
        "suspects": [_say(suspect) for suspect in evaluation.suspects],
        "large": evaluation.large,
    }


def _say(suspect: Suspect) -> str:
    where = ", ".join(
        f"{name} {w.start + 1} to {w.stop}" for name, w in zip(("rows", "columns"), suspect.window[-2:], strict=True)
    )
    depth = f"slice {suspect.window[0].start + 1}, " if len(suspect.window) == 3 else ""
    return f"labelled {suspect.label}, surely {suspect.pred} ({suspect.pixels} pixels): {suspect.case}, {depth}{where}"
