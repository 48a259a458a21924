"""The folder of a sweep: found again by the command that it was started with."""

from __future__ import annotations

import errno
import json
import math
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from segline import tables
from segline.commit import temporary_path
from segline.locks import locked

#: What a sweep is, in its folder.
SWEEP = "sweep.json"
#: Held, by any number of processes, while they work on the sweep.
_LOCK = ".sweep.lock"
#: How long to ask whether another command holds a sweep: it may just be asking, too.
_SECONDS_TO_ASK = 0.25
#: There once a command has come to the sweep's end.
_ENDED = ".ended"


@contextmanager
def sweep_folder(asked: Path, chosen: bool, command: Mapping[str, Any], done: Callable[[Path], bool]) -> Iterator[Path]:
    """The folder to work in, held until the work ends.

    That is the one that was chosen; else that of an earlier sweep by the same command which was stopped before its end; else a new one.

    Args:
        asked: The folder that was chosen, or how a new one is to be called.
        chosen: Whether a person chose it.
        command: What the sweep is started with.
        done: Whether a sweep's points are all done.

    Raises:
        ValueError: The chosen folder holds another sweep.
    """
    with ExitStack() as stack:
        folder = asked if chosen else _unfinished(asked.parent, command, done)
        if new := folder is None:
            folder = _made(asked, command, stack)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _hold(folder, stack)
            with alone(folder):  # several commands may have been told of a new folder
                if not (folder / SWEEP).exists():
                    tables.write_json(folder / SWEEP, _new(command))
            if differing := _differing(tables.read_json(folder / SWEEP), command):
                raise ValueError(f"{folder} holds another sweep: {differing}; set another hydra.sweep.dir")
        try:
            yield folder
        except ValueError:  # some points failed, which may be an end, too, or it was refused
            if new and not any(path.is_dir() for path in folder.iterdir()):
                shutil.rmtree(folder)
            elif done(folder):
                (folder / _ENDED).touch()
            raise
        if done(folder):  # and nothing is at work elsewhere
            (folder / _ENDED).touch()


def alone(folder: Path) -> AbstractContextManager[bool]:
    """Let no other command on this machine decide about the sweep meanwhile."""
    return locked(folder / ".alone.lock", seconds=math.inf)


def _made(asked: Path, command: Mapping[str, Any], stack: ExitStack) -> Path:
    """A new folder. It appears with all that makes it a sweep, and held, so that nobody takes it for one that was left."""
    new = temporary_path(asked)
    new.mkdir(parents=True)
    _hold(new, stack)
    tables.write_json(new / SWEEP, _new(command))
    folder, number = asked, 1
    while True:
        try:
            new.rename(folder)
            return folder
        except OSError as error:  # there is one by this name, of the same second
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            number += 1
            folder = asked.with_name(f"{asked.name}_{number}")


def _hold(folder: Path, stack: ExitStack) -> None:
    stack.enter_context(locked(folder / _LOCK, shared=True, seconds=math.inf))


def _unfinished(parent: Path, command: Mapping[str, Any], done: Callable[[Path], bool]) -> Path | None:
    """The newest sweep by the same command that has not come to its end and that no process is at work on."""
    for path in sorted(parent.glob(f"[!.]*/{SWEEP}"), key=lambda path: path.stat().st_mtime, reverse=True):
        folder = path.parent
        if _differing(tables.read_json(path), command) or _is_held(folder):
            continue
        # Its points may have ended without the command, which has not put them together then.
        if not (folder / _ENDED).exists() or not done(folder):
            return folder
    return None


def _is_held(folder: Path) -> bool:
    with locked(folder / _LOCK, seconds=_SECONDS_TO_ASK) as free:
        return not free


def _new(command: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a sweep: its command, and what tells it from all others by that command."""
    return {"id": uuid.uuid4().hex, **command}


def _differing(before: Mapping[str, Any], command: Mapping[str, Any]) -> str:
    """What of a sweep that is there is not as commanded, in words; empty where it is the same."""
    now = {"id": before.get("id"), **json.loads(json.dumps(command))}  # as it would read back
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            if key == "config":
                return "the settings that are the same for all of its points have changed since"
            return f"its {key} is {before.get(key)}, and not {now.get(key)}"
    return ""


def study_address(folder: Path) -> str:
    """Of the database with the study of a sweep's folder: as it was told, by names of the environment's variables on this machine."""
    told = OmegaConf.create({"storage": tables.read_json(folder / SWEEP)["search"]["storage"]}).storage
    return told or f"sqlite:///{folder / 'study.db'}"


def study_name(folder: Path) -> str:
    """Of the study of a sweep's folder: as it was told, else one that no other folder has."""
    sweep = tables.read_json(folder / SWEEP)
    return sweep["search"]["study"] or f"{folder.name}_{sweep['id'][:8]}"
