"""Training steps through the pipeline against a bare loop over the same loader, network, batch and precision.

    python benchmarks/steps.py [any override of src/train.py]

Then the same bare loop in float32, contiguous, against bfloat16, channels last. For 2D and 3D, each with the defaults of its data.
Medians of 30 steps, best of five rounds that take turns: the ratios hold anywhere, the times belong to the machine.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from segline import job
from segline.budget import read_budget
from segline.card import Card
from segline.config import build, compose
from segline.optim import parameter_groups
from segline.precision import fast_precision, memory_format

STEPS, WARMUP, ROUNDS = 30, 5, 5


class Stopwatch(pl.callbacks.Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def through_the_pipeline(config: DictConfig) -> float:
    """Median seconds a step."""
    data = build(config.data)
    data.prepare()
    module, watch = job._build_module(config, data), Stopwatch()
    card = Card(network=OmegaConf.to_container(config.model), **data.card_fields())  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        budget = read_budget(config.trainer)
        callbacks = [*job._build_callbacks(config, Path(folder), budget, card), watch]
        job._build_trainer(config, Path(folder), budget, callbacks).fit(module, data)
    return median_step(watch.ends)


def bare(config: DictConfig, low_precision: bool, channels_last: bool) -> float:
    """Median seconds a step of a plain loop."""
    data, network, loss = build(config.data), build(config.model), build(config.loss)
    data.prepare()
    layout = memory_format(2 + config.data.spatial_dims) if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    optimizer, ends = build(config.optimizer)(parameter_groups(network)), []
    for batch in data.train_dataloader():
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            logits = network(batch["image"].to(memory_format=layout))
        optimizer.zero_grad()
        loss(logits, batch["mask"]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.trainer.gradient_clip_val)
        optimizer.step()
        ends.append(time.perf_counter())
    return median_step(ends)


def median_step(ends: list[float]) -> float:
    """Of the steps after the warm-up."""
    return statistics.median(after - before for before, after in zip(ends[WARMUP:], ends[WARMUP + 1 :], strict=False))


def best(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The least of each side: what else the machine did can only add to it."""
    first, second = zip(*pairs, strict=True)
    return min(first), min(second)


def main() -> None:
    """Print both ratios for 2D and 3D."""
    job._silence()
    low = fast_precision("cpu") == "bf16-mixed"
    print(
        f"{torch.get_num_threads()} threads, {torch.cpu.get_capabilities().get('cpu_name', 'CPU')}, {'bfloat16' if low else 'float32'}"
    )
    for data in ("satellite", "biomedical3d"):
        fixed = ["trainer=cpu", "logger=none", f"data.steps_per_epoch={WARMUP + STEPS + 1}", "trainer.max_epochs=1"]
        composed = OmegaConf.to_container(compose([f"data={data}", *fixed, *sys.argv[1:]]), resolve=True)
        config = OmegaConf.create(
            {"run": {"name": "steps", "choices": {"data": data, "model": "", "loss": ""}}, **composed}
        )  # type: ignore[dict-item]
        layout = config.trainer.channels_last
        ours, plain = best((through_the_pipeline(config), bare(config, low, layout)) for _ in range(ROUNDS))
        slow, fast = best((bare(config, False, False), bare(config, True, True)) for _ in range(2))
        print(f"{data}: pipeline {ours * 1e3:.0f} ms, bare loop {plain * 1e3:.0f} ms a step: {ours / plain - 1:+.1%}")
        print(
            f"{data}: float32 contiguous {slow * 1e3:.0f} ms, bfloat16 channels last {fast * 1e3:.0f} ms: {slow / fast:.1f} x as fast"
        )


if __name__ == "__main__":
    main()
