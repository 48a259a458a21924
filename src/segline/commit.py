"""Files that appear whole under their name, or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Bytes below which a disk counts as full.
_ROOM = 2**24
#: What a system says when it is the disk that takes no more, and not this file alone.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
#: Names that `temporary_path` gives.
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.|$)")


def temporary_path(path: Path) -> Path:
    """A hidden name beside a file that no other process uses, with the same suffixes."""
    return path.with_name(f".{uuid.uuid4().hex}{''.join(path.suffixes)}")


@contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Give a place to write to, and rename it to `path` at the end: a kill or an error at any moment leaves the old file whole.

    Processes that race each write their own, and the last one's stays. The suffix is kept, for writers that go by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, for a rename is atomic only within a file system; not by mkstemp, whose files nobody else may read.
    temporary = temporary_path(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)  # the rename itself must survive a power loss, too
    finally:
        temporary.unlink(missing_ok=True)


class WriteError(OSError):
    """A file could not be written whole.

    Args:
        message: What is said of it.
        disk: Whether the disk is the reason, so that no other file can be written either.
    """

    def __init__(self, message: str, disk: bool) -> None:
        super().__init__(message)
        self.disk = disk


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever a library raises when it cannot write into one error that says where, and what room there is.

    Raises:
        WriteError: Of any exception but a ValueError, which is about the content.
    """
    try:
        yield
    except (ValueError, WriteError):
        raise
    except Exception as error:  # GDAL's, nibabel's and Pillow's have no common base
        number, free = getattr(error, "errno", None), shutil.disk_usage(path.parent).free
        full = number == errno.ENOSPC or free < _ROOM
        what = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        reason = f"{path}: {'the disk is full' if full else f'it could not be written ({what})'}"
        if not (full or number in _NO_ROOM or _takes_no_more(path.parent)):
            raise WriteError(reason, disk=False) from error
        raise WriteError(
            f"{reason}; the same command goes on with it when there is room ({free / 1e6:,.0f} MB are free)", disk=True
        ) from error


def _takes_no_more(folder: Path) -> bool:
    """Whether the disk is full or read-only: tried, because libraries hide the reason, and what is free says nothing of a quota."""
    probe = temporary_path(folder / "probe")
    try:
        with probe.open("wb") as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())  # over a network it is said only now
    except OSError as error:
        return error.errno in _NO_ROOM
    finally:
        with suppress(OSError):
            probe.unlink()
    return False


def remove_leftovers(folder: Path, older_than: float = 3600.0) -> None:
    """Remove what processes that were killed left half-written, if that is so many seconds ago."""
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # its owner was quicker
            if _TEMPORARY.match(path.name) and path.stat().st_mtime < time.time() - older_than:
                path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
