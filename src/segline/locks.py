"""Files that are held by one process, or by several of a kind, and let go with it however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_held: set[IO[str]] = set()
#: How long apart a file is tried to be held.
_SECONDS_A_TRY = 0.05


@contextmanager
def locked(path: Path, *, shared: bool = False, seconds: float = 0.0) -> Iterator[bool]:
    """Hold a file while the work lasts; whether it could be had.

    Args:
        path: Of the file, which is made if it is not there.
        shared: Hold it beside all others who say so, and against those who do not.
        seconds: How long to try.

    Raises:
        ValueError: The file system has no locks.
    """
    end = time.monotonic() + seconds
    with path.open("a+") as file:  # to be read, too: NFS lets nobody share what he cannot read
        while not (mine := _try(file, path, shared)) and time.monotonic() < end:
            time.sleep(_SECONDS_A_TRY)
        if mine:
            _held.add(file)
        try:
            yield mine
        finally:
            _held.discard(file)


def _try(file: IO[str], path: Path, shared: bool) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise ValueError(
            f"{path.parent} is on a file system without locks ({error.strerror}), by which processes keep out of each other's way; "
            "use a folder on another one (for temporary files: TMPDIR), or have it mounted with locks (Lustre: -o flock)"
        ) from error
    return True


def _let_go() -> None:
    """What a fork has inherited, such as a loader's worker, would hold the files beyond the death of the one who took them."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
