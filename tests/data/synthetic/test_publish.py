from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segline.data.synthetic.publish import write_once


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    root, calls = tmp_path / "deep" / "scenes", []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "a.txt").write_text(f"{len(calls)}")

    assert write_once(root, write) == root
    assert write_once(root, write) == root
    assert (root / "a.txt").read_text() == "1"
    assert len(calls) == 1
    assert list(root.parent.iterdir()) == [root]


def test_an_empty_folder_that_is_there_is_filled(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    write_once(tmp_path / "scenes", lambda folder: (folder / "a.txt").write_text("x") and None)
    assert (tmp_path / "scenes" / "a.txt").read_text() == "x"


def test_a_folder_that_failed_half_way_is_not_there_at_all(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_once(tmp_path / "scenes", write)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "scenes").write_text("mine")
    with pytest.raises(OSError, match="scenes"):
        write_once(tmp_path / "scenes", lambda folder: (folder / "a.txt").write_text("x") and None)
    assert (tmp_path / "scenes").read_text() == "mine"


def test_other_users_may_read_the_folder(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        root = write_once(tmp_path / "scenes", lambda folder: (folder / "a.txt").write_text("x") and None)
    finally:
        os.umask(before)
    assert root.stat().st_mode & 0o777 == 0o755


RACER = """
import os, sys, time
from pathlib import Path
from segline.data.synthetic.publish import write_once

def write(folder):
    for name in "abcd":
        (folder / name).write_text(str(os.getpid()))
        time.sleep(0.05)

root = write_once(Path(sys.argv[1]), write)
print(*sorted({path.read_text() for path in root.iterdir()}), len(list(root.iterdir())))
"""


def test_of_racing_processes_one_wins_and_all_see_its_whole_folder(tmp_path: Path) -> None:
    import segline

    path = os.pathsep.join([str(Path(segline.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    root = tmp_path / "scenes"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(root)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        for _ in range(4)
    ]
    said = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 4
    assert len(said) == 1
    winner, files = said.pop().split()
    assert files == "4"
    assert int(winner) in [racer.pid for racer in racers]
    assert list(tmp_path.iterdir()) == [root]
