"""Trained networks as ONNX files, checked against torch before they are called done."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segline.card import Card
from segline.checkpoints import locate
from segline.commit import committed
from segline.inference.field import USUAL_STRIDE
from segline.inference.members import ONNX
from segline.inference.network import load_network
from segline.inference.onnx import CARD, WEIGHTS, digest, read, start
from segline.inference.predictor import calibration_path, read_calibration
from segline.inference.tiled import Network

#: What protobuf, and so one ONNX file, can hold.
_MOST_BYTES = 2**31 - 2**24
#: Names of the axes that are free, by their number.
_AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}


def export_network(checkpoint: str, output: str, *, trust: Sequence[str] = (), tolerance: float = 1e-4) -> Path:
    """Write the network of a checkpoint as ONNX, `[B, C, *S]` -> float32 logits of any batch and size, and its card beside it.

    Args:
        checkpoint: A run folder (its best checkpoint) or a `.ckpt` file.
        output: The `.onnx` file, or a folder for one of the run's name.
        trust: Packages besides segline's own whose networks the checkpoint may name.
        tolerance: How far logits may be from torch's, in shares of the largest one, or of 1.

    Returns:
        The file.

    Raises:
        ValueError: The checkpoint is not what it should be, its network cannot be exported, or ONNX Runtime computes something else.
    """
    target = _target(checkpoint, output)
    network, card = _open(checkpoint, trust)
    content = _convert(network, card)
    with committed(target) as file, committed(target.with_suffix(".json")) as beside:
        file.write_bytes(content)
        beside.write_text(json.dumps(card.to_dict(), indent=2) + "\n")
        written, read_back = read(file)
        call, _ = start(target, read_back, written, "cpu")
        _check(network, call, card, tolerance)
        fitted = _take_calibration(locate(checkpoint), target, content)
    print(f"{target} ({len(content) / 1e6:.1f} MB), and its card {target.stem}.json{fitted}; run it by")
    print(f"  python src/predict.py checkpoint={target} input=FILES output=FOLDER")
    return target


def _take_calibration(checkpoint: Path, target: Path, content: bytes) -> str:
    """Leave what was fitted to the checkpoint's probabilities beside the ONNX file, whose probabilities are the same; words for it."""
    if not calibration_path(checkpoint).exists():
        return ""
    try:
        calibration = read_calibration(checkpoint)
    except ValueError as error:
        return f", without calibration: {error}"
    replace(calibration, checkpoint=hashlib.sha256(content).hexdigest()).save(calibration_path(target))
    return f" and calibration {calibration_path(target).name}"


def _open(checkpoint: str, trust: Sequence[str]) -> tuple[torch.nn.Module, Card]:
    """The network in float32, and its card with the stride that only the network knows."""
    path = locate(checkpoint)
    if path.suffix == ONNX:
        raise ValueError(
            f"{path} is an ONNX file already; expected a run folder of src/train.py or a .ckpt file in one"
        )
    network, card = load_network(path, trust)
    size = sum(weight.numel() * weight.element_size() for weight in network.state_dict().values())
    if size > _MOST_BYTES:
        raise ValueError(
            f"{path}: its weights take {size / 2**30:.1f} GB, but one ONNX file holds less than 2; use it as it is"
        )
    return network, card


def _target(checkpoint: str, output: str) -> Path:
    """The file that is written."""
    path, source = Path(output), Path(checkpoint).resolve()
    if path.suffix[1:].isalpha() and path.suffix != ONNX and not path.is_dir():
        raise ValueError(
            f"output is {output}, but what is written is ONNX; name a file that ends in {ONNX}, or a folder"
        )
    if path.suffix != ONNX or path.is_dir():
        path = path / f"{source.name if source.is_dir() else source.stem}{ONNX}"
    beside = path.with_suffix(".json")
    if beside.exists() and not path.exists():
        raise ValueError(f"output: the card would overwrite {beside}, which is something else; name another file")
    return path


def _convert(network: torch.nn.Module, card: Card) -> bytes:
    """The ONNX file of a network, with its card and a checksum inside."""
    from onnx.helper import set_model_props

    dims = len(card.window)
    batch, size = _cases(card)[0]
    free = {0: "batch", **dict(enumerate(_AXES[dims], 2))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch to torch: what matters is compared afterwards
        try:
            program: Any = torch.onnx.export(
                network,
                (_images(card, batch, size),),
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in free.items()},),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # torch.export, torch.onnx and the network each raise their own kinds
            raise ValueError(
                f"torch.onnx cannot export {_name(card)} for images of any size ({_reason(error)}); "
                "predict from its checkpoint, or train another network"
            ) from error
    model = program.model_proto
    for axis, name in free.items():  # torch writes a long expression that comes to the same
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = name
    set_model_props(model, {CARD: json.dumps(card.to_dict()), WEIGHTS: digest(model)})
    content: bytes = model.SerializeToString()
    return content


def _name(card: Card) -> str:
    """What a user calls the network."""
    kind = str(card.network["_target_"]).rpartition(".")[2]
    details = [str(card.network[key]) for key in ("architecture", "encoder_name") if key in card.network]
    return " ".join([kind, *details])


def _reason(error: BaseException) -> str:
    """The first line of what was wrong in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _cases(card: Card) -> list[tuple[int, list[int]]]:
    """Batches and sizes that are compared; the first one is that of the export itself."""
    dims, stride = len(card.window), card.stride or USUAL_STRIDE
    return [
        (2, [2 * stride + 1 + axis for axis in range(dims)]),
        (1, [max(1, stride // 2)] * dims),
        (1, [1] * (dims - 1) + [stride + 1]),
        (3, [stride] * (dims - 1) + [3 * stride - 1]),
        (3, [3 * stride + 2 - axis for axis in range(dims)]),
        (1, [4 * stride + axis for axis in range(dims)]),
        (1, list(card.window)),
    ]


def _images(card: Card, batch: int, size: Sequence[int]) -> torch.Tensor:
    """Noise as normalised images have it, the same each time."""
    return torch.randn(batch, card.num_bands or 1, *size, generator=torch.Generator().manual_seed(0))


def _check(network: torch.nn.Module, call: Network, card: Card, tolerance: float) -> None:
    """Compare what ONNX Runtime and torch make of images of several sizes, and print it.

    Raises:
        ValueError: They differ by more than the tolerance, or ONNX Runtime fails at a size.
    """
    ours, beyond = _on_torch(network), []
    print(f"{'images':>20}  largest difference from torch, in shares of the largest logit")
    for batch, size in _cases(card):
        images = _images(card, batch, size).numpy()
        name = " x ".join(map(str, images.shape))
        try:
            difference = _difference(call(images), ours(images))
        except Exception as error:  # of kinds of ONNX Runtime's own
            raise ValueError(
                f"ONNX Runtime fails on images of {name} ({_reason(error)}); nothing was written"
            ) from error
        print(f"{name:>20}  {difference:.1e}")
        if not difference <= tolerance:
            beyond.append(f"{difference:.1e} for images of {name}")
    if beyond:
        raise ValueError(
            f"{_name(card)} as ONNX differs from torch by {', '.join(beyond)}; at most {tolerance:.1e} was allowed (tolerance=); "
            "nothing was written; where it differs at some sizes only, the network decides by the size and cannot be exported"
        )


def _on_torch(network: torch.nn.Module) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    @torch.inference_mode()
    def call(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
        return logits

    return call


def _difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest one, in shares of the largest value or of 1; infinite where shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got - expected).max() / max(1.0, float(np.abs(expected).max())))
