"""Pictures of what a trained network has learned and of what it sees in a file, with the numbers to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segline import pictures, tables
from segline.checkpoints import BEST
from segline.inference.inputs import find_inputs
from segline.inference.members import ONNX, locate_all
from segline.inference.network import choose_device, load_network
from segline.inference.worker import open_for
from segline.interpretation.subject import Drawn, Subject, choose_window
from segline.io.open import IMAGE_SUFFIXES


def explain(
    checkpoint: str | Sequence[str],
    input: str,
    output: str | None = None,
    *,
    window: Sequence[int] | None = None,
    center: Sequence[int] | None = None,
    layer: str | None = None,
    class_name: str | None = None,
    wandb: bool = False,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> Path:
    """Draw learned filters, feature maps, attention gates, Grad-CAM and the receptive field; a few lines say what lies where.

    Args:
        checkpoint: A run or a `.ckpt` file.
        input: A file.
        output: Folder of the pictures; None: `explain/<name of the file>` in the run's folder.
        window: Size of the part of the file that is looked at, `*S`; None: that of validation.
        center: Its middle in pixels from the first one, `*S`; None: that of the file.
        layer: Module whose maps Grad-CAM weighs; None: the coarsest level.
        class_name: The only class that Grad-CAM is made of; None: all that are predicted.
        wandb: Show the pictures in the run's W&B, too.
        device: `cpu`, `cuda`, or `auto`.
        trust: Packages besides segline's own whose networks the checkpoint may name.

    Returns:
        The folder.

    Raises:
        ValueError: Checkpoint, file, window, layer or class is not what it should be.
    """
    path, file = _one_checkpoint(checkpoint), _one_file(input)
    if wandb:
        from segline.tracking import log_pictures, logged_run

        logged = logged_run(path.parent)
    network, card = load_network(path, trust)
    source = open_for(file, card)
    place = choose_window(source.shape, window or card.window, center)
    subject = Subject(network, card, source, place, choose_device(device))
    drawn = {
        "gradcam": subject.grad_cams(layer, class_name),  # first: it may refuse what was asked for
        "filters": subject.filters(),
        "features": subject.features(),
        "attention": subject.attention(),
        "receptive_field": subject.receptive_field(),
    }
    stem = _stem(file) if path.name == BEST else f"{_stem(file)}_{path.stem}"
    folder = Path(output) if output else path.parent / "explain" / stem
    said = {"checkpoint": str(path), "input": str(file), **subject.say}
    made = _write(folder, {name: one for name, one in drawn.items() if one is not None}, said)
    if wandb:
        log_pictures(logged, {f"explain/{stem}/{name}": picture for name, picture in made.items()})
    return folder


def _write(folder: Path, drawn: Mapping[str, Drawn], said: Mapping[str, Any]) -> dict[str, Path]:
    """Write pictures and numbers, and say what lies where; the pictures' files."""
    made = {name: folder / f"{name}.png" for name in drawn}
    for name, one in drawn.items():
        pictures.save(one.figure, made[name])
    tables.write_json(folder / "explain.json", {**said, **{name: one.numbers for name, one in drawn.items()}})
    lines = [f"  {made[name].name:20} {one.line}" for name, one in drawn.items()]
    print("\n".join([f"{folder}:", *lines, f"  {'explain.json':20} the numbers"]))
    return made


def _one_checkpoint(checkpoint: str | Sequence[str]) -> Path:
    paths = locate_all(checkpoint)
    if len(paths) > 1:
        raise ValueError(f"checkpoint names {len(paths)} networks; explain them one by one")
    if paths[0].suffix == ONNX:
        raise ValueError(
            f"{paths[0]} is an ONNX file, whose layers cannot be looked into; set checkpoint to the run or the .ckpt file that it was "
            "exported from"
        )
    return paths[0]


def _one_file(input: str) -> Path:
    files = find_inputs(input)
    if len(files) > 1:
        raise ValueError(f"input={input} stands for {len(files)} files; name one of them, such as {files[0]}")
    return files[0]


def _stem(file: Path) -> str:
    suffix = next(s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if file.name.lower().endswith(s))
    return file.name[: -len(suffix)]
