"""Weights of pixels in the loss, by where objects lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segline.augment import Sample
from segline.labels import Labels

#: Sums of distances, in sigmas, behind which the emphasis is less than float32 resolves beside a weight of 1: exp(-6^2 / 2) = 1.5e-8.
_REACH = 6


class BorderWeights:
    """U-Net's weights: classes balanced, and the background between objects emphasised the more, the closer they are.

        w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

    d1 and d2 are the distances to the nearest and to the second nearest object, to the centres of their pixels. The second term holds
    for background pixels, which lie between objects; a pixel of an object weighs w_c alone. An object is one number of `instances`, or
    else one connected component of the foreground, with neighbours over corners. Of overlapping labels the foreground is any class.
    Ignored pixels are background here; whatever they weigh, they count in no loss.

    Args:
        w0: Weight between two objects that nearly touch, on top of w_c.
        sigma: How fast it fades, in pixels (voxels).
        objects: Exclusive labels: classes that objects are of; None: all but the background.

    Raises:
        ValueError: A weight below 0, no positive sigma, or an unknown class; when called, labels that name no background.

    Reference:
        Ronneberger et al., U-Net, MICCAI 2015, equation 2. https://arxiv.org/abs/1505.04597. Departures: the w0 term is of the
        background only, where equation 2 is of every pixel; the map is of the augmented window, so that objects beyond it are
        unknown; and objects that touch stay as they are, where the paper cuts them apart. Its formula of w_c is not given; here it
        is that of `class_weights=true`, and 1 for overlapping labels.
    """

    def __init__(self, w0: float = 10.0, sigma: float = 5.0, objects: Sequence[str] | None = None) -> None:
        if w0 < 0 or sigma <= 0:
            raise ValueError(
                f"data.weight_map has w0 {w0} and sigma {sigma}; expected 0 or more and above 0, such as 10 and 5"
            )
        self.w0, self.sigma, self.objects = w0, sigma, objects

    def __call__(self, sample: Sample, labels: Labels, class_weights: Sequence[float]) -> NDArray[np.float32]:
        """The weight of each pixel of a sample, `[*S]`.

        Args:
            sample: `mask`, and `instances` where they are known.
            labels: Meaning of the mask.
            class_weights: Of each class, w_c.
        """
        mask = sample["mask"]
        foreground = self._foreground(mask, labels)
        if "instances" in sample:
            numbers = np.where(foreground, sample["instances"], 0)
        else:
            numbers = ndimage.label(foreground, np.ones((3,) * foreground.ndim))[0]
        weight = np.ones(foreground.shape, np.float32)
        if labels.exclusive:
            weight = np.asarray(class_weights, np.float32)[np.where(labels.valid(mask), mask, 0)]
        nearest, second = two_nearest(numbers, math.ceil(_REACH * self.sigma))
        emphasis = self.w0 * np.exp(-((nearest + second) ** 2) / (2 * self.sigma**2))
        return weight + np.where(foreground, 0, emphasis).astype(np.float32)

    def _foreground(self, mask: NDArray[Any], labels: Labels) -> NDArray[np.bool_]:
        """Where objects are, `[*S]`."""
        if self.objects is None:
            if labels.exclusive and labels.background is None:
                raise ValueError(
                    f"data.labels.background is null, so that all is an object; name it, or set data.weight_map.objects to some of "
                    f"{list(labels.names)}"
                )
            return labels.foreground(mask)
        if unknown := set(self.objects) - set(labels.names):
            raise ValueError(f"data.weight_map.objects has {sorted(unknown)}; expected some of {list(labels.names)}")
        return np.any([labels.of_class(mask, labels.names.index(name)) for name in self.objects], axis=0)


def two_nearest(numbers: NDArray[Any], reach: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances to the nearest and to the second nearest object, each `[*S]`.

    Exact as far as `reach`; beyond they are larger than that, infinite where there is no object.

    Args:
        numbers: Number of the object at each pixel, `[*S]`; 0 for none.
        reach: In pixels: each object is looked at this far around it only, so that many objects cost little more than few.
    """
    nearest = np.full(numbers.shape, np.inf, np.float32)
    second = nearest.copy()
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        if box is None:
            continue
        around = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
        distance = ndimage.distance_transform_edt(numbers[around] != number)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        nearest[around] = np.minimum(nearest[around], distance)
    return nearest, second
