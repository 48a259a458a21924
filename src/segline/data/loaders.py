"""Loaders of samples in processes of their own."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Loader = DataLoader[dict[str, Tensor]]


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
    workers: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    if num_workers:
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


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(_: int) -> None:
    """One thread a worker: the cores are the network's."""
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(0)
