"""Which files belong together: cases found by templates of paths, or listed in a table."""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segline.io.masks import Burn
from segline.io.source import Window

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Case:
    """One image with its mask: the unit of per-case metrics.

    Args:
        name: Of this case alone.
        group: What must not be split between training and validation: a patient, scene, tile or sequence.
        images: One file, or one file a band.
        masks: One file, or with `objects` one file an object.
        split: Where an official split puts it; None where we choose.
        objects: Whether each mask file is one object.
        burn: What polygons burn, for vector masks.
        block: The part of the raster that this case is, where rasters are cut into blocks.
    """

    name: str
    group: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    split: str | None = None
    objects: bool = False
    burn: Burn = field(default=1, hash=False)
    block: Window | None = field(default=None, hash=False)


def find_cases(
    root: Path, images: str | Sequence[str], masks: str, group: str | None = None, burn: Burn = 1
) -> list[Case]:
    r"""Cases by templates of paths below `root`.

    `{name}` in a template stands for any text without a slash, the same in images and masks; fields are free to choose, and several
    together name the case. A field `split` is an official split. `*` in `masks` means one file an object.

    Args:
        root: Folder of the data set.
        images: Template of the images; a list of templates is one file a band.
        masks: Template of the masks, with fields of the images' only.
        group: Field that names a case's group, or an expression whose first bracket finds it in the case's name, such as `(\w+)_`;
            None: each case is a group of its own.
        burn: What polygons burn.

    Raises:
        ValueError: No images, or images without a mask: all of them at once.
    """
    templates = [images] if isinstance(images, str) else list(images)
    found = _match(root, templates[0])
    if not found:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"no images found: {root / templates[0]} matches no file; in {root} there is {there}; set data.root or data.images"
        )
    cases, faults = [], []
    for fields, first in found:
        bands = (first, *(root / _fill(template, fields) for template in templates[1:]))
        pattern = _fill(masks, fields, masks)
        files = tuple(sorted(map(Path, glob.glob(str(root / glob.escape(pattern).replace("[*]", "*"))))))
        if not files:
            faults.append(f"{first} has no mask: there is no {root / pattern}")
            continue
        faults += [f"{first.name} lacks a band: there is no {band}" for band in bands[1:] if not band.is_file()]
        split = fields.get("split")
        name = "/".join(value for key, value in fields.items() if key != "split") or first.stem
        cases.append(Case(name, _group(name, fields, group), bands, files, split, "*" in masks, burn))
    if faults:
        raise ValueError(list_faults(faults))
    return cases


def read_table(table: str | Path | Sequence[Mapping[str, Any]], root: Path, burn: Burn = 1) -> list[Case]:
    """Cases by rows of image, mask and perhaps name, group, split, burn: a CSV file, or the rows themselves.

    An image may be several files, one a band: a list, or in a CSV a text with `;` between them.

    Raises:
        ValueError: A column or a file is missing: all of them at once.
    """
    if isinstance(table, str | Path):
        with (root / table).open(newline="") as file:
            rows: list[Mapping[str, Any]] = list(csv.DictReader(file))
    else:
        rows = list(table)
    cases, faults = [], []
    for number, row in enumerate(rows, 1):
        if missing := [key for key in ("image", "mask") if not row.get(key)]:
            faults.append(f"row {number} of the table has no {' and no '.join(missing)}; it has {sorted(row)}")
            continue
        files = row["image"].split(";") if isinstance(row["image"], str) else row["image"]
        images, mask = tuple(root / file for file in files), root / row["mask"]
        faults += [f"row {number} of the table: there is no {path}" for path in (*images, mask) if not path.is_file()]
        name = str(row.get("name") or images[0].stem)
        split = row.get("split") or None
        if split not in (None, *SPLITS):
            faults.append(f"row {number} of the table: split is {split!r}; expected one of {', '.join(SPLITS)}")
        cases.append(Case(name, str(row.get("group") or name), images, (mask,), split, burn=row.get("burn") or burn))
    if faults:
        raise ValueError(list_faults(faults))
    return cases


def _match(root: Path, template: str) -> list[tuple[dict[str, str], Path]]:
    """Files that fit a template, with the texts of its fields, in natural order."""
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        name = match.group(1)
        repeated = name in seen
        seen.add(name)
        text = "|".join(SPLITS) if name == "split" else "[^/]+?"
        return f"(?P={name})" if repeated else f"(?P<{name}>{text})"

    parts = re.split(r"(\{\w+\})", template)
    pattern = re.compile(
        "".join(re.sub(r"\{(\w+)\}", group, part) if part.startswith("{") else re.escape(part) for part in parts)
    )
    wild = "".join("*" if part.startswith("{") else glob.escape(part) for part in parts)
    found = []
    for path in map(Path, glob.glob(str(root / wild) if not Path(wild).is_absolute() else wild)):
        text = (
            str(path.relative_to(root)) if path.is_relative_to(root) and not Path(template).is_absolute() else str(path)
        )
        if match := pattern.fullmatch(text):
            found.append((match.groupdict(), path))
    return sorted(found, key=lambda item: natural(str(item[1])))


def natural(text: str) -> list[str]:
    """A key by which `part_10` comes after `part_9`."""
    return [part.zfill(12) for part in re.split(r"(\d+)", text)]


def _fill(template: str, fields: Mapping[str, str], what: str = "data.images") -> str:
    try:
        return template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the template {what!r} has a field {error} that the images' lacks; they have {sorted(fields)}"
        ) from error


def _group(name: str, fields: Mapping[str, str], group: str | None) -> str:
    if group is None:
        return name
    if group in fields:
        return fields[group]
    match = re.search(group, name)
    if match is None or not match.groups():
        raise ValueError(
            f"data.group is {group!r}, which is no field of the templates ({sorted(fields)}) and finds no (...) in the name {name!r}"
        )
    return match.group(1)


def list_faults(faults: Iterable[str], most: int = 20) -> str:
    """Many faults as one message."""
    faults = list(faults)
    more = f"\n  ... and {len(faults) - most} more" if len(faults) > most else ""
    return f"{len(faults)} fault{'s' if len(faults) != 1 else ''} in the data:\n  " + "\n  ".join(faults[:most]) + more
