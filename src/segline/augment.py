"""Augmentation: image, mask and instances move together; intensities change in ways that hold for any bands and range.

A sample is a dict of arrays: `image` float32 `[C, *S]`, normalised, `mask` uint8 `[*S]` or `[K, *S]`, perhaps `instances` `[*S]`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# albumentations would ask the network for a newer version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Sample = dict[str, NDArray[Any]]


class Transform(Protocol):
    """Changes a sample by numbers drawn from `rng` alone; it never changes the arrays it is given."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The changed sample, of the same keys, types and sizes."""
        ...


class Augment:
    """Transforms in turn.

    Args:
        transforms: By name, so that one can be changed or set to null from the command line.
    """

    def __init__(self, transforms: Mapping[str, Transform | None]) -> None:
        self.transforms = {name: transform for name, transform in transforms.items() if transform is not None}

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The augmented sample."""
        for transform in self.transforms.values():
            sample = transform(sample, rng)
        return {name: np.ascontiguousarray(array) for name, array in sample.items()}


class Albumentations:
    """Geometric transforms of albumentations, on images of any number of bands.

    Only geometric ones: its photometric transforms clip to 0..1 in silence and fail beyond three bands.

    Args:
        transforms: albumentations' own, by name.
    """

    def __init__(self, transforms: Mapping[str, Any]) -> None:
        import albumentations

        kept = [transform for transform in transforms.values() if transform is not None]
        if wrong := [type(t).__name__ for t in kept if not isinstance(t, albumentations.DualTransform)]:
            raise ValueError(
                f"{', '.join(wrong)} of albumentations changes intensities; use segline.augment's, which are right for any bands and range"
            )
        self._compose = albumentations.Compose(kept)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Move a sample of two axes."""
        # Two streams of one draw each: Compose(seed=) would give every transform the same numbers.
        first, second = (int(n) for n in rng.integers(2**63, size=2))
        self._compose.set_random_state(np.random.default_rng(first), random.Random(second))
        masks = list(sample["mask"]) if sample["mask"].ndim == 3 else [sample["mask"]]
        if "instances" in sample:
            masks.append(sample["instances"])
        moved = self._compose(image=np.ascontiguousarray(sample["image"].transpose(1, 2, 0)), masks=masks)
        image = moved["image"] if moved["image"].ndim == 3 else moved["image"][..., None]
        result = {"image": image.transpose(2, 0, 1)}
        if "instances" in sample:
            result["instances"] = moved["masks"].pop() if isinstance(moved["masks"], list) else moved["masks"][-1]
            moved["masks"] = moved["masks"][: len(masks) - 1]
        result["mask"] = np.stack(moved["masks"]) if sample["mask"].ndim == 3 else moved["masks"][0]
        return {name: result[name] for name in sample}


