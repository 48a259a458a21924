"""How many cores and how much memory there are, and how the process handles memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 2**30


def num_cores() -> int:
    """Cores that this process may use: the machine's, or what a scheduler has pinned it to."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed() -> None:
    """Let the process keep what it frees, for what it allocates next.

    glibc gives large blocks back to the system and asks for them anew, and each new page costs a fault: a training step on a CPU
    allocates the same activations again and again, and takes up to a fifth longer for it. Elsewhere than on glibc nothing happens.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _LARGE)
            mallopt(_TRIM_THRESHOLD, _LARGE)


def let_go(mapped: np.memmap[Any, Any]) -> None:
    """Let what was touched of an array mapped from a file no longer count as this process's memory; the file keeps what was written."""
    pages: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]  # numpy has no public name for it; views have it, too
    pages.madvise(mmap.MADV_DONTNEED)


def limit() -> int:
    """Bytes of memory there are: the machine's, or what its container or scheduler leaves of them."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(Path("/"))])


def _limits(root: Path) -> list[int]:
    """Bytes that the control groups of this process allow (Linux; version 1 and 2)."""
    groups, limits = root / "proc/self/cgroup", []
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / "sys/fs/cgroup" / controllers
            own = top / path.strip("/")
            # A group is bound by those above it; within a container its path may be one that only the host knows.
            for folder in (own, *own.parents):
                if folder.is_relative_to(top):
                    files = (folder / "memory.max", folder / "memory.limit_in_bytes")
                    limits += [file.read_text().strip() for file in files if file.exists()]
    return [int(limit) for limit in limits if limit.isdigit()]


def available() -> int:
    """Bytes that this process can still take: what the machine has free, and what its container or scheduler leaves."""
    own = _status("VmRSS")
    free = [limit() - own]
    info = Path("/proc/meminfo")
    if info.exists():
        free += [
            int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if line.startswith("MemAvailable")
        ]
    return max(min(free), 0)


def peak_of(call: Callable[[], object]) -> int:
    """Bytes that the process takes at most, while something runs, beyond what it held before; 0 where the system doesn't say."""
    known = forget_peak()
    before = _status("VmRSS")
    call()
    return peak() - before if known else 0


def forget_peak() -> bool:
    """Let `peak` count from now on; False where the system cannot."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return False
    try:
        reset.write_text("5")  # proc(5)
    except OSError:  # a sandbox may forbid it
        return False
    return True


def peak() -> int:
    """Bytes that this process has taken at most; 0 where the system doesn't say."""
    return _status("VmHWM")


def _status(name: str) -> int:
    """A number of bytes of /proc/self/status; 0 where there is none."""
    file = Path("/proc/self/status")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
