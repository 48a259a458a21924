"""Frames a second of whole networks on this CPU: torch and ONNX Runtime, on frames of 480 x 360 pixels.

    python benchmarks/frames.py                                    untrained networks, by architecture
    python benchmarks/frames.py runs/CAMVID best.ckpt              trained ones
    python benchmarks/frames.py --only unet fpn --rounds 40

Times are those of the network alone, one frame a call, medians of rounds that take turns. They belong to
the machine; OMP_NUM_THREADS sets how many threads both use.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import torch

from segline import checkpoints
from segline.card import Card
from segline.inference.export import export_network
from segline.inference.network import build_network, on_arrays
from segline.inference.onnx import num_threads, read, start
from segline.inference.tiled import Network
from segline.machine import keep_freed
from segline.precision import cast_weights, fast_precision, memory_format

SIZE, BANDS, CLASSES = (360, 480), 3, 11
UNET, SMP = "segline.models.unet.UNet", "segline.models.smp.SMP"
#: Name -> arguments of a network.
NETWORKS: dict[str, dict[str, Any]] = {
    "unet 8 16 32 64 128": {"_target_": UNET, "channels": [8, 16, 32, 64, 128]},
    "unet 16 32 64 128": {"_target_": UNET, "channels": [16, 32, 64, 128]},
    "unet 32 64 128 256": {"_target_": UNET, "channels": [32, 64, 128, 256]},
    "attention_unet 16 32 64 128": {
        "_target_": "segline.models.attention_unet.AttentionUNet",
        "channels": [16, 32, 64, 128],
    },
    "smp unet resnet18": {"_target_": SMP, "architecture": "unet", "encoder_name": "resnet18"},
    "smp fpn mobilenet_v2": {"_target_": SMP, "architecture": "fpn", "encoder_name": "mobilenet_v2"},
    "smp deeplabv3plus mobilenet_v2": {
        "_target_": SMP,
        "architecture": "deeplabv3plus",
        "encoder_name": "mobilenet_v2",
    },
}


def save_untrained(network: dict[str, Any], folder: Path) -> str:
    """A checkpoint of an untrained network."""
    card = Card(
        {**network, "in_channels": BANDS, "num_classes": CLASSES},
        {"classes": {f"class_{k}": k for k in range(CLASSES)}},
        {"scope": "dataset", "mean": [0.0] * BANDS, "std": [1.0] * BANDS},
        None,
        None,
        list(SIZE),
        [0, 0],
        fast_precision("cpu"),
    )
    torch.manual_seed(0)
    weights = {f"network.{name}": weight for name, weight in build_network(card).state_dict().items()}
    path = folder / "untrained.ckpt"
    checkpoints.write({"card": card.to_dict(), "state_dict": weights}, path)
    return str(path)


def runners(checkpoint: str, folder: Path) -> tuple[Card, dict[str, Network], float]:
    """The network of a checkpoint in each way of running it, and its size in millions of weights."""
    card, weights = checkpoints.read_network(checkpoint)
    network = build_network(card)
    network.load_state_dict(weights)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    with contextlib.redirect_stdout(io.StringIO()):
        path = export_network(checkpoint, str(folder / "network.onnx"))
    network, cpu = network.eval().to(memory_format=memory_format(2 + len(card.window))), torch.device("cpu")
    ways = {"torch, float32": on_arrays(copy.deepcopy(network), cpu, "32-true")} if card.precision != "32-true" else {}
    cast_weights(network, cpu, card.precision)  # as prediction does
    ways["torch, precision of the card"] = on_arrays(network, cpu, card.precision)
    ways["ONNX Runtime"] = start(path, read(path)[1], card, "cpu")[0]
    return card, ways, millions


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that what else the machine does meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 3):  # the first ones warm up
        for name, call in ways.items():
            begin = time.perf_counter()
            call()
            if turn >= 3:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(all_) for name, all_ in times.items()}


def row(name: str, checkpoint: str, folder: Path, rounds: int) -> str:
    """A line of the table."""
    card, ways, millions = runners(checkpoint, folder)
    bands = card.network["in_channels"]
    image = np.random.default_rng(0).normal(size=(1, bands, *SIZE)).astype(np.float32)

    def on_image(network: Network) -> Callable[[], object]:
        return lambda: network(image)

    seconds = measure({way: on_image(network) for way, network in ways.items()}, rounds)
    own, plain = seconds["torch, precision of the card"], seconds.get("torch, float32")
    cells = [
        name,
        f"{millions:.1f}",
        f"{1 / own:.1f} ({card.precision})",
        f"{1 / (plain or own):.1f}",
        f"{1 / seconds['ONNX Runtime']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", help="runs or .ckpt files; without any, untrained networks")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="of the untrained networks those whose names hold one of these"
    )
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(num_threads())
    keep_freed()
    print(f"{num_threads()} threads; frames a second of {SIZE[1]} x {SIZE[0]} pixels\n", flush=True)
    print("| network | M weights | torch, its precision | torch, float32 | ONNX Runtime, float32 |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    wanted = {name: net for name, net in NETWORKS.items() if any(part in name for part in options.only)}
    for name in options.checkpoints or wanted:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = name if options.checkpoints else save_untrained(wanted[name], Path(folder))
            print(row(name, checkpoint, Path(folder), options.rounds), flush=True)


if __name__ == "__main__":
    main()
