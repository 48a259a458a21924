"""GPUs that are made up, and jobs that hold them."""

import os
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from segline.config import CONF_DIR
from segline.run import _num_processes, _own_gpus, _runs_beside
from segline.sweep.gpus import GPU, own_gpus, shown_to_processes


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [uuid4(), uuid4()]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: SimpleNamespace(uuid=names[k]))


@pytest.mark.usefixtures("two_gpus")
def test_jobs_at_once_hold_gpus_of_their_own() -> None:
    with own_gpus(1):
        assert os.environ[GPU] == "0"
        with own_gpus(1):
            assert os.environ[GPU] == "1"
            with own_gpus(1):  # more jobs than GPUs
                assert os.environ[GPU] in ("0", "1")
    assert GPU not in os.environ
    with own_gpus(1):
        assert os.environ[GPU] == "0"


@pytest.mark.usefixtures("two_gpus")
def test_a_job_of_several_processes_shows_them_the_gpus_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert shown_to_processes() == {}
    with own_gpus(1), own_gpus(1):
        assert shown_to_processes() == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    with own_gpus(2):
        assert shown_to_processes() == {"CUDA_VISIBLE_DEVICES": "5,GPU-7"}
        with own_gpus(2):
            assert os.environ[GPU] == "0,1"
    with own_gpus(3):  # more processes than GPUs, which Lightning refuses
        assert os.environ[GPU] == "0,1"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_free_again_after_a_job_that_failed() -> None:
    with pytest.raises(ZeroDivisionError), own_gpus(1):
        raise ZeroDivisionError
    with own_gpus(1):
        assert os.environ[GPU] == "0"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("devices", "accelerator", "sweep", "held"),
    [
        (1, "auto", True, "0"),
        ("auto", "gpu", True, "0,1"),
        (2, "gpu", True, "0,1"),
        (1, "cpu", True, None),
        (1, "gpu", False, None),
    ],
)
def test_a_job_of_a_sweep_holds_a_gpu_for_each_of_its_processes(
    devices: int | str, accelerator: str, sweep: bool, held: str | None
) -> None:
    trainer = OmegaConf.create({"devices": devices, "accelerator": accelerator})
    with _own_gpus(trainer, _num_processes(trainer), sweep):
        assert os.environ.get(GPU) == held


@pytest.mark.usefixtures("two_gpus")
def test_jobs_beside_each_other_do_not_take_all_gpus_each(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = OmegaConf.create({"devices": "auto", "accelerator": "auto"})
    with pytest.raises(ValueError, match="is all 2 GPUs for each job"):
        _num_processes(trainer, beside=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _num_processes(trainer, beside=True) == 1


@pytest.mark.parametrize(
    ("name", "settings", "beside"),
    [
        ("joblib", [], True),
        ("joblib", ["hydra.launcher.n_jobs=1"], False),
        ("submitit_local", [], True),
        ("basic", [], False),
        ("slurm", [], False),
    ],
)
def test_jobs_of_launchers_for_one_machine_run_beside_each_other(name: str, settings: list[str], beside: bool) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", [f"hydra/launcher={name}", *settings], return_hydra_config=True)
    assert _runs_beside(config.hydra.launcher) == beside


def test_without_a_gpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with own_gpus(1):
        assert GPU not in os.environ
