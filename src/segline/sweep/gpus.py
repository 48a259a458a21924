"""GPUs for one job alone, where several jobs run on a machine at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

from segline.locks import locked

#: Environment variable with the indices of the GPUs that this job is to train on, among those that it sees.
GPU = "SEGLINE_GPU"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@contextmanager
def own_gpus(processes: int) -> Iterator[None]:
    """Hold as many GPUs as there are processes, the first that no other job of a sweep holds; jobs share where these are too few.

    Without a GPU nothing happens. A launcher that gives each job GPUs of its own (SLURM, Ray) shows it no others.
    """
    import torch

    names = [str(torch.cuda.get_device_properties(k).uuid) for k in range(torch.cuda.device_count())]
    with ExitStack() as stack:
        free = (k for k, name in enumerate(names) if stack.enter_context(locked(_lock(name))))
        mine = list(islice(free, processes))
        # Jobs that find too few begin at different ones.
        taken = sorted((k for k in range(len(names)) if k not in mine), key=lambda k: (k + os.getpid()) % len(names))
        if mine := sorted(mine + taken[: processes - len(mine)]):
            os.environ[GPU] = ",".join(map(str, mine))
        try:
            yield
        finally:
            os.environ.pop(GPU, None)


def shown_to_processes() -> dict[str, str]:
    """Environment in which the processes that this one starts see the GPUs that it holds, and no others."""
    if GPU not in os.environ:
        return {}
    seen = os.environ.get(_VISIBLE, "")
    names = seen.split(",") if seen else None
    held = os.environ[GPU].split(",")
    return {_VISIBLE: ",".join(names[int(k)] if names else k for k in held)}


def _lock(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"segline_{os.getuid()}_{name}.lock"
