"""What a run says of its data before it starts."""

from __future__ import annotations

import numpy as np

from segline.data.cases import SPLITS
from segline.data.datamodule import SegmentationDataModule
from segline.io.source import say_size
from segline.words import count_of


def describe(data: SegmentationDataModule) -> list[str]:
    """Lines on cases, classes, bands and windows of prepared data, and what is odd about them."""
    labels, window = data.labels, say_size(data.window)
    tile = f"; evaluated by tiles of {say_size(data.tile)}" if data.tile != data.window else ""
    lines = [
        f"cases     {_parts(data)}{_blocks(data)}",
        f"classes   {_shares(data)} ({labels.scheme}{f', means without {labels.background}' if labels.background else ''})",
        f"bands     {data.in_channels}: {_ranges(data)}; normalised by the {data.normalize.scope}",
        f"windows   {window}, {data.batch_size} a step, {data.steps_per_epoch} steps an epoch, "
        f"{count_of(data.num_workers, 'worker')}{tile}",
    ]
    if shared := _shared(data):
        lines.insert(1, f"          beware: {', '.join(shared[:5])} is in more than one part (the official split)")
    return lines + [f"note      {note}" for note in data.notes]


def _parts(data: SegmentationDataModule) -> str:
    """Cases and groups of each part."""
    counts = {split: (len(cases), len({case.group for case in cases})) for split, cases in data.cases.items() if cases}
    return ", ".join(f"{split}: {cases} in {count_of(groups, 'group')}" for split, (cases, groups) in counts.items())


def _blocks(data: SegmentationDataModule) -> str:
    """Of what the cases are parts, where rasters are cut: neighbouring blocks of one scene are much alike."""
    if not data.blocks:
        return ""
    files = len({case.images[0] for cases in data.cases.values() for case in cases})
    return f" (blocks of {data.blocks} x {data.blocks} pixels, cut from {files} file{'s' if files != 1 else ''})"


def _shared(data: SegmentationDataModule) -> list[str]:
    """Groups that the training part shares with others."""
    groups = {split: {case.group for case in data.cases[split]} for split in SPLITS}
    return sorted(groups["train"] & (groups["val"] | groups["test"]))


def _shares(data: SegmentationDataModule) -> str:
    """Share of each class in the training pixels that count."""
    facts = [data.facts[case.name] for case in data.cases["train"]]
    total = max(sum(int(np.prod(f.shape)) - f.ignored for f in facts), 1)
    pixels = zip(data.labels.names, data.pixels("train"), strict=True)
    return ", ".join(f"{name} {count / total:.1%}" for name, count in pixels)


def _ranges(data: SegmentationDataModule) -> str:
    """Mean and deviation of each band in the training part."""
    bands = data.statistics()
    return "; ".join(f"{mean:.4g} ± {std:.3g}" for mean, std in zip(bands.mean, bands.std, strict=True))
