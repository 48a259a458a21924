"""The folder of a sweep: found again by the command that it was started with."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from segline import tables
from segline.commit import temporary_path

#: What a sweep is, in its folder.
SWEEP = "sweep.json"
#: Held, by any number of processes, while they work on the sweep.
_LOCK = ".sweep.lock"


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
        if folder is None:
            yield _made(asked, command, stack)
            return
        folder.mkdir(parents=True, exist_ok=True)
        _hold(folder, stack)
        if not (folder / SWEEP).exists():
            tables.write_json(folder / SWEEP, command)
        elif (before := _read(folder)) != _plain(command):
            raise ValueError(
                f"{folder} holds another sweep: {_differing(before, command)}; set another hydra.sweep.dir"
            )
        yield folder


def _made(asked: Path, command: Mapping[str, Any], stack: ExitStack) -> Path:
    """A new folder. It appears with all that makes it a sweep, and held, so that nobody takes it for one that was left."""
    new = temporary_path(asked)
    new.mkdir(parents=True)
    _hold(new, stack)
    tables.write_json(new / SWEEP, command)
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
    lock = stack.enter_context((folder / _LOCK).open("a"))
    fcntl.flock(lock, fcntl.LOCK_SH)


def _unfinished(parent: Path, command: Mapping[str, Any], done: Callable[[Path], bool]) -> Path | None:
    """The newest sweep by the same command that has points left and that no process is at work on."""
    for path in sorted(parent.glob(f"*/{SWEEP}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if _read(path.parent) == _plain(command) and not done(path.parent) and not _is_held(path.parent):
            return path.parent
    return None


def _is_held(folder: Path) -> bool:
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / SWEEP).read_text())
    return content


def _plain(command: Mapping[str, Any]) -> dict[str, Any]:
    """As it reads back."""
    content: dict[str, Any] = json.loads(json.dumps(command))
    return content


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    key = next(key for key in {**before, **now} if before.get(key) != _plain(now).get(key))
    return f"its {key} is {before.get(key)}, and not {now.get(key)}"
