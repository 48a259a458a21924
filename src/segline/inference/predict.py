"""Masks of whole files from a checkpoint, in the format that came in."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from segline.card import Card
from segline.checkpoints import read_network
from segline.inference.network import build_network, on_arrays
from segline.inference.tiled import Network, predict_tiles
from segline.io.image import FORMATS
from segline.io.normalize import Normalize, measure
from segline.io.open import IMAGE_SUFFIXES, open_image, open_sink
from segline.io.source import Source
from segline.labels import IGNORE_INDEX, Labels
from segline.precision import memory_format


def predict_files(
    checkpoint: str, input: str, output: str, batch_size: int = 4, device: str = "auto", trust: Sequence[str] = ()
) -> list[Path]:
    """Predict each file of `input` (a file, a folder or a glob) into the folder `output`, under its own name.

    Raises:
        ValueError: The checkpoint or the input is not what it should be, or `output` would overwrite the input.
    """
    card, weights = read_network(checkpoint)
    labels, network = Labels(**card.labels), _load(card, weights, device, trust)
    jobs = _plan(_find(input), Path(output))
    _check(jobs, card)
    for file, path in tqdm(jobs.items(), unit="file", desc="predict", disable=len(jobs) == 1):
        _predict_file(network, card, labels, _open(file, card), path, batch_size)
    print(f"{len(jobs)} mask{'s' if len(jobs) != 1 else ''} in {output}: {', '.join(labels.names)}")
    return list(jobs.values())


def _plan(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the mask of each file goes: below `folder` as the files lie below the folder that they share."""
    shared = os.path.commonpath([file.parent.resolve() for file in files])
    jobs = {file: folder / file.resolve().relative_to(shared) for file in files}
    # Photographs' masks are PNG files, whatever the photographs are.
    jobs = {file: path.with_suffix(".png") if path.suffix.lower() in FORMATS else path for file, path in jobs.items()}
    inputs = {file.resolve() for file in jobs}
    if any(path.resolve() in inputs or file.parent.resolve() == path.parent.resolve() for file, path in jobs.items()):
        raise ValueError(
            f"output={folder} is the folder of the input, whose files would be overwritten; name another folder"
        )
    if twice := [path for path, count in Counter(jobs.values()).items() if count > 1]:
        both = " and ".join(str(file) for file, path in jobs.items() if path == twice[0])
        raise ValueError(f"the masks of {both} would both be {twice[0]}; predict them into different folders")
    return jobs


def _open(file: Path, card: Card) -> Source:
    source = open_image([file], bands=card.bands, spacing_mm=card.spacing_mm)
    channels = card.network.get("in_channels", source.num_bands)  # a network of the user's may go by another name
    data = f" ({card.trained_on})" if card.trained_on else ""
    if len(source.shape) != len(card.window):
        raise ValueError(
            f"{file} has {len(source.shape)} dimensions, but the network was trained on {len(card.window)}{data}"
        )
    if source.num_bands != channels:
        raise ValueError(f"{file} has {source.num_bands} bands, but the network was trained on {channels}{data}")
    return source


def _check(jobs: dict[Path, Path], card: Card) -> None:
    """All faults that can be seen before the first file is predicted."""
    faults = []
    for file, path in jobs.items():
        try:
            _open(file, card)
        except ValueError as error:
            faults.append(str(error))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"output: {path.parent} cannot be made ({error}); name another folder") from error
    if faults:
        raise ValueError("\n  ".join([f"{len(faults)} of {len(jobs)} files cannot be predicted:", *faults]))


def _predict_file(network: Network, card: Card, labels: Labels, source: Source, path: Path, batch_size: int) -> None:
    normalize = Normalize(**card.normalize)
    statistics = measure(source) if normalize.scope == "case" else None
    tiles = predict_tiles(network, source, normalize, statistics, card.window, card.margin, batch_size)
    with open_sink(path, source, labels) as sink:
        for core, logits in tqdm(tiles, unit="tile", desc=path.name, delay=2, leave=False):
            mask = labels.decide(labels.probs(logits[None]))[0].astype(np.uint8)
            mask[..., np.isnan(source.read(core)).all(0)] = IGNORE_INDEX  # no data in, no data out
            sink.write(core, mask)


def _load(card: Card, weights: dict[str, torch.Tensor], device: str, trust: Sequence[str]) -> Network:
    """The trained network as a function from arrays to arrays."""
    network = build_network(card, trust)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not fit the network of its card ({error})") from error
    if device not in ("auto", "cpu") and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch {torch.__version__} sees no GPU here; set device=cpu")
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    network = network.to(memory_format=memory_format(2 + len(card.window))).to(place).eval()
    return on_arrays(network, place, card.precision)


def _find(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    candidates: list[Any] = (
        sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    )
    files = [file for file in candidates if file.name.lower().endswith(IMAGE_SUFFIXES)]
    if not files:
        what = (
            "no such file or folder"
            if not candidates and not path.is_dir()
            else f"none of its files ends in {', '.join(IMAGE_SUFFIXES)}"
        )
        raise ValueError(f"input={pattern}: {what}; give a file, a folder or a pattern such as 'scenes/*.tif'")
    return files
