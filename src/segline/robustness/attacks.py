"""Attacks: the smallest changes of an image that raise the loss the most, for a network whose gradients are known.

They are of prepared images, so sizes are in units of the normalised image: 0.1 is a tenth of the deviation that each band has over the
training part, or over the case where each case is normalised by its own. No pixel changes by more than the size (L-infinity). Nothing is
clipped to what a file could hold, which is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

#: Steps of PGD, and how far they lead in all, in sizes: far enough to get from one side of the ball to the other.
_STEPS, _REACH = 10, 2.5


class Attack(Protocol):
    """Changes prepared images `[B, C, *S]` by at most a size where `free` is 1, so that the loss of the mask becomes larger."""

    def __call__(
        self, loss: Callable[[Tensor], Tensor], images: Tensor, size: float, free: Tensor, drawn: Tensor
    ) -> Tensor:
        """The attacked images; `drawn` are numbers from -1 to 1 for a random start."""
        ...


def loss_of(network: nn.Module, loss: nn.Module, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss of a mask as a function of images."""
    return lambda images: loss(network(images), mask)


def fgsm(loss: Callable[[Tensor], Tensor], images: Tensor, size: float, free: Tensor, drawn: Tensor) -> Tensor:
    """One step along the sign of the gradient: `x + size sign(dL/dx)`.

    Reference:
        Goodfellow, Shlens and Szegedy, Explaining and Harnessing Adversarial Examples, ICLR 2015. https://arxiv.org/abs/1412.6572
    """
    return images + size * _direction(loss, images) * free


def pgd(loss: Callable[[Tensor], Tensor], images: Tensor, size: float, free: Tensor, drawn: Tensor) -> Tensor:
    """10 steps of a quarter of the size along the sign of the gradient from a random start, each brought back to within the size.

    Reference:
        Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018. https://arxiv.org/abs/1706.06083
    """
    change = size * drawn * free
    for _ in range(_STEPS):
        step = size * _REACH / _STEPS * _direction(loss, images + change)
        change = (change + step * free).clamp(-size, size)
    return images + change


def _direction(loss: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Sign of the gradient of the loss."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(images), images)
    return gradient.sign()


ATTACKS: dict[str, Attack] = {"fgsm": fgsm, "pgd": pgd}
#: How many times as long as asking the network an attack takes: a gradient costs about three times as much.
COST = {"fgsm": 4, "pgd": 1 + 3 * _STEPS}
