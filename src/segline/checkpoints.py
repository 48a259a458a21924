"""Checkpoints that survive a kill at any moment, and are read without running anything they hold."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segline.card import Card
from segline.commit import committed

if TYPE_CHECKING:  # prediction by ONNX Runtime asks this module where a checkpoint lies, and does without torch
    import torch

#: The best weights by the objective, with their card: what predict, eval and export read.
BEST = "best.ckpt"
#: Everything that is needed to go on: weights, optimizer, progress, random numbers.
RESUME = "resume.ckpt"
#: How torch names what a checkpoint would have it import.
_NAMED = re.compile(r"GLOBAL ([\w.]*\w)")


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that `path` holds the old one or the new one whole, never a part.

    Raises:
        OSError: The disk is full or not writable; the old checkpoint is untouched, and the message names path and free space.
    """
    import torch

    try:
        with committed(path) as temporary:
            torch.save(checkpoint, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        free = os.statvfs(path.parent)
        raise OSError(
            f"{path} could not be written ({error}); {free.f_bavail * free.f_frsize / 1e6:.0f} MB are free there"
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint as tensors and plain data, with every byte checked.

    Raises:
        ValueError: The file is missing, damaged, or holds anything but tensors and plain data.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; expected a run folder of src/train.py or a .ckpt file in one")
    _check_archive(path)
    import torch  # seconds, which a damaged file need not wait for

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _NAMED.search(str(error))
        reason = f", such as {named.group(1)}," if named else ""
        raise ValueError(
            f"{path} holds more than tensors and plain data{reason} and is not read: it could run code; "
            "expected a checkpoint that src/train.py wrote"
        ) from error
    except Exception as error:  # of whatever kind a stranger's bytes bring about
        raise ValueError(f"{path} is damaged ({_in_short(error)}); use another checkpoint of the run") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}; expected a checkpoint that src/train.py wrote")
    return checkpoint


def _check_archive(path: Path) -> None:
    """Read every byte once: torch does not compare the checksums."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is truncated: it is empty; use another checkpoint of the run")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch stores without compression; unpacked a small file could fill the memory.
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise zipfile.BadZipFile("it claims more bytes than it has")
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a checkpoint or is truncated ({error}); use another checkpoint of the run"
        ) from error
    except Exception as error:  # zipfile has no one kind for names, sizes and versions that cannot be
        raise ValueError(f"{path} is damaged ({_in_short(error)}); use another checkpoint of the run") from error
    if damaged:
        raise ValueError(
            f"{path} is damaged: the checksum of {damaged} does not fit; use another checkpoint of the run"
        )


def _in_short(error: Exception) -> str:
    """The first sentence of an error, or what kind it is."""
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__


def locate(checkpoint: str | Path) -> Path:
    """The checkpoint file that a run folder or a file stands for: of a run, the best."""
    path = Path(checkpoint)
    return path / BEST if path.is_dir() else path


def read_network(checkpoint: str | Path) -> tuple[Card, dict[str, torch.Tensor]]:
    """Card and weights of a run or a checkpoint file."""
    path = locate(checkpoint)
    content = read(path)
    try:
        card = Card.from_dict(content.get("card"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    state = content.get("state_dict")
    weights = {
        name.removeprefix("network."): w
        for name, w in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and name.startswith("network.")
    }
    if not weights:
        raise ValueError(f"{path} holds no weights of a network; use another checkpoint of the run")
    return card, weights


def read_resumed(run_dir: Path, resume: str | None) -> dict[str, Any] | None:
    """What a run goes on from, or None to start.

    Raises:
        ValueError: There is a run already and `resume` does not ask to go on, or the other way round.
    """
    path = run_dir / RESUME
    if path.exists() and resume is None:
        raise ValueError(
            f"{run_dir} holds a run already; set resume=auto to go on with it, or another hydra.run.dir to start anew"
        )
    if not path.exists() and resume not in (None, "auto"):
        raise ValueError(
            f"resume={resume}: there is no {path}; the run was ended before its first checkpoint: start it anew"
        )
    return read(path) if path.exists() else None


def check_fits(checkpoint: dict[str, Any], card: Card) -> None:
    """Refuse to go on with another network or other labels than the checkpoint's.

    Raises:
        ValueError: It is of another network, or of other data.
    """
    before, now = (json.loads(json.dumps(one)) for one in (checkpoint["card"], card.to_dict()))
    for key in ("network", "trained_on", "labels", "normalize", "bands", "spacing_mm"):
        if before[key] != now[key]:
            theirs, ours = _differing(before[key], now[key])
            raise ValueError(
                f"the checkpoint is of another {'model' if key == 'network' else 'data'}: "
                f"its {key} is {theirs}, but the config's is {ours}; "
                "resume with the settings that the run was started with (its config.yaml), or start a new run"
            )


def _differing(one: Any, other: Any) -> tuple[Any, Any]:
    """Two values, of mappings only the keys that differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return {key: one.get(key) for key in keys}, {key: other.get(key) for key in keys}
