"""What only a GPU can show: `make test-gpu`, or `pytest -m gpu tests/gpu`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from segline import tables
from segline.checkpoints import RESUME, read
from segline.losses.combination import DiceCELoss
from segline.models.attention_unet import AttentionUNet
from segline.precision import fast_precision, memory_format

TRAIN = str(Path(__file__).resolve().parents[2] / "src" / "train.py")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def step(network: nn.Module, spatial_dims: int, low_precision: bool, channels_last: bool) -> float:
    size = (128,) * 2 if spatial_dims == 2 else (32,) * 3
    torch.manual_seed(0)
    image, mask = torch.randn(2, 3, *size, device="cuda"), torch.randint(0, 4, (2, *size), device="cuda")
    layout = memory_format(image.ndim) if channels_last else torch.contiguous_format
    network, image = network.to("cuda", memory_format=layout), image.to(memory_format=layout)
    with torch.autocast("cuda", torch.bfloat16, enabled=low_precision):
        loss = DiceCELoss()(network(image), mask)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    return float(loss)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_precision_and_memory_format_give_the_same_loss(spatial_dims: int) -> None:
    torch.manual_seed(0)
    network = AttentionUNet(3, 4, spatial_dims=spatial_dims, channels=[16, 32, 64, 128])
    plain = step(network, spatial_dims, low_precision=False, channels_last=False)
    assert step(network, spatial_dims, low_precision=False, channels_last=True) == pytest.approx(plain, rel=1e-3)
    assert step(network, spatial_dims, low_precision=True, channels_last=True) == pytest.approx(plain, rel=2e-2)


def test_bfloat16_is_chosen_where_the_hardware_is_fast_at_it() -> None:
    expected = "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"
    assert fast_precision("gpu") == expected


def test_memory_of_a_step_is_given_back() -> None:
    network = AttentionUNet(3, 4, channels=[16, 32, 64, 128])
    step(network, 2, low_precision=True, channels_last=True)
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        network.zero_grad(set_to_none=False)
        step(network, 2, low_precision=True, channels_last=True)
    assert torch.cuda.memory_allocated() <= held * 1.01


@pytest.mark.parametrize("data", ["satellite", "biomedical3d"])
def test_a_run_trains_and_resumes(tmp_path: Path, data: str) -> None:
    window = "[16,32,32]" if data == "biomedical3d" else "[64,64]"
    margin = "[4,4,4]" if data == "biomedical3d" else "[8,8]"
    common = [
        "trainer=gpu", "logger=none", "model=unet", "model.channels=[4,8]", f"data={data}", f"data.window={window}",
        f"data.margin={margin}", "data.steps_per_epoch=3", "data.batch_size=2", f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    for more in (["trainer.max_epochs=1"], ["trainer.max_epochs=2", "resume=auto"]):
        done = subprocess.run([sys.executable, TRAIN, *common, *more], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in tables.read_rows(tmp_path / "run" / "metrics.csv")] == [0, 1]
    assert read(tmp_path / "run" / RESUME)["training"]["epoch"] == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_batch_norm_over_the_windows_of_all_gpus_trains_as_one_gpu_does(tmp_path: Path) -> None:
    common = [
        "logger=none", "model=unet", "model.channels=[4,8]", "model.norm=batch", "data=satellite", "data.window=[64,64]",
        "data.margin=[8,8]", "data.steps_per_epoch=4", "data.batch_size=4", "trainer.max_epochs=2", "trainer.precision=32", "loss=ce",
    ]  # fmt: skip
    losses = {}
    for name, more in {
        "one": ["trainer=gpu"],
        "two": ["trainer=ddp", "trainer.sync_batchnorm=true"],
        "each": ["trainer=ddp"],
    }.items():
        own = [f"hydra.run.dir={tmp_path / name}", *more, f"trainer.devices={1 if name == 'one' else 2}"]
        done = subprocess.run([sys.executable, TRAIN, *common, *own], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        losses[name] = [row["train/loss"] for row in tables.read_rows(tmp_path / name / "metrics.csv")]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-4)
    assert losses["each"] != pytest.approx(losses["one"], rel=1e-4)
