"""Exported networks, run by ONNX Runtime and without torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.card import Card
from segline.inference.ensemble import Member
from segline.inference.tiled import Network
from segline.labels import Labels
from segline.machine import num_cores

#: Names in the file's metadata.
CARD, WEIGHTS = "segline_card", "segline_weights_sha256"


def read_onnx_card(path: Path) -> Card:
    """The card inside an ONNX file.

    Raises:
        ValueError: The file is damaged, refers to other files, has no card or one of another version, or the card beside it differs.
    """
    return read(path)[0]


def open_onnx(path: Path, device: str, temperature: float) -> Member:
    """An exported network, ready to predict.

    Args:
        path: Of the file that src/export.py wrote.
        device: `cpu`, `cuda`, or `auto`.
        temperature: Divides the logits.

    Raises:
        ValueError: The file is not what it should be, or ONNX Runtime has no such device here.
    """
    card, content = read(path)
    labels = Labels(**card.labels)
    network, place = start(path, content, card, device)

    def call(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = network(images)
        probs: NDArray[np.float32] = labels.probs(logits if temperature == 1 else logits / np.float32(temperature))
        return probs

    return Member(card, call, card.stride, place)


def read(path: Path) -> tuple[Card, bytes]:
    """Card and content of an ONNX file, checked; what is checked is what runs, whatever becomes of the file meanwhile."""
    import onnx

    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf's own kinds
        raise ValueError(f"{path} is not an ONNX file or is damaged; write it anew by src/export.py") from error
    if any(tensor.external_data or tensor.data_location for tensor in _tensors(model)):
        # It may name any file of the machine.
        raise ValueError(
            f"{path} refers to other files for its weights and is not read; src/export.py writes them into the one file"
        )
    said = {entry.key: entry.value for entry in model.metadata_props}
    if CARD not in said:
        raise ValueError(f"{path} holds no segline card; expected an ONNX file that src/export.py wrote")
    if said.get(WEIGHTS) != digest(model):
        raise ValueError(f"{path} is damaged: the checksum of its weights does not fit; write it anew by src/export.py")
    card = _card(path, said[CARD])
    beside = path.with_suffix(".json")
    if beside.exists() and _card(beside, beside.read_text(errors="replace")) != card:
        raise ValueError(
            f"{beside} differs from the card inside {path}, which is the one that counts; write both anew by src/export.py, or remove it"
        )
    return card, content


def _card(path: Path, text: str) -> Card:
    try:
        return Card.from_dict(json.loads(text))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def digest(model: Any) -> str:
    """SHA-256 of a model's weights: ONNX itself has no checksums."""
    found = hashlib.sha256()
    for tensor in model.graph.initializer:
        found.update(tensor.name.encode() + b"\0")
        found.update(tensor.raw_data)
    return found.hexdigest()


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor of a model, in whatever part of it."""
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def start(path: Path, content: bytes, card: Card, device: str) -> tuple[Network, str]:
    """A model as a function from images to logits, and the kind of device that it runs on.

    Args:
        path: For messages.
        content: The model.
        card: What it must fit.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`.

    Raises:
        ValueError: ONNX Runtime does not take the model or the device, or the model is not of its card.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 3  # what fails is raised; warnings tell how it was optimised
    providers = _providers(device, onnxruntime)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # of kinds of its own
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: ONNX Runtime {onnxruntime.__version__} does not take it ({reason})") from error
    if len(providers) > 1 and session.get_providers()[0] == "CPUExecutionProvider":
        raise ValueError(f"device is {device}, but ONNX Runtime could not start on the GPU; set device=cpu")
    image = _check_fit(path, session, card)

    def call(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(None, {image: np.ascontiguousarray(images, np.float32)})[0]
        return logits

    return call, "cuda" if len(providers) > 1 else "cpu"


def _check_fit(path: Path, session: Any, card: Card) -> str:
    """Name of the model's input, if it is the network of its card: by axes, types and numbers of channels."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    got = [(value.type, len(value.shape), value.shape[1:2]) for value in [*inputs, *outputs]]
    axes, num_classes = 2 + len(card.window), Labels(**card.labels).num_classes
    bands = inputs[0].shape[1:2] if card.num_bands is None else [card.num_bands]
    wanted = [("tensor(float)", axes, bands), ("tensor(float)", axes, [num_classes])]
    if len(inputs) != 1 or got != wanted:
        raise ValueError(f"{path} is not the network of its card: it has {got}, expected {wanted}")
    name: str = inputs[0].name
    return name


def _providers(device: str, onnxruntime: Any) -> list[Any]:
    """Where ONNX Runtime computes, first choice first."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or not (number or "0").isdigit():
        raise ValueError(f"device is {device!r}; expected auto, cpu, cuda, or cuda:1 for the second GPU")
    there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if kind == "cuda" and not there:
        raise ValueError(
            f"device is {device}, but ONNX Runtime {onnxruntime.__version__} sees no GPU here; set device=cpu, or install onnxruntime-gpu"
        )
    gpu = [("CUDAExecutionProvider", {"device_id": int(number or 0)})] if there and kind != "cpu" else []
    return [*gpu, "CPUExecutionProvider"]


def num_threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS, which ONNX Runtime does not ask by itself, or one for each core."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdigit() and int(asked):
        return int(asked)
    return num_cores()
