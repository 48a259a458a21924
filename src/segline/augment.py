"""Augmentation: image, mask and instances move together; intensities change in ways that hold for any bands and range.

A sample is a dict of arrays: `image` float32 `[C, *S]`, normalised, `mask` uint8 `[*S]` or `[K, *S]`, perhaps `instances` `[*S]`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segline.io.source import say_size
from segline.labels import IGNORE_INDEX

# albumentations would ask the network for a newer version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Sample = dict[str, NDArray[Any]]


class Transform(Protocol):
    """Changes a sample by numbers drawn from `rng` alone; it never changes the arrays it is given."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The changed sample, of the same keys, types and sizes."""
        ...


class Augment:
    """Transforms in turn, by name, so that one can be changed or set to null from the command line."""

    def __init__(self, transforms: Mapping[str, Transform | None]) -> None:
        self.transforms = {name: transform for name, transform in transforms.items() if transform is not None}

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The augmented sample."""
        for transform in self.transforms.values():
            sample = transform(sample, rng)
        return sample


class Turn:
    """Mirror each axis by chance and swap axes of equal length: the 8 symmetries of a square, the 4 of an oblong.

    Args:
        p: Chance.
    """

    def __init__(self, p: float = 1.0) -> None:
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Turn a sample; exact, nothing is resampled."""
        if rng.random() >= self.p:
            return sample
        size = sample["image"].shape[1:]
        orders = [o for o in permutations(range(len(size))) if tuple(size[axis] for axis in o) == size]
        order = orders[rng.integers(len(orders))]
        mirrored = [axis for axis in range(len(size)) if rng.random() < 0.5]

        def turn(array: NDArray[Any]) -> NDArray[Any]:
            lead = array.ndim - len(size)
            swapped = array.transpose(*range(lead), *(lead + axis for axis in order))
            return np.ascontiguousarray(np.flip(swapped, tuple(lead + axis for axis in mirrored)))

        return {name: turn(array) for name, array in sample.items()}


class Albumentations:
    """Geometric transforms of albumentations, on images of any number of bands; new pixels at the border are ignored.

    Only geometric ones: its photometric transforms clip to 0..1 in silence and fail beyond three bands.

    Args:
        transforms: albumentations' own, by name.

    Raises:
        ValueError: A transform that is not geometric; later, one that changes the window's size, or a volume.
    """

    def __init__(self, transforms: Mapping[str, Any]) -> None:
        import albumentations

        kept = [transform for transform in transforms.values() if transform is not None]
        if wrong := [type(t).__name__ for t in kept if not isinstance(t, albumentations.DualTransform)]:
            raise ValueError(
                f"{', '.join(wrong)} of albumentations is no geometric transform (a DualTransform); to change intensities use "
                "segline.augment's, which are right for any bands and range"
            )
        for transform in kept:
            if getattr(transform, "fill_mask", None) is not None:
                transform.fill_mask = 0.0  # no pixel's number, see __call__
        self._compose = albumentations.Compose(kept)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Move a sample of two axes."""
        size = sample["image"].shape[1:]
        if len(size) != 2:
            raise ValueError(
                f"albumentations moves images of two axes, but the window has {len(size)}: {say_size(size)}; "
                "set data/augment=volume"
            )
        # Two streams of one draw each: Compose(seed=) would give every transform the same numbers.
        first, second = (int(n) for n in rng.integers(2**63, size=2))
        self._compose.set_random_state(np.random.default_rng(first), random.Random(second))
        # Labels of any type follow one map of pixel numbers, so that they move alike to the last pixel; 0 is new at the border.
        numbers = np.arange(1, np.prod(size) + 1, dtype=np.int32).reshape(size)
        moved = self._compose(image=np.ascontiguousarray(sample["image"].transpose(1, 2, 0)), mask=numbers)
        if moved["image"].shape[:2] != size:
            raise ValueError(
                f"albumentations made a window of {say_size(moved['image'].shape[:2])} out of one of {say_size(size)}; expected "
                "transforms that keep the size (for D4, RandomRotate90 and Transpose take segline.augment.Turn)"
            )
        result = {"image": np.ascontiguousarray(moved["image"].reshape(*size, -1).transpose(2, 0, 1))}
        for name in sample.keys() - result:
            result[name] = _take(sample[name], np.maximum(moved["mask"], 1) - 1)
            result[name][..., moved["mask"] == 0] = IGNORE_INDEX if name == "mask" else 0
        return {name: result[name] for name in sample}


class Warp:
    """Rotation, scaling, translation and elastic deformation in one resampling, for images and volumes.

    Images are interpolated linearly, masks take the nearest pixel; outside of the window its mirror image lies.

    Args:
        p: Chance.
        degrees: Greatest rotation about each axis of a volume, or in the plane of an image.
        scale: Least and greatest factor of size.
        shift: Greatest translation along each axis, as a share of the window.
        elastic: Greatest displacement, in pixels along the axis where they are smallest; 0 for none.
        elastic_cells: Control points of the displacement along each axis.
        spacing: Size of a pixel along each axis, so that a rotation shears nothing; None where all are the same.
    """

    def __init__(
        self,
        p: float = 1.0,
        degrees: float = 15.0,
        scale: Sequence[float] = (0.85, 1.15),
        shift: float = 0.0,
        elastic: float = 0.0,
        elastic_cells: int = 4,
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.p, self.degrees, self.scale, self.shift = p, degrees, scale, shift
        self.elastic, self.elastic_cells, self.spacing = elastic, elastic_cells, spacing

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Warp a sample."""
        if rng.random() >= self.p:
            return sample
        size = sample["image"].shape[1:]
        places = self._places(size, rng)
        nearest = _nearest(places)
        bands = [ndimage.map_coordinates(band, places, order=1, mode="mirror") for band in sample["image"]]
        return {
            name: np.stack(bands)
            if name == "image"
            else array.reshape(*array.shape[: -len(size)], -1).take(nearest, -1)
            for name, array in sample.items()
        }

    def _places(self, size: Sequence[int], rng: np.random.Generator) -> NDArray[np.float32]:
        """Where each pixel of the result comes from, `[axes, *S]`."""
        axes = len(size)
        matrix = np.eye(axes)
        for i, j in combinations(range(axes), 2):
            angle = np.deg2rad(rng.uniform(-self.degrees, self.degrees))
            turn = np.eye(axes)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ turn
        spacing = np.ones(axes) if self.spacing is None else np.array(self.spacing) / min(self.spacing)
        matrix = matrix * spacing / spacing[:, None] / rng.uniform(self.scale[0], self.scale[1])
        centre = (np.array(size) - 1) / 2
        shift = rng.uniform(-self.shift, self.shift, axes) * np.array(size)
        column = (-1, *[1] * axes)
        grid = np.indices(size, np.float32) - centre.reshape(column).astype(np.float32)
        places = np.tensordot(matrix.astype(np.float32), grid, 1)
        places += (centre + shift).reshape(column).astype(np.float32)
        if self.elastic:
            cells = self.elastic_cells
            bend = rng.uniform(-self.elastic, self.elastic, (axes, *[cells] * axes)) / spacing.reshape(column)
            for length in size:  # linear between control points, one axis after the other
                along = np.linspace(0, cells - 1, length)[:, None]
                bend = np.tensordot(bend, np.clip(1 - np.abs(along - np.arange(cells)), 0, 1), (1, 1))
            places += bend.astype(np.float32)
        return places


