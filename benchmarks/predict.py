"""Prediction of large rasters and volumes: peak memory, speed beside the bare network's, and beside MONAI's sliding window.

    python benchmarks/predict.py                      rasters of 2,000 and 5,000 pixels, volumes of 64 and 128 slices
    python benchmarks/predict.py --raster 5000 20000 --volume 250 1000
    python benchmarks/predict.py --peers 2048         the same raster and network by rasterio and MONAI

Each file is predicted by a process of its own, by an untrained network: masks don't matter here, time and memory do. Volumes go to a
U-Net of three levels from 16 channels, rasters to SMP's U-Net with a ResNet-18, or with --small to that one, too, beside which all that
is around it shows.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import nibabel as nib
import numpy as np
import rasterio
import torch
from rasterio.windows import Window

from segline import checkpoints
from segline.card import Card
from segline.inference.network import build_network
from segline.inference.predict import predict_files
from segline.inference.predictor import Settings
from segline.io.raster import ENVIRONMENT
from segline.machine import keep_freed
from segline.precision import autocast, fast_precision, memory_format
from segline.tiling import tiles

WINDOWS = {"raster": [256, 256], "volume": [64, 64, 64]}
MARGINS = {"raster": [32, 32], "volume": [8, 8, 8]}
BANDS = {"raster": 4, "volume": 1}
SMALL: dict[str, Any] = {"_target_": "segline.models.unet.UNet", "channels": [16, 32, 64]}
NETWORKS: dict[str, dict[str, Any]] = {
    "raster": {"_target_": "segline.models.smp.SMP", "architecture": "unet", "encoder_name": "resnet18"},
    "volume": SMALL,
}
BATCH = 4
MEAN, STD = 5000.0, 2900.0


def write_raster(path: Path, size: int) -> None:
    """A GeoTIFF of 4 bands, uint16, in compressed blocks."""
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 4, "dtype": "uint16", "crs": "EPSG:32632"}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    place = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
    with rasterio.Env(**ENVIRONMENT), rasterio.open(path, "w", transform=place, **profile, **layout) as file:
        for row in range(0, size, 512):
            for column in range(0, size, 512):
                height, width = min(512, size - row), min(512, size - column)
                coarse = rng.integers(0, 10_000, (4, -(-height // 8), -(-width // 8)), np.uint16)
                block = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]
                file.write(block, window=Window(column, row, width, height))


def write_volume(path: Path, slices: int) -> None:
    """A compressed NIfTI volume of 512 x 512 x slices, int16."""
    coarse = np.random.default_rng(0).integers(-1000, 1000, (64, 64, -(-slices // 8))).astype(np.int16)
    voxels = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[..., :slices]
    nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.0, 1.0])), path)


def make_checkpoint(path: Path, kind: str) -> tuple[Card, torch.nn.Module]:
    bands, dims = BANDS[kind], len(WINDOWS[kind])
    card = Card(
        NETWORKS[kind] | {"in_channels": bands, "num_classes": 5, "spatial_dims": dims},
        {"classes": {f"class_{k}": k for k in range(5)}},
        {"scope": "dataset", "mean": [MEAN] * bands, "std": [STD] * bands},
        None,
        None,
        WINDOWS[kind],
        MARGINS[kind],
        fast_precision("cpu"),
    )
    torch.manual_seed(0)
    network = build_network(card)
    weights = {f"network.{name}": w for name, w in network.state_dict().items()}
    checkpoints.write({"card": card.to_dict(), "state_dict": weights}, path)
    return card, network


# Memory and speed


def predict(kind: str, file: Path, folder: Path) -> None:
    """What a process of its own does: predict, and say how long it took and how much memory."""
    checkpoint = folder / f"{kind}.ckpt"
    card, network = make_checkpoint(checkpoint, kind)
    keep_freed()
    bare = _bare(card, network)  # first, and alone
    start = time.perf_counter()
    predict_files(str(file), str(folder / "masks"), Settings(str(checkpoint), batch_size=BATCH))
    seconds = time.perf_counter() - start
    bare = (bare + _bare(card, network)) / 2  # and afterwards, for the machine's speed changes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shape = rasterio.open(file).shape if kind == "raster" else nib.load(file).shape[::-1]
    num_windows = len(tiles(shape, card.window, card.margin))
    print("RESULT", json.dumps({"peak": peak, "rate": num_windows / seconds, "bare": bare}))


def _bare(card: Card, network: torch.nn.Module) -> float:
    """Windows a second of the network alone, on a batch that is there."""
    layout = memory_format(2 + len(card.window))
    batch = torch.randn(BATCH, card.network["in_channels"], *card.window).to(memory_format=layout)
    network = network.to(memory_format=layout).eval()
    with torch.inference_mode(), autocast(torch.device("cpu"), card.precision):
        network(batch)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 10:
        with torch.inference_mode(), autocast(torch.device("cpu"), card.precision):
            network(batch)
        count += BATCH
    return count / (time.perf_counter() - start)


def measure(rasters: list[int], volumes: list[int], small: bool) -> None:
    print(
        "| file | peak memory, MB | windows/s | bare network, windows/s | ratio |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for kind, write, sizes, suffix in (
        ("raster", write_raster, rasters, "tif"),
        ("volume", write_volume, volumes, "nii.gz"),
    ):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{kind}.{suffix}"
                write(file, size)
                said = _in_own_process("--one", kind, str(file), folder, *(["--small"] if small else []))
                name = f"{size:,} x {size:,} x 4, uint16" if kind == "raster" else f"512 x 512 x {size:,}, int16"
                print(
                    f"| {name} | {said['peak']:.0f} | {said['rate']:.1f} | {said['bare']:.1f} | {said['rate'] / said['bare']:.2f} |",
                    flush=True,
                )


# Beside MONAI


def by_monai(file: Path, mask: Path, network: torch.nn.Module, mode: str, fast: bool) -> None:
    """The whole raster read, predicted by MONAI's sliding window at an overlap of a quarter, and written."""
    from monai.inferers import sliding_window_inference

    with rasterio.open(file) as source:
        image, profile = source.read(), source.profile
    batch = torch.from_numpy((image.astype(np.float32) - MEAN) / STD)[None]
    if fast:
        batch = batch.to(memory_format=torch.channels_last)
    network = network.to(memory_format=torch.channels_last if fast else torch.contiguous_format).eval()
    dtype = torch.bfloat16 if fast else None
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=fast):
        logits = sliding_window_inference(batch, WINDOWS["raster"], BATCH, network, overlap=0.25, mode=mode)
    profile |= {"count": 1, "dtype": "uint8", "nodata": None}
    with rasterio.open(mask, "w", **profile) as target:
        target.write(logits.argmax(1).numpy().astype(np.uint8))


