"""Processes that this one starts, and the launcher that has started this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Set where torch's launcher has started this command itself, as on several nodes.
LAUNCHED = "TORCHELASTIC_RUN_ID"
#: After SIGTERM the launcher would kill after 30 seconds, which the running validation and the saving may take longer than.
_MOST_SECONDS_TO_SAVE = 3600


def search_path() -> str:
    """PYTHONPATH by which another process imports what this one does, before what stands in it already."""
    own = str(Path(__file__).parents[1])
    others = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place not in ("", own)]
    return os.pathsep.join([own, *others])


def launchers_handlers() -> dict[int, Callable[[int, Any], Any]]:
    """By signal, what a launcher wants to be called when a cluster is about to take the job away: submitit then requeues it."""
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    return {signum: handler for signum in signals if callable(handler := signal.getsignal(signum))}


def launch(job: Path, processes: int, environment: Mapping[str, str]) -> tuple[int, bool]:
    """Run a job's config in several processes by torch's launcher; its exit code, and whether it was asked to end."""
    # Lightning's own launcher would start the whole command line, in a sweep the whole sweep, once more for each process.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, "-m", "segline.job", str(job)]
    own = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_MOST_SECONDS_TO_SAVE)}
    others = launchers_handlers()
    # A cluster may signal all processes of a job; this one alone knows what is to be done.
    ignored = {signum: signal.signal(signum, signal.SIG_IGN) for signum in others if signum != signal.SIGTERM}
    started = subprocess.Popen(command, env={**own, **os.environ, **environment})
    asked: list[int] = []  # to stop

    def notice(signum: int, frame: Any) -> None:
        if signum == signal.SIGTERM and signum in others:  # not meant for us: submitit awaits another one
            return others[signum](signum, frame)
        asked.append(signum)
        # SIGTERM goes on to the processes, which save first; a terminal's Ctrl-C has reached them already.
        if signum != signal.SIGINT:
            started.send_signal(signal.SIGTERM)

    handlers = {signum: signal.signal(signum, notice) for signum in {signal.SIGTERM, signal.SIGINT, *others}} | ignored
    try:
        code = started.wait()
    except BaseException:
        started.terminate()
        started.wait()
        raise
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    if asked and asked[0] in others:
        others[asked[0]](asked[0], None)
    return code, bool(asked)
