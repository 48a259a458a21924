"""A point of a sweep: one training, in a folder of its own, that is done once."""

from __future__ import annotations

import fcntl
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

#: What ends a point: scores of a training, or the word that it was given up for being worse than others.
SCORES, PRUNED = "scores.json", "pruned.json"
#: Why a point failed.
ERROR = "error.txt"
#: Held by the process that is at work on a point.
_CLAIM = ".claim"


class State(Enum):
    """How far a point is; also what is said of it."""

    OPEN = "open"
    RUNNING = "at work elsewhere"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True)
class Point:
    """One training of a sweep.

    Args:
        name: Of its folder.
        overrides: What it is started with.
    """

    name: str
    overrides: tuple[str, ...]


def state_of(folder: Path) -> State:
    """How far the point in a folder is; one that was killed is open."""
    for file, state in ((SCORES, State.FINISHED), (PRUNED, State.PRUNED)):
        if (folder / file).exists():
            return state
    with _claim(folder, create=False) as mine:
        if not mine:
            return State.RUNNING
    return State.FAILED if (folder / ERROR).exists() else State.OPEN


def once(folder: Path, task: Callable[[], None]) -> None:
    """Do a point unless it has been done or another process is at it; leave in `error.txt` why it failed.

    Raises:
        Exception: What the task raises.
    """
    with _claim(folder) as mine:
        if not mine or any((folder / file).exists() for file in (SCORES, PRUNED)):
            return
        (folder / ERROR).unlink(missing_ok=True)
        try:
            task()
        except Exception as error:
            (folder / ERROR).write_text("".join(traceback.format_exception(error)))
            print(f"failed    {folder.name}: {error}", file=sys.stderr, flush=True)
            raise


@contextmanager
def _claim(folder: Path, create: bool = True) -> Iterator[bool]:
    """Try to hold a point; the claim goes with the process, however that ends."""
    path = folder / _CLAIM
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        yield True
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
