"""Learning-rate schedules over the share of the training budget that is spent, whatever the budget is given in."""

from __future__ import annotations

import math
from typing import Any


class Schedule:
    """A factor on the learning rate. Rises linearly during the warm-up, then follows the schedule to the budget's end.

    Args:
        warmup: Share of the budget, 0 to below 1.

    Raises:
        ValueError: The warm-up is no such share.
    """

    def __init__(self, warmup: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(
                f"scheduler.warmup is {warmup}; expected a share of the budget, from 0 to below 1, such as 0.05"
            )
        self.warmup = warmup

    def factor(self, spent: float) -> float:
        """Factor at a share of the budget, 0 to 1."""
        if spent < self.warmup:
            return max(spent / self.warmup, 0.01)  # the very first step moves, too
        return self.after_warmup((spent - self.warmup) / (1 - self.warmup))

    def after_warmup(self, spent: float) -> float:
        """Factor at a share of what follows the warm-up."""
        return 1.0

    def observe(self, value: float) -> None:
        """Look at the objective after a validation; more is better."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class Constant(Schedule):
    """The optimizer's own rate."""


class Poly(Schedule):
    """(1 - share) ** power.

    Reference:
        Chen et al., DeepLab, 2017. https://arxiv.org/abs/1606.00915
    """

    def __init__(self, power: float = 0.9, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.power = power

    def after_warmup(self, spent: float) -> float:
        """Factor at a share of what follows the warm-up."""
        return float((1 - spent) ** self.power)


class Cosine(Schedule):
    """Half a cosine from 1 to `floor`.

    Reference:
        Loshchilov and Hutter, SGDR, ICLR 2017 (without restarts). https://arxiv.org/abs/1608.03983
    """

    def __init__(self, floor: float = 0.0, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.floor = floor

    def after_warmup(self, spent: float) -> float:
        """Factor at a share of what follows the warm-up."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * spent)) / 2


class Plateau(Schedule):
    """Times `decay` whenever the objective has not risen for more than `patience` validations."""

    def __init__(self, patience: int = 5, decay: float = 0.5, floor: float = 0.001, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.patience, self.decay, self.floor = patience, decay, floor
        self.level, self.best, self.waited = 1.0, -math.inf, 0

    def after_warmup(self, spent: float) -> float:
        """Factor at a share of what follows the warm-up."""
        return self.level

    def observe(self, value: float) -> None:
        """Look at the objective after a validation; more is better."""
        if value > self.best:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.level, self.waited = max(self.level * self.decay, self.floor), 0

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"level": self.level, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.level, self.best, self.waited = state["level"], state["best"], state["waited"]
