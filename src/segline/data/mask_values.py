"""Which raw values the masks of a set hold, before anybody has said what they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segline.data.cases import Case
from segline.io.image import decode
from segline.io.masks import raw_mask, volume_mask
from segline.io.normalize import strips
from segline.io.open import open_image
from segline.io.raster import SUFFIXES as RASTER_SUFFIXES
from segline.io.raster import RasterFile
from segline.io.vectors import VECTOR_DRIVERS
from segline.labels import Labels
from segline.words import count_of

#: Masks of more values are rather images; that many classes are named by hand.
MOST_CLASSES = 64


@dataclass
class Values:
    """Raw values of all masks.

    Args:
        colored: Whether they are colours.
        pixels: How many of each.
        masks: How many masks hold it.
        first: The first of them.
        holes: Declared no-data values.
    """

    colored: bool
    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)
    first: dict[int, Path] = field(default_factory=dict)
    holes: set[int] = field(default_factory=set)

    def add(self, path: Path, counts: Counter[int]) -> None:
        """Count a mask."""
        self.pixels.update(counts)
        self.masks.update(counts.keys())
        for value in counts:
            self.first.setdefault(value, path)

    def raw(self, value: int) -> int | str:
        """A value as a config names it."""
        return f"#{value:06x}" if self.colored else value

    def describe(self) -> str:
        """Share of each value, and in which masks a rare one is."""
        total = max(self.pixels.total(), 1)
        lines = []
        for value, count in sorted(self.pixels.items()):
            rare = self.masks[value] == 1 < max(self.masks.values())
            where = f"only in {self.first[value].name}" if rare else f"in {count_of(self.masks[value], 'mask')}"
            lines.append(f"{self.raw(value)} ({count / total:.2%}, {where})")
        return ", ".join(lines)


def look_at_masks(cases: Sequence[Case]) -> tuple[Values, list[str]]:
    """Raw values of all masks, and what is wrong with them."""
    seen = Values(colored=any(_is_colored(case.masks[0]) for case in cases if not case.objects))
    reading = Labels({"background": 0, "class": "#ffffff" if seen.colored else 1})
    faults = []
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
        seen.add(case.masks[0], some)
        seen.holes |= hole
    if not faults and len(seen.pixels) > MOST_CLASSES:
        faults.append(
            f"the masks hold {len(seen.pixels)} values, which are many for classes; if they are, name data.labels.classes"
        )
    return seen, faults


def _read_values(case: Case, reading: Labels) -> tuple[Counter[int], set[int]]:
    """Raw values of a mask, or of its first part if they are more than may be, and its no-data value."""
    vector = case.masks[0].suffix.lower() in VECTOR_DRIVERS
    like: Any = open_image(case.images) if vector else None
    raw = raw_mask(case.masks, reading, like, case.burn, lambda path: volume_mask(path, None), case.objects)
    pixels: Counter[int] = Counter({0: 0}) if vector or case.objects else Counter()
    for window in strips(raw.shape):
        some, counts = np.unique(raw.read_raw(window), return_counts=True)
        kept = some > np.iinfo(np.int32).min  # less than any id: no value, as NaN is one
        pixels.update(dict(zip(some[kept].tolist(), counts[kept].tolist(), strict=True)))
        if len(pixels) > MOST_CLASSES:
            break
    hole = getattr(raw, "nodata", None)
    return pixels, set() if hole is None or not np.isfinite(hole) else {int(hole)}


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
