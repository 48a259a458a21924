"""Which files belong together: cases found by templates of paths, or listed in a table."""

from __future__ import annotations

import csv
import glob
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from segline.io.source import Window
from segline.io.vectors import Burn

SPLITS = ("train", "val", "test")

#: How groups are found: by a field or an expression, or as runs of so many neighbours.
Group = str | int | None


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


class Found(NamedTuple):
    """What a look for files found.

    Args:
        cases: Whole ones.
        faults: What is wrong with the others.
        notes: What may be meant so.
    """

    cases: list[Case]
    faults: list[str]
    notes: list[str]


def find_cases(root: Path, images: str | Sequence[str], masks: str, group: Group = None, burn: Burn = 1) -> Found:
    r"""Cases by templates of paths below `root`.

    `{name}` in a template stands for any text without a slash, the same in images and masks; fields are free to choose, and several
    together name the case. A field `split` is an official split. `*` in `masks` means one file an object.

    Args:
        root: Folder of the data set.
        images: Template of the images; a list of templates is one file a band.
        masks: Template of the masks, with fields of the images' only.
        group: Field that names a case's group; an expression whose first bracket finds it in the case's name, such as `(\w+)_`; or a
            number: runs of so many neighbours. None: each case is a group of its own.
        burn: What polygons burn.

    Raises:
        ValueError: No images, masks that are the images, a field that images lack, or runs of no length.
    """
    templates = [images] if isinstance(images, str) else list(images)
    found = _match(root, templates[0])
    if not found:
        raise ValueError(_no_images(root, templates[0]))
    patterns = [_fill(masks, fields, masks) for fields, _ in found]
    matches = [_glob(root, pattern) for pattern in patterns]
    taken = {file for files in matches for file in files}
    names = [
        "/".join(value for key, value in fields.items() if key != "split") or first.stem for fields, first in found
    ]
    often = Counter(names)
    cases, faults = [], []
    for (fields, first), pattern, files, name in zip(found, patterns, matches, names, strict=True):
        if first in taken:  # `{name}.png` finds `a_mask.png`, too
            continue
        bands = (first, *_bands(root, templates, fields))
        if not files:
            faults.append(f"{first} has no mask: there is no {root / pattern}")
            continue
        if missing := [band for band in bands[1:] if not band.is_file()]:
            faults += [f"{first.name} lacks a band: there is no {band}" for band in missing]
            continue
        split = fields.get("split")
        own = f"{split}/{name}" if often[name] > 1 else name  # `train/1.png` and `val/1.png` are two cases
        try:
            cases.append(Case(own, _group(name, fields, group) or own, bands, files, split, "*" in masks, burn))
        except ValueError as error:
            faults.append(str(error))
    if not cases and not faults:
        raise ValueError(
            f"data.images and data.masks find the same files, {root / masks}; expected images and their masks"
        )
    others = taken.union(*(band for fields, first in found for band in [(first, *_bands(root, templates, fields))]))
    alone = [path for _, path in _match(root, masks) if path not in others] if "*" not in masks else []
    notes = [f"{len(alone)} of the masks have no image, such as {alone[0]}"] if alone else []
    return Found(_in_runs(cases, group) if isinstance(group, int) else cases, faults, notes)


def _bands(root: Path, templates: Sequence[str], fields: Mapping[str, str]) -> list[Path]:
    """Files of the bands after the first."""
    return [root / _fill(template, fields) for template in templates[1:]]


def _no_images(root: Path, template: str) -> str:
    folder = (root / re.split(r"[{*]", template, maxsplit=1)[0] / "x").parent
    while not folder.is_dir():
        folder = folder.parent
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    hint = "; write {name} for what differs between the files" if "{" not in template else ""
    return f"no images found: {root / template} matches no file; in {folder} there is {there}; set data.root or data.images{hint}"


def _glob(root: Path, pattern: str) -> tuple[Path, ...]:
    """Files below a root, with `*` alone as a wildcard."""
    return tuple(sorted(map(Path, glob.glob(str(_escaped(root) / glob.escape(pattern).replace("[*]", "*"))))))


