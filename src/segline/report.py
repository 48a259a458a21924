"""What a run says and leaves: the plan at its start, and tables and pictures of its best weights at its end."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from segline import pictures, tables
from segline.budget import Budget
from segline.data.datamodule import SegmentationDataModule
from segline.data.describe import describe
from segline.examples import by_tiles, examples
from segline.machine import peak
from segline.module import SegmentationModule
from segline.secrets import without_secrets
from segline.tables import COSTED, COSTS, SCORES

#: Picture of the first training samples.
AUGMENTED = "augmented.png"
_NUM_AUGMENTED = 6


def announce(
    config: DictConfig,
    run_dir: Path,
    data: SegmentationDataModule,
    module: SegmentationModule,
    trainer: pl.Trainer,
    budget: Budget,
) -> None:
    """Say what the run will do, and keep what it runs on in `environment.json` and what it sees in `augmented.png`."""
    weights = sum(p.numel() for p in module.network.parameters())
    layout = ", channels last" if module.channels_last else ""
    devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    if trainer.world_size > 1:
        devices += f", {data.batch_size // trainer.world_size} windows of a step each"
    if trainer.accumulate_grad_batches > 1:
        devices += f", {trainer.accumulate_grad_batches} times {data.batch_size} windows before the weights change"
    end = budget.end()
    lines = [
        f"run       {run_dir}",
        *describe(data),
        f"network   {config.run.choices.model}, {weights:,} weights; loss {config.run.choices.loss}",
        f"hardware  {devices}, {trainer.precision}{layout}",
        f"budget    {budget}, {f'until {end:%H:%M}' if end else 'the progress bar says until when'}",
        f"best      by {config.objective}",
    ]
    print("\n".join(lines), flush=True)
    (run_dir / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    if config.callbacks.pictures:
        _draw_augmented(run_dir / AUGMENTED, data)


def _draw_augmented(path: Path, data: SegmentationDataModule) -> None:
    """The first samples of the training, as the network will see them."""
    windows = data.train_dataset()
    samples = [windows[0, number] for number in range(_NUM_AUGMENTED)]
    arrays = [{key: sample[key].numpy() for key in sample.keys() & {"image", "mask", "weight"}} for sample in samples]
    pictures.save(pictures.augmented_grid(arrays, data.labels), path)


def environment() -> dict[str, Any]:
    """Versions, hardware and the state of the code."""
    packages = (
        "segline",
        "torch",
        "pytorch-lightning",
        "hydra-core",
        "torchmetrics",
        "segmentation-models-pytorch",
        "albumentations",
        "numpy",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout that was not installed
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": [without_secrets(word) for word in sys.argv],
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the code and the files that differ from it; None outside of a repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass(frozen=True)
class Result:
    """What the best weights reached on one split.

    Args:
        scores: Logged values without the split's name.
        rows: One plain row a case, with its name and group.
        confusion: Pixels, truth x prediction, `[K, K]`; None for overlapping labels.
    """

    scores: dict[str, float]
    rows: list[dict[str, Any]]
    confusion: NDArray[np.int64] | None


@dataclass(frozen=True)
class Report:
    """What a run leaves at its end, for those who show it elsewhere.

    Args:
        scores: Values of the best weights by logged name.
        pictures: Files.
        cases: Best, median and worst case: image, mask, pred and title.
    """

    scores: dict[str, float]
    pictures: list[Path]
    cases: list[dict[str, Any]]


def result(split: str, module: SegmentationModule, data: SegmentationDataModule) -> Result:
    """Collect what the last evaluation of a split measured."""
    table, confusion = module.counted[split]
    cases = data.cases[split]
    rows = [
        {
            "split": split,
            "case": cases[int(row["case"])].name,
            "group": cases[int(row["case"])].group,
            **_without(row, "case"),
        }
        for row in table
    ]
    prefix = f"{split}/"
    scores = {name.removeprefix(prefix): v for name, v in module.scores.items() if name.startswith(prefix) and v == v}
    return Result(scores, rows, confusion.numpy() if data.labels.exclusive else None)


def write(
    config: DictConfig,
    run_dir: Path,
    results: dict[str, Result],
    module: SegmentationModule,
    data: SegmentationDataModule,
) -> Report:
    """Leave tables and pictures of the best weights in the run folder, and print the table of the last split.

    The scores themselves are left to `finish`.
    """
    scores = {f"{split}/{name}": value for split, r in results.items() for name, value in r.scores.items()}
    tables.write_cases(run_dir / tables.CASES, [row for r in results.values() for row in r.rows])
    split, last = list(results.items())[-1]
    for style, ending in (("markdown", "md"), ("latex", "tex")):
        (run_dir / f"scores.{ending}").write_text(tables.class_table(last.scores, data.labels, split, style) + "\n")
    print("\n" + tables.class_table(last.scores, data.labels, split))
    if split == "val":
        print("There is no test part: these are scores of the validation part, which also picked the best weights.")
    if not config.callbacks.pictures:
        return Report(scores, [], [])
    shown = examples(data.cases[split], last.rows, by_tiles(module, data), data)
    drawn = {
        "curves": pictures.curves(tables.read_rows(run_dir / "metrics.csv"), config.objective),
        "cases": pictures.case_grid(shown, data.labels),
    }
    if last.confusion is not None:
        drawn["confusion"] = pictures.confusion_matrix(last.confusion, data.labels.names)
    for name, picture in drawn.items():
        pictures.save(picture, run_dir / f"{name}.png")
    return Report(scores, [run_dir / AUGMENTED, *(run_dir / f"{name}.png" for name in drawn)], shown)


def write_costs(
    run_dir: Path, module: SegmentationModule, trainer: pl.Trainer, budget: Budget, *, resumed: bool
) -> None:
    """Keep what the training took: weights, steps, seconds, processes, and memory of the first of these, at most.

    Memory is that of the GPU where there is one, else that of the whole process.
    """
    on_gpu = trainer.strategy.root_device.type == "cuda"
    memory = torch.cuda.max_memory_allocated(trainer.strategy.root_device) if on_gpu else peak()
    # A run that goes on may have nothing left but its last evaluation, which takes little.
    memory_mb = max(memory / 2**20, tables.read_json(run_dir / COSTS).get("memory_mb", 0.0) if resumed else 0.0)
    weights = sum(p.numel() for p in module.network.parameters())
    taken = (weights, trainer.global_step, budget.elapsed, trainer.world_size, memory_mb)
    tables.write_json(run_dir / COSTS, dict(zip(COSTED, taken, strict=True)))


def finish(run_dir: Path, scores: Mapping[str, float]) -> None:
    """Keep what the best weights reached, by logged name: the last file of a run, by which it is known to have ended."""
    tables.write_json(run_dir / SCORES, dict(sorted(scores.items())))


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}
