"""One step of every loss on a batch that processes share, each with a part of it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from loss_cases import FOREIGN_CHOICES, NUM_CLASSES, OWN_CHOICES, is_foreign, make
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segline.labels import IGNORE_INDEX
from segline.losses.combination import DeepSupervision

CHOICES = [*OWN_CHOICES, *FOREIGN_CHOICES]
#: How pixels that count lie on two processes, of which each has two of four samples.
SHARES = ("unequal", "nothing on one")
#: Loss, and gradients of the network's weights.
Step = tuple[Tensor, list[Tensor]]


class TwoOutputs(nn.Module):
    """A pixel-wise network, with a coarser output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse = nn.Conv2d(4, NUM_CLASSES, 1), nn.Conv2d(4, NUM_CLASSES, 2, 2)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Two outputs, finest first."""
        return [self.fine(image), self.coarse(image)]


def batch(scheme: str, share: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images, masks and weights of four samples that differ in what is ignored and which classes they have."""
    generator = torch.Generator().manual_seed(0)
    image = 2 * torch.randn(4, 4, 8, 10, generator=generator)
    shape = (4, 8, 10) if scheme == "exclusive" else (4, NUM_CLASSES, 8, 10)
    mask = torch.randint(0, NUM_CLASSES if scheme == "exclusive" else 2, shape, generator=generator)
    if scheme == "exclusive":
        mask[2][mask[2] == 1] = 0
    else:
        mask[2, 1] = 0
    ignored = torch.tensor([0.1, 0.3, 0.7, 1.0] if share == "unequal" else [0.1, 0.3, 1.0, 1.0])
    mask[torch.rand(shape, generator=generator) < ignored.view(-1, *[1] * (mask.ndim - 1))] = IGNORE_INDEX
    weight = torch.rand(4, 8, 10, generator=generator) + 0.1
    return image, mask if scheme == "exclusive" else mask.to(torch.uint8), weight


def steps(part: slice, training: bool) -> dict[tuple[str, str, str], Step]:
    """One step of each loss on a part of the batch."""
    network: nn.Module = TwoOutputs()
    if dist.is_initialized():
        network = DistributedDataParallel(network)
    done = {}
    for file, scheme in CHOICES:
        for share in SHARES:
            image, mask, weight = (v[part] for v in batch(scheme, share))
            more = {"arguments": {"batch": True}} if file.stem == "monai" else {}  # else a mean over samples, as it is
            loss = DeepSupervision(make(file, **more)).train(training)
            network.zero_grad()
            value = loss(network(image), mask, None if is_foreign(file) else weight)
            value.backward()
            gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            done[file.stem, scheme, share] = (value.detach(), gradients)
    return done


def work(rank: int, folder: Path) -> None:
    """One of two processes; leaves what its steps gave in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    torch.save((steps(part, True), steps(part, False)), folder / f"{rank}.pt")
    if rank == 0:  # evaluation takes as many steps as a process has samples: nobody else is asked
        for file, scheme in CHOICES:
            image, mask, _ = batch(scheme, "unequal")
            DeepSupervision(make(file)).eval()(TwoOutputs()(image), mask)
    dist.destroy_process_group()
