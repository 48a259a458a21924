"""The data of a task: found, looked at, split, normalised and served, the same way for every domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from segline.data.cases import Case, Found, Group, find_cases, list_faults, read_table
from segline.data.loaders import Loader, make_loader, spare_cores
from segline.data.scan import Facts, merge_statistics, scan
from segline.data.splits import cut_blocks, split_cases
from segline.data.synthetic import VERSION
from segline.data.windows import Augment, EqualSampler, Reader, TileWindows, TrainWindows, WindowSampler
from segline.io.cache import cache_dir
from segline.io.normalize import BandStatistics, Normalize
from segline.io.open import open_image, open_mask
from segline.io.source import Block, MaskSource, Source
from segline.io.vectors import Burn
from segline.labels import Labels
from segline.weight_map import BorderWeights
from segline.words import count_of


class SegmentationDataModule(pl.LightningDataModule):
    """Images with masks, from files in their native layout to batches.

    Args:
        root: Folder of the data set; None: the domain's synthetic scenes, written once into the cache.
        images: Template of the images' paths below `root`; a list of templates is one file a band.
        masks: Template of the masks' paths; `*` in it means one file an object.
        table: Instead of templates: a CSV below `root`, or rows, of image, mask and perhaps name, group, split, burn.
        labels: Meaning of the masks.
        in_channels: Bands that the network gets.
        spatial_dims: 2 for images, 3 for volumes.
        window: Size of a training window in pixels, `*S`.
        margin: Context at each inner border of a tile, `*S`.
        tile: Size of a tile in evaluation and prediction, `*S`; None: that of a training window.
        group: Field or expression that finds a case's group, or the length of runs of neighbours; None: each case by itself.
        val: Share of the groups for validation, where there is no official split.
        test: Share of the groups for the test.
        fold: Of a cross-validation, which fold is the test part and how many there are; None: none.
        blocks: Cut each raster into blocks of this size and split those; None: whole files.
        bands: Bands to use, counted from 1; None: all.
        spacing_mm: Spacing that volumes are resampled to, `(D, H, W)`; None: the files' own.
        burn: What polygons burn, for vector masks: an id, an attribute, or {attribute: {value: id}}.
        normalize: `dataset` or `case`: whose mean and deviation.
        foreground: Share of training windows that are laid over a class drawn evenly.
        batch_size: Windows a step, of all processes together.
        steps_per_epoch: Batches between two validations.
        augment: What is done to training windows; None for nothing.
        weight_map: Gives each pixel of a training window its weight in the loss, which balances the classes, too; None: all weigh 1.
        num_workers: Processes that load; None: one for each core that training leaves, 16 at most.
        seed: Of all samples.
        origin: Where the data set comes from, for the message when it is missing.
    """

    #: Whether its images may show what is outdoors, where there is weather.
    outdoors = True

    def __init__(
        self,
        root: str | None,
        images: str | Sequence[str],
        masks: str,
        *,
        labels: Labels,
        in_channels: int,
        spatial_dims: int,
        window: Sequence[int],
        margin: Sequence[int],
        tile: Sequence[int] | None = None,
        table: str | Sequence[Mapping[str, Any]] | None = None,
        group: Group = None,
        val: float = 0.2,
        test: float = 0.0,
        fold: Sequence[int] | None = None,
        blocks: int | None = None,
        bands: Sequence[int] | None = None,
        spacing_mm: Sequence[float] | None = None,
        burn: Burn = 1,
        normalize: str = "dataset",
        foreground: float = 0.5,
        batch_size: int = 4,
        steps_per_epoch: int = 25,
        augment: Augment | None = None,
        weight_map: BorderWeights | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        origin: str | None = None,
    ) -> None:
        super().__init__()
        self.root, self.images, self.masks, self.table, self.origin = root, images, masks, table, origin
        self.labels, self.in_channels, self.spatial_dims = labels, in_channels, spatial_dims
        for name, size in {"window": window, "tile": tile, "margin": margin}.items():
            if isinstance(size, int):
                raise ValueError(f"data.{name} is {size}; expected a number for each axis: {spatial_dims * [size]}")
        self.window, self.tile, self.margin = list(window), list(tile or window), list(margin)
        self.group, self.val, self.test, self.fold, self.blocks = group, val, test, fold, blocks
        self.bands, self.spacing_mm, self.burn = bands, spacing_mm, burn
        self.normalize, self.foreground, self.augment, self.seed = Normalize(normalize), foreground, augment, seed
        self.weight_map = weight_map
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.num_workers = spare_cores() if num_workers is None else num_workers
        self.cases: dict[str, list[Case]] = {}
        self.facts: dict[str, Facts] = {}
        self.notes: list[str] = []
        self._progress = (0, 0)  # epoch and batches that a resume starts after
        self._check_settings()

    def _check_settings(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("steps_per_epoch", self.steps_per_epoch)):
            if value < 1:
                raise ValueError(f"data.{name} is {value}; expected 1 or more")
        sizes = {"window": self.window, "tile": self.tile, "margin": self.margin}
        if any(len(size) != self.spatial_dims for size in sizes.values()):
            said = ", ".join(f"data.{name} is {size}" for name, size in sizes.items())
            raise ValueError(f"{said}; expected {self.spatial_dims} sizes each")
        if self.blocks and self.normalize.scope == "case":
            raise ValueError(
                "data.blocks cuts a file into cases, but prediction sees whole files: data.normalize=case would measure other "
                "pixels in each; set data.normalize=dataset"
            )
        if self.bands is not None and len(self.bands) != self.in_channels:
            num = len(self.bands)
            raise ValueError(
                f"data.bands names {count_of(num, 'band')} but data.in_channels is {self.in_channels}; set data.in_channels={num}"
            )

    # Preparation

    def prepare(self, needed: Sequence[str] = ("train", "val")) -> None:
        """Find, look at, split and check the data, and fit the normalisation; the second call does nothing.

        Args:
            needed: As in `segline.data.splits.split_cases`. Without a training part, `normalize` must have its statistics already.

        Raises:
            ValueError: All faults of the data at once.
        """
        if self.cases:
            return
        cases, faults, notes = self._find()
        settings = (self.bands, self.spacing_mm)
        if self.blocks:
            cases = self._cut(cases, self.blocks, faults)
        self.facts = scan(cases, lambda case: self.open(case)[:2], self.labels, settings)
        faults += [self._say(case, fault) for case in cases for fault in self.facts[case.name].faults]
        faults += [fault for case in cases if not self.facts[case.name].faults for fault in self._check_bands(case)]
        if faults:
            raise ValueError(list_faults(faults))
        reasons = {case: reason for case in cases if (reason := self.facts[case.name].empty)}
        used = [case for case in cases if case not in reasons]
        self.notes = [*notes, *(f"{case.name}: {reason}" for case, reason in reasons.items())]
        if not used:
            listed = list_faults(f"{case.images[0]}: {reason}" for case, reason in reasons.items())
            raise ValueError(
                f"{listed}\nnothing is left to train on; are data.labels.ignore and the files' no-data values right?"
            )
        self.cases = split_cases(used, self.val, self.test, needed, self.fold)
        if self.cases["train"]:
            self._check_classes()
        if self.normalize.scope == "dataset" and self.normalize.mean is None:
            statistics = self.statistics()
            self.normalize = Normalize("dataset", statistics.mean.tolist(), statistics.std.tolist())

    def setup(self, stage: str) -> None:
        """Lightning's name for it."""
        self.prepare()

    def synthesise(self, root: Path) -> None:
        """Write the domain's synthetic scenes into a folder."""
        raise ValueError("data.root is null, but this data set has no synthetic scenes; set data.root to its folder")

    def _find(self) -> Found:
        root = self._root()
        if not root.is_dir():
            where = f" It comes from {self.origin}." if self.origin else ""
            raise ValueError(
                f"there is no folder {root}; set data.root to where the data set lies, or SEGLINE_DATA to the folder above.{where}"
            )
        if self.table:
            return read_table(self.table, root, self.group, self.burn)
        return find_cases(root, self.images, self.masks, self.group, self.burn)

    def _cut(self, cases: Sequence[Case], size: int, faults: list[str]) -> list[Case]:
        """Blocks of all cases that can be opened."""
        blocks = []
        for case in cases:
            try:
                blocks += cut_blocks(case, open_image(case.images, spacing_mm=self.spacing_mm).shape, size)
            except ValueError as error:
                faults.append(self._say(case, str(error)))
        return blocks

    def _root(self) -> Path:
        if self.root is not None:
            return Path(self.root).expanduser()
        templates = [self.images, self.masks] if isinstance(self.images, str) else [*self.images, self.masks]
        if not self.table and all(Path(template).is_absolute() for template in templates):
            return Path("/")
        root = cache_dir() / "synthetic" / f"{type(self).__module__.rsplit('.', 1)[-1]}-{VERSION}"
        self.synthesise(root)
        return root

    def _say(self, case: Case, fault: str) -> str:
        return (
            fault if any(str(path) in fault for path in (*case.images, *case.masks)) else f"{case.images[0]}: {fault}"
        )

    def _check_bands(self, case: Case) -> list[str]:
        facts = self.facts[case.name]
        if facts.num_bands != self.in_channels:
            some = list(range(1, self.in_channels + 1))
            how = f" or data.bands={some}" if facts.num_bands > self.in_channels else ""
            return [
                f"data.in_channels is {self.in_channels} but {case.images[0]} has {count_of(facts.num_bands, 'band')}; "
                f"set data.in_channels={facts.num_bands}{how}"
            ]
        if len(facts.shape) != self.spatial_dims:
            return [f"data.spatial_dims is {self.spatial_dims} but {case.images[0]} has {len(facts.shape)} dimensions"]
        return []

    def _check_classes(self) -> None:
        """Say which classes cannot be learnt: it may be a long tail, or an id that was mistyped."""
        absent = [name for name, count in zip(self.labels.names, self.pixels("train"), strict=True) if not count]
        if absent:
            self.notes.append(f"never in the training part, so not to be learnt: {', '.join(absent)}")

    # What the job asks for

    def open(self, case: Case) -> tuple[Source, MaskSource, BandStatistics | None]:
        """Image and mask of a case, and the statistics of its bands once it was scanned."""
        image = open_image(case.images, bands=self.bands, spacing_mm=self.spacing_mm)
        mask = open_mask(
            case.masks, self.labels, like=image, burn=case.burn, spacing_mm=self.spacing_mm, objects=case.objects
        )
        statistics = self.facts[case.name].statistics if case.name in self.facts else None
        if case.block:
            return Block(image, case.block), Block(mask, case.block), statistics
        return image, mask, statistics

    def pixels(self, split: str) -> np.ndarray:
        """Pixels of each class in a part, `[K]`."""
        return np.sum([self.facts[case.name].pixels for case in self.cases[split]], axis=0)

    def statistics(self) -> BandStatistics:
        """Of the training part's bands."""
        return merge_statistics([self.facts[case.name] for case in self.cases["train"]])

    def class_weights(self) -> list[float]:
        """Inverse of each class's share of the training pixels, to the power of one half, with a mean of 1; 0 where it never occurs.

        The root keeps classes of a thousandth from drowning the others, as the plain inverse would.
        """
        pixels = self.pixels("train").astype(float)
        weights = np.where(pixels > 0, 1 / np.sqrt(np.maximum(pixels, 1)), 0.0)
        return (weights / weights[weights > 0].mean()).tolist()

    def card_fields(self) -> dict[str, Any]:
        """What the card of a checkpoint says of the data."""
        return {
            "labels": self.labels.to_dict(),
            "normalize": self.normalize.to_dict(),
            "bands": None if self.bands is None else list(self.bands),
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "window": self.tile,
            "margin": self.margin,
        }

    # Loaders

    def go_on(self, epoch: int, batches: int) -> None:
        """Let training start within an epoch, after so many batches: for a resume."""
        self._progress = (epoch, batches)

    def reader(self, split: str, instances: bool = False) -> Reader:
        """Reads samples of a part."""
        cases = self.cases[split]
        return Reader(
            cases,
            [self.facts[case.name] for case in cases],
            lambda case: self.open(case)[:2],
            self.normalize,
            self.labels,
            instances,
        )

    def train_dataset(self) -> TrainWindows:
        """Random windows of the training part."""
        weigh = None
        if self.weight_map is not None:
            weigh = partial(self.weight_map, labels=self.labels, class_weights=self.class_weights())
        reader = self.reader("train", instances=weigh is not None)
        return TrainWindows(reader, self.window, self.foreground, self.seed, self.augment, weigh)

    def train_dataloader(self) -> Loader:
        """Batches of random windows."""
        rank, processes, own = self._share()
        sampler = WindowSampler(self.steps_per_epoch, own, rank, processes)
        sampler.go_on(*self._progress)
        return make_loader(self.train_dataset(), sampler, own, self.num_workers)

    def val_dataloader(self) -> Loader:
        """Tiles of the validation part."""
        return self._tiles("val")

    def test_dataloader(self) -> Loader:
        """Tiles of the test part."""
        return self._tiles("test")

    def _tiles(self, split: str) -> Loader:
        rank, processes, own = self._share()
        dataset = TileWindows(self.reader(split), self.tile, self.margin)
        return make_loader(dataset, EqualSampler(len(dataset), own, rank, processes), own, self.num_workers)

    def _share(self) -> tuple[int, int, int]:
        """This process's number, how many there are, and its windows of a step: the step is the same whatever their number is."""
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        if self.batch_size % processes:
            fitting = processes * max(1, self.batch_size // processes)
            raise ValueError(
                f"data.batch_size is {self.batch_size}, windows a step of all processes together, which {processes} cannot share "
                f"equally; set data.batch_size={fitting} or {fitting + processes}"
            )
        return rank, processes, self.batch_size // processes
