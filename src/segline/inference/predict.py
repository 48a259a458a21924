"""Masks of whole files from trained networks, in the format that came in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from segline.commit import remove_leftovers
from segline.inference.inputs import Jobs, find_inputs, plan_outputs
from segline.inference.journal import Journal
from segline.inference.members import locate_all, read_card
from segline.inference.predictor import Settings, digest
from segline.inference.worker import Worker
from segline.labels import Labels


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
    card = read_card(paths[0])
    jobs = plan_outputs(find_inputs(input), Path(output), settings.also)
    journal = Journal(_make(Path(output)), {**asdict(settings), "checkpoint": [digest(path) for path in paths]})
    left = {file: made for file, made in jobs.items() if not journal.done(file, list(made.values()))}
    if len(left) < len(jobs):
        known = len(jobs) - len(left)
        print(f"{known} of {_count(len(jobs), 'file')} done already, by the same checkpoint and settings", flush=True)
    if processes > 1 and len(left) > 1:
        request = json.dumps({"input": input, "output": output, "settings": asdict(settings), "since": journal.since})
        _share(request, min(processes, len(left)), left, journal)
    elif left:
        Worker(paths, settings, journal).work(left)
    return _conclude(jobs, journal, output, Labels(**card.labels))


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output: {folder} cannot be made ({error}); name another folder") from error
    remove_leftovers(folder)
    return folder


def _share(request: str, processes: int, left: Jobs, journal: Journal) -> None:
    """Let processes of their own do what is left; each takes the next file that no other one holds."""
    search = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // processes)), **os.environ, "PYTHONPATH": search}
    command = [sys.executable, "-m", "segline.inference.worker", request]
    workers = [subprocess.Popen(command, env={**environment, "LOCAL_RANK": str(rank)}) for rank in range(processes)]
    try:
        with tqdm(total=len(left), unit="file", desc="predict") as bar:
            while any(worker.poll() is None for worker in workers):
                time.sleep(0.2)
                if more := sum(journal.seen(file) for file in left) - bar.n:
                    bar.update(more)
    finally:
        for worker in workers:  # on Ctrl-C
            worker.terminate()
            worker.wait()
    if failed := sum(worker.returncode != 0 for worker in workers):
        print(f"{failed} of {processes} processes failed; what they held is left undone", file=sys.stderr)


def _conclude(jobs: Jobs, journal: Journal, output: str, labels: Labels) -> list[Path]:
    """Say what was done and what not."""
    made = [paths for file, paths in jobs.items() if journal.done(file, list(paths.values()))]
    faults = [fault for file in jobs if (fault := journal.fault(file)) is not None]
    extras = [name for name in made[0] if name != "mask"] if made else []
    also = f", each with {', '.join(extras)}" if extras else ""
    print(f"{_count(len(made), 'mask')} in {output}{also}; classes: {', '.join(labels.names)}")
    if left := len(jobs) - len(made) - len(faults):
        print(f"{left} of {_count(len(jobs), 'file')} held by other processes, or left by ones that failed")
    if faults:
        raise ValueError(
            "\n  ".join([f"{len(faults)} of {_count(len(jobs), 'file')} could not be predicted:", *faults])
        )
    return [paths["mask"] for paths in made]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
