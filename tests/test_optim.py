from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from segline.config import CONF_DIR, build
from segline.models.attention_unet import AttentionUNet
from segline.optim import parameter_groups

FILES = sorted((CONF_DIR / "optimizer").glob("*.yaml"))
NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.LayerNorm)


def network() -> nn.Module:
    return nn.Sequential(
        AttentionUNet(1, 4, channels=[2, 3, 4], norm="instance"), nn.BatchNorm2d(4), nn.Linear(8, 8), nn.LayerNorm(8)
    )


def decaying(model: nn.Module) -> set[str]:
    """Names of what should decay, found by the kind of layer."""
    return {
        f"{path}.weight"
        for path, module in model.named_modules()
        if hasattr(module, "weight") and not isinstance(module, NORMS)
    }


def test_every_weight_is_in_one_group_and_norms_and_biases_do_not_decay() -> None:
    model = network()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = parameter_groups(model)
    assert {names[id(p)] for p in decayed["params"]} == decaying(model)
    assert "weight_decay" not in decayed
    assert {names[id(p)] for p in spared["params"]} == set(names.values()) - decaying(model)
    assert spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_without_a_gradient_only_layers_shrink(file: Path) -> None:
    model = network()
    for p in model.parameters():
        nn.init.constant_(p, 1.0)
        p.grad = torch.zeros_like(p)
    optimizer = build(OmegaConf.merge(OmegaConf.load(file), {"weight_decay": 0.1, "lr": 0.1}))(parameter_groups(model))
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert changed == decaying(model)
    assert all(p.max() < 1 for name, p in model.named_parameters() if name in changed)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_optimizer_takes_the_numbers_of_its_file(file: Path) -> None:
    config = OmegaConf.load(file)
    decayed, spared = build(config)(parameter_groups(network())).param_groups
    assert decayed["lr"] == spared["lr"] == config.lr
    assert isinstance(config.lr, float)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (config.weight_decay, 0)


def test_parts_of_a_network_may_learn_slower_or_faster_than_the_rest() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    model.lr_factors = {"0": 0.1, "2": 3.0}  # type: ignore[assignment]
    found = [
        ([tuple(p.shape) for p in g["params"]], g.get("weight_decay"), g.get("lr_factor"))
        for g in parameter_groups(model)
    ]
    plain, parts = found[:2], found[2:]
    assert plain == [([(4, 3)], None, None), ([(4,)], 0.0, None)]  # first, as it is their rate that is shown
    assert sorted(parts, key=lambda group: group[2] or 0) == [
        ([(3, 2)], None, 0.1), ([(3,)], 0.0, 0.1), ([(5, 4)], None, 3.0), ([(5,)], 0.0, 3.0),
    ]  # fmt: skip


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    model[0].requires_grad_(False)
    assert [[tuple(p.shape) for p in group["params"]] for group in parameter_groups(model)] == [[(4, 3)], [(4,)]]
    model[1].bias.requires_grad_(False)
    assert [[tuple(p.shape) for p in group["params"]] for group in parameter_groups(model)] == [[(4, 3)]]
