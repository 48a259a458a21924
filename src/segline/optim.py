"""Which weights decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weights of convolutions and linear layers, and the rest (biases, norms), which does not decay.

    A decaying bias or norm scale only fights what the data ask for; weights without gradient are left out.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
