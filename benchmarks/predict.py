"""Prediction of large rasters and volumes: peak memory, and windows a second beside the bare network's.

    python benchmarks/predict.py                      a raster of 2,000 and one of 8,000 pixels, a volume of 64 and one of 256 slices
    python benchmarks/predict.py --raster 5000 20000 --volume 250 1000

Each file is predicted by a process of its own, by an untrained U-Net: masks don't matter here, time and memory do.
"""

from __future__ import annotations

import argparse
import json
import resource
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
from segline.inference.network import on_arrays
from segline.inference.predict import predict_files
from segline.memory import keep_freed
from segline.models.unet import UNet
from segline.precision import fast_precision, memory_format

WINDOWS = {"raster": [256, 256], "volume": [64, 64, 64]}
MARGINS = {"raster": [32, 32], "volume": [8, 8, 8]}
BANDS = {"raster": 4, "volume": 1}
BATCH = 4


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


def make_checkpoint(path: Path, kind: str) -> tuple[Card, UNet]:
    bands, dims = BANDS[kind], len(WINDOWS[kind])
    arguments: dict[str, Any] = {"in_channels": bands, "num_classes": 5, "spatial_dims": dims, "channels": [16, 32, 64]}
    card = Card(
        {"_target_": "segline.models.unet.UNet", **arguments},
        {"classes": {f"class_{k}": k for k in range(5)}},
        {"scope": "dataset", "mean": [5000.0] * bands, "std": [2900.0] * bands},
        None,
        None,
        WINDOWS[kind],
        MARGINS[kind],
        fast_precision("cpu"),
    )
    torch.manual_seed(0)
    network = UNet(**arguments)
    weights = {f"network.{name}": w for name, w in network.state_dict().items()}
    checkpoints.write({"card": card.to_dict(), "state_dict": weights}, path)
    return card, network


def predict(kind: str, file: Path, folder: Path) -> None:
    """What a process of its own does: predict, and say how long it took and how much memory."""
    card, network = make_checkpoint(folder / f"{kind}.ckpt", kind)
    keep_freed()
    bare = _bare(card, network)  # first, and alone
    start = time.perf_counter()
    predict_files(str(folder / f"{kind}.ckpt"), str(file), str(folder / "masks"), batch_size=BATCH)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shape = [int(size) for size in (rasterio.open(file).shape if kind == "raster" else nib.load(file).shape)]
    steps = [w - 2 * m for w, m in zip(card.window, card.margin, strict=True)]
    windows = int(np.prod([1 + max(0, -(-(n - w) // s)) for n, w, s in zip(shape, card.window, steps, strict=True)]))
    print("RESULT", json.dumps({"peak": peak, "rate": windows / seconds, "bare": bare}))


def _bare(card: Card, network: UNet) -> float:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raster", type=int, nargs="*", default=[2000, 8000], help="edges in pixels")
    parser.add_argument("--volume", type=int, nargs="*", default=[64, 256], help="slices of 512 x 512 voxels")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, file, folder = options.one
        predict(kind, Path(file), Path(folder))
        return
    print(
        "| file | peak memory, MB | windows/s | bare network, windows/s | ratio |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for kind, write, sizes, suffix in (
        ("raster", write_raster, options.raster, "tif"),
        ("volume", write_volume, options.volume, "nii.gz"),
    ):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{kind}.{suffix}"
                write(file, size)
                command = [sys.executable, __file__, "--one", kind, str(file), folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                said = json.loads(done.stdout.rpartition("RESULT ")[2])
                name = f"{size:,} x {size:,} x 4, uint16" if kind == "raster" else f"512 x 512 x {size:,}, int16"
                print(
                    f"| {name} | {said['peak']:.0f} | {said['rate']:.1f} | {said['bare']:.1f} | {said['rate'] / said['bare']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
