"""Networks from cards, and networks as functions from arrays to arrays."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segline.card import Card
from segline.checkpoints import read_network
from segline.inference.ensemble import Member
from segline.inference.tiled import Network
from segline.labels import Labels
from segline.precision import autocast, cast_weights, full_name, memory_format


def open_checkpoint(
    path: Path, device: str, precision: str | None, temperature: float, dropout: bool, trust: Sequence[str]
) -> Member:
    """The trained network of a checkpoint, on its device.

    Args:
        path: Of a file.
        device: `cpu`, `cuda`, or `auto`.
        precision: Lightning's name of it; None: that of the card.
        temperature: Divides the logits.
        dropout: Leave dropout at work, so that every call gives another answer.
        trust: Packages besides segline's own whose networks the checkpoint may name.

    Raises:
        ValueError: The checkpoint is not what it should be, or there is no such device.
    """
    place = choose_device(device)
    network, card = load_network(path, trust)
    labels = Labels(**card.labels)
    precision = full_name(precision) if precision else card.precision
    network = network.to(memory_format=memory_format(2 + len(card.window))).to(place)
    cast_weights(network, place, precision)
    if dropout:
        _leave_dropout(network, path)

    def finish(logits: Any) -> Any:
        return labels.probs(logits if temperature == 1 else logits / temperature)

    call = on_arrays(network, place, precision, finish)
    return Member(card, call, card.stride, place.type)


def load_network(path: Path, trust: Sequence[str]) -> tuple[torch.nn.Module, Card]:
    """The trained network of a checkpoint in float32, in evaluation mode, and its card with the stride that only the network knows.

    Args:
        path: Of a file.
        trust: Packages besides segline's own whose networks the checkpoint may name.

    Raises:
        ValueError: The checkpoint is not what it should be.
    """
    card, weights = read_network(path)
    try:
        network = build_network(card, trust, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the checkpoint's weights do not fit the network of its card ({error}); use another checkpoint of the run"
        ) from error
    stride = getattr(network, "stride", None)  # of a network of the user's it may be something else
    return network.eval(), replace(card, stride=stride if isinstance(stride, int) else None)


def choose_device(name: str) -> torch.device:
    """A device by name; of `auto` a GPU where there is one.

    Raises:
        ValueError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {name}, but torch {torch.__version__} sees no GPU here; set device=cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; expected auto, cpu, cuda, or cuda:1 for the second GPU") from error


def _leave_dropout(network: torch.nn.Module, path: Path) -> None:
    found = [module for module in network.modules() if isinstance(module, torch.nn.modules.dropout._DropoutNd)]
    if not any(module.p for module in found):
        raise ValueError(
            f"{path}: its network has no dropout; train with model.dropout=0.2 where the model has it (unet), or set dropout_passes=1"
        )
    for module in found:
        module.train()


def build_network(
    card: Card, trust: Sequence[str] = (), weights: Mapping[str, torch.Tensor] | None = None
) -> torch.nn.Module:
    """The network that a card names, with its arguments and nothing else.

    Args:
        card: Of a checkpoint.
        trust: Packages besides segline's own whose networks it may name.
        weights: What the network will hold; one of other sizes is refused before it takes any memory.

    Raises:
        ValueError: The card names something outside `segline.models`, and not in a package that `trust` lists.
    """
    arguments = dict(card.network)
    target = str(arguments.pop("_target_"))
    module, _, name = target.rpartition(".")
    if not any(module == package or module.startswith(f"{package}.") for package in ("segline.models", *trust)):
        raise ValueError(
            f"the checkpoint's network is {target}, which is not segline's own; add trust=[{module.split('.')[0]}] if you trust its code"
        )
    if nested := [key for key, value in arguments.items() if "_target_" in str(value)]:
        raise ValueError(
            f"the checkpoint's network has arguments that name code ({', '.join(nested)}); expected plain values"
        )
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"the checkpoint's network is {target}, which cannot be imported ({error})") from error
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ValueError(f"the checkpoint's network is {target}, which is not a torch.nn.Module")
    if "encoder_weights" in arguments:
        arguments["encoder_weights"] = None  # the checkpoint holds better ones
    if weights is not None and module.startswith("segline.models."):
        _check_sizes(kind, arguments, weights)
    try:
        return kind(**arguments)
    except Exception as error:  # of whatever kind a stranger's arguments bring about
        raise ValueError(
            f"the checkpoint's arguments do not fit {target} ({error}); use the segline that wrote it"
        ) from error


def _check_sizes(kind: type[torch.nn.Module], arguments: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse a network of other sizes than its weights: a card of a few bytes could ask for more than the memory."""
    try:
        with torch.device("meta"):  # sizes, and no values
            asked = kind(**arguments).state_dict()
    except (
        Exception
    ):  # arguments that cannot be are said by the true network; and some encoders compute while they are built
        return
    came = {name: list(getattr(w, "shape", [])) for name, w in weights.items()}
    for name, w in asked.items():
        if came.get(name) != list(w.shape):
            raise ValueError(
                f"the checkpoint's weights do not fit the network of its card: {name} is {came.get(name, 'missing')}, "
                f"expected {list(w.shape)}; use another checkpoint of the run"
            )


def on_arrays(
    network: torch.nn.Module, device: torch.device, precision: str, finish: Callable[[Any], Any] | None = None
) -> Network:
    """A network that lies on a device in its channels-last format, as a function from arrays to arrays.

    Args:
        network: In evaluation mode.
        device: Where it lies.
        precision: Lightning's name of it.
        finish: What is done to the logits `[B, K, *S]`, such as `Labels.probs`.
    """

    @torch.inference_mode()
    def call(images: NDArray[np.float32]) -> NDArray[np.float32]:
        batch = torch.from_numpy(images).to(device).to(memory_format=memory_format(images.ndim))
        with autocast(device, precision):
            logits = network(batch).float()
        said: NDArray[np.float32] = (logits if finish is None else finish(logits)).cpu().numpy()
        return said

    def in_parts(images: NDArray[np.float32]) -> NDArray[np.float32]:
        """What does not fit the GPU at once is computed by halves."""
        try:
            return call(images)
        except torch.OutOfMemoryError as error:
            if len(images) == 1:
                size = list(images.shape[2:])
                raise ValueError(
                    f"a window of {size} does not fit the GPU's memory; set a smaller window, or device=cpu"
                ) from error
        torch.cuda.empty_cache()
        return np.concatenate([in_parts(half) for half in np.array_split(images, 2)])

    return in_parts
