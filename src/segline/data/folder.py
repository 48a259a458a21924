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
from tqdm import tqdm

from segline.data.cases import Case, find_cases, list_faults, read_table
from segline.io.image import FORMATS, decode
from segline.io.masks import raw_mask, volume_mask
from segline.io.normalize import strips
from segline.io.open import open_image
from segline.io.raster import SUFFIXES as RASTER_SUFFIXES
from segline.io.raster import RasterFile
from segline.io.source import Source, say_size
from segline.io.vectors import VECTOR_DRIVERS
from segline.labels import IGNORE_INDEX, Labels, parse_values

#: Masks of more values are rather images; that many classes are named by hand.
MOST_CLASSES = 64
#: Images that are opened for their sizes and bands; the scan looks at all of them.
_LOOKED_AT = 50
#: Greatest edge of a window, and what it is a multiple of, by the number of axes.
_EDGE, _STEP = {2: 256, 3: 64}, {2: 32, 3: 8}
#: Blocks that a single raster is cut into, about.
_BLOCKS = 16
#: Kinds of files, each with the augmentation of its name, and whose mean and deviation normalise it.
_KINDS = {"aerial": "dataset", "biomedical": "case", "volume": "case"}


def discover(data: DictConfig) -> DictConfig:
    """Complete a data config by a look at its files, and print it as one to keep; what it gives stands; if that is all, nothing is read.

    Args:
        data: Config of a data module. What is null is found, and `labels.classes` where it is empty; `augment` may offer one for each
            kind of files, by the names `aerial`, `biomedical` and `volume`.

    Raises:
        ValueError: No images, images without masks, files that cannot be read, masks that are none: all of them at once.
    """
    found: dict[str, Any] = OmegaConf.to_container(data, resolve=True)  # type: ignore[assignment]
    found["augment"] = OmegaConf.to_container(data, resolve=False)["augment"]  # type: ignore[call-overload, index]
    if _is_complete(found):
        return data
    _make_absolute(found)
    cases, faults = _find(found)
    if not cases:
        raise ValueError(list_faults(faults))
    images = _open(cases, found, faults)
    if not found["labels"].get("classes"):
        faults += _name_classes(found, cases)
    if faults:
        raise ValueError(list_faults(faults))
    kind = _fit_images(found, images, alone=len(cases) == 1)
    augment = _choose_augment(found, kind)
    print(_say(found, augment, cases, images), flush=True)
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


def _home(template: str) -> str:
    return str(Path(template).expanduser())


def _find(found: dict[str, Any]) -> tuple[list[Case], list[str]]:
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


def _name_classes(found: dict[str, Any], cases: Sequence[Case]) -> list[str]:
    """Set the labels by the values in the masks; what keeps them from being labels."""
    labels = found["labels"]
    overlapping = labels.get("scheme") == "overlapping"
    least = 1 if overlapping else 2
    colored = any(_is_colored(case.masks[0]) for case in cases if not case.objects)
    values, holes, faults = _look_at_masks(cases, colored)
    if faults:
        return faults
    known = set(parse_values(labels.get("ignore") or []))
    if overlapping:
        known |= set(parse_values(labels.get("rest") or []))
    void = {v for v in values - known if v < 0 or v in holes - {0} or (v == IGNORE_INDEX and not colored)}
    if len(values - void - known) < least:  # 0 and 255 alone are two classes
        void = {v for v in void if v < 0}
    ids = sorted(values - void - known)
    if len(ids) < least:
        listed = ", ".join(str(_raw(value, colored)) for value in sorted(values))
        return [f"the masks hold nothing to tell apart, only {listed}; are these the masks: {cases[0].masks[0]}?"]
    pair = 0 in values and len(values - void) == 2
    labels["classes"] = {_name(value, colored, pair): _raw(value, colored) for value in ids}
    if void:
        labels["ignore"] = [*(labels.get("ignore") or []), *sorted(void)]
    if 0 in ids and not overlapping:
        labels["background"] = labels.get("background") or "background"
    return []


