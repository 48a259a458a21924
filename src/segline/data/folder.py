"""The user's own files: what a data config leaves open is found by a look at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf
from PIL import ImageColor

from segline.data.cases import Case, Found, find_cases, list_faults, read_table
from segline.data.mask_values import Values, look_at_masks
from segline.io.image import FORMATS
from segline.io.open import open_image
from segline.io.source import Source, say_size
from segline.labels import IGNORE_INDEX
from segline.raw_values import parse_values
from segline.words import count_of

#: Images that are opened for their sizes and bands; the scan looks at all of them.
_LOOKED_AT = 50
#: Greatest edge of a window, and what it is a multiple of, by the number of axes.
_EDGE, _STEP = {2: 256, 3: 64}, {2: 32, 3: 8}
#: Blocks that a single raster is cut into, about.
_BLOCKS = 16
#: Kinds of files, each with the augmentation of its name, and whose mean and deviation normalise it.
_KINDS = {"aerial": "dataset", "biomedical": "case", "volume": "case"}


def discover(data: DictConfig, quiet: bool = False) -> DictConfig:
    """Complete a data config by a look at its files, and print it as one to keep; what it gives stands; if that is all, nothing is read.

    Args:
        data: Config of a data module. What is null is found, and `labels.classes` where it is empty; `augment` may offer one for each
            kind of files, by the names `aerial`, `biomedical` and `volume`.
        quiet: Print nothing.

    Raises:
        ValueError: No images, images without masks, files that cannot be read, masks that are none: all of them at once.
    """
    found: dict[str, Any] = OmegaConf.to_container(data, resolve=True)  # type: ignore[assignment]
    found["augment"] = OmegaConf.to_container(data, resolve=False)["augment"]  # type: ignore[call-overload, index]
    if _is_complete(found):
        return data
    _make_absolute(found)
    cases, faults, _ = _find(found)
    if not cases:
        raise ValueError(list_faults(faults))
    images = _open(cases, found, faults)
    seen = None
    if not found["labels"].get("classes"):
        seen, unread = look_at_masks(cases)
        faults += unread or _name_classes(found["labels"], seen)
    if faults:
        raise ValueError(list_faults(faults))
    kind = _fit_images(found, images, alone=len(cases) == 1)
    augment = _choose_augment(found, kind)
    if not quiet:
        print(_say(found, augment, cases, images, seen), flush=True)
    return OmegaConf.create(found)


def _is_complete(found: dict[str, Any]) -> bool:
    given = ("in_channels", "spatial_dims", "window", "margin", "normalize")
    offered = set(found["augment"] or ()) & set(_KINDS)
    return bool((found["labels"] or {}).get("classes")) and all(found[key] is not None for key in given) and not offered


def _make_absolute(found: dict[str, Any]) -> None:
    """Let the config hold in any working folder."""
    root = Path(found["root"] or ".").expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; set data.root to the folder of your files")
    if not found["table"] and not (found["images"] and found["masks"]):
        raise ValueError(
            f"data.images is {found['images']} and data.masks is {found['masks']}; expected templates of paths, such as "
            "data.images='/x/{name}.tif' data.masks='/x/{name}_mask.png', or data.table=files.csv with columns image and mask"
        )
    found["root"], found["labels"] = str(root), found["labels"] or {}
    for key in ("images", "masks"):
        given = found[key]
        found[key] = [_home(one) for one in given] if isinstance(given, list) else given and _home(given)


def _templates(found: dict[str, Any]) -> list[str]:
    images = found["images"] if isinstance(found["images"], list) else [found["images"]]
    return [*images, found["masks"]]


def _home(template: str) -> str:
    return str(Path(template).expanduser())


def _find(found: dict[str, Any]) -> Found:
    root, burn = Path(found["root"]), found["burn"]
    if found["table"]:
        return read_table(found["table"], root, found["group"], burn)
    return find_cases(root, found["images"], found["masks"], found["group"], burn)


# Images


def _open(cases: Sequence[Case], found: dict[str, Any], faults: list[str]) -> list[Source]:
    """Some of the images, spread over all of them; those that cannot be opened go to the faults."""
    images = []
    for place in sorted({round(place) for place in np.linspace(0, len(cases) - 1, _LOOKED_AT)}):
        try:
            images.append(open_image(cases[place].images, bands=found["bands"], spacing_mm=found["spacing_mm"]))
        except ValueError as error:
            faults.append(str(error))
    return images


def _fit_images(found: dict[str, Any], images: Sequence[Source], alone: bool) -> str:
    """Set what follows from bands, sizes and places of the images, and say of what kind they are."""
    dims = _set(found, "spatial_dims", _most([len(image.shape) for image in images]))
    images = [image for image in images if len(image.shape) == dims]
    if not images:
        raise ValueError(f"data.spatial_dims is {dims}, but the images have another number of axes; leave it out")
    kind = "volume" if dims == 3 else "aerial" if any(image.geometry.crs for image in images) else "biomedical"
    _fit_bands(found, images)
    size = _median_size(found, images)
    if dims == 2 and alone:  # a single raster is validated on parts of itself
        _set(found, "blocks", max(_STEP[2], int(np.sqrt(size.prod() / _BLOCKS)) // _STEP[2] * _STEP[2]))
    # Prediction knows whole files, and so no mean and deviation of a block.
    _set(found, "normalize", "dataset" if found["blocks"] else _KINDS[kind])
    if found["blocks"]:
        size = np.minimum(size, found["blocks"])
    window = _set(found, "window", [min(_EDGE[dims], -(-int(n) // _STEP[dims]) * _STEP[dims]) for n in np.ceil(size)])
    _set(found, "margin", [4 * -(-edge // 32) if edge > 8 else 0 for edge in window])
    return kind


def _fit_bands(found: dict[str, Any], images: Sequence[Source]) -> None:
    if found["in_channels"] is not None:
        return
    most = max(image.num_bands for image in images)
    pictures = all(image.path.suffix.lower() in FORMATS for image in images)
    if found["bands"] is None and pictures and most in (2, 4):  # the last band of a picture is its opacity
        found["bands"] = list(range(1, most))
    found["in_channels"] = len(found["bands"] or ()) or _most([image.num_bands for image in images])


def _median_size(found: dict[str, Any], images: Sequence[Source]) -> np.ndarray:
    """Size of an image, `*S`; volumes whose spacings differ, from each other or along their axes, are set to the median of them."""
    shapes = np.array([image.shape for image in images], float)
    if found["spatial_dims"] == 3 and found["spacing_mm"] is None:
        spacings = np.array([image.geometry.spacing for image in images], float)
        median = np.array([float(f"{mm:.4g}") for mm in np.median(spacings, axis=0)])
        # Also where all files have one spacing: a rotation must know that their voxels are no cubes.
        if (np.abs(spacings / median - 1) > 0.01).any() or np.ptp(median) > 0.01 * median.min():
            found["spacing_mm"] = median.tolist()
            shapes *= spacings / median
    return np.median(shapes, axis=0)


def _choose_augment(found: dict[str, Any], kind: str) -> str | None:
    """Take the augmentation of the kind unless another one was given; its name."""
    offered = found["augment"] or {}
    if "_target_" in offered or kind not in offered:
        found["augment"] = {key: value for key, value in offered.items() if key not in _KINDS} or None
        return None
    found["augment"] = offered[kind]
    return kind


def _set(found: dict[str, Any], key: str, value: Any) -> Any:
    """What is given, else the value."""
    if found[key] is None:
        found[key] = value
    return found[key]


def _most(values: Sequence[int]) -> int:
    """The most frequent one."""
    return Counter(values).most_common(1)[0][0]


# Masks


def _name_classes(labels: dict[str, Any], seen: Values) -> list[str]:
    """Set the labels by the values in the masks; what keeps them from being labels."""
    overlapping, colored, values = labels.get("scheme") == "overlapping", seen.colored, set(seen.pixels)
    least = 1 if overlapping else 2
    known = set(parse_values(labels.get("ignore") or []))
    if overlapping:
        known |= set(parse_values(labels.get("rest") or []))
    unsaid = {IGNORE_INDEX} & values - known - seen.holes if not colored else set[int]()
    void = {v for v in values - known if v < 0} | (values & seen.holes - {0} - known) | unsaid
    if len(values - void - known) < least:  # 0 and 255 alone are two classes
        void, unsaid = {v for v in void if v < 0}, set()
    ids = sorted(values - void - known)
    if len(ids) < least:
        listed = ", ".join(str(seen.raw(value)) for value in sorted(values))
        return [
            f"the masks hold nothing to tell apart, only {listed}; are these the masks: {next(iter(seen.first.values()))}?"
        ]
    # What is to be ignored is seldom most of it: then it rather is a class, and one of the others a stray pixel.
    if unsaid and seen.pixels[IGNORE_INDEX] > sum(seen.pixels[value] for value in ids if value):
        return [
            f"the masks hold {seen.describe()}: is {IGNORE_INDEX} a class, or pixels to be ignored? Name data.labels.classes, such as "
            f"'data.labels.classes={{background: 0, foreground: {IGNORE_INDEX}}}', or set data.labels.ignore=[{IGNORE_INDEX}]"
        ]
    pair = 0 in values and len({0, *ids}) == 2
    labels["classes"] = {_name(value, colored, pair): seen.raw(value) for value in ids}
    if void:
        labels["ignore"] = [*(labels.get("ignore") or []), *sorted(void)]
    if 0 in ids and not overlapping:
        labels["background"] = labels.get("background") or "background"
    return []


def _name(value: int, colored: bool, pair: bool) -> str:
    if value == 0:
        return "background"
    if colored:
        named = {code.lower(): name for name, code in ImageColor.colormap.items() if isinstance(code, str)}
        return named.get(f"#{value:06x}", f"color_{value:06x}")
    return "foreground" if pair else f"class_{value}"


# What is said


def _say(
    found: dict[str, Any], augment: str | None, cases: Sequence[Case], images: Sequence[Source], seen: Values | None
) -> str:
    """What was found, as a config to keep."""
    keep = {k: v for k, v in found.items() if v is not None and k not in ("_target_", "seed", "labels", "augment")}
    labels = {k: v for k, v in found["labels"].items() if v and k not in ("_target_", "rest")}
    if found["labels"].get("scheme") == "overlapping":
        labels["rest"] = found["labels"]["rest"]
    keep["labels"] = labels
    if augment is None:
        keep["augment"] = found["augment"]
    defaults = ", ".join(["domain/folder@_here_", *([f"augment: {augment}"] if augment else []), "_self_"])
    if not found["table"] and all(Path(path).is_absolute() for path in _templates(found)):
        del keep["root"]
    text = yaml.safe_dump(keep, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    values = f"values in the masks: {seen.describe()}\n" if seen else ""
    size, bands, classes = say_size(images[0].shape), images[0].num_bands, len(labels["classes"])
    return (
        f"found {count_of(len(cases), 'image')} with masks, the first of {size} pixels and {count_of(bands, 'band')}, "
        f"and {classes} classes\n{values}"
        "To keep this, save the lines below as DIR/data/mine.yaml and train with --config-dir DIR data=mine. Classes may be given other\n"
        "names, the background's in both places: the class that labels.background names stays out of means over classes.\n\n"
        f"defaults: [{defaults}]\n{text}"
    )
