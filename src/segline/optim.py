"""Which weights decay, and how fast each part of a network learns."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weights of convolutions and linear layers, and the rest (biases, norms), which does not decay.

    A decaying bias or norm scale only fights what the data ask for; weights without gradient are left out. A network may have
    `lr_factors`, factors of the learning rate by the names of its parts: two more groups for each, with `lr_factor`.
    """
    parts: dict[str, float] = getattr(network, "lr_factors", {})
    factors = {p: factor for name, factor in parts.items() for p in network.get_submodule(name).parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for factor in sorted(
        {factors.get(p, 1.0) for p in trained}, key=lambda factor: factor != 1
    ):  # whose rate is logged
        own = [p for p in trained if factors.get(p, 1.0) == factor]
        options = {} if factor == 1 else {"lr_factor": factor}
        groups += [
            {"params": [p for p in own if p.ndim > 1], **options},
            {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0, **options},
        ]
    return [group for group in groups if group["params"]]