def read_table(
    table: str | Path | Sequence[Mapping[str, Any]], root: Path, group: Group = None, burn: Burn = 1
) -> Found:
    """Cases by rows of image, mask and perhaps name, group, split, burn: a CSV file, or the rows themselves.

    An image may be several files, one a band: a list, or in a CSV a text with `;` between them. `group` is as for `find_cases`, of columns
    instead of fields; a column `group` goes before a field or an expression.

    Raises:
        ValueError: No table, no rows in it, or runs of no length.
    """
    rows = _read_csv(root / table) if isinstance(table, str | Path) else list(table)
    if not rows:
        raise ValueError(f"the table {table} has no rows; expected one for each image, with columns image and mask")
    stems = Counter(row.get("name") or _stem(row) for row in rows)
    cases, faults = [], []
    for number, row in enumerate(rows, 1):
        if missing := [key for key in ("image", "mask") if not row.get(key)]:
            faults.append(f"row {number} of the table has no {' and no '.join(missing)}; it has {sorted(row)}")
            continue
        files = row["image"].split(";") if isinstance(row["image"], str) else row["image"]
        images, mask = tuple(root / file for file in files), root / row["mask"]
        if lost := [path for path in (*images, mask) if not path.is_file()]:
            faults += [f"row {number} of the table: there is no {path}" for path in lost]
            continue
        name, split = str(row.get("name") or _stem(row)), row.get("split") or None
        if stems[name] > 1:  # files of one name in several folders
            name = str(PurePath(_first(row)).with_suffix(""))
        try:
            own = str(row.get("group") or _group(name, row, group) or name)
        except ValueError as error:
            faults.append(f"row {number} of the table: {error}")
            continue
        if split not in (None, *SPLITS):
            faults.append(f"row {number} of the table: split is {split!r}; expected one of {', '.join(SPLITS)}")
        cases.append(Case(name, own, images, (mask,), split, burn=_burn(row.get("burn")) or burn))
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    faults += [f"the table has several rows of the name {name}; expected one for each image" for name in twice]
    return Found(_in_runs(cases, group) if isinstance(group, int) else cases, faults, [])


def _read_csv(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise ValueError(f"there is no table {path}; set data.table to a CSV file below data.root")
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _first(row: Mapping[str, Any]) -> str:
    """The first file of a row's image."""
    image = row.get("image") or ""
    return str(image.split(";")[0] if isinstance(image, str) else image[0])


def _stem(row: Mapping[str, Any]) -> str:
    return PurePath(_first(row)).stem


def _burn(value: Any) -> Any:
    """A CSV holds texts only."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _escaped(folder: Path) -> Path:
    """For globs, in which brackets mean something."""
    return Path(glob.escape(str(folder)))


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
    for path in map(Path, glob.glob(str(_escaped(root) / wild))):
        text = (
            str(path.relative_to(root)) if path.is_relative_to(root) and not Path(template).is_absolute() else str(path)
        )
        if path.is_file() and (match := pattern.fullmatch(text)):
            found.append((match.groupdict(), path))
    return sorted(found, key=lambda item: natural(str(item[1])))


def natural(text: str) -> list[str]:
    """A key by which `part_10` comes after `part_9`."""
    return [part.zfill(12) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _fill(template: str, fields: Mapping[str, str], what: str = "data.images") -> str:
    try:
        return template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the template {what!r} has a field {error} that the images' lacks; they have {sorted(fields)}"
        ) from error


def _group(name: str, fields: Mapping[str, Any], group: Group) -> str | None:
    """The group of a case by its fields or its name; None: it is one of its own, or in a run."""
    if group is None or isinstance(group, int):
        return None
    if group in fields:
        return str(fields[group])
    match = re.search(group, name)
    if match is None or not match.groups():
        raise ValueError(
            f"data.group is {group!r}, which is no field of the templates ({sorted(fields)}) and finds no (...) in the name {name!r}"
        )
    return match.group(1)


def _in_runs(cases: Sequence[Case], length: int) -> list[Case]:
    """Make runs of neighbours groups: a section of a stack and a frame of a film are much like the next.

    Neighbours are so in natural order; a rest of less than half a run goes to the run before it.
    """
    if length < 1:
        raise ValueError(f"data.group is {length}; a number is the length of runs of neighbours, 1 or more")
    grouped = []
    for split in (None, *SPLITS):
        part = sorted((case for case in cases if case.split == split), key=lambda case: natural(case.name))
        last = max(0, (len(part) + length // 2) // length - 1)
        for _, members in groupby(enumerate(part), key=lambda item: min(item[0] // length, last)):
            run = [case for _, case in members]
            grouped += [replace(case, group=f"{run[0].name}..{run[-1].name}") for case in run]
    return grouped


def list_faults(faults: Iterable[str], most: int = 20) -> str:
    """Many faults as one message."""
    faults = list(faults)
    more = f"\n  ... and {len(faults) - most} more" if len(faults) > most else ""
    return f"{len(faults)} fault{'s' if len(faults) != 1 else ''} in the data:\n  " + "\n  ".join(faults[:most]) + more