class Brightness:
    """Add a number to all bands, and a smaller one to each; in deviations of the data set."""

    def __init__(self, p: float = 0.5, limit: float = 0.3, band_limit: float = 0.1) -> None:
        self.p, self.limit, self.band_limit = p, limit, band_limit

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the image."""
        if rng.random() >= self.p:
            return sample
        image = sample["image"]
        offset = rng.uniform(-self.limit, self.limit) + rng.uniform(-self.band_limit, self.band_limit, len(image))
        return _with_image(sample, image + offset.reshape(-1, *[1] * (image.ndim - 1)).astype(np.float32))


class Contrast:
    """Stretch each band about its mean in the window."""

    def __init__(self, p: float = 0.5, factor: Sequence[float] = (0.75, 1.3)) -> None:
        self.p, self.factor = p, factor

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the image."""
        if rng.random() >= self.p:
            return sample
        image = sample["image"]
        mean = image.mean(axis=tuple(range(1, image.ndim)), keepdims=True)
        return _with_image(sample, (image - mean) * rng.uniform(self.factor[0], self.factor[1]) + mean)


class Gamma:
    """Raise each band, scaled to 0..1 by its range in the window, to a power; mean and deviation stay.

    Reference:
        Isensee et al., nnU-Net, Nature Methods 2021, supplementary note 4. https://doi.org/10.1038/s41592-020-01008-z
    """

    def __init__(self, p: float = 0.3, power: Sequence[float] = (0.7, 1.5)) -> None:
        self.p, self.power = p, power

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the image."""
        if rng.random() >= self.p:
            return sample
        image, power = sample["image"], rng.uniform(self.power[0], self.power[1])
        axes = tuple(range(1, image.ndim))
        least, span = image.min(axes, keepdims=True), np.ptp(image, axes, keepdims=True)
        curved = ((image - least) / np.maximum(span, 1e-6)) ** power
        mean, std = curved.mean(axes, keepdims=True), curved.std(axes, keepdims=True)
        standard = (curved - mean) / np.maximum(std, 1e-6)
        return _with_image(sample, standard * image.std(axes, keepdims=True) + image.mean(axes, keepdims=True))


class GaussianNoise:
    """Add noise of up to a deviation."""

    def __init__(self, p: float = 0.2, limit: float = 0.15) -> None:
        self.p, self.limit = p, limit

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the image."""
        if rng.random() >= self.p:
            return sample
        image = sample["image"]
        noise = rng.standard_normal(image.shape, np.float32)
        return _with_image(sample, image + noise * rng.uniform(0, self.limit))


class GaussianBlur:
    """Blur by a kernel of some pixels."""

    def __init__(self, p: float = 0.1, sigma: Sequence[float] = (0.4, 1.2)) -> None:
        self.p, self.sigma = p, sigma

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the image."""
        if rng.random() >= self.p:
            return sample
        sigma = rng.uniform(self.sigma[0], self.sigma[1])
        blurred = [ndimage.gaussian_filter(band, sigma, truncate=3.0) for band in sample["image"]]
        return _with_image(sample, np.stack(blurred))


def _with_image(sample: Sample, image: NDArray[Any]) -> Sample:
    return {**sample, "image": image.astype(np.float32, copy=False)}


def _nearest(places: NDArray[np.float32]) -> NDArray[np.intp]:
    """Flat indices of the pixels nearest to places `[axes, *S]`, which may lie in the mirror image outside."""
    flat = np.zeros(places.shape[1:], np.intp)
    for place, length in zip(places, places.shape[1:], strict=True):
        folded = np.rint(place).astype(np.intp) % max(2 * length - 2, 1)
        flat = flat * length + np.minimum(folded, 2 * length - 2 - folded)
    return flat


def _take(array: NDArray[Any], pixels: NDArray[np.integer]) -> NDArray[Any]:
    """Pixels of an array `[..., *S]` by their flat indices `[*S]`."""
    return array.reshape(*array.shape[: array.ndim - pixels.ndim], -1).take(pixels, -1)
