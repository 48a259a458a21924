"""Masks of whole files from a checkpoint, in the format that came in."""

from __future__ import annotations

import glob
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from segline.card import Card
from segline.checkpoints import read_network
from segline.inference.tiled import Network, predict_tiles
from segline.io.normalize import Normalize, measure
from segline.io.open import open_image, open_sink
from segline.io.source import Source
from segline.labels import Labels

#: What a folder is searched for.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz")


def predict_files(
    checkpoint: str, input: str, output: str, batch_size: int = 4, device: str = "auto", trust: Sequence[str] = ()
) -> list[Path]:
    """Predict each file of `input` (a file, a folder or a glob) into the folder `output`, under its own name.

    Raises:
        ValueError: The checkpoint or the input is not what it should be, or `output` would overwrite the input.
    """
    card, weights = read_network(checkpoint)
    files = _find(input)
    folder = Path(output)
    if any(file.parent.resolve() == folder.resolve() for file in files):
        raise ValueError(
            f"output={output} is the folder of the input, whose files would be overwritten; name another folder"
        )
    labels, network = Labels(**card.labels), _callable(card, weights, device, trust)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file in tqdm(files, unit="file", desc="predict", disable=len(files) == 1):
        source = open_image([file], bands=card.bands, spacing_mm=card.spacing_mm)
        written.append(_predict_file(network, card, labels, source, folder / file.name, batch_size))
    print(f"{len(written)} mask{'s' if len(written) != 1 else ''} in {folder}: {', '.join(labels.names)}")
    return written


def _predict_file(network: Network, card: Card, labels: Labels, source: Source, path: Path, batch_size: int) -> Path:
    channels = card.network["in_channels"]
    if source.num_bands != channels:
        raise ValueError(
            f"{source.path} has {source.num_bands} bands, but the network was trained on {channels} ({card.trained_on})"
        )
    normalize = Normalize(**card.normalize)
    statistics = measure(source) if normalize.scope == "case" else None
    with open_sink(path, source, labels) as sink:
        for core, logits in predict_tiles(network, source, normalize, statistics, card.window, card.margin, batch_size):
            sink.write(core, labels.decide(labels.probs(logits[None]))[0].astype(np.uint8))
    return path


def build_network(card: Card, trust: Sequence[str] = ()) -> torch.nn.Module:
    """The network that a card names, with its arguments and nothing else.

    Raises:
        ValueError: The card names something outside `segline.models`, and not in a package that `trust` lists.
    """
    arguments = dict(card.network)
    target = str(arguments.pop("_target_"))
    module, _, name = target.rpartition(".")
    if not any(module == package or module.startswith(f"{package}.") for package in ("segline.models", *trust)):
        raise ValueError(
            f"the checkpoint's network is {target}, which is not segline's own; add trust=[{module.split('.')[0]}] if you trust its code"
        )
    if nested := [key for key, value in arguments.items() if "_target_" in str(value)]:
        raise ValueError(
            f"the checkpoint's network has arguments that name code ({', '.join(nested)}); expected plain values"
        )
    kind = getattr(importlib.import_module(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ValueError(f"the checkpoint's network is {target}, which is not a torch.nn.Module")
    return kind(**{**arguments, **({"encoder_weights": None} if "encoder_weights" in arguments else {})})


def _callable(card: Card, weights: dict[str, torch.Tensor], device: str, trust: Sequence[str]) -> Network:
    """The network as a function from arrays to arrays."""
    network = build_network(card, trust)
    network.load_state_dict(weights)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    network = network.to(place).eval()

    @torch.inference_mode()
    def call(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = network(torch.from_numpy(images).to(place)).float().cpu().numpy()
        return logits

    return call


def _find(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    candidates: list[Any] = (
        sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    )
    files = [file for file in candidates if file.name.lower().endswith(_SUFFIXES)]
    if not files:
        what = (
            "no such file or folder"
            if not candidates and not path.is_dir()
            else f"none of its files ends in {', '.join(_SUFFIXES)}"
        )
        raise ValueError(f"input={pattern}: {what}; give a file, a folder or a pattern such as 'scenes/*.tif'")
    return files
