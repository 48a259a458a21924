"""A trained network together with a part of a file: what can be drawn of the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from segline.card import Card
from segline.inference.field import FARTHEST, USUAL_STRIDE, measure_sides
from segline.inference.network import on_arrays
from segline.interpretation import drawing
from segline.interpretation.drawing import Canvas
from segline.interpretation.features import Anatomy, FeatureMap
from segline.interpretation.gradcam import grad_cam
from segline.interpretation.receptive_field import effective_field
from segline.io.normalize import Normalize, measure
from segline.io.source import Source, Window, say_size
from segline.labels import Labels
from segline.pictures import to_rgb
from segline.words import count_of

#: Classes that Grad-CAM is drawn of at most: those of the most pixels.
_CLASSES = 13


@dataclass(frozen=True)
class Drawn:
    """A picture, what is said of it in a line, and the numbers to it."""

    figure: Figure
    line: str
    numbers: dict[str, Any]


def choose_window(shape: Sequence[int], size: Sequence[int], center: Sequence[int] | None) -> Window:
    """A part of a grid of about this size around a pixel, `*S`: moved inside the grid, or cut to it.

    Args:
        shape: Of the grid.
        size: Of the part.
        center: The pixel; None: the middle of the grid.

    Raises:
        ValueError: Sizes or pixels that the grid does not have.
    """
    expected = f"{len(shape)} numbers, as the file is {say_size(shape)}"
    if len(size) != len(shape) or min(size) < 1:
        raise ValueError(f"window is {list(size)}; expected {expected}")
    if center is not None and (
        len(center) != len(shape) or not all(0 <= c < n for c, n in zip(center, shape, strict=True))
    ):
        raise ValueError(f"center is {list(center)}; expected {expected}")
    place = []
    for n, s, c in zip(shape, size, center or [n // 2 for n in shape], strict=True):
        length = min(s, n)
        start = min(max(c - length // 2, 0), n - length)
        place.append(slice(start, start + length))
    return tuple(place)


class Subject:
    """A trained network and a part of a file, normalised as its card says, in float32.

    Args:
        network: In evaluation mode; its weights are frozen.
        card: Of the network.
        source: The file.
        window: The part.
        device: Where it is computed.
    """

    def __init__(self, network: nn.Module, card: Card, source: Source, window: Window, device: torch.device) -> None:
        self.network, self.card, self.window = network.requires_grad_(False).to(device), card, window
        self.labels, self.device, self.shape = Labels(**card.labels), device, source.shape
        normalize = Normalize(**card.normalize)
        statistics = measure(source) if normalize.scope == "case" else None
        raw = source.read(window)
        image = normalize(raw, statistics)
        self.image = torch.from_numpy(image)[None].to(device)
        #: Of volumes the middle slice is drawn.
        self.depth = image.shape[1] // 2 if image.ndim == 4 else None
        drawn = (..., *self._drawn)
        rgb = to_rgb(image[drawn], np.isfinite(raw[drawn]).any(0))
        name = "image" if self.depth is None else f"slice {self.say['slice'] + 1} of {source.shape[0]}"
        self.canvas = Canvas(rgb, name, self.depth)
        self.anatomy = Anatomy(self.network, self.image, card.stride)

    @property
    def _drawn(self) -> tuple[Any, ...]:
        """Of `[*S]` what is drawn of it."""
        plane = (slice(None), slice(None))
        return plane if self.depth is None else (self.depth, *plane)

    @property
    def say(self) -> dict[str, Any]:
        """Which part of the file it is, counted from 0, and which slice of a volume is drawn."""
        said: dict[str, Any] = {"size": list(self.shape), "window": [[w.start, w.stop] for w in self.window]}
        return said if self.depth is None else {**said, "slice": self.window[0].start + self.depth}

    @cached_property
    def mask(self) -> Any:
        """The decision on the window: `[*S]`, or `[K, *S]` for overlapping labels."""
        with torch.no_grad():
            return self.labels.decide(self.labels.probs(self.network(self.image)))[0].cpu().numpy()

    def filters(self) -> Drawn | None:
        """The kernels of the first convolution; None where the network has none."""
        name = self.anatomy.first
        if name is None:
            return None
        weights = self.network.get_parameter(f"{name}.weight").cpu().numpy()
        size = "x".join(map(str, weights.shape[2:]))
        numbers = {"layer": name, "shape": list(weights.shape)}
        return Drawn(drawing.filters(weights, name), f"{count_of(len(weights), 'filter')} of {size}: {name}", numbers)

    def features(self) -> Drawn:
        """The feature maps of each level."""
        maps = self.anatomy.maps(self.anatomy.levels)
        numbers = [
            {"layer": one.name, "channels": len(one.values), "size": list(one.values.shape[1:]), "step": list(one.step)}
            for one in maps
        ]
        line = f"{count_of(len(maps), 'level')}: {', '.join(self.anatomy.levels)}"
        return Drawn(drawing.features(self.canvas, maps), line, {"levels": numbers})

    def attention(self) -> Drawn | None:
        """The maps of the gates of a network that has `attention_maps`; None where it has none."""
        if not hasattr(self.network, "attention_maps"):
            return None
        with torch.no_grad():
            found = [values[0] for values in self.network.attention_maps(self.image)]  # type: ignore[operator]
        if not found:
            return None
        maps = [self.anatomy.over(f"gate {i}", values) for i, values in enumerate(found, 1)]
        numbers = [
            {"size": list(v.shape[1:]), "mean": float(v.mean()), "least": float(v.min()), "most": float(v.max())}
            for v in found
        ]
        return Drawn(drawing.attention(self.canvas, maps), count_of(len(maps), "gate"), {"gates": numbers})

    def grad_cams(self, layer: str | None, class_name: str | None) -> Drawn:
        """Grad-CAM of each class for the pixels that are decided to be of it.

        Args:
            layer: Module whose maps are weighed; None: the coarsest level.
            class_name: The only class; None: all that are predicted, or those of the most pixels.

        Raises:
            ValueError: There is no such layer or class, or the class is not predicted.
        """
        layer = self.anatomy.coarsest if layer is None else layer
        self.anatomy.check(layer)
        counts = {k: int(self.labels.of_class(self.mask, k).sum()) for k in range(self.labels.num_classes)}
        predicted = [k for k in sorted(counts, key=lambda k: -counts[k]) if counts[k]]
        chosen = sorted(predicted[:_CLASSES])
        if class_name is not None:
            names = [self.labels.names[k] for k in predicted]
            if class_name not in names:
                what = "is predicted nowhere in this window" if class_name in self.labels.names else "is no class"
                raise ValueError(f"class is {class_name!r}, which {what}; expected one of {', '.join(names) or 'none'}")
            chosen = [self.labels.names.index(class_name)]
        pixels = torch.zeros(self.labels.num_classes, *self.image.shape[2:], device=self.device)
        for k in chosen:
            pixels[k] = torch.from_numpy(self.labels.of_class(self.mask, k))
        found = grad_cam(self.network, self.image, layer, pixels)
        maps = {k: FeatureMap(layer, found[k][None], *self.anatomy.place(layer, found[k].shape)) for k in chosen}
        left_out = f", the {_CLASSES} of the most pixels" if class_name is None and len(predicted) > _CLASSES else ""
        title = f"Grad-CAM at {layer}{left_out}: where its maps raise the logits of the outlined pixels"
        figure = drawing.cams(self.canvas, maps, self.mask[(..., *self._drawn)], self.labels, title)
        names = [self.labels.names[k] for k in chosen]
        numbers = {self.labels.names[k]: {"pixels": counts[k], "largest": float(found[k].max())} for k in chosen}
        line = f"of {', '.join(names) or 'no class, as none is predicted'}; at {layer}"
        return Drawn(figure, line, {"layer": layer, "classes": numbers})

    def receptive_field(self) -> Drawn:
        """The theoretical and the effective field of the central pixel."""
        effective = effective_field(self.network, self.image)
        call = on_arrays(self.network, self.device, "32-true")
        stride, dims = self.card.stride or USUAL_STRIDE, self.image.ndim - 2
        try:
            sides = measure_sides(call, self.image.shape[1], dims, stride)
        except ValueError:  # of a network for one size: there is no other to look at
            sides = None
        reach = (
            None
            if sides is None
            else [
                (int(before[place % stride]), int(behind[place % stride]))
                for place, (before, behind) in zip(effective.center, sides, strict=True)
            ]
        )
        sizes = None if reach is None else [before + behind + 1 for before, behind in reach]
        (what, pixels), side = (("square", "pixels"), ("cube", "voxels"))[dims - 2], effective.side
        lines = [
            f"theoretical: {say_size(sizes)} {pixels} can reach it"
            if sizes
            else f"theoretical: the whole image, or more than {FARTHEST[dims]} {pixels} to each side",
            f"effective: {say_size([side] * dims)} {pixels} hold 95.45 % of the gradient in this window",
            f"by Luo et al.: {effective.luo_side:.1f}, side of a {what} of as many {pixels} as have over 4.55 % of the central one's",
        ]
        share = effective.share[self._drawn]
        center = (effective.center[-2], effective.center[-1])
        figure = drawing.receptive_field(self.canvas, share, center, side, reach and reach[-2:], lines)
        numbers = {"theoretical": sizes, "reach": reach, "effective": side, "luo": effective.luo_side}
        return Drawn(figure, f"{lines[0]}; {lines[1]}", numbers)
