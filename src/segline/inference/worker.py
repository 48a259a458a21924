"""One process's share of a prediction: networks opened once, and files read, computed and written as a stream."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from segline.card import Card
from segline.commit import WriteError, writing
from segline.inference.inputs import POLYGONS, Jobs, extra_path, find_inputs, overlapping_classes, plan_outputs
from segline.inference.journal import Claim, Journal, place, state
from segline.inference.members import locate_all, read_card
from segline.inference.predictor import Predictor, Settings, journal_settings
from segline.inference.ranges import doubt_range
from segline.io.cog import as_cog
from segline.io.open import BandsSource, open_image
from segline.io.polygons import write_polygons
from segline.io.raster import SUFFIXES as RASTER_SUFFIXES
from segline.io.sinks import Layer, Sink, discard, is_whole, open_sink
from segline.io.source import Source, Window
from segline.labels import Labels
from segline.machine import keep_freed
from segline.words import count_of

#: Pieces of a mask that wait to be written while the network computes.
_WAITING = 4
#: Planes of real numbers that can be written besides the mask.
_MEASURES = ("probs", "entropy", "disagreement")
#: Exit status of a process that cannot do what is asked for, and has said why.
REFUSED = 3


class Worker:
    """One process's share: opens the networks once, and predicts files that no other process holds.

    Args:
        paths: Of the checkpoints.
        settings: How.
        journal: Of the folder of masks.
        quiet: Show no progress.

    Raises:
        ValueError: The networks cannot do what is asked for.
    """

    def __init__(self, paths: Sequence[Path], settings: Settings, journal: Journal, quiet: bool = False) -> None:
        keep_freed()
        self.settings, self.journal, self.quiet = settings, journal, quiet
        self.predictor = Predictor(paths, settings)
        self.labels = self.predictor.labels

    def work(self, jobs: Jobs) -> None:
        """Predict what of some files is not done and not held by another process."""
        left = [file for file, made in jobs.items() if not self.journal.done(file, list(made.values()))]
        # Of several processes the one that has started them shows how far they are.
        for file in tqdm(left, unit="file", desc="predict", disable=self.quiet or len(left) <= 1):
            made = jobs[file]
            claim = Claim(made["mask"], self._key(file))
            if not claim.take():
                continue
            finished = False
            try:
                # Another process may have been through with it a moment ago.
                if self.journal.fault(file) is None and not self.journal.done(file, list(made.values())):
                    self._try(file, made, claim)
                finished = True
            finally:
                claim.release(finished)

    def _key(self, file: Path) -> str:
        """Of all that the mask of a file depends on, as the file is now."""
        depends = [self.journal.settings, asdict(self.predictor.tiling), str(place(file)), state(file)]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()

    def _try(self, file: Path, made: dict[str, Path], claim: Claim) -> None:
        try:
            self._predict(file, made, claim)
        except Exception as error:
            if isinstance(error, WriteError) and error.disk:  # what was computed is kept
                raise ValueError(str(error)) from error
            # Of this file: the others are done nevertheless.
            self._discard(file, made)  # the next attempt starts afresh
            known = isinstance(error, ValueError | OSError)
            self.journal.add(file, fault=str(error) if known else f"{file}: {type(error).__name__}: {error}")
        else:
            self._discard(file, made)  # what calls for other extras have left
            self.journal.add(file, list(made.values()))

    def _discard(self, file: Path, made: dict[str, Path]) -> None:
        """Remove what is half-written of a file's layers, whichever call began it."""
        beside = made["mask"].with_name(file.name)
        for path in (made["mask"], *(extra_path(beside, name) for name in _MEASURES)):
            discard(path)

    def _predict(self, file: Path, made: dict[str, Path], claim: Claim) -> None:
        source = open_for(file, self.predictor.card)
        layers = self._layers(made)
        with ExitStack() as stack:
            computed = claim.rows >= source.shape[0]
            # A kill may have come when some files were whole already.
            sinks = {
                name: open_sink(made[name], source, layer, keep=True)
                for name, layer in layers.items()
                if not (computed and is_whole(made[name]))
            }
            for sink in sinks.values():
                stack.enter_context(sink)
            if not (computed and all(sink.goes_on for sink in sinks.values())):
                if doubt := doubt_range(source, self.predictor.card):
                    tqdm.write(f"warning: {doubt}", file=sys.stderr)
                self._fill(source, sinks, claim, made["mask"].name)
            self.journal.begin(file)  # from here on files are put under their names, by the sinks last of all
            if "overlay" in made and "mask" in sinks:
                from segline.overlay import draw_overlay  # with matplotlib, which others need not wait for

                with writing(made["overlay"]):
                    draw_overlay(source, sinks["mask"].read, self.labels, made["overlay"])
        for name in POLYGONS & made.keys():
            with writing(made[name]):
                write_polygons(made["mask"], self.labels, made[name])
        if self.settings.cog:
            for name in layers:
                if made[name].suffix.lower() in RASTER_SUFFIXES:
                    with writing(made[name]):
                        as_cog(made[name])

    def _layers(self, made: dict[str, Path]) -> dict[str, Layer]:
        planes = {"probs": self.labels.names, "entropy": ("entropy",), "disagreement": ("disagreement",)}
        measures = {name: Layer(planes[name]) for name in _MEASURES if name in made}
        return {"mask": Layer.mask(self.labels), **measures}

    def _fill(self, source: Source, sinks: dict[str, Sink], claim: Claim, name: str) -> None:
        """Read, compute probabilities and write as a stream, each at the same time as the others."""
        start = claim.rows if all(sink.goes_on for sink in sinks.values()) else 0
        claim.reach(start)
        if start and not self.quiet:
            tqdm.write(f"{name}: going on after {start} of {source.shape[0]} rows")
        rest = (slice(start, source.shape[0]), *(slice(0, size) for size in source.shape[1:]))
        grid = self.predictor.grid(source)
        total = sum(tile.core[0].stop > start for tile in grid)
        pieces = self.predictor.pieces(source, within=rest, alone=len(grid) == 1)

        def write(where: Window, values: NDArray[np.float32]) -> None:
            if where[0].start > claim.rows:  # all before is written: pieces come row by row
                for sink in sinks.values():
                    sink.flush()
                claim.reach(where[0].start)
            for layer, planes in self._planes(values, sinks).items():
                sinks[layer].write(where, planes)

        with ThreadPoolExecutor(1, "write") as writer:
            waiting: deque[Future[None]] = deque()
            for where, values in tqdm(
                pieces, unit="tile", desc=name, delay=2, leave=False, total=total, disable=self.quiet
            ):
                waiting.append(writer.submit(write, where, values))
                if len(waiting) > _WAITING:
                    waiting.popleft().result()
            for written in waiting:
                written.result()
        for sink in sinks.values():
            sink.flush()
        claim.reach(source.shape[0])

    def _planes(self, values: NDArray[np.float32], wanted: dict[str, Sink]) -> dict[str, NDArray[Any]]:
        """What is written of a piece `[K, *piece]` of probabilities, with the mean entropy of single predictions behind them."""
        probs = values[: self.labels.num_classes]
        planes: dict[str, NDArray[Any]] = {"mask": self.predictor.decide(probs), "probs": probs}
        if {"entropy", "disagreement"} & set(wanted):
            planes["entropy"] = unsure = self.labels.entropy(probs[None])
            planes["disagreement"] = np.maximum(unsure - values[-1:], 0)
        return {name: planes[name] for name in wanted}


