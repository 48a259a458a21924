"""Corruptions that fit many images: noise, blur, contrast, JPEG; those of MRI, and those of satellite scenes.

Each is a function of an image `[C, *S]` of raw values with NaN where there is no data, of a strength from 1 to 5, and of a generator, and
gives a new image. What has no data has none afterwards, and all else has. Values are measured by the image's own spread (`Levels`), so
that strengths mean the same for 8-bit frames, uint16 scenes, SAR and MRI; nothing is clipped, for the files' type is not known here.

Reference:
    Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019 (ImageNet-C: the
    idea, five strengths, and those of noise, blur, contrast and JPEG). https://arxiv.org/abs/1903.12261
    Kamann and Rother, Benchmarking the Robustness of Semantic Segmentation Models, CVPR 2020. https://arxiv.org/abs/1908.05005
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]

#: Pixels that levels are measured on, at most: every so-manyth.
_MEASURED = 2**20


class Levels(NamedTuple):
    """Where the values of each band lie, `[C, 1, ...]`: its darkest and brightest ones, a few outliers left out, and its mean."""

    low: Image
    high: Image
    mean: Image

    @property
    def span(self) -> Image:
        """From dark to bright; 0 of a constant or empty band."""
        return self.high - self.low


def levels(image: Image) -> Levels:
    """The 0.5th and 99.5th percentiles of each band, and its mean.

    The extremes stand in where the percentiles are one value, as of a few nuclei on black.
    """
    flat = image.reshape(len(image), -1)
    rows = []
    for band in flat[:, :: max(1, -(-flat.shape[1] // _MEASURED))]:
        values = band[~np.isnan(band)]
        low, high = np.percentile(values, [0.5, 99.5]) if values.size else (0.0, 0.0)
        if low == high and values.size:
            low, high = values.min(), values.max()
        rows.append((low, high, values.mean(dtype=np.float64) if values.size else 0.0))
    shape = (-1, *[1] * (image.ndim - 1))
    low, high, mean = (np.array(column, np.float32).reshape(shape) for column in zip(*rows, strict=True))
    return Levels(low, high, mean)


def _filled(image: Image) -> Image:
    """An image with each band's mean where there is no data."""
    lost = np.isnan(image)
    return np.where(lost, levels(image).mean, image) if lost.any() else image


def _lost_again(values: NDArray[Any], image: Image) -> Image:
    """Values with no data where an image has none."""
    return np.where(np.isnan(image), np.float32(np.nan), values.astype(np.float32))


# Of all images


