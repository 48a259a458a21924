"""Validation of 1 to 50 images by each process of one training: `python validated_sizes.py IMAGES RESULTS`, or by torch's launcher.

Each process leaves RESULTS/RANK_of_PROCESSES.json: by number of images, what was counted in each case and what was scored.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from segline.data.datamodule import SegmentationDataModule
from segline.labels import Labels
from segline.losses.combination import DiceCELoss
from segline.models.unet import UNet
from segline.module import SegmentationModule

SIZES = range(1, 51)
LABELS = Labels({"background": 0, "cell": 1, "rare": 2}, background="background", ignore=[9])


def write_images(root: Path) -> None:
    """One for training, and as many as the largest set has; one in seven is larger than a tile."""
    rng = np.random.default_rng(0)
    (root / "m").mkdir(parents=True)
    for number in range(SIZES[-1] + 1):
        shape = (16, 24) if number % 7 == 3 else (16, 16)
        Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(root / f"{number:02d}.png")
        Image.fromarray(rng.choice([0, 0, 1, 2, 9], shape).astype(np.uint8)).save(root / f"m/{number:02d}.png")


def read_data(root: Path) -> SegmentationDataModule:
    """All of the images, in batches of four by all processes together."""
    data = SegmentationDataModule(
        str(root), "{name}.png", "m/{name}.png", labels=LABELS, in_channels=1, spatial_dims=2, window=[16, 16], margin=[4, 4],
        batch_size=4, num_workers=0,
    )  # fmt: skip
    data.prepare()
    return data


def validate(root: Path) -> dict[str, Any]:
    """By number of images: rows of the cases, the confusion matrix, and scores."""
    torch.manual_seed(0)
    network = UNet(1, 3, channels=[4, 6], norm="none")
    data = read_data(root)
    cases = [case for split in data.cases.values() for case in split]
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False, use_distributed_sampler=False,
        plugins=[TorchElasticEnvironment() if processes > 1 else LightningEnvironment()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    measured = {}
    for size in SIZES:
        data.cases = {"train": [], "val": cases[:size], "test": []}
        names = {split: [case.name for case in own] for split, own in data.cases.items()}
        module = SegmentationModule(network, DiceCELoss(), LABELS, names, torch.optim.AdamW)
        trainer.validate(module, datamodule=data, verbose=False)
        rows, confusion = module.counted["val"]
        measured[str(size)] = {"rows": rows, "confusion": confusion.tolist(), "scores": module.scores}
    return measured


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    (Path(sys.argv[2]) / f"{rank}_of_{processes}.json").write_text(json.dumps(validate(Path(sys.argv[1]))))
