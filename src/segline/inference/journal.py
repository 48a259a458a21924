"""What of a prediction is done, so that the same command goes on, and several processes share the work."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Name of the journal in the folder of the masks.
JOURNAL = ".predicted.jsonl"
#: Digits of the number at the start of a claim: of a fixed width, so that it is overwritten in one go.
_DIGITS = 20


class Journal:
    """What was predicted into a folder: a line for each file that is done, or was found broken, by whichever process.

    Args:
        folder: Where the masks go.
        settings: Plain data that the masks depend on; what was done with others counts as not done.
        since: Bytes of the journal that a call found there: files that were broken before it are tried again. None: all there are.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], since: int | None = None) -> None:
        self._path = folder / JOURNAL
        there = self._path.stat().st_size if self._path.exists() else 0
        self.since = there if since is None else since
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._read, self._new, self._entries = 0, 0, dict[str, dict[str, Any]]()

    def done(self, file: Path, targets: Sequence[Path]) -> bool:
        """Whether these were made of a file, as it is now, and are there."""
        entry = self._entry(file)
        if entry is None or entry["fault"] is not None:
            return False
        return self.made(file).issuperset(path.name for path in targets) and all(path.exists() for path in targets)

    def made(self, file: Path) -> set[str]:
        """Names of what was made of a file, as it is now, with these settings, by whichever calls."""
        entry = self._entry(file)
        return set() if entry is None else set(entry["made"])

    def count(self) -> int:
        """How many files some process got through with since the call began."""
        self._update()
        return self._new

    def fault(self, file: Path) -> str | None:
        """What is wrong with a file, as it is now, by the process that tried it."""
        entry = self._entry(file)
        return None if entry is None else entry["fault"]

    def add(self, file: Path, made: Sequence[Path] = (), fault: str | None = None) -> None:
        """Note that what was made of a file is whole, or what is wrong with it."""
        self._append(file, self.settings, sorted(self.made(file).union(path.name for path in made)), fault)

    def begin(self, file: Path) -> None:
        """Note that what is made of a file changes from now on: after a kill it is not what a call with other settings has made."""
        if self._entry(file) is not None:  # what changes becomes what it was
            return
        entry = self._entries.get(str(place(file)))
        if entry is not None and entry["settings"] is not None:
            self._append(file, None, [])

    def _append(self, file: Path, settings: str | None, made: Sequence[str], fault: str | None = None) -> None:
        now = {"file": str(place(file)), "state": state(file)}
        entry = {**now, "settings": settings, "made": list(made), "fault": fault}
        with self._path.open("a+b") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX)
            size = journal.seek(0, os.SEEK_END)
            cut = os.pread(journal.fileno(), 1, max(size - 1, 0)) not in (b"", b"\n")  # by a kill or a full disk
            journal.write(b"\n" * cut + json.dumps(entry).encode() + b"\n")

    def _entry(self, file: Path) -> dict[str, Any] | None:
        """The last line of a file as it is now, with these settings."""
        self._update()
        entry = self._entries.get(str(place(file)))
        return (
            entry
            if entry is not None and entry["settings"] == self.settings and entry["state"] == state(file)
            else None
        )

    def _update(self) -> None:
        """Read what was added since the last time, by others too; the rest of a line that a kill cut off is left out."""
        if not self._path.exists():
            return
        with self._path.open("rb") as journal:
            journal.seek(self._read)
            for line in journal:
                if line.endswith(b"\n"):
                    before, self._read = self._read < self.since, self._read + len(line)
                    try:
                        entry = json.loads(line)
                    except ValueError:  # cut off by a kill or a full disk, and ended by the next line's process
                        continue
                    self._new += not before and entry["settings"] == self.settings
                    if entry["fault"] is None or not before:
                        self._entries[entry["file"]] = entry
                    else:
                        self._entries.pop(entry["file"], None)


class Claim:
    """A file's prediction, held by one process at a time; how far it came outlives the process.

    Args:
        target: The mask that is made.
        key: Digest of what the mask depends on; with another one it starts anew.
    """

    def __init__(self, target: Path, key: str) -> None:
        self._path, self._key = target.with_name(f".{target.name}.claim"), key.encode()
        self.rows = 0  #: Finished along the first axis.
        self._file: Any = None

    def take(self) -> bool:
        """Hold the file; False where another process does."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            claim = self._path.open("a+b")
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                claim.close()
                return False
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(claim.fileno()), self._path.stat()):
                    break
            claim.close()  # released, and removed, by the one who held it
        content = os.pread(claim.fileno(), 4096, 0)
        fits = content[_DIGITS:] == self._key and content[:_DIGITS].isdigit()
        self.rows = int(content[:_DIGITS]) if fits else 0
        claim.truncate(0)
        self._file = claim
        self.reach(self.rows)
        return True

    def reach(self, rows: int) -> None:
        """Note that so many rows along the first axis are written."""
        # Not through the file object, which appends.
        with self._path.open("r+b", buffering=0) as file:
            file.write(f"{rows:0{_DIGITS}d}".encode() + self._key)
        self.rows = rows

    def release(self, finished: bool) -> None:
        """Let go of the file; when it is finished no trace stays."""
        if finished:
            self._path.unlink(missing_ok=True)
        self._file.close()


def state(file: Path) -> list[int]:
    """Size and time of change, by which a file is known to be the same; of one that is gone, -1."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return [-1, -1]
    return [found.st_size, found.st_mtime_ns]


def place(file: Path) -> Path:
    """Where a file lies, under its own name: a link is not what it points to."""
    return file.parent.resolve() / file.name
