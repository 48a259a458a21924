"""One GPU for one job, where several jobs run on a machine at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segline.locks import locked

#: Environment variable with the index of the GPU that this process is to train on, among those that it sees.
GPU = "SEGLINE_GPU"


@contextmanager
def own_gpu() -> Iterator[None]:
    """Hold the first GPU that no other job of a sweep holds; where there are more jobs than GPUs, they share.

    Without a GPU nothing happens. A launcher that gives each job GPUs of its own (SLURM, Ray) shows it no others.
    """
    import torch

    names = [str(torch.cuda.get_device_properties(k).uuid) for k in range(torch.cuda.device_count())]
    with _first_free(names) as index:
        if index is not None:
            os.environ[GPU] = str(index)
        try:
            yield
        finally:
            os.environ.pop(GPU, None)


@contextmanager
def _first_free(names: list[str]) -> Iterator[int | None]:
    """The index of the first name that nobody holds, held; of one of them if all are."""
    for index, name in enumerate(names):
        with locked(Path(tempfile.gettempdir()) / f"segline_{os.getuid()}_{name}.lock") as mine:
            if mine:
                yield index
                return
    yield os.getpid() % len(names) if names else None