def noise(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Gaussian noise, `x + s n`: a deviation s of 8, 12, 18, 26, 38 % of each band's span, as in ImageNet-C."""
    share = (0.08, 0.12, 0.18, 0.26, 0.38)[strength - 1]
    drawn: Image = rng.standard_normal(image.shape, np.float32)
    return image + np.float32(share) * levels(image).span * drawn


def blur(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Gaussian blur, with a deviation of 1, 2, 3, 4, 6 pixels as in ImageNet-C, and half of it in volumes, whose voxels are larger.

    What has no data counts nothing: `G(x v) / G(v)` with v = 1 where there is data, the normalised convolution of Knutsson and Westin
    (CVPR 1993).
    """
    sigma = (1, 2, 3, 4, 6)[strength - 1] / (1 if image.ndim == 3 else 2)
    valid = ~np.isnan(image)
    spread = (0, *[sigma] * (image.ndim - 1))
    values: Image = ndimage.gaussian_filter(np.where(valid, image, 0).astype(np.float32), spread, mode="nearest")
    if not valid.all():
        values /= np.maximum(ndimage.gaussian_filter(valid.astype(np.float32), spread, mode="nearest"), 1e-6)
    return _lost_again(values, image)


def contrast(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Less contrast, `m + c (x - m)` around the mean m of each band, with c = 0.4, 0.3, 0.2, 0.1, 0.05 as in ImageNet-C."""
    kept = np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[strength - 1])
    mean = levels(image).mean
    return mean + kept * (image - mean)


def jpeg(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """JPEG of quality 25, 18, 15, 10, 7 as in ImageNet-C: of three bands as a colour image, else of each band, of volumes slice by slice.

    Values are brought to 8 bits from dark to bright first, outliers being clipped; three bands by one scale, which keeps their colours.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, (25, 18, 15, 10, 7)[strength - 1]]
    low, high, _ = levels(image)
    if len(image) == 3:
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    span = np.where(high > low, high - low, 1)
    small = np.clip(np.rint((_filled(image) - low) / span * 255), 0, 255).astype(np.uint8)
    planes = small.reshape(len(image), -1, *image.shape[-2:]).transpose(1, 0, 2, 3)  # slices of C bands
    coded = np.stack([_recode(plane, quality) for plane in planes], 1).reshape(image.shape)
    return _lost_again(low + coded.astype(np.float32) / 255 * span, image)


def _recode(plane: NDArray[np.uint8], quality: list[int]) -> NDArray[np.uint8]:
    """Bands `[C, H, W]` written as JPEG and read back."""
    pictures = [np.ascontiguousarray(plane[::-1].transpose(1, 2, 0))] if len(plane) == 3 else list(plane)
    read = [np.asarray(cv2.imdecode(cv2.imencode(".jpg", p, quality)[1], cv2.IMREAD_UNCHANGED)) for p in pictures]
    return np.asarray(read[0].transpose(2, 0, 1)[::-1] if len(plane) == 3 else np.stack(read), np.uint8)


# Of MRI


def bias_field(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """A bias field, `x exp(p)`: p is a polynomial of order 3 in coordinates from -1 to 1, its coefficients drawn from -c to c.

    c is 0.1, 0.2, 0.3, 0.4, 0.5; the last one is TorchIO's default (Pérez-García et al. 2021, after Van Leemput et al., IEEE TMI 1999).
    """
    axes = image.ndim - 1
    powers = np.indices([4] * axes).sum(0)
    field = np.where(powers <= 3, rng.uniform(-1, 1, powers.shape), 0) * 0.1 * strength
    for size in image.shape[1:]:  # each turn takes the first axis, of powers, and adds a last one, of places
        field = np.tensordot(field, np.vander(np.linspace(-1, 1, size), 4, increasing=True), (0, 1))
    return image * np.exp(field).astype(np.float32)


def ghosting(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Ghosts of a motion that repeats: every n-th line of k-space along an axis is weaker by 20, 40, 60, 80, 100 %, the centre excepted.

    A ghost is as strong as its image times the weakening over n. The axis is drawn, and n of 2 to 4. After TorchIO (Pérez-García et al.
    2021), whose n is 4 to 10: of so faint ghosts little is seen in a small volume.
    """
    axis = int(rng.integers(1, image.ndim))
    length = image.shape[axis]
    every = int(rng.integers(2, 5))
    line = np.abs(np.fft.fftfreq(length, 1 / length)).round().astype(int)
    kept = np.where((line % every == 0) & (line > 0), 1 - 0.2 * strength, 1.0).astype(
        np.float32
    )  # or all would be doubles
    spectrum = np.fft.fft(_filled(image), axis=axis) * kept.reshape(-1, *[1] * (image.ndim - 1 - axis))
    return _lost_again(np.fft.ifft(spectrum, axis=axis).real, image)


# Of satellite scenes


def haze(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Haze of uneven thickness, `t x + (1 - t) A`: A is each band's bright end, and 1 - t is 15, 30, 45, 60, 75 % where it is thickest.

    It is nowhere less than half of that. The same in all bands, though in nature blue ones suffer most: the order of bands is not known.
    """
    thickness = 0.15 * strength * (0.5 + 0.5 * smooth_field(image.shape[-2:], rng))
    return image + thickness * (levels(image).high - image)


def band_dropout(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Bands that were not received: 1 to 5 of them, all but one at most, hold their mean everywhere. A stronger one loses more."""
    lost = rng.permutation(len(image))[: min(strength, len(image) - 1)]
    result = image.copy()
    result[lost] = _lost_again(np.broadcast_to(levels(image).mean, image.shape), image)[lost]
    return result


def band_shift(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Bands that lie beside each other: each but the first is moved by 1 to 5 pixels along one of eight directions, borders repeated.

    Where no data would be moved to, the band keeps what it has.
    """
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    result = image.copy()
    for band, drawn in zip(range(1, len(image)), rng.integers(len(steps), size=len(image) - 1), strict=True):
        rows, columns = (
            np.clip(np.arange(n) - d * strength, 0, n - 1) for n, d in zip(image.shape[1:], steps[drawn], strict=True)
        )
        moved = image[band][np.ix_(rows, columns)]
        result[band] = _lost_again(np.where(np.isnan(moved), image[band], moved), image[band])
    return result


def smooth_field(shape: tuple[int, ...], rng: np.random.Generator, cells: int = 6) -> Image:
    """Clouds from 0 to 1, `[H, W]`: numbers drawn on a coarse grid and interpolated."""
    drawn = rng.random((cells, cells), np.float32)
    drawn = (drawn - drawn.min()) / (drawn.max() - drawn.min())
    return np.clip(cv2.resize(drawn, shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 1).astype(np.float32)
