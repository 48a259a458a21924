"""One evaluation from one config: which data, by which card, measured how, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from segline.card import Card
from segline.checkpoints import BEST
from segline.config import OWN, as_list, build, own_data
from segline.data.cases import SPLITS
from segline.data.datamodule import SegmentationDataModule
from segline.data.folder import discover
from segline.evaluation.calibrate import calibrate
from segline.evaluation.evaluate import Options, evaluate
from segline.inference.members import ensemble_folder, is_of_folds, locate_all, read_card
from segline.inference.predictor import Settings
from segline.io.normalize import Normalize
from segline.machine import keep_freed
from segline.tables import CASES
from segline.words import count_of


def score(config: DictConfig, data_name: str, settings: Settings) -> dict[str, Any]:
    """Evaluate as a config says; the summary.

    Args:
        config: Of the command.
        data_name: The choice of `data=`.
        settings: How the networks are asked.

    Raises:
        ValueError: Data, card and what is asked for do not fit each other.
    """
    options = Options(config.tolerance, config.object_iou)
    paths, card, data, split = open_all(config, data_name, settings)
    if config.calibrate:
        calibrate(settings, data)
        settings = replace(settings, calibrated=True)
    how = _say_settings(settings, options, card)
    output = Path(config.output) if config.output else _own_folder(paths[0], settings, "eval", split, data_name, how)
    return evaluate(
        settings,
        data,
        split,
        output,
        options,
        build(config.metrics)["overlap"],
        _title(paths, card, data_name, split, how),
        _flattered(split, data_name, card, settings.calibrated),
    )


def try_out(config: DictConfig, data_name: str, settings: Settings) -> dict[str, Any]:
    """Measure robustness as a config says; the summary.

    Args:
        config: Of the command.
        data_name: The choice of `data=`.
        settings: How the networks are asked.

    Raises:
        ValueError: Data, card and what is asked for do not fit each other.
    """
    from segline.robustness.measure import Trial, measure

    names = {name: as_list(config[name]) for name in ("corruptions", "attacks", "sizes")}
    trial = Trial(**names, metric=config.metric, limit=config.limit, seed=config.seed)
    paths, card, data, split = open_all(config, data_name, settings)
    how = _say_settings(settings, Options(), card)
    output = (
        Path(config.output) if config.output else _own_folder(paths[0], settings, "robustness", split, data_name, how)
    )
    return measure(
        settings,
        data,
        split,
        output,
        trial,
        build(config.metrics)["overlap"],
        _title(paths, card, data_name, split, how),
        _flattered(split, data_name, card, settings.calibrated),
    )


def open_all(
    config: DictConfig, data_name: str, settings: Settings
) -> tuple[list[Path], Card, SegmentationDataModule, str]:
    """Checkpoints, the card of the first, the data, and which part of it is measured."""
    if config.split not in (None, "all", *SPLITS):
        raise ValueError(f"split is {config.split!r}; expected one of {', '.join(SPLITS)}, all")
    keep_freed()
    paths, ensemble = locate_all(settings.checkpoint), ensemble_folder(settings.checkpoint)
    if ensemble and data_name == OWN and is_of_folds(ensemble):
        raise ValueError(
            f"each network of {ensemble} was trained on cases that others are tested on, so that their mean has no score on these data; "
            f"the cases as each was tested are in {ensemble / CASES}; for other files set data="
        )
    if len(paths) > 1 and not config.output and not ensemble:
        raise ValueError(
            f"checkpoint names {len(paths)} networks, whose mean belongs into no folder of one; set output=FOLDER"
        )
    card = read_card(paths[0])
    if data_name == OWN and (own := own_data(str(paths[0]))):
        _refuse_useless_root(config.data, own)
    data = _open_data(config, data_name, card, paths[0])
    return paths, card, data, _choose_split(config.split, data, data_name)


def _refuse_useless_root(data: DictConfig, own: Mapping[str, Any]) -> None:
    """A run whose files have full paths would be measured on these again, wherever another root says that others lie."""
    names = ("images", "masks", "table")
    if data.root == own.get("root") or any(data.get(name) != own.get(name) for name in names):
        return
    given = [own[name] for name in names if own.get(name)]
    templates = [one for value in given for one in (value if isinstance(value, list) else [value])]
    if templates and all(isinstance(one, str) and Path(one).is_absolute() for one in templates):
        raise ValueError(
            f"data.root is {data.root}, but the files of this run have full paths, such as {templates[0]}; set data.images= and data.masks="
        )


def _title(paths: Sequence[Path], card: Card, data_name: str, split: str, how: Sequence[str]) -> str:
    """Which networks are measured on what, and how."""
    names, on = " + ".join(map(_say_path, paths)), card.trained_on if data_name == OWN else data_name
    return ", ".join([f"{names} on {on}", split, *how])


def _say_settings(settings: Settings, options: Options, card: Card) -> list[str]:
    """How the networks are asked and measured where it is not the plain way, in words that fit into the name of a folder."""
    window = "x".join(map(str, settings.window or ()))
    said = {
        "calibrated": settings.calibrated,
        "-".join(["tta", *map(str, settings.tta)]): settings.tta,
        f"dropout-{settings.dropout_passes}": settings.dropout_passes > 1,
        settings.blend: settings.blend != Settings.blend,
        f"window-{window}": window,
        f"overlap-{settings.overlap}": settings.overlap is not None,
        str(settings.precision): settings.precision not in (None, card.precision),
        f"tolerance-{options.tolerance or 0:g}": options.tolerance is not None,
        f"object-iou-{options.object_iou}": options.object_iou != Options.object_iou,
    }
    return [name for name, differs in said.items() if differs]


def _own_folder(path: Path, settings: Settings, kind: str, split: str, data_name: str, how: Sequence[str]) -> Path:
    """Where what is measured goes by default: one of other settings, data or weights of the run overwrites none of the others."""
    name = split if data_name == OWN else f"{data_name}-{split}"
    weights = [] if path.name == BEST else [path.name]
    folder = ensemble_folder(settings.checkpoint) or path.parent
    return folder / kind / "_".join([name, *weights, *how])


def _say_path(path: Path) -> str:
    """The run of a checkpoint, and its file where that is not the best one."""
    folder = path.absolute().parent.name
    return folder if path.name == BEST else f"{folder}/{path.name}"


def _flattered(split: str, data_name: str, card: Card, calibrated: bool) -> list[str]:
    """What a reader must know of a score before believing it."""
    known = {
        "train": "The network was trained on these very cases.",
        "val": "The weights were picked by their score on this very part, which flatters them.",
        "all": "The network was trained on most of these cases.",
    }
    notes = [known[split]] if data_name == OWN and split in known else []
    if data_name == card.trained_on:
        notes.append(f"The network was trained on {data_name}: what it has seen of these cases flatters it.")
    if calibrated and split != "test":
        notes.append(
            "Temperature and thresholds were fitted to the validation part: on it, what they gain is flattered, too."
        )
    return notes


def _open_data(config: DictConfig, name: str, card: Card, path: Path) -> SegmentationDataModule:
    """The data, read and normalised as the card says."""
    if not config.data:
        raise ValueError(
            f"{path} lies in no run folder, whose data could be taken; set data=NAME, or data=folder data.images=..."
        )
    node = config.data
    with open_dict(node):
        node.augment = None  # evaluation looks at files as they are
        node.bands, node.spacing_mm, node.window, node.margin = card.bands, card.spacing_mm, card.window, card.margin
        node.spatial_dims, node.tile = len(card.window), None
        if card.bands is not None:
            node.in_channels = len(card.bands)
        if not node.labels.get("classes"):  # of data=folder, where nothing else is said
            node.labels = {"_target_": "segline.labels.Labels", **card.labels}
        if config.split == "all":
            node.val, node.test, node.fold = 0.0, 0.0, None
        if name != OWN and node.blocks is None:
            # A lone file is cut in blocks to be trained on; it is predicted as a whole, and so it is measured.
            node.blocks = 0
    data: SegmentationDataModule = build(discover(node, quiet=True))
    if card.num_bands not in (None, data.in_channels):
        raise ValueError(
            f"data={name} has {count_of(data.in_channels, 'band')}, but the network was trained on {card.num_bands} ({card.trained_on}); "
            "evaluate it on files with all of those"
        )
    ours, theirs = data.labels, card.labels
    if (list(ours.names), ours.scheme) != (list(theirs["classes"]), theirs.get("scheme", "exclusive")):
        raise ValueError(
            f"data={name} has the {ours.scheme} classes {', '.join(ours.names)}, but the network knows the "
            f"{theirs.get('scheme', 'exclusive')} ones {', '.join(theirs['classes'])}; give data.labels.classes those names"
        )
    data.normalize = Normalize(**card.normalize)
    if data.blocks and data.normalize.scope == "case":
        raise ValueError(
            f"data.blocks is {data.blocks}, but {path} normalises each file by its own mean and deviation, which those of a block "
            "are not; set data.blocks=0"
        )
    data.prepare(needed=())  # only the part that is measured, which is looked at once it is chosen
    return data


def _choose_split(split: str | None, data: SegmentationDataModule, name: str) -> str:
    """The part that is measured: the one asked for, or the test part where there is one; `all` becomes a part of its own."""
    if split is None:
        split = "test" if data.cases["test"] else "val" if name == OWN and data.cases["val"] else "all"
    if split == "all":
        data.cases["all"] = [case for part in SPLITS for case in data.cases[part]]
    if not data.cases[split]:
        there = ", ".join(f"{part} ({count_of(len(cases), 'case')})" for part, cases in data.cases.items() if cases)
        raise ValueError(f"the {split} part is empty; there is {there}: set split to one of them, or to all")
    return split
