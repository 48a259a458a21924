"""How the process handles memory."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 2**30


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
