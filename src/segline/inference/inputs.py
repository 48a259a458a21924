"""Which files are predicted, where their masks go, and which of them the same command has done before."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segline.commit import committed
from segline.io.image import FORMATS
from segline.io.open import IMAGE_SUFFIXES


def find_inputs(pattern: str) -> list[Path]:
    """The images that a file, a folder or a pattern stands for.

    Raises:
        ValueError: There are none.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    candidates: list[Any] = (
        sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    )
    files = [file for file in candidates if file.name.lower().endswith(IMAGE_SUFFIXES)]
    if not files:
        what = (
            "no such file or folder"
            if not candidates and not path.is_dir()
            else f"none of its files ends in {', '.join(IMAGE_SUFFIXES)}"
        )
        raise ValueError(f"input={pattern}: {what}; give a file, a folder or a pattern such as 'scenes/*.tif'")
    return files


def plan_outputs(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the mask of each file goes: below `folder` as the files lie below the folder that they share.

    Raises:
        ValueError: A mask would lie over an input or over another mask.
    """
    shared = os.path.commonpath([file.parent.resolve() for file in files])
    jobs = {file: folder / file.resolve().relative_to(shared) for file in files}
    # Photographs' masks are PNG files, whatever the photographs are.
    jobs = {file: path.with_suffix(".png") if path.suffix.lower() in FORMATS else path for file, path in jobs.items()}
    inputs = {file.resolve() for file in jobs}
    if any(path.resolve() in inputs or file.parent.resolve() == path.parent.resolve() for file, path in jobs.items()):
        raise ValueError(
            f"output={folder} is the folder of the input, whose files would be overwritten; name another folder"
        )
    if twice := [path for path, count in Counter(jobs.values()).items() if count > 1]:
        both = " and ".join(str(file) for file, path in jobs.items() if path == twice[0])
        raise ValueError(f"the masks of {both} would both be {twice[0]}; predict them into different folders")
    return jobs


class Journal:
    """What was predicted into a folder by one checkpoint with one set of settings: the same command again goes on after it.

    Args:
        folder: Where the masks go.
        settings: Plain data that the masks depend on; with others all files are predicted anew.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = folder / ".predicted.json", json.loads(json.dumps(settings))
        self._done: dict[str, list[int]] = {}
        if self._path.is_file():
            kept = json.loads(self._path.read_text())
            if kept["settings"] == self._settings:
                self._done = kept["done"]

    def done(self, file: Path, mask: Path) -> bool:
        """Whether the mask of a file, as it is now, is there."""
        return mask.is_file() and self._done.get(str(file.resolve())) == _state(file)

    def add(self, file: Path) -> None:
        """Note that the mask of a file is whole."""
        self._done[str(file.resolve())] = _state(file)
        with committed(self._path) as temporary:
            temporary.write_text(json.dumps({"settings": self._settings, "done": self._done}))


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]
