"""Training steps through src/train.py against a bare loop over the same loader, network, batch and precision.

    python benchmarks/steps.py [data=biomedical3d] [any override of src/train.py]

Also prints what precision and memory format give: float32 contiguous against bfloat16 channels last. Ratios of medians of 30 steps
in one process; absolute times belong to the machine.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from segline import job
from segline.config import build, compose
from segline.module import memory_format
from segline.optim import parameter_groups

STEPS, WARMUP = 30, 5


class Stopwatch(pl.callbacks.Callback):
    """Times from one step's end to the next one's."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def through_lightning(config: Any, run_dir: Path) -> float:
    """Median seconds a step of the whole pipeline."""
    data = build(config.data)
    data.prepare()
    module = job._build_module(config, data)
    card = job.Card(network=OmegaConf.to_container(config.model), **data.card_fields())
    trainer = job._build_trainer(config, run_dir, card)
    watch = Stopwatch()
    trainer.callbacks.append(watch)
    trainer.fit(module, data)
    return statistics.median(b - a for a, b in zip(watch.ends[WARMUP:], watch.ends[WARMUP + 1 :], strict=False))


def bare(config: Any, low_precision: bool, channels_last: bool) -> float:
    """Median seconds a step of a plain loop."""
    data = build(config.data)
    data.prepare()
    network, loss = build(config.model), build(config.loss)
    layout = memory_format(2 + config.data.spatial_dims) if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    optimizer = build(config.optimizer)(parameter_groups(network))
    ends = []
    for step, batch in enumerate(data.train_dataloader()):
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            logits = network(batch["image"].to(memory_format=layout))
        optimizer.zero_grad()
        loss(logits, batch["mask"]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.trainer.gradient_clip_val)
        optimizer.step()
        ends.append(time.perf_counter())
        if step == WARMUP + STEPS:
            break
    return statistics.median(b - a for a, b in zip(ends[WARMUP:], ends[WARMUP + 1 :], strict=False))


def main() -> None:
    """Print the ratios."""
    overrides = [
        "trainer=cpu",
        "logger=none",
        f"data.steps_per_epoch={WARMUP + STEPS + 2}",
        "trainer.max_epochs=1",
        *sys.argv[1:],
    ]
    composed = compose(overrides)
    config = OmegaConf.create(
        {
            "run": {"name": "steps", "data": "data", "model": "model", "loss": "loss"},
            **OmegaConf.to_container(composed, resolve=True),
        }
    )
    low = job.fast_precision("cpu") == "bf16-mixed"
    job._silence()
    rounds = []
    for _ in range(3):  # interleaved, so that a slow minute of the machine hits both
        with tempfile.TemporaryDirectory() as folder:
            rounds.append((through_lightning(config, Path(folder)), bare(config, low, config.trainer.channels_last)))
    ours, plain = (min(values) for values in zip(*rounds, strict=True))
    print(f"pipeline {ours * 1e3:.0f} ms, bare loop {plain * 1e3:.0f} ms a step: {ours / plain - 1:+.1%}")
    slow, fast = bare(config, False, False), bare(config, True, True)
    print(
        f"float32 contiguous {slow * 1e3:.0f} ms, bfloat16 channels last {fast * 1e3:.0f} ms a step: {slow / fast:.1f} times as fast"
    )


if __name__ == "__main__":
    main()
