"""Masks of whole files from a checkpoint, in the format that came in."""

from __future__ import annotations

import errno
import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from segline.card import Card
from segline.checkpoints import locate, read_network
from segline.commit import remove_leftovers
from segline.inference.blend import PROFILES
from segline.inference.field import measure_margin
from segline.inference.inputs import Journal, find_inputs, plan_outputs
from segline.inference.network import build_network, on_arrays
from segline.inference.tiled import Network, predict_tiles
from segline.io.normalize import Normalize, measure
from segline.io.open import open_image, open_sink
from segline.io.source import Source, Window
from segline.labels import IGNORE_INDEX, Labels
from segline.memory import keep_freed
from segline.precision import memory_format
from segline.tiling import tiles

#: Pieces of a mask that wait to be written while the network computes.
_WAITING = 4
BLENDS = ("cores", *PROFILES, "exact")


@dataclass(frozen=True)
class Tiling:
    """How a source is cut into tiles and put together again; the arguments of `predict_tiles`."""

    window: list[int]
    margin: list[int]
    profile: str | None = None
    multiple: int | None = None


def predict_files(
    checkpoint: str,
    input: str,
    output: str,
    *,
    blend: str = "cores",
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    batch_size: int = 4,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> list[Path]:
    """Predict each file of `input` (a file, a folder or a glob) into the folder `output`, under its own name.

    Files that cannot be predicted are said at the end, when all others are done. The same command again does what is left.

    Args:
        checkpoint: Of a run, or a file.
        input: A file, a folder or a pattern.
        output: Folder of the masks.
        blend: `cores` (each tile's inside, as in validation), `linear` or `gaussian` (weighted means of overlapping tiles), or `exact`
            (in float32 what the network would say to the whole image at once).
        window: Size of a tile, `*S`; None: the one of training, and for `exact` one that is large enough.
        overlap: Share of a window that the next one overlaps; None: that of validation, and for means one half.
        batch_size: Tiles a call of the network.
        device: `cpu`, `cuda`, or `auto`.
        trust: Packages besides segline's own whose networks the checkpoint may name.

    Raises:
        ValueError: The checkpoint or the input is not what it should be, or `output` would overwrite the input.
    """
    keep_freed()
    card, weights = read_network(checkpoint)
    labels = Labels(**card.labels)
    network, place = _load(card, weights, device, trust)
    precision = "32-true" if blend == "exact" else card.precision
    call = on_arrays(network, place, precision, labels.probs)
    tiling = choose_tiling(card, call, getattr(network, "stride", None), blend, window, overlap)
    jobs = plan_outputs(find_inputs(input), Path(output))
    faults = _check(jobs, card)
    journal = _journal(checkpoint, Path(output), jobs.values(), tiling)
    left = {file: path for file, path in jobs.items() if file not in faults and not journal.done(file, path)}
    if known := len(jobs) - len(faults) - len(left):
        print(f"{known} of {len(jobs)} files are done already, by the same checkpoint and settings")
    for file, path in tqdm(left.items(), unit="file", desc="predict", disable=len(left) <= 1):
        try:
            _predict_file(call, card, labels, tiling, file, path, batch_size)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise ValueError(
                    f"{path}: the disk is full; the same command goes on with it when there is room"
                ) from error
            faults[file] = str(error)
        else:
            journal.add(file)
    done = [path for file, path in jobs.items() if file not in faults]
    print(f"{len(done)} mask{'s' if len(done) != 1 else ''} in {output}: {', '.join(labels.names)}")
    if faults:
        raise ValueError("\n  ".join([f"{len(faults)} of {len(jobs)} files could not be predicted:", *faults.values()]))
    return done


def _journal(checkpoint: str, folder: Path, masks: Iterable[Path], tiling: Tiling) -> Journal:
    """Of what the same command has done before; what it left half-written is removed."""
    for place in {mask.parent for mask in masks}:
        remove_leftovers(place)
    with locate(checkpoint).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Journal(folder, {"checkpoint": digest, **asdict(tiling)})


def choose_tiling(
    card: Card, network: Network, stride: int | None, blend: str, window: Sequence[int] | None, overlap: float | None
) -> Tiling:
    """Sizes of tiles and of what they overlap.

    Args:
        card: Of the network.
        network: In float32 for `exact`.
        stride: The network's total stride; None where it is not known.
        blend: As for `predict_files`.
        window: Likewise.
        overlap: Likewise.

    Raises:
        ValueError: A way that does not exist or that the network cannot go, or a window too small for it.
    """
    if blend not in BLENDS:
        raise ValueError(f"blend is {blend!r}; expected one of {', '.join(BLENDS)}")
    size = list(window or card.window)
    if len(size) != len(card.window):
        raise ValueError(f"window is {size}; expected {len(card.window)} sizes, such as {card.window}")
    if blend == "exact":
        return _exact(card, network, stride, window, overlap)
    if overlap is not None and not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; expected a share of the window from 0 to less than 1")
    if overlap is None and blend == "cores" and window is None:
        return Tiling(size, card.margin)
    if overlap is None:  # the share that validation has, or a half
        shares = (
            [2 * m / w for m, w in zip(card.margin, card.window, strict=True)]
            if blend == "cores"
            else [0.5] * len(size)
        )
    else:
        shares = [overlap] * len(size)
    margin = [min(round(w * share / 2), (w - 1) // 2) for w, share in zip(size, shares, strict=True)]
    return Tiling(size, margin, None if blend == "cores" else blend)


def _exact(
    card: Card, network: Network, stride: int | None, window: Sequence[int] | None, overlap: float | None
) -> Tiling:
    if stride is None:
        raise ValueError("blend=exact needs a network that says its total stride by `stride`; set blend=gaussian")
    if overlap is not None:
        raise ValueError("blend=exact measures what tiles must overlap; leave overlap out, or set blend=gaussian")
    margin = measure_margin(network, card.network["in_channels"], len(card.window), stride)
    if window is None:
        size = [-(-w // stride) * stride + 2 * m for w, m in zip(card.window, margin, strict=True)]
        return Tiling(size, margin, multiple=stride)
    if any(w % stride or w <= 2 * m for w, m in zip(window, margin, strict=True)):
        raise ValueError(
            f"window is {list(window)}, but this network needs {margin} pixels of context at each side and multiples of {stride}: "
            f"set window={[2 * m + stride for m in margin]} or larger"
        )
    return Tiling(list(window), margin, multiple=stride)


def _open(file: Path, card: Card) -> Source:
    source = open_image([file], bands=card.bands, spacing_mm=card.spacing_mm)
    channels = card.network.get("in_channels", source.num_bands)  # a network of the user's may go by another name
    data = f" ({card.trained_on})" if card.trained_on else ""
    if len(source.shape) != len(card.window):
        raise ValueError(
            f"{file} has {len(source.shape)} dimensions, but the network was trained on {len(card.window)}{data}"
        )
    if source.num_bands != channels:
        raise ValueError(f"{file} has {source.num_bands} bands, but the network was trained on {channels}{data}")
    return source


def _check(jobs: dict[Path, Path], card: Card) -> dict[Path, str]:
    """All faults of files that can be seen before the first one is predicted."""
    faults = {}
    for file, path in jobs.items():
        try:
            _open(file, card)
        except ValueError as error:
            faults[file] = str(error)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"output: {path.parent} cannot be made ({error}); name another folder") from error
    return faults


def _predict_file(
    network: Network, card: Card, labels: Labels, tiling: Tiling, file: Path, path: Path, batch_size: int
) -> None:
    """Read, compute probabilities and write as a stream, each at the same time as the others."""
    source, normalize = _open(file, card), Normalize(**card.normalize)
    statistics = measure(source) if normalize.scope == "case" else None
    pieces = predict_tiles(network, source, normalize, statistics, batch_size=batch_size, **asdict(tiling))
    total = len(tiles(source.shape, tiling.window, tiling.margin, tiling.multiple))
    with open_sink(path, source, labels) as sink, ThreadPoolExecutor(1, "write") as writer:

        def write(place: Window, probs: NDArray[np.float32]) -> None:
            mask = labels.decide(probs[None])[0].astype(np.uint8)
            mask[..., np.isnan(probs).all(0)] = IGNORE_INDEX  # no data in, no data out
            sink.write(place, mask)

        waiting: deque[Future[None]] = deque()
        for place, probs in tqdm(pieces, unit="tile", desc=path.name, delay=2, leave=False, total=total):
            waiting.append(writer.submit(write, place, probs))
            if len(waiting) > _WAITING:
                waiting.popleft().result()
        for written in waiting:
            written.result()


def _load(
    card: Card, weights: dict[str, torch.Tensor], device: str, trust: Sequence[str]
) -> tuple[torch.nn.Module, torch.device]:
    """The trained network on its device."""
    network = build_network(card, trust)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not fit the network of its card ({error})") from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch {torch.__version__} sees no GPU here; set device=cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; expected auto, cpu, cuda, or cuda:1 for the second GPU") from error
    return network.to(memory_format=memory_format(2 + len(card.window))).to(place).eval(), place
