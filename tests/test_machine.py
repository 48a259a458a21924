import mmap
from pathlib import Path

import pytest

from segline import machine


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/job/step", {"job/memory.max": "3000", "job/step/memory.max": "max"}, [3000]),
        ("4:memory:/of/the/host\n0::/", {"memory/memory.limit_in_bytes": "7000"}, [7000]),
        ("", {}, []),
    ],
)
def test_the_memory_of_a_container_is_its_own(
    tmp_path: Path, groups: str, files: dict[str, str], limits: list[int]
) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": text for n, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n" * bool(text))
    assert machine._limits(tmp_path) == limits


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says how much a process has taken")
def test_the_peak_of_a_call_is_what_it_took_and_gave_back() -> None:
    def call() -> None:
        with mmap.mmap(
            -1, 2**26
        ) as pages:  # of the system itself: what the process has kept of earlier ones would not count
            pages.write(bytes(2**26 - 1))

    megabytes = machine.peak_of(call) / 2**20
    assert 60 < megabytes < 200
    assert 0 < machine.available() < machine.limit()
