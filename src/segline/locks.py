"""Files that are held by one process, or by several of a kind, and let go with it however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_held: set[IO[str]] = set()


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold a file while the work lasts; whether it could be had.

    Args:
        path: Of the file, which is made if it is not there.
        shared: Hold it beside all others who say so, and against those who do not.
        wait: Until it can be had.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with path.open("a") as file:
        try:
            fcntl.flock(file, how)
            _held.add(file)
        except BlockingIOError:
            pass
        try:
            yield file in _held
        finally:
            _held.discard(file)


def _let_go() -> None:
    """What a fork has inherited, such as a loader's worker, would hold the files beyond the death of the one who took them."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
