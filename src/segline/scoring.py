"""One evaluation from one config: which data, by which card, measured how, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from segline.card import Card
from segline.config import OWN, build
from segline.data.cases import SPLITS
from segline.data.datamodule import SegmentationDataModule
from segline.data.folder import discover
from segline.evaluation.calibrate import calibrate
from segline.evaluation.evaluate import Options, evaluate
from segline.inference.members import locate_all, read_card
from segline.inference.predictor import Settings
from segline.io.normalize import Normalize
from segline.memory import keep_freed


def score(config: DictConfig, data_name: str, settings: Settings) -> dict[str, Any]:
    """Evaluate as a config says; the summary.

    Args:
        config: Of the command.
        data_name: The choice of `data=`.
        settings: How the networks are asked.

    Raises:
        ValueError: Data, card and what is asked for do not fit each other.
    """
    if config.split not in (None, "all", *SPLITS):
        raise ValueError(f"split is {config.split!r}; expected one of {', '.join(SPLITS)}, all")
    options = Options(config.tolerance, config.object_iou)
    keep_freed()
    path = locate_all(settings.checkpoint)[0]
    card = read_card(path)
    data = _open_data(config, data_name, card, path)
    split = _choose_split(config.split, data, data_name)
    if config.calibrate:
        calibrate(settings, data)
        settings = Settings(**{**vars(settings), "calibrated": True})
    name = split if data_name == OWN else f"{data_name}-{split}"
    output = Path(config.output) if config.output else path.parent / "eval" / name
    return evaluate(
        settings,
        data,
        split,
        output,
        options,
        build(config.metrics)["overlap"],
        f"{path.parent.name or path.name} on {card.trained_on if data_name == OWN else data_name}, {split}",
        _flattered(split, data_name == OWN, settings.calibrated),
    )


def _flattered(split: str, own: bool, calibrated: bool) -> list[str]:
    """What a reader must know of a score before believing it."""
    known = {
        "train": "The network was trained on these very cases.",
        "val": "The weights were picked by their score on this very part, which flatters them.",
        "all": "The network was trained on most of these cases.",
    }
    notes = [known[split]] if own and split in known else []
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
        node.spatial_dims = len(card.window)
        if card.bands is not None:
            node.in_channels = len(card.bands)
        if not node.labels.get("classes"):  # of data=folder, where nothing else is said
            node.labels = {"_target_": "segline.labels.Labels", **card.labels}
        if config.split == "all":
            node.val = node.test = 0.0
    data: SegmentationDataModule = build(discover(node, quiet=True))
    bands = card.network.get("in_channels", data.in_channels)  # a network of the user's may go by another name
    if data.in_channels != bands:
        raise ValueError(
            f"data={name} has {data.in_channels} bands, but the network was trained on {bands} ({card.trained_on}); "
            "evaluate it on files with all of those"
        )
    ours, theirs = data.labels, card.labels
    if (list(ours.names), ours.scheme) != (list(theirs["classes"]), theirs.get("scheme", "exclusive")):
        raise ValueError(
            f"data={name} has the {ours.scheme} classes {', '.join(ours.names)}, but the network knows the "
            f"{theirs.get('scheme', 'exclusive')} ones {', '.join(theirs['classes'])}; give data.labels.classes those names"
        )
    data.prepare()
    data.normalize = Normalize(**card.normalize)
    return data


def _choose_split(split: str | None, data: SegmentationDataModule, name: str) -> str:
    """The part that is measured: the one asked for, or the test part where there is one; `all` becomes a part of its own."""
    if split is None:
        split = "test" if data.cases["test"] else "val" if name == OWN and data.cases["val"] else "all"
    if split == "all":
        data.cases["all"] = [case for part in SPLITS for case in data.cases[part]]
    if not data.cases[split]:
        there = ", ".join(f"{part} ({len(cases)} cases)" for part, cases in data.cases.items() if cases)
        raise ValueError(f"the {split} part is empty; there is {there}: set split to one of them")
    return split
