"""What networks cost: weights, arithmetic, memory and time, and how far they look for it."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from segline.inference.field import USUAL_STRIDE, measure_field
from segline.inference.network import on_arrays
from segline.losses.combination import DeepSupervision, DiceCELoss
from segline.machine import keep_freed, num_cores
from segline.optim import parameter_groups
from segline.precision import autocast, cast_weights, memory_format
from segline.tables import aligned
from segline.words import count_of

_HEAD = ["Network", "Weights, M", "GFLOPs", "Field, px", "Activations, MB", "Training step, ms", "Prediction, ms"]


@dataclass(frozen=True)
class Workload:
    """What networks are measured on.

    Args:
        size: Of an image in pixels, `*S`.
        in_channels: Its bands.
        num_classes: What is told apart.
        batch_size: Images of a training step and of a prediction.
        repeats: Of which the median time counts.
        device: Where it computes.
        precision: Lightning's name of it.
    """

    size: Sequence[int]
    in_channels: int
    num_classes: int
    batch_size: int
    repeats: int
    device: torch.device
    precision: str

    def images(self, batch_size: int | None = None) -> Tensor:
        """Noise `[B, C, *S]`, on the device."""
        images = torch.randn(batch_size or self.batch_size, self.in_channels, *self.size)
        return images.to(self.device, memory_format=memory_format(images.ndim))

    def __str__(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"a CPU, {num_cores()} cores"
        return (
            f"{count_of(self.batch_size, 'image')} of {' x '.join(map(str, self.size))} pixels, "
            f"{count_of(self.in_channels, 'band')}, {count_of(self.num_classes, 'class')}; "
            f"{self.precision} on {where}"
        )


@dataclass(frozen=True)
class Costs:
    """What a network costs.

    Args:
        weights: Their number.
        flops: Of a prediction of one image; a multiplication and an addition are two.
        field: Pixels along each axis that an output depends on, at most; None for the whole image.
        activations: Bytes that are kept from the forward pass of a training step for the backward one.
        training: Seconds of a training step: forward, loss, backward and optimizer.
        prediction: Seconds of a prediction.
    """

    weights: int
    flops: int
    field: list[int] | None
    activations: int
    training: float
    prediction: float

    def cells(self) -> list[str]:
        """A row of the table."""
        field = "whole image" if self.field is None else " x ".join(map(str, self.field))
        if self.field and len(set(self.field)) == 1:
            field = str(self.field[0])
        return [
            f"{self.weights / 1e6:.2f}",
            f"{self.flops / 1e9:.1f}",
            field,
            f"{self.activations / 1e6:.0f}",
            f"{self.training * 1e3:.0f}",
            f"{self.prediction * 1e3:.0f}",
        ]


def print_costs(networks: Mapping[str, Callable[[], nn.Module]], workload: Workload) -> None:
    """Measure networks one by one, and print a Markdown table of them and, below it, why some are not in it.

    Args:
        networks: What makes each, by name.
        workload: What they are measured on.
    """
    keep_freed()
    rows, refused = [_HEAD], []
    with tqdm(networks.items(), unit="network", file=sys.stderr) as bar:
        for name, make in bar:
            bar.set_description(name)
            try:
                rows.append([name, *measure_costs(make(), workload).cells()])
            except (ValueError, RuntimeError) as error:  # of one that takes no such images, or doesn't fit the memory
                refused.append(f"- {name}: {(str(error) or repr(error)).splitlines()[0]}")
    print(
        f"{workload}; a training step is one of dice_ce and AdamW; GFLOPs are of one image predicted, a multiply-add being two\n"
    )
    if len(rows) > 1:
        print(aligned(rows, "markdown"))
    if refused:
        print("\n".join(["", "Not measured:", *refused]))


def measure_costs(network: nn.Module, workload: Workload) -> Costs:
    """Measure one network; it is trained a few steps on noise, and cast for prediction."""
    torch.manual_seed(0)
    network = network.to(workload.device, memory_format=memory_format(2 + len(workload.size)))  # type: ignore[call-overload]
    weights = sum(p.numel() for p in network.parameters())
    flops = count_flops(network.eval(), workload.images(1))
    stride, call = getattr(network, "stride", None), on_arrays(network, workload.device, "32-true")
    field = measure_field(
        call, workload.in_channels, len(workload.size), stride if isinstance(stride, int) else USUAL_STRIDE
    )
    loss = DeepSupervision(DiceCELoss(), getattr(network, "output_weights", None))
    optimizer = torch.optim.AdamW(parameter_groups(network.train()))
    images = workload.images()
    mask = torch.randint(workload.num_classes, (workload.batch_size, *workload.size), device=workload.device)

    def forward() -> Tensor:
        with autocast(workload.device, workload.precision):
            value: Tensor = loss(network(images), mask)
        return value

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    activations = count_kept(forward, [*network.parameters(), *network.buffers()])
    training = median_seconds(step, workload)
    optimizer.zero_grad()
    cast_weights(network.eval(), workload.device, workload.precision)
    predict, batch = on_arrays(network, workload.device, workload.precision), images.cpu().numpy()
    return Costs(weights, flops, field, activations, training, median_seconds(lambda: predict(batch), workload))


def count_flops(network: nn.Module, images: Tensor) -> int:
    """Additions and multiplications of convolutions and matrix products; the rest, as of norms, is not counted."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


def count_kept(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps from a forward pass until the backward pass; memory that several tensors share counts once.

    Args:
        forward: Makes the loss.
        weights: What does not count, nor do their casts and views.
    """
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that none lies where another one lay

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and not _is_made_of_a_weight(tensor):
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(storage.nbytes() for storage in kept.values())


def _is_made_of_a_weight(tensor: Tensor) -> bool:
    """Whether it is one weight and nothing else in another form, as in the low precision of autocast."""
    sources = [node for node, _ in tensor.grad_fn.next_functions] if tensor.grad_fn else []
    return len(sources) == 1 and hasattr(sources[0], "variable")


def median_seconds(call: Callable[[], object], workload: Workload) -> float:
    """How long a call takes, after one that does not count."""
    seconds = []
    for _ in range(1 + workload.repeats):
        start = time.perf_counter()
        call()
        if workload.device.type == "cuda":
            torch.cuda.synchronize(workload.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
