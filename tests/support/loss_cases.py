"""Every loss of the config folder, and samples for each label scheme."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from segline.config import CONF_DIR, build, compose
from segline.labels import IGNORE_INDEX
from segline.losses.foreign import ForeignLoss
from segline.losses.loss import Loss

NUM_CLASSES = 3
FILES = sorted((CONF_DIR / "loss").glob("*.yaml"))


@functools.cache
def config(file: Path) -> DictConfig:
    """What a YAML file describes."""
    written = OmegaConf.load(file)
    return compose(name=f"loss/{file.stem}").loss if "defaults" in written else written


def make(file: Path | str, **arguments: Any) -> Loss:
    """The loss of a YAML file, or of its name."""
    file = CONF_DIR / "loss" / f"{file}.yaml" if isinstance(file, str) else file
    loss = build(OmegaConf.merge(config(file), arguments))
    assert isinstance(loss, Loss)
    return loss


def is_foreign(file: Path) -> bool:
    """Whether it is another library's, which takes no weights and seconds to import."""
    return issubclass(get_object(config(file)["_target_"]), ForeignLoss)


OWN = [file for file in FILES if not is_foreign(file)]
OWN_CHOICES = [(file, scheme) for file in OWN for scheme in sorted(make(file).schemes)]
FOREIGN_CHOICES = [(file, scheme) for file in FILES if is_foreign(file) for scheme in sorted(ForeignLoss.schemes)]
#: Each with each label scheme that it takes.
own_loss = pytest.mark.parametrize(("file", "scheme"), OWN_CHOICES, ids=lambda value: getattr(value, "stem", value))
every_loss = pytest.mark.parametrize(
    ("file", "scheme"),
    [*OWN_CHOICES, *(pytest.param(*choice, marks=pytest.mark.slow) for choice in FOREIGN_CHOICES)],
    ids=lambda value: getattr(value, "stem", value),
)


def sample(
    scheme: str, seed: int, size: tuple[int, ...] = (3, 4), ignored: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a mask with ignored pixels, and a weight of each pixel."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, NUM_CLASSES, *size, generator=generator) * 3
    shape = (2, *size) if scheme == "exclusive" else logits.shape
    mask = torch.randint(0, NUM_CLASSES if scheme == "exclusive" else 2, shape, generator=generator)
    mask[torch.rand(shape, generator=generator) < ignored] = IGNORE_INDEX
    mask = mask if scheme == "exclusive" else mask.to(torch.uint8)
    return logits, mask, torch.rand(2, *size, generator=generator) + 0.1


def value_and_gradient(loss: Any, logits: Tensor, mask: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in the logits."""
    logits = logits.clone().requires_grad_()
    value = loss(logits, mask) if weight is None else loss(logits, mask, weight)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad
