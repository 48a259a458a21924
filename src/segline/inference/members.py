"""Trained networks opened by what their files are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from segline.card import Card
from segline.checkpoints import locate, read_network
from segline.inference.ensemble import Member

#: Ending of an exported network.
ONNX = ".onnx"
#: In a folder that stands for several runs, such as those of all folds: where they lie.
MEMBERS = "members.json"


def locate_all(checkpoints: str | Sequence[str]) -> list[Path]:
    """The files of one or several checkpoints: runs stand for their best, and the folder of an ensemble for its members.

    Raises:
        ValueError: None is named, or one is not there.
    """
    named = [checkpoints] if isinstance(checkpoints, str) else checkpoints
    paths = [locate(one) for place in named for one in _members(Path(place).expanduser())]
    if not paths:
        raise ValueError("checkpoint names nothing; expected a run folder, a file, or a list of them")
    for path in paths:
        if not path.is_file():
            inside = sorted(folder.name for folder in path.parent.glob("ensemble*") if (folder / MEMBERS).is_file())
            hint = f"; {path.parent} is a sweep with {', '.join(inside)} in it" if inside else ""
            raise ValueError(
                f"there is no checkpoint {path}; expected a run folder of src/train.py, a .ckpt file in one, or an .onnx file{hint}"
            )
    return paths


def ensemble_folder(checkpoints: str | Sequence[str]) -> Path | None:
    """The folder of an ensemble, if that is what is named; several checkpoints that are named one by one have none."""
    named = [checkpoints] if isinstance(checkpoints, str) else checkpoints
    place = Path(named[0]).expanduser() if len(named) == 1 else None
    return place if place is not None and (place / MEMBERS).is_file() else None


def is_of_folds(ensemble: Path) -> bool:
    """Whether the members of an ensemble were trained on different parts of the data, each on what others were tested on."""
    return bool(json.loads((ensemble / MEMBERS).read_text()).get("folds"))


def _members(place: Path) -> list[Path]:
    """The runs that a folder stands for, beside it; most stand for themselves."""
    file = place / MEMBERS
    if not file.is_file():
        return [place]
    names = json.loads(file.read_text())["members"]
    return [place.parent / Path(name).name for name in names]


def read_card(path: Path) -> Card:
    """The card of a checkpoint or of an ONNX file."""
    if path.suffix == ONNX:
        from segline.inference.onnx import read_onnx_card

        return read_onnx_card(path)
    return read_network(path)[0]


def open_member(
    path: Path,
    *,
    device: str = "auto",
    precision: str | None = None,
    temperature: float = 1.0,
    dropout: bool = False,
    trust: Sequence[str] = (),
) -> Member:
    """The network of a checkpoint, by torch, or of an ONNX file, by ONNX Runtime and without torch.

    Args:
        path: Of a file.
        device: `cpu`, `cuda`, or `auto`.
        precision: Lightning's name of it; None: that of the card.
        temperature: Divides the logits.
        dropout: Leave dropout at work, so that every call gives another answer.
        trust: Packages besides segline's own whose networks a checkpoint may name.

    Raises:
        ValueError: The file is not what it should be, or cannot do what is asked for.
    """
    if path.suffix == ONNX:
        if dropout:
            raise ValueError(f"{path}: an ONNX file holds no dropout; use the checkpoint, or set dropout_passes=1")
        from segline.inference.onnx import open_onnx

        return open_onnx(path, device, temperature)
    from segline.inference.network import open_checkpoint

    return open_checkpoint(path, device, precision, temperature, dropout, trust)
