"""Samples: random windows for training, tiles for evaluation. Data sets without state; all randomness is in the index."""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from segline.data.cases import Case
from segline.data.scan import CELL, Facts, Open
from segline.io.normalize import Normalize
from segline.io.source import MaskSource, Source, Window, read_padded
from segline.labels import IGNORE_INDEX, Labels
from segline.tiling import Tile, tiles

#: Moves image, mask and instances together: `augment(sample, rng) -> sample`, arrays all.
Augment = Callable[[dict[str, NDArray[Any]], np.random.Generator], dict[str, NDArray[Any]]]


@dataclass
class Reader:
    """Reads a window of a case as a sample, normalised, with pixels without data ignored in the mask.

    Args:
        cases: The cases of one part.
        facts: Of each of them.
        open_case: Opens one.
        normalize: Fitted to the training part.
        labels: Meaning of the masks.
        instances: Whether samples have `instances`, where the case has them.
    """

    cases: Sequence[Case]
    facts: Sequence[Facts]
    open_case: Open
    normalize: Normalize
    labels: Labels
    instances: bool = False

    def __post_init__(self) -> None:
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def read(self, index: int, window: Window) -> dict[str, NDArray[Any]]:
        """Arrays of a window that may reach beyond the case."""
        image_source, mask_source = self._open(index)
        image, mask = read_padded(image_source, window), read_padded(mask_source, window)
        mask[..., np.isnan(image).all(0)] = IGNORE_INDEX
        sample = {"image": self.normalize(image, self.facts[index].statistics), "mask": mask}
        if self.instances and hasattr(mask_source, "instances"):
            sample["instances"] = _read_instances(mask_source, window)
        return sample

    def _open(self, index: int) -> tuple[Source, MaskSource]:
        """A case, kept open for its next windows; a process may hold only so many files, and a case may be one a band."""
        if index not in self._opened:
            held = sum(_num_files(self.cases[i]) for i in self._opened) + _num_files(self.cases[index])
            while self._opened and held > most_files():
                held -= _num_files(self.cases[self._opened.popitem(last=False)[0]])
            self._opened[index] = self.open_case(self.cases[index])
        self._opened.move_to_end(index)
        opened: tuple[Source, MaskSource] = self._opened[index]
        return opened

    def tensors(self, sample: dict[str, NDArray[Any]], index: int) -> dict[str, Tensor]:
        """The sample of the contract."""
        mask = torch.from_numpy(np.ascontiguousarray(sample["mask"]))
        tensors = {
            "image": torch.from_numpy(np.ascontiguousarray(sample["image"], np.float32)),
            "mask": mask.long() if self.labels.exclusive else mask,
            "case": torch.tensor(index),
        }
        for name in sample.keys() & {"instances", "weight"}:
            tensors[name] = torch.from_numpy(np.ascontiguousarray(sample[name]))
        return tensors


class TrainWindows(Dataset[dict[str, Tensor]]):
    """Random windows. A sample follows from (seed, epoch, index) alone, so workers and resumes change nothing.

    A case is drawn by the square root of its size, so that large ones give more windows but small ones are not lost. A share
    `foreground` of the windows is laid over a place of a class that is drawn evenly among those of the case (the background
    left out), so that rare classes are seen; the others lie anywhere.

    Args:
        reader: Reads windows.
        window: Size of a window, `*S`.
        foreground: Share of windows laid over a class.
        seed: Of all samples.
        augment: What is done to a window; None for nothing.
        weigh: Gives the weight of each pixel of the augmented window, `[*S]`; None: samples have no `weight`.
    """

    def __init__(
        self,
        reader: Reader,
        window: Sequence[int],
        foreground: float,
        seed: int,
        augment: Augment | None,
        weigh: Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]] | None = None,
    ) -> None:
        self.reader, self.window, self.foreground, self.seed = reader, tuple(window), foreground, seed
        self.augment, self.weigh = augment, weigh
        sizes = np.array([np.prod(f.shape) for f in reader.facts], float)
        self._share = np.sqrt(sizes) / np.sqrt(sizes).sum()

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, number = place
        rng = np.random.default_rng([self.seed, epoch, number])
        index = int(rng.choice(len(self._share), p=self._share))
        facts = self.reader.facts[index]
        start = self._over_a_class(facts, rng) if rng.random() < self.foreground else self._anywhere(facts, rng)
        sample = self.reader.read(index, tuple(slice(s, s + w) for s, w in zip(start, self.window, strict=True)))
        if self.augment is not None:
            sample = self.augment(sample, rng)
        if self.weigh is not None:
            sample = {**sample, "weight": self.weigh(sample)}
        return self.reader.tensors(sample, index)

    def _anywhere(self, facts: Facts, rng: np.random.Generator) -> list[int]:
        return [_start(0, max(size - w, 0), size, w, rng) for size, w in zip(facts.shape, self.window, strict=True)]

    def _over_a_class(self, facts: Facts, rng: np.random.Generator) -> list[int]:
        present = [k for k in self.reader.labels.shown if facts.pixels[k]]
        if not present:
            return self._anywhere(facts, rng)
        cells = facts.cells[facts.cells[:, 0] == rng.choice(present)]
        edge = CELL[len(self.window)]
        cell = cells[rng.integers(len(cells)), 1:] * edge
        starts = []
        for first, size, w in zip(cell.tolist(), facts.shape, self.window, strict=True):
            # Over the whole cell: where in it the class is, nobody knows. A window smaller than a cell lies within it.
            least, most = sorted((min(first + edge, size) - w, first))
            starts.append(_start(max(least, 0), min(most, max(size - w, 0)), size, w, rng))
        return starts


