"""The card: everything that prediction, evaluation and export need to know of a trained network, as plain data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from segline.io.normalize import Normalize
from segline.labels import Labels

#: Raised when a field of the card changes its meaning.
CARD_VERSION = 1
#: Fields that came later and may be missing.
_OPTIONAL = {"stride"}
#: Pixels of a window, at most: 16384 x 16384, or 645 x 645 x 645.
_LARGEST_WINDOW = 2**28


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself; plain JSON, in every checkpoint and beside it.

    Args:
        network: `_target_` of the network's class and its plain arguments.
        labels: Arguments of `segline.labels.Labels`.
        normalize: Arguments of `segline.io.normalize.Normalize`.
        bands: Bands read from a file, counted from 1; None for all of them.
        spacing_mm: Spacing that volumes are resampled to, `(D, H, W)`; None keeps the file's own.
        window: Size of a tile in pixels, `*S`.
        margin: Pixels at each inner border of a tile that are predicted for context only, `*S`.
        precision: Lightning's name of the precision that it was trained and scored in.
        trained_on: Name of the data set, for messages.
        stride: Total stride of the network, where it cannot be asked itself, as in an ONNX file.
        version: Version of this schema.
    """

    network: dict[str, Any]
    labels: dict[str, Any]
    normalize: dict[str, Any]
    bands: list[int] | None
    spacing_mm: list[float] | None
    window: list[int]
    margin: list[int]
    precision: str = "32-true"
    trained_on: str = ""
    version: int = CARD_VERSION
    stride: int | None = None

    @property
    def num_bands(self) -> int | None:
        """Bands of an image that the network takes; None for a network of the user's that calls them otherwise, if nothing else says."""
        channels = self.network.get("in_channels")
        return channels if type(channels) is int else len(self.bands or self.normalize.get("mean") or ()) or None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Card:
        """Read a card back.

        Raises:
            ValueError: Not a card, of another version, or with fields missing or unknown.
        """
        if not isinstance(data, dict) or "version" not in data:
            raise ValueError("there is no segline card in this checkpoint; expected one that src/train.py wrote")
        if data["version"] != CARD_VERSION:
            raise ValueError(
                f"the card is of version {data['version']!r}; this segline reads version {CARD_VERSION}; use the segline that wrote it"
            )
        names = {f.name for f in dataclasses.fields(cls)}
        if missing := names - set(data) - _OPTIONAL:
            raise ValueError(
                f"the card lacks {sorted(missing)}; the checkpoint was not written by segline or is damaged"
            )
        if unknown := set(data) - names:
            raise ValueError(f"the card has unknown fields {sorted(unknown)}; it was written by another segline")
        kinds = {"network": dict, "labels": dict, "normalize": dict, "precision": str, "trained_on": str}
        if wrong := [name for name, kind in kinds.items() if not isinstance(data[name], kind)]:
            raise ValueError(f"the card's {wrong[0]} is {data[wrong[0]]!r}; expected a {kinds[wrong[0]].__name__}")
        if fault := _fault_of_numbers(data) or _fault_of_parts(data):
            raise ValueError(f"{fault}; the card is damaged: use another checkpoint of the run")
        return cls(**data)


def _fault_of_numbers(data: dict[str, Any]) -> str | None:
    """What of the card's sizes cannot be."""
    window, margin, bands, spacing = (data[name] for name in ("window", "margin", "bands", "spacing_mm"))
    if not _whole_numbers(window, 1) or len(window) not in (2, 3) or math.prod(window) > _LARGEST_WINDOW:
        return f"the card's window is {window!r}; expected a list of 2 or 3 sizes in pixels"
    if not _whole_numbers(margin, 0) or len(margin) != len(window):
        return f"the card's margin is {margin!r}, of other axes than its window {window}"
    if any(2 * m >= w for m, w in zip(margin, window, strict=True)):
        return f"the card's margin {margin} leaves nothing of its window {window}"
    if bands is not None and not (_whole_numbers(bands, 1) and bands):
        return f"the card's bands are {bands!r}; expected a list of numbers from 1 on, or null for all"
    if spacing is not None and not (_real_numbers(spacing) and len(spacing) == len(window) == 3 and min(spacing) > 0):
        return f"the card's spacing_mm is {spacing!r}; expected 3 lengths for volumes, or null"
    stride = data.get("stride")
    if stride is not None and not _whole_numbers([stride], 1):
        return f"the card's stride is {stride!r}; expected a number of pixels"
    return None


def _fault_of_parts(data: dict[str, Any]) -> str | None:
    """What of the card's network, labels and normalisation is not what they take, or does not fit together."""
    network = data["network"]
    if not isinstance(network.get("_target_"), str):
        return f"the card names no network: its _target_ is {network.get('_target_')!r}"
    try:
        labels = Labels(**data["labels"])
    except (TypeError, AttributeError, ValueError) as error:
        return f"the card's labels cannot be read ({error})"
    # A network of the user's may call its channels by other names.
    if network["_target_"].startswith("segline.") and type(network.get("in_channels", 1)) is not int:
        return f"the card's network takes {network['in_channels']!r} bands; expected a number"
    if (bands := data["bands"]) and type(network.get("in_channels")) is int and network["in_channels"] != len(bands):
        return f"the card's network takes {network['in_channels']} bands, but its bands are {bands}"
    if network.get("num_classes", labels.num_classes) != labels.num_classes:
        return f"the card's network has {network['num_classes']!r} classes, but its labels {labels.num_classes}"
    try:
        normalize = Normalize(**data["normalize"])
    except (TypeError, ValueError) as error:
        return f"the card's normalize cannot be read ({error})"
    if normalize.scope == "dataset":
        mean, std = normalize.mean, normalize.std
        if not (_real_numbers(mean) and _real_numbers(std)) or len(mean) != len(std) or not mean or min(std) <= 0:
            return f"the card's normalize has mean {mean!r} and std {std!r}; expected a number a band, and no std of 0"
        if network.get("in_channels", len(mean)) != len(mean):
            return f"the card's network takes {network['in_channels']!r} bands, but its normalize has {len(mean)}"
    return None


def _whole_numbers(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= least for v in values)


def _real_numbers(values: Any) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