class Warp:
    """Rotation, scaling, translation and elastic deformation in one resampling, for images and volumes.

    Images are interpolated linearly, masks take the nearest pixel; outside of the window its mirror image lies.

    Args:
        p: Chance.
        degrees: Greatest rotation about each axis of a volume, or in the plane of an image.
        scale: Least and greatest factor of size.
        shift: Greatest translation along each axis, as a share of the window.
        elastic: Greatest displacement, in pixels; 0 for none.
        elastic_cells: Control points of the displacement along each axis.
    """

    def __init__(
        self,
        p: float = 1.0,
        degrees: float = 15.0,
        scale: Sequence[float] = (0.85, 1.15),
        shift: float = 0.0,
        elastic: float = 0.0,
        elastic_cells: int = 4,
    ) -> None:
        self.p, self.degrees, self.scale, self.shift, self.elastic, self.elastic_cells = (
            p,
            degrees,
            scale,
            shift,
            elastic,
            elastic_cells,
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Warp a sample."""
        if rng.random() >= self.p:
            return sample
        size = sample["image"].shape[1:]
        places = self._places(size, rng)
        return {
            name: _sample_at(array, places, order=1 if name == "image" else 0, axes=len(size))
            for name, array in sample.items()
        }

    def _places(self, size: Sequence[int], rng: np.random.Generator) -> NDArray[np.float32]:
        """Where each pixel of the result comes from, `[axes, *S]`."""
        axes = len(size)
        matrix = np.eye(axes)
        for i, j in [(0, 1), (0, 2), (1, 2)][: 1 if axes == 2 else 3]:
            angle = np.deg2rad(rng.uniform(-self.degrees, self.degrees))
            turn = np.eye(axes)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ turn
        matrix /= rng.uniform(*self.scale)
        centre = (np.array(size) - 1) / 2
        shift = rng.uniform(-self.shift, self.shift, axes) * np.array(size)
        grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in size], indexing="ij"))
        column = (-1, *[1] * axes)
        places = np.tensordot(matrix.astype(np.float32), grid - centre.reshape(column).astype(np.float32), 1)
        places += (centre + shift).reshape(column).astype(np.float32)
        if self.elastic:
            coarse = rng.uniform(-self.elastic, self.elastic, (axes, *[self.elastic_cells] * axes)).astype(np.float32)
            at = grid * ((self.elastic_cells - 1) / (np.array(size) - 1).clip(1)).reshape(column).astype(np.float32)
            places += np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in coarse])
        return places


class Brightness:
    """Add a number to all bands, and a smaller one to each; in deviations of the data set."""

    def __init__(self, p: float = 0.5, limit: float = 0.3, band_limit: float = 0.1) -> None:
        self.p, self.limit, self.band_limit = p, limit, band_limit

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the image."""
        if rng.random() >= self.p:
            return sample
        bands = len(sample["image"])
        return _with_image(
            sample,
            sample["image"]
            + _per_band(
                rng.uniform(-self.limit, self.limit) + rng.uniform(-self.band_limit, self.band_limit, bands), sample
            ),
        )


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
        return _with_image(sample, (image - mean) * rng.uniform(*self.factor) + mean)


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
        image, power = sample["image"], rng.uniform(*self.power)
        axes = tuple(range(1, image.ndim))
        least, span = image.min(axes, keepdims=True), np.ptp(image, axes, keepdims=True)
        curved = ((image - least) / np.maximum(span, 1e-6)) ** power
        mean, std = curved.mean(axes, keepdims=True), curved.std(axes, keepdims=True)
        return _with_image(
            sample,
            (curved - mean) / np.maximum(std, 1e-6) * image.std(axes, keepdims=True) + image.mean(axes, keepdims=True),
        )


class GaussianNoise:
    """Add noise of up to a deviation."""

    def __init__(self, p: float = 0.2, limit: float = 0.15) -> None:
        self.p, self.limit = p, limit

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the image."""
        if rng.random() >= self.p:
            return sample
        image = sample["image"]
        return _with_image(
            sample, image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, self.limit))
        )


class GaussianBlur:
    """Blur by a kernel of some pixels."""

    def __init__(self, p: float = 0.1, sigma: Sequence[float] = (0.4, 1.2)) -> None:
        self.p, self.sigma = p, sigma

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the image."""
        if rng.random() >= self.p:
            return sample
        sigma = rng.uniform(*self.sigma)
        return _with_image(
            sample, np.stack([ndimage.gaussian_filter(band, sigma, truncate=3.0) for band in sample["image"]])
        )


def _with_image(sample: Sample, image: NDArray[Any]) -> Sample:
    return {**sample, "image": image.astype(np.float32, copy=False)}


def _per_band(values: NDArray[Any], sample: Sample) -> NDArray[np.float32]:
    return values.reshape(-1, *[1] * (sample["image"].ndim - 1)).astype(np.float32)


def _sample_at(array: NDArray[Any], places: NDArray[np.float32], order: int, axes: int) -> NDArray[Any]:
    """An array `[..., *S]` at fractional places."""
    if array.ndim == axes:
        return ndimage.map_coordinates(array, places, order=order, mode="mirror")  # type: ignore[no-any-return]
    return np.stack([_sample_at(part, places, order, axes) for part in array])
