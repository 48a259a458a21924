"""A trained network under attack, tile by tile as validation cuts cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segline.data.cases import Case
from segline.data.datamodule import SegmentationDataModule
from segline.inference.members import ONNX
from segline.inference.network import choose_device, load_network
from segline.inference.predictor import Predictor, Settings, read_calibration
from segline.io.source import read_padded
from segline.labels import IGNORE_INDEX
from segline.losses.entropy import BCELoss, CrossEntropyLoss
from segline.precision import memory_format
from segline.robustness.attacks import ATTACKS, loss_of
from segline.robustness.corrupted import generator
from segline.tiling import Tile, tiles


def no_attacks(paths: Sequence[Path], settings: Settings) -> str | None:
    """Why what is asked cannot be attacked; None where it can."""
    if len(paths) > 1:
        return "they are of one network, but checkpoint names several"
    if paths[0].suffix == ONNX:
        return "an ONNX file gives no gradients; name the checkpoint"
    if settings.tta or settings.dropout_passes > 1:
        return "they are of single predictions, but tta or dropout_passes averages several"
    return None


class Attacked:
    """A trained network under attack, in evaluation mode and float32; what is attacked is the cross-entropy of the truth.

    Ignored pixels and those without data do not count in it, and what has no data is not changed.

    Args:
        path: Of the checkpoint.
        settings: How the network is asked.
        predictor: Of the same.
        data: Where cases come from.
        seed: Of random starts.
    """

    def __init__(
        self, path: Path, settings: Settings, predictor: Predictor, data: SegmentationDataModule, seed: int
    ) -> None:
        network, self.card = load_network(path, settings.trust)
        self.device = choose_device(settings.device)
        self.format = memory_format(2 + len(self.card.window))
        self.network = network.requires_grad_(False).to(self.device).to(memory_format=self.format)
        self.temperature = read_calibration(path).temperature if settings.calibrated else 1.0
        self.loss = CrossEntropyLoss() if predictor.labels.exclusive else BCELoss()
        self.predictor, self.data, self.seed = predictor, data, seed
        self.batch_size = max(1, predictor.batch_size // 2)  # gradients take memory, too

    def pieces(self, case: Case, attack: str, size: float) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Decision and truth of each tile of a case under attack, ignored outside of the tile's core; size 0 is no attack."""
        source, mask_source, statistics = self.data.open(case)
        prepare = self.predictor.ensemble.prepare(source, statistics)
        rng = generator(self.seed, case.name, attack)
        grid = tiles(source.shape, self.card.window, self.card.margin)
        for start in range(0, len(grid), self.batch_size):
            batch = grid[start : start + self.batch_size]
            raw = [read_padded(source, tile.window) for tile in batch]
            truth = np.stack(
                [_ignored(t, read_padded(mask_source, t.window), r) for t, r in zip(batch, raw, strict=True)]
            )
            images = self._tensor(np.stack([prepare(image) for image in raw]))
            if size:
                free = self._tensor(~np.isnan(np.stack(raw)))
                drawn = self._tensor(rng.uniform(-1, 1, images.shape))
                mask = torch.from_numpy(truth).to(self.device)
                loss = loss_of(self.network, self.loss, mask.long() if self.predictor.labels.exclusive else mask)
                images = ATTACKS[attack](loss, images, size, free, drawn)
            yield from zip(self._decide(images), truth, strict=True)

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device).to(memory_format=self.format)

    @torch.no_grad()
    def _decide(self, images: Tensor) -> list[NDArray[np.uint8]]:
        probs = self.predictor.labels.probs(self.network(images) / self.temperature).cpu().numpy()
        return [self.predictor.decide(one) for one in probs]


def _ignored(tile: Tile, truth: NDArray[np.uint8], raw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The truth of a tile, ignored where there is no data and outside of its core."""
    outside = np.isnan(raw).all(0)
    core = np.zeros(outside.shape, bool)
    core[tile.inner] = True
    return np.where(outside | ~core, np.uint8(IGNORE_INDEX), truth)
