"""Files held by processes: alone, together, and not beyond a death."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segline.locks import locked

SRC = Path(__file__).parents[1] / "src"
#: Holds a file, has a worker as the loader has them, says so once that is at work, and waits to be killed.
HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from segline.locks import locked

context = multiprocessing.get_context("fork")
at_work = context.Event()

def work():
    at_work.set()
    time.sleep(60)

with locked(Path(sys.argv[1])) as mine:
    worker = context.Process(target=work)
    worker.start()
    at_work.wait()
    print(mine, worker.pid, flush=True)
    time.sleep(60)
"""


def test_a_file_is_held_alone_or_by_all_who_share(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path) as first, locked(path) as second, locked(path, shared=True) as third:
        assert (first, second, third) == (True, False, False)
    with locked(path, shared=True) as first, locked(path, shared=True) as second, locked(path) as third:
        assert (first, second, third) == (True, True, False)
    with locked(path) as mine:
        assert mine


def test_a_file_can_be_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with ThreadPoolExecutor() as pool:
        with locked(path):
            waiting = pool.submit(_can_be_had, path, 60.0)
            assert not _can_be_had(path, 0.1)
            assert not waiting.done()
        assert waiting.result()


def _can_be_had(path: Path, seconds: float) -> bool:
    with locked(path, seconds=seconds) as mine:
        return mine


def test_a_file_is_opened_so_that_nfs_lets_it_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS makes a lock that is shared one of ranges for reading, which takes a file that may be read; others take one to be written."""
    modes = []
    monkeypatch.setattr(fcntl, "flock", lambda file, how: modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE))
    with locked(tmp_path / "lock", shared=True), locked(tmp_path / "lock"):
        assert modes == [os.O_RDWR] * 2


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ValueError, match="is on a file system without locks"), locked(tmp_path / "lock"):
        pass


def test_a_worker_does_not_hold_what_its_killed_parent_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        held, worker = holder.stdout.readline().split()
        try:
            with locked(path) as mine:
                assert (held, mine) == ("True", False)
            holder.kill()
            holder.wait()
            os.kill(int(worker), 0)  # it is there still
            with locked(path) as mine:
                assert mine
        finally:
            os.kill(int(worker), signal.SIGKILL)
