"""Masks of whole files from trained networks, in the format that came in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from segline.commit import remove_leftovers
from segline.inference.inputs import EXTRAS, Jobs, extra_path, find_inputs, overlapping_classes, plan_outputs
from segline.inference.journal import Journal
from segline.inference.members import locate_all, read_card
from segline.inference.predictor import Settings, journal_settings
from segline.inference.worker import REFUSED, Worker
from segline.io.raster import SUFFIXES as RASTER_SUFFIXES
from segline.labels import Labels
from segline.machine import num_cores
from segline.processes import search_path
from segline.words import count_of


def predict_files(input: str, output: str, settings: Settings, processes: int = 1) -> list[Path]:
    """Predict each file of `input` into the folder `output`, under its own name; the same call again does what is left.

    Files that cannot be predicted are said at the end, when all others are done. Several processes, and several calls at once on
    any machines that share the folder, do each file once.

    Args:
        input: A file, a folder or a pattern.
        output: Folder of the masks.
        settings: How.
        processes: How many share the files on this machine.

    Returns:
        The masks.

    Raises:
        ValueError: The checkpoint or the input is not what it should be, `output` would overwrite the input, or some files could not
            be predicted.
    """
    paths = locate_all(settings.checkpoint)
    labels = Labels(**read_card(paths[0]).labels)
    folder = Path(output)
    jobs = plan_outputs(find_inputs(input), folder, settings.also, overlapping_classes(labels))
    planned = {path for made in jobs.values() for path in made.values()}
    if settings.cog and not any(path.suffix.lower() in RASTER_SUFFIXES for path in planned):
        raise ValueError(f"cog=true is how TIFFs are written, and of input={input} none is made; leave it out")
    with _output_folder(folder, jobs):
        journal = Journal(folder, journal_settings(settings, paths))
        left = {file: made for file, made in jobs.items() if not journal.done(file, list(made.values()))}
        if len(left) < len(jobs):
            known = len(jobs) - len(left)
            print(
                f"{known} of {count_of(len(jobs), 'file')} done already, by the same checkpoint and settings",
                flush=True,
            )
        _warn_of_strays(jobs, journal, planned)
        codes: list[int] = []
        if processes > 1 and len(left) > 1:
            asked = {"input": input, "output": output, "settings": asdict(settings), "since": journal.since}
            codes = _share(json.dumps(asked), min(processes, len(left)), left, journal)
        elif left:
            Worker(paths, settings, journal).work(left)
        return _conclude(jobs, journal, output, labels, codes)


@contextmanager
def _output_folder(folder: Path, jobs: Jobs) -> Iterator[None]:
    """The folder of the masks, without what kills have left in it and in those below it; nothing stays of one that was refused."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output: {folder} cannot be made ({error}); name another folder") from error
    for place in {folder, *(made["mask"].parent for made in jobs.values())}:
        if place.is_dir():
            remove_leftovers(place)
    try:
        yield
    except ValueError:
        for place in new:
            with suppress(OSError):  # it holds something
                place.rmdir()
        raise


def _warn_of_strays(jobs: Jobs, journal: Journal, planned: set[Path]) -> None:
    """Say which extras of calls with other settings lie, or are going to lie, beside masks that they don't belong to."""
    strays = {}
    for file, made in jobs.items():
        own = journal.made(file)
        for name in EXTRAS:
            path = extra_path(made["mask"].with_name(file.name), name)
            if name not in made and path not in planned and path.name not in own and path.exists():
                strays[path] = name
    if strays:
        also = ",".join(dict.fromkeys(strays.values()))
        print(
            f"warning: {next(iter(strays))}{f' and {len(strays) - 1} more' if len(strays) > 1 else ''} were made with other settings "
            f"and do not belong to the masks; remove them, or make them anew by adding {also} to also=",
            file=sys.stderr,
        )


def _share(request: str, processes: int, left: Jobs, journal: Journal) -> list[int]:
    """Let processes of their own do what is left, each the next file that no other one holds; how each of them ended."""
    environment = {
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": str(max(1, num_cores() // processes)),
        **os.environ,
        "PYTHONPATH": search_path(),
    }
    command = [sys.executable, "-m", "segline.inference.worker", request]
    workers = [subprocess.Popen(command, env={**environment, "LOCAL_RANK": str(rank)}) for rank in range(processes)]
    try:
        with _ending_by_exception(), tqdm(total=len(left), unit="file", desc="predict") as bar:
            while any(worker.poll() is None for worker in workers):
                time.sleep(0.2)
                bar.update(journal.count() - bar.n)
    finally:
        for worker in workers:  # no worker outlives this process
            worker.terminate()
            worker.wait()
    return [worker.returncode for worker in workers]


@contextmanager
def _ending_by_exception() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # who else called this has its own way to end
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _conclude(jobs: Jobs, journal: Journal, output: str, labels: Labels, codes: list[int]) -> list[Path]:
    """Say what was done and what not, after processes that ended with these codes."""
    made = [paths for file, paths in jobs.items() if journal.done(file, list(paths.values()))]
    faults = [fault for file in jobs if (fault := journal.fault(file)) is not None]
    extras = [name for name in made[0] if not name.startswith("mask")] if made else []
    also = f", each with {', '.join(extras)}" if extras else ""
    if made:
        print(f"{count_of(len(made), 'mask')} in {output}{also}; classes: {', '.join(labels.names)}")
    if left := len(jobs) - len(made) - len(faults):
        print(f"{left} of {count_of(len(jobs), 'file')} held by other processes, or left by ones that failed")
    problems = [f"{len(faults)} of {count_of(len(jobs), 'file')} could not be predicted:", *faults] if faults else []
    if REFUSED in codes:
        problems.append("what was asked for could not be done; the reason stands above")
    if failed := sum(code not in (0, REFUSED) for code in codes):
        problems.append(
            f"{count_of(failed, 'process')} ended before its time; the same command goes on with what is left"
        )
    if problems:
        raise ValueError("\n  ".join(problems))
    return [paths["mask"] for paths in made]