def open_for(file: Path, card: Card) -> Source:
    """An image as the network of a card takes it.

    Raises:
        ValueError: The file cannot be read, or is of another kind than the network was trained on.
    """
    source = open_image([file], spacing_mm=card.spacing_mm)
    data = f" ({card.trained_on})" if card.trained_on else ""
    if len(source.shape) != len(card.window):
        wanted = "volumes (.nii, .nii.gz)" if len(card.window) == 3 else "pictures or rasters"
        raise ValueError(
            f"{file} has {len(source.shape)} dimensions, but the network was trained on {len(card.window)}{data}; give it {wanted}"
        )
    if card.bands is not None and max(card.bands) > source.num_bands:
        raise ValueError(
            f"{file} has {count_of(source.num_bands, 'band')}, but the network was trained on bands {card.bands}{data} of its files; "
            "give it files with those bands at the same places"
        )
    if card.bands is not None:
        source = BandsSource([source], card.bands)
    trained = card.num_bands or source.num_bands
    if source.num_bands != trained:
        which = "all of" if source.num_bands < trained else "only"
        raise ValueError(
            f"{file} has {count_of(source.num_bands, 'band')}, but the network was trained on {trained}{data}; "
            f"give it files with {which} those {trained}, or a network that was trained on {source.num_bands}"
        )
    return source


def main(request: str) -> None:
    """A process that `predict_files` has started: do a share of the files, without a word at the end."""
    says = os.environ.get("LOCAL_RANK", "0") == "0"  # before the work all processes meet the same: one of them says it
    try:
        asked = json.loads(request)
        settings = Settings(**asked["settings"])
        paths = locate_all(settings.checkpoint)
        classes = overlapping_classes(Labels(**read_card(paths[0]).labels))
        jobs = plan_outputs(find_inputs(asked["input"]), Path(asked["output"]), settings.also, classes)
        journal = Journal(Path(asked["output"]), journal_settings(settings, paths), asked["since"])
        worker = Worker(paths, settings, journal, quiet=True)
        says = True
        worker.work(jobs)
    except ValueError as error:
        if says:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main(sys.argv[1])
