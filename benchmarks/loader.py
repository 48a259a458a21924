"""Windows a second that the loader gives for each kind of file, beside those that the default network trains on.

    python benchmarks/loader.py [any override of src/train.py]

The synthetic scenes of each domain, with their augmentation and the default number of workers. The loader runs alone here; in
training it shares the cores with the network, so it should be several times as fast.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch

from segline.config import build, compose
from segline.precision import fast_precision, memory_format

KINDS = {"satellite": "GeoTIFF, uint16", "biomedical": "TIFF, 16 bit", "driving": "PNG", "biomedical3d": "NIfTI"}
STEPS, WARMUP = 20, 3


def rate(step: Callable[[], Any], windows: int) -> float:
    """Windows a second of a step that takes so many."""
    for _ in range(WARMUP):
        step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return windows * STEPS / (time.perf_counter() - start)


def trained(config: Any, batch: dict[str, torch.Tensor]) -> float:
    """Windows a second that the network trains on."""
    layout = memory_format(batch["image"].ndim)
    network, loss = build(config.model).to(memory_format=layout), build(config.loss)
    image = batch["image"].to(memory_format=layout)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_precision("cpu") == "bf16-mixed"):
            logits = network(image)
        loss(logits, batch["mask"]).backward()

    return rate(step, len(image))


def main() -> None:
    """Print a row for each domain."""
    print("| data | files | window | loader, windows/s | network, windows/s | ratio |")
    print("|---|---|---|---:|---:|---:|")
    for data, kind in KINDS.items():
        config = compose([f"data={data}", f"data.steps_per_epoch={STEPS + WARMUP + 5}", *sys.argv[1:]])
        module = build(config.data)
        module.prepare()
        batches = iter(module.train_dataloader())
        batch = next(batches)
        loaded = rate(lambda batches=batches: next(batches), config.data.batch_size)  # type: ignore[misc]
        del batches  # ends its workers
        eaten = trained(config, batch)
        window = " x ".join(map(str, config.data.window))
        print(f"| {data} | {kind} | {window} | {loaded:.1f} | {eaten:.1f} | {loaded / eaten:.1f} |", flush=True)


if __name__ == "__main__":
    main()
