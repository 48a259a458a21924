"""Training as on patches: windows in which few pixels count."""

from __future__ import annotations

import numpy as np

from segline.augment import Sample
from segline.labels import IGNORE_INDEX


class SamplePixels:
    """Train as patch classifiers do: ignore all pixels but some of each class, equally many of all, drawn anew each time.

    As many as the rarest class of the window has; of overlapping labels each has its own pixels, inside and outside. To stand last:
    `'+data.augment.transforms.sample={_target_: segline.data.pixels.SamplePixels, num_pixels: 256}'`.

    Args:
        num_pixels: At most so many in all classes of a window together; None for as many as there are.

    Reference:
        Cireşan et al., Deep Neural Networks Segment Neuronal Membranes in Electron Microscopy Images, NIPS 2012; as a
        mask of the loss: Li et al., Highly Efficient Forward and Backward Propagation, 2014, https://arxiv.org/abs/1412.4526.
    """

    def __init__(self, num_pixels: int | None = None) -> None:
        if num_pixels is not None and num_pixels < 1:
            raise ValueError(f"num_pixels is {num_pixels}; expected 1 or more, or null for as many as there are")
        self.num_pixels = num_pixels

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Thin the mask out."""
        mask = sample["mask"]
        kept = np.full(mask.shape, IGNORE_INDEX, mask.dtype)  # in one piece, of which the rows below are views
        rows = (-1, sample["image"][0].size)
        for labels, drawn in zip(mask.reshape(rows), kept.reshape(rows), strict=True):
            places = [np.flatnonzero(labels == label) for label in np.unique(labels[labels != IGNORE_INDEX])]
            most = len(labels) if self.num_pixels is None else max(self.num_pixels // max(len(places), 1), 1)
            for pixels in places:
                chosen = rng.choice(pixels, min(most, *map(len, places)), replace=False)
                drawn[chosen] = labels[chosen]
        return {**sample, "mask": kept}
