"""GPUs that are made up, and jobs that hold them."""

import os
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from omegaconf import OmegaConf

from segline.run import _one_gpu
from segline.sweep.gpus import GPU, own_gpu


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [uuid4(), uuid4()]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: SimpleNamespace(uuid=names[k]))


@pytest.mark.usefixtures("two_gpus")
def test_jobs_at_once_hold_gpus_of_their_own() -> None:
    with own_gpu():
        assert os.environ[GPU] == "0"
        with own_gpu():
            assert os.environ[GPU] == "1"
            with own_gpu():  # more jobs than GPUs
                assert os.environ[GPU] in ("0", "1")
    assert GPU not in os.environ
    with own_gpu():
        assert os.environ[GPU] == "0"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_free_again_after_a_job_that_failed() -> None:
    with pytest.raises(ZeroDivisionError), own_gpu():
        raise ZeroDivisionError
    with own_gpu():
        assert os.environ[GPU] == "0"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("devices", "accelerator", "sweep", "held"),
    [
        (1, "auto", True, True),
        ("auto", "gpu", True, True),
        (2, "gpu", True, False),
        (1, "cpu", True, False),
        (1, "gpu", False, False),
    ],
)
def test_a_job_of_a_sweep_that_is_one_process_holds_one(
    devices: int | str, accelerator: str, sweep: bool, held: bool
) -> None:
    with _one_gpu(OmegaConf.create({"devices": devices, "accelerator": accelerator}), sweep):
        assert (GPU in os.environ) == held


def test_without_a_gpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with own_gpu():
        assert GPU not in os.environ