class TileWindows(Dataset[dict[str, Tensor]]):
    """Tiles that cover every case, each pixel once: outside of its core a tile's mask is ignored.

    Index -1 is a sample that is ignored everywhere, to fill up a process's batches.
    """

    def __init__(self, reader: Reader, window: Sequence[int], margin: Sequence[int]) -> None:
        self.reader, self.window = reader, tuple(window)
        self.places: list[tuple[int, Tile]] = [
            (i, t) for i, f in enumerate(reader.facts) for t in tiles(f.shape, window, margin)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        index, tile = self.places[max(number, 0)]
        sample = self.reader.read(index, tile.window)
        outside = np.ones(self.window, bool)
        if number >= 0:
            outside[tile.inner] = False
        sample["mask"][..., outside] = IGNORE_INDEX
        return self.reader.tensors(sample, index)


class WindowSampler(Sampler[tuple[int, int]]):
    """(epoch, number) of each training window; every process takes each so-manyth batch's part of one common order.

    Args:
        num_batches: Of an epoch.
        batch_size: Of one process.
        rank: This process.
        num_processes: All of them.
    """

    def __init__(self, num_batches: int, batch_size: int, rank: int = 0, num_processes: int = 1) -> None:
        self.num_batches, self.batch_size, self.rank, self.num_processes = num_batches, batch_size, rank, num_processes
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def go_on(self, epoch: int, batches: int) -> None:
        """Let the next iteration start within an epoch, after so many batches."""
        self.epoch, self.first_batch = epoch, batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, self.first_batch = self.first_batch, 0
        epoch = self.epoch
        for batch in range(first, self.num_batches):
            # Number of the batch's first window in the common order, then this process's part of the global batch.
            start = (batch * self.num_processes + self.rank) * self.batch_size
            for number in range(start, start + self.batch_size):
                yield epoch, number


class EqualSampler(Sampler[int]):
    """Every index once over all processes, each process the same number of them: filled up with -1.

    No batch is one sample alone, unless all are: CPUs round its sums in another order, and the score would depend on how many there are.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, num_processes: int = 1) -> None:
        self.num_samples, self.batch_size, self.rank, self.num_processes = num_samples, batch_size, rank, num_processes

    def __len__(self) -> int:
        own = -(-self.num_samples // self.num_processes)
        return own + (own % self.batch_size == 1 < self.batch_size)

    def __iter__(self) -> Iterator[int]:
        for number in range(self.rank, len(self) * self.num_processes, self.num_processes):
            yield number if number < self.num_samples else -1


def most_files() -> int:
    """Files that one data set may hold open: few of them, as there are several such sets in a process."""
    return min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def _num_files(case: Case) -> int:
    return len(case.images) + (1 if case.objects else len(case.masks))


def _start(least: int, most: int, size: int, window: int, rng: np.random.Generator) -> int:
    """A window's start along one axis; a case smaller than the window lies at its middle."""
    if size < window:
        return -((window - size) // 2)
    return int(rng.integers(least, most + 1))


def _read_instances(mask_source: Any, window: Window) -> NDArray[np.int32]:
    """Numbers of objects in a window that may reach beyond the case; 0 there."""
    inside = tuple(
        slice(max(w.start, 0), max(min(w.stop, size), 0)) for w, size in zip(window, mask_source.shape, strict=True)
    )
    pads = [(i.start - w.start, w.stop - i.stop) for i, w in zip(inside, window, strict=True)]
    return np.pad(mask_source.instances(inside), pads)