def _look_at_masks(cases: Sequence[Case], colored: bool) -> tuple[set[int], set[int], list[str]]:
    """Raw values of all masks, the declared no-data values, and what is wrong."""
    reading = Labels({"background": 0, "class": "#ffffff" if colored else 1})
    values, holes, faults = set[int](), set[int](), []
    for case in tqdm(cases, desc="masks", unit="mask", leave=False, delay=2):
        try:
            some, hole = _read_values(case, reading)
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        if len(some) > MOST_CLASSES:
            faults.append(
                f"{case.masks[0]} holds more than {MOST_CLASSES} values: rather an image, or a mask that was smoothed or kept as a JPEG; "
                "set data.masks to the masks, or name data.labels.classes"
            )
        values |= some
        holes |= hole
    if not faults and len(values) > MOST_CLASSES:
        faults.append(
            f"the masks hold {len(values)} values, which are many for classes; if they are, name data.labels.classes"
        )
    return values, holes, faults


def _read_values(case: Case, reading: Labels) -> tuple[set[int], set[int]]:
    """Raw values of a mask, a few more than may be at most, and its no-data value."""
    vector = case.masks[0].suffix.lower() in VECTOR_DRIVERS
    like: Any = open_image(case.images) if vector else None
    raw = raw_mask(case.masks, reading, like, case.burn, lambda path: volume_mask(path, None), case.objects)
    values = {0} if vector or case.objects else set[int]()
    for window in strips(raw.shape):
        some = np.unique(raw.read_raw(window))
        values.update(some[some > np.iinfo(np.int32).min].tolist())  # less than any id: no value, as NaN is one
        if len(values) > MOST_CLASSES:
            break
    hole = getattr(raw, "nodata", None)
    return values, set() if hole is None or np.isnan(hole) else {int(hole)}


def _is_colored(path: Path) -> bool:
    """Whether a mask tells its classes by colours, not by ids."""
    try:
        if path.suffix.lower() == ".png":
            pixels = decode(path, palette_as_ids=True)
            return pixels.shape[2] >= 3 and bool((pixels[..., :1] != pixels[..., :3]).any())
        if path.name.lower().endswith(RASTER_SUFFIXES) and (raster := RasterFile(path)).num_bands >= 3:
            return any((bands[:1] != bands[:3]).any() for bands in map(raster.read_raw, strips(raster.shape)))
    except ValueError:
        pass  # it is said when the mask is read
    return False


def _raw(value: int, colored: bool) -> int | str:
    return f"#{value:06x}" if colored else value


def _name(value: int, colored: bool, pair: bool) -> str:
    if value == 0:
        return "background"
    if colored:
        named = {code.lower(): name for name, code in ImageColor.colormap.items() if isinstance(code, str)}
        return named.get(f"#{value:06x}", f"color_{value:06x}")
    return "foreground" if pair else f"class_{value}"


# What is said


def _say(found: dict[str, Any], augment: str | None, cases: Sequence[Case], images: Sequence[Source]) -> str:
    """What was found, as a config to keep."""
    keep = {k: v for k, v in found.items() if v is not None and k not in ("_target_", "seed", "labels", "augment")}
    labels = {k: v for k, v in found["labels"].items() if v and k not in ("_target_", "rest")}
    if found["labels"].get("scheme") == "overlapping":
        labels["rest"] = found["labels"]["rest"]
    keep["labels"] = labels
    if augment is None:
        keep["augment"] = found["augment"]
    defaults = ", ".join(["domain/folder@_here_", *([f"augment: {augment}"] if augment else []), "_self_"])
    text = yaml.safe_dump(keep, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    size, bands, classes = say_size(images[0].shape), images[0].num_bands, len(labels["classes"])
    return (
        f"found {_count(len(cases), 'image')} with masks, the first of {size} pixels and {_count(bands, 'band')}, and {classes} classes\n"
        "To keep this, and to give the classes their names, save the lines below as DIR/data/mine.yaml and train with\n"
        "--config-dir DIR data=mine. The class that labels.background names stays out of means over classes.\n\n"
        f"defaults: [{defaults}]\n{text}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
