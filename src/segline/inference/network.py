"""Networks from cards, and networks as functions from arrays to arrays."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segline.card import Card
from segline.inference.tiled import Network
from segline.precision import autocast, memory_format


def build_network(card: Card, trust: Sequence[str] = ()) -> torch.nn.Module:
    """The network that a card names, with its arguments and nothing else.

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
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"the checkpoint's arguments do not fit {target} ({error}); use the segline that wrote it"
        ) from error


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

    return call
