"""What it costs to name every pixel of an image: one dense pass, or a window of its own for each pixel.

    python benchmarks/patches.py                                 multiply-adds of all, times of the two small networks
    python benchmarks/patches.py --time alexnet vgg16 --size 64  times of the large ones, of a small image

Both forms have the same weights and give the same numbers. Multiply-adds are counted for the whole image. Times are of this machine,
float32, channels last, the best of rounds that take turns; those of windows are of one batch, the best of some sizes, times their number.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segline.models.patch_classifier import PatchClassifier

ARCHITECTURES = ("lenet5", "ciresan", "alexnet", "vgg16")
BATCHES, ROUNDS = (4, 16, 64, 256), 3
MOST = 3e11  # multiply-adds of a batch: the large networks need no large ones


def multiply_adds(call: Callable[[Tensor], Any], shape: Sequence[int]) -> int:
    """Of convolutions, for images of a shape; nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        call(torch.zeros(*shape))
    return counter.get_total_flops() // 2


def count(architecture: str, size: int) -> tuple[int, int]:
    """Multiply-adds of a grey image in dense form, and by windows."""
    with torch.device("meta"):
        network = PatchClassifier(1, 2, architecture=architecture).eval()
    window = (1, 1, network.window, network.window)
    return multiply_adds(network, (1, 1, size, size)), size**2 * multiply_adds(network.patches, window)


def seconds(call: Callable[[Tensor], Any], images: Tensor) -> float:
    """Of one call."""
    start = time.perf_counter()
    call(images)
    return time.perf_counter() - start


@torch.inference_mode()
def measure(architecture: str, size: int) -> tuple[float, float, int]:
    """Seconds of a grey image in dense form, and by windows, in batches of which size."""
    network = PatchClassifier(1, 2, architecture=architecture).eval().to(memory_format=torch.channels_last)
    each = count(architecture, 1)[1]
    image = torch.randn(1, 1, size, size)
    batches = [torch.randn(n, 1, network.window, network.window) for n in BATCHES if n * each <= MOST]
    rounds = [
        [seconds(network, image), *(seconds(network.patches, batch) / len(batch) for batch in batches)]
        for _ in range(1 + ROUNDS)
    ]
    dense, *windows = (min(times) for times in zip(*rounds[1:], strict=True))
    best = min(range(len(windows)), key=windows.__getitem__)
    return dense, windows[best] * size**2, len(batches[best])


def main() -> None:
    """Print a row for each architecture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=256, help="edge of the image")
    parser.add_argument("--time", nargs="*", choices=ARCHITECTURES, default=["lenet5", "ciresan"])
    arguments = parser.parse_args()
    size = arguments.size
    print(f"{size} x {size} pixels, {torch.get_num_threads()} threads")
    print("| architecture | window | multiply-adds, dense | by windows | ratio | seconds, dense | by windows | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for architecture in ARCHITECTURES:
        dense, windows = count(architecture, size)
        with torch.device("meta"):
            window = PatchClassifier(1, 2, architecture=architecture).window
        row = f"| {architecture} | {window} | {dense / 1e9:,.1f} G | {windows / 1e9:,.0f} G | {windows / dense:,.0f} |"
        if architecture in arguments.time:
            dense_s, windows_s, batch = measure(architecture, size)
            row += f" {dense_s:.2f} | {windows_s:,.0f}, batches of {batch} | {windows_s / dense_s:,.0f} |"
        print(row if architecture in arguments.time else f"{row} | | |", flush=True)


if __name__ == "__main__":
    main()
