"""Networks ready to predict sources of any size: what prediction and evaluation share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.inference.blend import Piece
from segline.inference.ensemble import Ensemble, views_of
from segline.inference.inputs import POLYGONS
from segline.inference.members import ONNX, open_member
from segline.inference.plan import Room, choose_tiling
from segline.inference.tiled import predict_tiles
from segline.io.normalize import BandStatistics
from segline.io.source import Source, Window
from segline.labels import IGNORE_INDEX
from segline.metrics.calibration import Calibration, decide
from segline.tiling import Tile, tiles


@dataclass(frozen=True)
class Settings:
    """What `predict_files` is asked for; all that the masks depend on, but for the checkpoints' contents.

    Args:
        checkpoint: A run, a `.ckpt` or an `.onnx` file, or several of them, whose probabilities are averaged.
        also: What is made besides masks: names of `segline.inference.inputs.EXTRAS`.
        blend: `cores` (each tile's inside, as in validation), `linear` or `gaussian` (weighted means of overlapping tiles), or `exact`
            (in float32 what the network would say to the whole image at once).
        window: Size of a tile, `*S`; None: that of validation, or as much of it as fits the memory, and for `exact` one that is large
            enough.
        overlap: Share of a window that the next one overlaps; None: that of validation, and for means one half.
        batch_size: Tiles a call of the network; None: as many as fit the memory, up to a few.
        tta: Views that are averaged besides the image itself: `flips`, `turns`, and scales.
        dropout_passes: How often each network is asked with dropout at work; 1: once, without.
        calibrated: Use the temperature and the thresholds that evaluation has fitted and left beside the checkpoint.
        cog: Write rasters as Cloud Optimised GeoTIFFs.
        device: `cpu`, `cuda`, or `auto`.
        precision: Lightning's name of it; None: that of training.
        trust: Packages besides segline's own whose networks the checkpoint may name.
    """

    checkpoint: str | Sequence[str]
    also: Sequence[str] = ()
    blend: str = "cores"
    window: Sequence[int] | None = None
    overlap: float | None = None
    batch_size: int | None = None
    tta: Sequence[str | float] = ()
    dropout_passes: int = 1
    calibrated: bool = False
    cog: bool = False
    device: str = "auto"
    precision: str | None = None
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, value in (("dropout_passes", self.dropout_passes), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if self.window is not None and not _are_sizes(self.window):
            raise ValueError(f"window is {self.window}; expected two or three sizes, such as [256,256]")


class Predictor:
    """Trained networks, and how they are asked: opened once, for sources of any size.

    Args:
        paths: Of the checkpoints.
        settings: How.

    Raises:
        ValueError: The networks cannot do what is asked for.
    """

    def __init__(self, paths: Sequence[Path], settings: Settings) -> None:
        if settings.calibrated and len(paths) > 1:
            raise ValueError(
                "calibrated=true is of one network, but checkpoint names several; leave it out, or name one of them"
            )
        calibrations = [read_calibration(path) for path in paths] if settings.calibrated else []
        device = settings.device
        if device in ("auto", "cuda") and "LOCAL_RANK" in os.environ and paths[0].suffix != ONNX:
            device = _own_gpu(device, int(os.environ["LOCAL_RANK"]))
        members = [
            open_member(
                path,
                device=device,
                precision="32-true" if settings.blend == "exact" else settings.precision,
                temperature=calibration.temperature if calibration else 1.0,
                dropout=settings.dropout_passes > 1,
                trust=settings.trust,
            )
            for path, calibration in zip_longest(paths, calibrations)
        ]
        dims = len(members[0].card.window)
        views = views_of(settings.tta, dims)
        _check(settings, dims, len(paths) * len(views) * settings.dropout_passes)
        self.ensemble = Ensemble(members, views, settings.dropout_passes, "disagreement" in settings.also)
        self.card, self.labels = self.ensemble.card, self.ensemble.labels
        self.thresholds = calibrations[0].thresholds if calibrations else None
        room = Room(self.ensemble)
        self.tiling = choose_tiling(self.ensemble, settings.blend, settings.window, settings.overlap, room)
        self.batch_size = settings.batch_size or room.batch_size(self.tiling.window)

    def pieces(
        self,
        source: Source,
        statistics: BandStatistics | None = None,
        within: Window | None = None,
        alone: bool = False,
    ) -> Iterator[Piece]:
        """Probabilities of a source, piece by piece, as `predict_tiles` gives them.

        Args:
            source: An image.
            statistics: Of its bands, where they are known already.
            within: Only this part of it.
            alone: As in `predict_tiles`.
        """
        if self.ensemble.passes > 1:
            import torch  # which holds the networks then: ONNX files have no dropout

            # A file's mask is the same whatever was predicted before it; it is another one for another batch size, whose noise is
            # drawn in another order, and where a kill came within the file, after which the noise starts anew.
            torch.manual_seed(0)
        prepare = self.ensemble.prepare(source, statistics)
        return predict_tiles(
            self.ensemble,
            source,
            prepare,
            batch_size=self.batch_size,
            within=within,
            alone=alone,
            **asdict(self.tiling),
        )

    def grid(self, source: Source) -> list[Tile]:
        """The tiles of a source."""
        return tiles(source.shape, self.tiling.window, self.tiling.margin, self.tiling.multiple)

    def decisions(
        self, source: Source, statistics: BandStatistics | None, within: Window | None = None
    ) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """Masks of a source, or of a part of it, piece by piece: as `pieces`, decided."""
        for place, values in self.pieces(source, statistics, within):
            yield place, self.decide(values[: self.labels.num_classes])

    def decide(self, probs: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The mask of probabilities `[K, *S]`: `[*S]`, or `[K, *S]` for overlapping labels; ignored where there is no data."""
        mask: NDArray[np.uint8] = decide(probs[None], self.thresholds, self.labels)[0].astype(np.uint8)
        mask[..., np.isnan(probs).all(0)] = IGNORE_INDEX  # no data in, no data out
        return mask


def _check(settings: Settings, spatial_dims: int, num_predictions: int) -> None:
    """What of the settings does not go together."""
    if settings.blend == "exact" and settings.tta:
        raise ValueError(
            "blend=exact is what the network says to the image as it is; leave tta out, or set blend=gaussian"
        )
    if spatial_dims == 3 and (flat := POLYGONS & set(settings.also)):
        raise ValueError(f"also names {flat.pop()}, but volumes have no polygons; leave it out")
    if "disagreement" in settings.also and num_predictions == 1:
        raise ValueError(
            "disagreement is that of several predictions; set tta=[flips], dropout_passes=10, or name checkpoints"
        )


def calibration_path(checkpoint: Path) -> Path:
    """Where what was fitted to the probabilities of a checkpoint lies."""
    return checkpoint.with_suffix(".calibration.json")


def read_calibration(checkpoint: Path) -> Calibration:
    """What was fitted to the probabilities of a checkpoint.

    Raises:
        ValueError: Nothing was, or other weights were it fitted to.
    """
    path = calibration_path(checkpoint)
    if not path.exists():
        or_export = ", or fits the checkpoint, whose fit src/export.py takes along" if checkpoint.suffix == ONNX else ""
        raise ValueError(
            f"calibrated=true needs {path}; run src/eval.py checkpoint={checkpoint} calibrate=true, which fits and leaves it{or_export}"
        )
    calibration = Calibration.load(path)
    if calibration.checkpoint != digest(checkpoint):
        raise ValueError(
            f"{path} was fitted to other weights than {checkpoint} has; fit it anew: src/eval.py calibrate=true"
        )
    return calibration


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(size, int) for size in value)


def _own_gpu(device: str, rank: int) -> str:
    """The GPU of a process; where there are none the device that was asked for, `auto` or `cuda`, for which others stand in or refuse."""
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{rank % count}" if count else device


def journal_settings(settings: Settings, paths: Sequence[Path]) -> dict[str, Any]:
    """All that masks and extras depend on but the images: settings, and the contents of the checkpoints and of what was fitted to them."""
    fitted = [calibration_path(path) for path in paths] if settings.calibrated else []
    # Of the batch masks depend only by the noise of dropout, and not in a way that anyone would want them made anew for.
    depends = {name: value for name, value in asdict(settings).items() if name not in ("also", "batch_size", "trust")}
    contents = [digest(path) for path in (*paths, *fitted) if path.exists()]
    return {**depends, "checkpoint": contents}


def digest(path: Path) -> str:
    """By which a checkpoint is known to be the same; read once, as long as it looks the same."""
    now = path.stat()
    return _digest(path, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=32)
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
