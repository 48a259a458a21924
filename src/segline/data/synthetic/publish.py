"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path


def write_once(root: Path, write: Callable[[Path], None]) -> Path:
    """Fill a folder with `write` unless it has content already; of several processes at once, the first to finish wins.

    Args:
        root: The folder; nothing is ever changed in one with content.
        write: Called with an empty folder beside `root`, which becomes `root` by a rename.

    Returns:
        `root`, whole.
    """
    root = Path(root)
    if _has_content(root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        # A folder inside: the scratch folder itself is closed to other users, and the rename would keep that.
        fresh = Path(scratch, root.name)
        fresh.mkdir()
        write(fresh)
        try:
            fresh.rename(root)
        except OSError:
            if not _has_content(root):
                raise
    return root


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
