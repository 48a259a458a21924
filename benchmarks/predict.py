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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
from segline.inference.network import build_network, on_arrays
from segline.inference.predict import predict_files
from segline.inference.predictor import Settings
from segline.memory import keep_freed
from segline.precision import fast_precision, memory_format

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
    with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(path, "w", transform=place, **profile, **layout) as file:
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
    card, network = make_checkpoint(folder / f"{kind}.ckpt", kind)
    keep_freed()
    bare = _bare(card, network)  # first, and alone
    start = time.perf_counter()
    predict_files(str(file), str(folder / "masks"), Settings(str(folder / f"{kind}.ckpt"), batch_size=BATCH))
    seconds = time.perf_counter() - start
    bare = (bare + _bare(card, network)) / 2  # and afterwards, for the machine's speed changes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shape = [int(size) for size in (rasterio.open(file).shape if kind == "raster" else nib.load(file).shape)]
    steps = [w - 2 * m for w, m in zip(card.window, card.margin, strict=True)]
    windows = int(np.prod([1 + max(0, -(-(n - w) // s)) for n, w, s in zip(shape, card.window, steps, strict=True)]))
    print("RESULT", json.dumps({"peak": peak, "rate": windows / seconds, "bare": bare}))


def _bare(card: Card, network: torch.nn.Module) -> float:
    """Windows a second of the network alone, on batches that are there."""
    call = on_arrays(
        network.to(memory_format=memory_format(2 + len(card.window))).eval(), torch.device("cpu"), card.precision
    )
    images = np.random.default_rng(0).normal(size=(BATCH, card.network["in_channels"], *card.window)).astype(np.float32)
    call(images)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 10:
        call(images)
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
                command = [sys.executable, __file__, "--one", kind, str(file), folder, *(["--small"] if small else [])]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                said = json.loads(done.stdout.rpartition("RESULT ")[2])
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


def compare(size: int, rounds: int) -> None:
    """Megapixels a second of both, taking turns in one process."""
    keep_freed()  # for both
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, checkpoint = folder / "raster.tif", folder / "raster.ckpt"
        write_raster(file, size)
        card, network = make_checkpoint(checkpoint, "raster")
        fast = card.precision == "bf16-mixed"

        def ours(number: int, **how: Any) -> None:
            predict_files(str(file), str(folder / f"ours{number}"), Settings(str(checkpoint), batch_size=BATCH, **how))

        ways: dict[str, Callable[[int], None]] = {
            "segline, defaults": lambda n: ours(n),
            "segline, gaussian, float32": lambda n: ours(n, blend="gaussian", overlap=0.25, precision="32-true"),
            "segline, gaussian, as trained": lambda n: ours(n, blend="gaussian", overlap=0.25),
            "MONAI, defaults (float32)": lambda _: by_monai(file, folder / "m.tif", network, "constant", False),
            "MONAI, gaussian, float32": lambda _: by_monai(file, folder / "m.tif", network, "gaussian", False),
            "MONAI, gaussian, as trained": lambda _: by_monai(file, folder / "m.tif", network, "gaussian", fast),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for place, (way, call) in enumerate(ways.items()):
                start = time.perf_counter()
                call(10 * number + place)
                seconds[way].append(time.perf_counter() - start)
    slowest = np.median(seconds["MONAI, defaults (float32)"])
    print(f"| {size:,} x {size:,} x 4 by | Mpx/s | times MONAI's defaults |\n| --- | ---: | ---: |")
    for way, taken in seconds.items():
        median = np.median(taken)
        print(f"| {way} | {size**2 / 1e6 / median:.2f} | {slowest / median:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raster", type=int, nargs="*", default=[2000, 5000], help="edges in pixels")
    parser.add_argument("--volume", type=int, nargs="*", default=[64, 128], help="slices of 512 x 512 voxels")
    parser.add_argument("--small", action="store_true", help="rasters, too, by the small U-Net")
    parser.add_argument("--peers", type=int, help="edge in pixels of the raster that MONAI predicts, too")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        NETWORKS["raster"] = SMALL
    if options.one:
        kind, file, folder = options.one
        predict(kind, Path(file), Path(folder))
    elif options.peers:
        compare(options.peers, options.rounds)
    else:
        measure(options.raster, options.volume, options.small)


if __name__ == "__main__":
    main()
