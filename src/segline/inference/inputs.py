"""Which files are predicted, and where what is made of them goes."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segline.inference.journal import JOURNAL, place
from segline.io.image import FORMATS
from segline.io.open import IMAGE_SUFFIXES
from segline.io.raster import SUFFIXES as RASTER_SUFFIXES
from segline.io.sinks import class_path
from segline.labels import Labels

#: Files, and where what is made of each of them goes: its `mask`, and extras.
Jobs = dict[Path, dict[str, Path]]
#: What can be made of a file besides its mask -> the ending of its name; None: as the mask's.
EXTRAS: dict[str, str | None] = {
    "probs": None,
    "entropy": None,
    "disagreement": None,
    "overlay": ".png",
    "gpkg": ".gpkg",
    "geojson": ".geojson",
}
POLYGONS = {"gpkg", "geojson"}


def find_inputs(pattern: str) -> list[Path]:
    """The images that a file, a folder or a pattern stands for.

    Raises:
        ValueError: There are none.
    """
    path = Path(pattern)
    if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
        return [path]
    if path.is_file():
        raise ValueError(
            f"input={pattern} is of no format that images are read from; expected one of {', '.join(IMAGE_SUFFIXES)}"
        )
    candidates: list[Any] = (
        # What is hidden is no image of the user's: macOS puts a ._a.tif beside a.tif, whose attributes it holds.
        sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if path.is_dir()
        else sorted(map(Path, glob.glob(pattern, recursive=True)))
    )
    files = [file for file in candidates if file.name.lower().endswith(IMAGE_SUFFIXES)]
    if not files:
        what = (
            ("no file matches" if glob.has_magic(pattern) else "no such file or folder")
            if not candidates and not path.is_dir()
            else f"none of its files ends in {', '.join(IMAGE_SUFFIXES)}"
        )
        raise ValueError(f"input={pattern}: {what}; give a file, a folder or a pattern such as 'scenes/*.tif'")
    return files


def plan_outputs(files: Sequence[Path], folder: Path, also: Sequence[str] = (), classes: Sequence[str] = ()) -> Jobs:
    """Where the mask of each file goes, and what else is made of it: below `folder` as the files lie below the folder that they share.

    Args:
        files: Images.
        folder: Of the masks.
        also: Names of `EXTRAS`.
        classes: Overlapping ones, of which photographs' masks have a file each.

    Returns:
        Of each file the paths by what they hold: `mask`, the names of `also`, and `mask of <class>`.

    Results of an earlier call, which a pattern finds in a `folder` inside the input's, are left out.

    Raises:
        ValueError: An extra that does not exist, a result that would lie over an input or over another result, or an input that lies
            among the results.
    """
    if unknown := [name for name in also if name not in EXTRAS]:
        raise ValueError(f"also names {unknown[0]!r}; expected some of {', '.join(EXTRAS)}")
    files = _without_results(files, folder)
    shared = _shared(files)
    jobs = {}
    for file in files:
        path = folder / place(file).relative_to(shared)
        jobs[file] = {"mask": _mask_path(path), **{name: extra_path(path, name) for name in also}}
        if path.suffix.lower() in FORMATS:
            jobs[file] |= {f"mask of {name}": class_path(_mask_path(path), name) for name in classes}
    inputs = {file.resolve() for file in jobs}
    for file, made in jobs.items():
        if made["mask"].parent.resolve() == file.parent.resolve() or any(p.resolve() in inputs for p in made.values()):
            raise ValueError(
                f"output={folder} is the folder of the input, whose files would be overwritten; name another folder"
            )
    counted = Counter(path for made in jobs.values() for path in made.values())
    if twice := [path for path, count in counted.items() if count > 1]:
        both = " and ".join(str(file) for file, made in jobs.items() if twice[0] in made.values())
        raise ValueError(f"what is made of {both} would both be {twice[0]}; predict them into different folders")
    return jobs


def overlapping_classes(labels: Labels) -> tuple[str, ...]:
    """Classes that a mask has a plane each of, if there are several."""
    return labels.names if labels.num_planes > 1 else ()


def _without_results(files: Sequence[Path], folder: Path) -> list[Path]:
    """Leave out what lies in the folder of the results, if that is inside the folder of the input and results are what it holds."""
    target = folder.resolve()
    kept = [file for file in files if target not in place(file).parents]
    if len(kept) == len(files) or _shared(files) not in target.parents:
        return list(files)
    within = next(file for file in files if file not in kept)
    # Between a mask and its line in the journal other processes see the claim alone.
    if not (folder / JOURNAL).exists() and not any(folder.rglob(".*.claim")):
        raise ValueError(
            f"{within} is an input and lies in output={folder}, where results could be overwritten or taken for inputs; name another folder"
        )
    if not kept:
        raise ValueError(f"all of the input lies among the results in output={folder}; name another folder")
    return kept


def _shared(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent.resolve() for file in files]))


def _mask_path(path: Path) -> Path:
    # Photographs' masks are PNG files, whatever the photographs are.
    return path.with_suffix(".png") if path.suffix.lower() in FORMATS else path


def extra_path(path: Path, name: str) -> Path:
    """`scene.tif` -> `scene_probs.tif`, `scene_overlay.png`, `scene.gpkg`; of photographs measures are TIFF files."""
    suffix = next(s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s))
    stem, suffix = path.name[: -len(suffix)], path.name[-len(suffix) :]
    ending = EXTRAS[name] or (RASTER_SUFFIXES[0] if suffix.lower() in FORMATS else suffix)
    return path.with_name(f"{stem}{ending}" if name in POLYGONS else f"{stem}_{name}{ending}")
