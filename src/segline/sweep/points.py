"""A point of a sweep: one training, in a folder of its own, that is done once."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from segline.commit import committed
from segline.config import LOCK
from segline.locks import locked
from segline.refusals import answer_to
from segline.tables import SCORES

#: What ends a point, as scores do: the word that it was given up for being worse than others.
PRUNED = "pruned.json"
#: Why a point failed: what was said in the first line, then where.
ERROR = "error.txt"
#: Held by the process that is at work on a point.
_CLAIM = ".claim"
#: How long a point is tried to be claimed: somebody may just be asking.
_SECONDS_TO_CLAIM = 0.25


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
    # The processes of a training outlive the one that was killed while it had claimed the point for them.
    if _is_held(folder / _CLAIM) or _is_held(folder / LOCK):
        return State.RUNNING
    return State.FAILED if (folder / ERROR).exists() else State.OPEN


def begun_at(folder: Path) -> int | None:
    """When a process was last at work on a point, in nanoseconds; None if none ever was."""
    claim = folder / _CLAIM
    return claim.stat().st_mtime_ns if claim.exists() else None


def once(folder: Path, task: Callable[[], None]) -> None:
    """Do a point unless it has been done or another process is at it; leave in `error.txt` why it failed.

    Raises:
        Exception: What the task raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / _CLAIM, seconds=_SECONDS_TO_CLAIM) as mine:
        if not mine or _is_held(folder / LOCK) or any((folder / file).exists() for file in (SCORES, PRUNED)):
            return
        (folder / _CLAIM).touch()
        (folder / ERROR).unlink(missing_ok=True)
        try:
            task()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            with suppress(Exception):  # an answer that fails must not hide what it is to answer
                said = answer_to(error, "train") or said
            print(f"failed    {folder.name}: {said}", file=sys.stderr, flush=True)
            with suppress(OSError), committed(folder / ERROR) as temporary:  # the disk may be what it failed for
                temporary.write_text(f"{said}\n\n{''.join(traceback.format_exception(error))}")
            raise


def _is_held(file: Path) -> bool:
    """Whether a process holds a file. Asking holds nobody up but for the moment, and no one else who asks."""
    if not file.exists():
        return False
    with locked(file, shared=True) as free:
        return not free
