import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from segline.io.cache import cache_dir, cached


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGLINE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "source.txt"
    path.write_text("one")
    return path


def test_a_file_is_made_once_for_the_same_sources_and_settings(source: Path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text(source.read_text())

    first = cached("kind", [source], ("a", 1), ".txt", make)
    assert cached("kind", [source], ("a", 1), ".txt", make) == first
    assert (len(made), first.suffix, first.read_text()) == (1, ".txt", "one")
    assert made[0].suffix == ".txt"  # writers go by the ending
    other = cached("kind", [source], ("a", 2), ".txt", make)
    assert other != first
    source.write_text("three")
    assert cached("kind", [source], ("a", 1), ".txt", make).read_text() == "three"
    state = source.stat()
    source.write_text("seven")  # of the same size, a moment later
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    assert cached("kind", [source], ("a", 1), ".txt", make).read_text() == "seven"
    assert len(made) == 4


def test_a_failure_leaves_nothing_behind(source: Path) -> None:
    def make(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cached("kind", [source], 1, ".txt", make)
    assert [path for path in cache_dir().rglob("*") if path.is_file()] == []


def test_others_may_read_what_is_cached(source: Path) -> None:
    path = cached("kind", [source], 1, ".txt", lambda path: path.write_text("x") and None)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


RACER = """
import sys, time
from pathlib import Path
from segline.io.cache import cached

def slowly(path):
    with path.open("w") as file:
        for _ in range(20):
            file.write("x" * 1000)
            file.flush()
            time.sleep(0.005)

source = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(len(cached("race", [source], 1, ".txt", slowly).read_text()))
"""


def test_processes_that_race_see_whole_files_only(source: Path) -> None:
    command = [sys.executable, "-c", RACER, str(source)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    racers = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.communicate(timeout=30)[0] for racer in racers] == ["20000\n"] * 4
    assert len(list((cache_dir() / "race").iterdir())) == 1


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("SEGLINE_CACHE", raising=False)
    assert cache_dir() == Path("/somewhere/segline")
    monkeypatch.setenv("SEGLINE_CACHE", "/elsewhere")
    assert cache_dir() == Path("/elsewhere")
