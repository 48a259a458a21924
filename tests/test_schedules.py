import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.optim import lr_scheduler

from segline.config import CONF_DIR, build
from segline.schedules import Constant, Cosine, Plateau, Poly, Schedule

FILES = sorted((CONF_DIR / "scheduler").glob("*.yaml"))
STEPS = 20


def rates_of_torch(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> list[float]:
    """What torch's own scheduler makes of a rate of 1, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(STEPS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "oracle"),
    [
        (Poly(power=0.9), lambda o: lr_scheduler.PolynomialLR(o, STEPS, power=0.9)),
        (Poly(power=2.0), lambda o: lr_scheduler.PolynomialLR(o, STEPS, power=2.0)),
        (Cosine(), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (Cosine(floor=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1)),
        (Constant(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_without_warmup_it_is_torchs(
    schedule: Schedule, oracle: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
) -> None:
    factors = [schedule.factor(step / STEPS) for step in range(STEPS + 1)]
    assert factors == pytest.approx(rates_of_torch(oracle), abs=1e-9)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 3))
def test_plateau_decays_when_torchs_does(values: list[int], patience: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.5, patience=patience, threshold=0.0, min_lr=0.1, eps=0.0
    )
    schedule = Plateau(patience=patience, decay=0.5, floor=0.1)
    for value in values:
        schedule.observe(value)
        oracle.step(value)
        assert schedule.factor(0.5) == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("warmup", [0.1, 0.5])
def test_warmup_rises_linearly_and_the_schedule_then_takes_all_of_what_is_left(file: Path, warmup: float) -> None:
    config = OmegaConf.load(file)
    warmed, plain = (build(OmegaConf.merge(config, {"warmup": share})) for share in (warmup, 0.0))
    for share in (0.25, 0.5, 0.75):
        assert warmed.factor(share * warmup) == pytest.approx(share)
    for share in (0.0, 0.3, 0.9, 1.0):
        assert warmed.factor(warmup + share * (1 - warmup)) == pytest.approx(plain.factor(share), abs=1e-9)
    assert warmed.factor(0.0) > 0  # the first step moves, too
    assert warmed.factor(warmup) == 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_warmup_is_a_share_of_the_budget(file: Path) -> None:
    for share in (1.0, -0.1, 500):
        with pytest.raises(InstantiationException, match=r"scheduler.warmup is .*; expected a share of the budget"):
            build(OmegaConf.merge(OmegaConf.load(file), {"warmup": share}))


def test_plateau_goes_on_from_its_state() -> None:
    values = [1, 0, 0, 0, 2, 1, 1, 1, 1]
    whole = Plateau(patience=1)
    for value in values:
        whole.observe(value)
    for cut in range(len(values)):
        first, second = Plateau(patience=1), Plateau(patience=1)
        for value in values[:cut]:
            first.observe(value)
        second.load_state_dict(first.state_dict())
        for value in values[cut:]:
            second.observe(value)
        assert second.state_dict() == whole.state_dict()
    assert whole.factor(1.0) == 0.5**3


def test_a_value_that_is_no_number_counts_as_no_rise() -> None:
    schedule = Plateau(patience=0, decay=0.5)
    schedule.observe(0.5)
    schedule.observe(math.nan)
    schedule.observe(0.6)
    assert schedule.factor(1.0) == 0.5
