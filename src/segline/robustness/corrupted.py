"""Which corruptions there are and which fit an image, and corrupted images as sources."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from segline.io.source import Source, Window, say_size, whole
from segline.robustness import corruptions, weather
from segline.robustness.corruptions import Image
from segline.words import count_of

#: Changes an image by a strength and numbers drawn.
Corruption = Callable[[Image, int, np.random.Generator], Image]

STRENGTHS = (1, 2, 3, 4, 5)
_GENERAL: dict[str, Corruption] = {
    "noise": corruptions.noise,
    "blur": corruptions.blur,
    "contrast": corruptions.contrast,
    "jpeg": corruptions.jpeg,
}
_MRI: dict[str, Corruption] = {"bias_field": corruptions.bias_field, "ghosting": corruptions.ghosting}
_BETWEEN_BANDS: dict[str, Corruption] = {
    "band_dropout": corruptions.band_dropout,
    "band_shift": corruptions.band_shift,
}
_SATELLITE: dict[str, Corruption] = {"haze": corruptions.haze, **_BETWEEN_BANDS}
_DRIVING: dict[str, Corruption] = {"rain": weather.rain, "fog": weather.fog, "night": weather.night}
CORRUPTIONS: dict[str, Corruption] = {**_GENERAL, **_MRI, **_SATELLITE, **_DRIVING}
#: Values of a case, pixels of all bands, up to which it is corrupted, for which the whole of it lies in memory a few times.
_LARGEST = 2**27


def fitting(source: Source, outdoors: bool = True) -> list[str]:
    """Names of the corruptions that fit an image.

    The general ones fit all, those of MRI volumes, those of satellite scenes images of more than three bands or with a coordinate
    system, and those of driving frames other images of three bands, if they may show what is outdoors.
    """
    if len(source.shape) == 3:
        return [*_GENERAL, *_MRI]
    if source.num_bands > 3 or source.geometry.crs:
        return [*_GENERAL, *(name for name in _SATELLITE if source.num_bands > 1 or name not in _BETWEEN_BANDS)]
    return [*_GENERAL, *(_DRIVING if source.num_bands == 3 and outdoors else ())]


def check(names: Sequence[str], source: Source) -> None:
    """Refuse what cannot be done to an image.

    Raises:
        ValueError: A name that does not exist, or a corruption of other images.
    """
    for name in names:
        if name not in CORRUPTIONS:
            (close,) = difflib.get_close_matches(name, CORRUPTIONS, n=1, cutoff=0) or [""]
            raise ValueError(
                f"there is no corruption {name!r}; did you mean {close}? There are {', '.join(CORRUPTIONS)}"
            )
        if len(source.shape) == 3 and name in (*_SATELLITE, *_DRIVING):
            raise ValueError(
                f"{name} is a corruption of images only; for volumes there are {', '.join(fitting(source))}"
            )
        if source.num_bands == 1 and name in _BETWEEN_BANDS:
            raise ValueError(f"{name} needs two bands, but {source.path} has one; leave it out of corruptions")


def generator(seed: int, case: str, name: str) -> np.random.Generator:
    """What draws for a corruption of a case, whatever else is asked for.

    It is the same for all strengths: so more rain falls where rain fell before, and a curve shows strength and no luck.
    """
    known = hashlib.sha256(f"{case}\0{name}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(known[:8], "big")])


class CorruptedSource:
    """A source of an image that a corruption has changed, on the same grid; the whole of it lies in memory.

    Args:
        source: Of the image.
        name: Of the corruption.
        strength: From 1 to 5.
        rng: What draws.

    Raises:
        ValueError: The image is too large.
    """

    def __init__(self, source: Source, name: str, strength: int, rng: np.random.Generator) -> None:
        check_size(source)
        self.path, self.shape, self.num_bands, self.geometry = (
            source.path,
            source.shape,
            source.num_bands,
            source.geometry,
        )
        self.image = CORRUPTIONS[name](source.read(whole(source.shape)), strength, rng).astype(np.float32, copy=False)

    def read(self, window: Window) -> Image:
        """The pixels of a window, `[C, *window]`."""
        return self.image[(slice(None), *window)].copy()


def check_size(source: Source) -> None:
    """Refuse an image that is too large to be corrupted as a whole."""
    if source.num_bands * math.prod(source.shape) > _LARGEST:
        raise ValueError(
            f"{source.path} is {say_size(source.shape)} of {count_of(source.num_bands, 'band')}, more than the {_LARGEST:,} values that "
            "are corrupted as a whole; set "
            "data.blocks=4096, by which rasters are measured in parts"
        )
