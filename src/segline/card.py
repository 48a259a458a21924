"""The card: everything that prediction, evaluation and export need to know of a trained network, as plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

#: Raised when a field of the card changes its meaning.
CARD_VERSION = 1
#: Fields that came later and may be missing.
_OPTIONAL = {"stride"}


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
                f"the card is of version {data['version']}; this segline reads version {CARD_VERSION}; use the segline that wrote it"
            )
        names = {f.name for f in dataclasses.fields(cls)}
        if missing := names - set(data) - _OPTIONAL:
            raise ValueError(
                f"the card lacks {sorted(missing)}; the checkpoint was not written by segline or is damaged"
            )
        if unknown := set(data) - names:
            raise ValueError(f"the card has unknown fields {sorted(unknown)}; it was written by another segline")
        kinds = {"network": dict, "labels": dict, "normalize": dict, "window": list, "margin": list, "precision": str}
        if wrong := [name for name, kind in kinds.items() if not isinstance(data[name], kind)]:
            raise ValueError(f"the card's {wrong[0]} is {data[wrong[0]]!r}; expected a {kinds[wrong[0]].__name__}")
        stride = data.get("stride")
        if stride is not None and not (type(stride) is int and stride > 0):
            raise ValueError(f"the card's stride is {stride!r}; expected a number of pixels")
        if len(data["window"]) != len(data["margin"]) or "_target_" not in data["network"]:
            raise ValueError("the card names no network, or a margin of other axes than its window; it is damaged")
        return cls(**data)
