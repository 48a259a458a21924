"""Loaders of samples in processes of their own."""

from __future__ import annotations

import os
import signal
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segline.io.image import keep_decoded
from segline.machine import limit, num_cores

Loader = DataLoader[dict[str, Tensor]]
#: More than feed one GPU; each of them keeps files open and batches in memory.
_MOST_WORKERS = 16


class ResumableLoader(Loader):
    """A loader whose place in the epoch the sampler knows; Lightning asks for these methods before it resumes within an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place is in the checkpoint already."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: `go_on` has set the place."""


def make_loader(
    dataset: Dataset[dict[str, Tensor]], sampler: Sampler[Any], batch_size: int, num_workers: int
) -> Loader:
    """Batches in the sampler's order."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # A tenth for training's and validation's workers together, who inherit it.
    keep_decoded(limit() // 20 // (processes * max(num_workers, 1)))
    workers: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    if num_workers:  # forked: they start at once with all that was opened and imported, and readers cannot be pickled
        workers |= {"multiprocessing_context": "fork", "worker_init_fn": _start_worker}
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        # Of its own: the loader draws a seed for its workers at each start, which would else shift the network's dropout.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        **workers,
    )


def spare_cores() -> int:
    """Cores for loading: this process's share of the machine's, less the one that trains."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torch's launcher
    return min(max(num_cores() // processes - 1, 0), _MOST_WORKERS)


def _start_worker(_: int) -> None:
    """One thread a worker, for the cores are the network's; and signals are the trainer's, who needs batches until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere nobody says whose signal it is
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_obey_trainer, daemon=True).start()
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(0)


def _obey_trainer() -> None:
    """End when the process that started this one says so; a scheduler and a terminal signal all processes of a job."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