#: How long a raster takes, by what does it: arguments of `Settings`, or of `by_monai`.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "segline, defaults": ("segline", {}),
    "segline, gaussian, float32": ("segline", {"blend": "gaussian", "overlap": 0.25, "precision": "32-true"}),
    "segline, gaussian, as trained": ("segline", {"blend": "gaussian", "overlap": 0.25}),
    "MONAI, defaults (float32)": ("monai", {"mode": "constant", "fast": False}),
    "MONAI, gaussian, float32": ("monai", {"mode": "gaussian", "fast": False}),
    "MONAI, gaussian, as trained": ("monai", {"mode": "gaussian", "fast": True}),
}


def time_way(way: str, folder: Path) -> None:
    """What a process of its own does: predict once to warm up, and once more to say how long it took and how much memory."""
    by, how = WAYS[way]
    card, network = make_checkpoint(folder / "raster.ckpt", "raster")

    def predict_all(name: str) -> None:
        if by == "segline":
            settings = Settings(str(folder / "raster.ckpt"), batch_size=BATCH, **how)
            predict_files(str(folder / name), str(folder / "masks"), settings)
        else:
            fast = how["fast"] and card.precision == "bf16-mixed"
            by_monai(folder / name, folder / "mask.tif", network, how["mode"], fast)

    predict_all("small.tif")
    start = time.perf_counter()
    predict_all("raster.tif")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT", json.dumps({"seconds": seconds, "peak": peak}))


def compare(size: int, rounds: int) -> None:
    """Megapixels a second of both: processes of their own, which take turns."""
    said: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, results in said.items():
            with tempfile.TemporaryDirectory() as folder:
                write_raster(Path(folder) / "raster.tif", size)
                write_raster(Path(folder) / "small.tif", 512)
                results.append(_in_own_process("--way", way, folder))
    median = {way: statistics.median(r["seconds"] for r in results) for way, results in said.items()}
    slowest = median["MONAI, defaults (float32)"]
    print(
        f"| {size:,} x {size:,} x 4 by | Mpx/s | times MONAI's defaults | peak memory, MB |\n| --- | ---: | ---: | ---: |"
    )
    for way, results in said.items():
        peak = max(r["peak"] for r in results)
        print(f"| {way} | {size**2 / 1e6 / median[way]:.2f} | {slowest / median[way]:.2f} | {peak:.0f} |")


def _in_own_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, float] = json.loads(done.stdout.rpartition("RESULT ")[2])
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raster", type=int, nargs="*", default=[2000, 5000], help="edges in pixels")
    parser.add_argument("--volume", type=int, nargs="*", default=[64, 128], help="slices of 512 x 512 voxels")
    parser.add_argument("--small", action="store_true", help="rasters, too, by the small U-Net")
    parser.add_argument("--peers", type=int, help="edge in pixels of the raster that MONAI predicts, too")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        NETWORKS["raster"] = SMALL
    if options.one:
        kind, file, folder = options.one
        predict(kind, Path(file), Path(folder))
    elif options.way:
        way, folder = options.way
        time_way(way, Path(folder))
    elif options.peers:
        compare(options.peers, options.rounds)
    else:
        measure(options.raster, options.volume, options.small)


if __name__ == "__main__":
    main()
