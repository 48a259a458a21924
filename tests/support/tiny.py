"""Tiny networks with a card, and files for them to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segline import checkpoints
from segline.card import Card
from segline.inference import predict
from segline.inference.predictor import Settings
from segline.io.source import Geometry, Window
from segline.models.unet import UNet

UNET = {"_target_": "segline.models.unet.UNet", "channels": [4, 6], "norm": "none"}


def predict_files(checkpoint: Any, input: str, output: str, processes: int = 1, **how: Any) -> list[Path]:
    return predict.predict_files(input, output, Settings(checkpoint, **how), processes)


class Array:
    """An array as a source."""

    def __init__(self, values: np.ndarray) -> None:
        self.path, self.values, self.shape = Path("array"), values, values.shape[1:]
        self.num_bands, self.geometry = len(values), Geometry()

    def read(self, window: Window) -> np.ndarray:
        return self.values[(slice(None), *window)].copy()


def make_card(num_bands: int, dims: int = 2, classes: int = 3, **fields: Any) -> Card:
    plain: dict[str, Any] = {
        "network": {**UNET, "in_channels": num_bands, "num_classes": classes, "spatial_dims": dims},
        "labels": {"classes": {f"class_{k}": k for k in range(classes)}},
        "normalize": {"scope": "dataset", "mean": [100.0] * num_bands, "std": [50.0] * num_bands},
        "bands": None,
        "spacing_mm": None,
        "window": [48] * dims if dims == 2 else [24] * dims,
        "margin": [12] * dims if dims == 2 else [10] * dims,
        "trained_on": "tiny",
    }
    return Card(**{**plain, **fields})


def make_network(card: Card) -> UNet:
    """A network whose decision changes over an image."""
    torch.manual_seed(0)
    network = UNet(**{key: value for key, value in card.network.items() if key != "_target_"}).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():  # each class wins somewhere
        noise = torch.randn(1, card.network["in_channels"], *[24] * card.network["spatial_dims"])
        logits = network(noise).transpose(0, 1).flatten(1)
        network.head.weight /= logits.std(1).reshape(-1, *[1] * (network.head.weight.ndim - 1))
        network.head.bias.copy_((network.head.bias - logits.mean(1)) / logits.std(1))
    return network


def save(path: Path, card: Card, network: torch.nn.Module) -> str:
    weights = {f"network.{name}": w for name, w in network.state_dict().items()}
    checkpoints.write({"card": card.to_dict(), "state_dict": weights}, path)
    return str(path)


def pictures(folder: Path, *names: str, bands: int = 3) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if bands == 3 else "L", (9, 8)).save(folder / name)
