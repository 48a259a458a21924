"""Where things that are made from a user's files are kept, and how several processes make them at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from segline.commit import committed


def cache_dir() -> Path:
    """`$SEGLINE_CACHE`, else the user's cache folder."""
    root = os.environ.get("SEGLINE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "segline"
    return Path(root)


def cached(kind: str, sources: Iterable[Path], settings: object, suffix: str, make: Callable[[Path], None]) -> Path:
    """The file that `make(path)` writes, made once for these source files (path, size, time of change) and settings.

    Processes that race each make their own, and the last one's stays.
    """
    key = hashlib.sha256(repr(settings).encode())
    for source in sources:
        state = source.stat()
        key.update(f"{source.resolve()}|{state.st_size}|{state.st_mtime_ns}".encode())
    path = cache_dir() / kind / f"{key.hexdigest()[:32]}{suffix}"
    if not path.exists():
        with committed(path) as temporary:
            make(temporary)
    return path
