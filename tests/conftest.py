"""What every test stands on: no account, no network, one thread, and folders of its own to write to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything else is imported: libraries read these when they load. Child processes inherit them.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MPLBACKEND": "Agg",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# A slow or busy machine is no failure; a failing example is found again on the next run, whoever runs it.
hypothesis.settings.register_profile("segline", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("segline")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Scans, unpacked volumes and synthetic data are made anew: what an earlier version left hides faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is empty: nothing depends on the checkout's, or writes to it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real data sets, which configs find too; the test is skipped where there is none."""
    folder = Path(os.environ.get("SEGLINE_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist; set SEGLINE_DATA")
    monkeypatch.setenv("SEGLINE_DATA", str(folder))
    return folder
