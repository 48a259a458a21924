"""How far a network looks, measured."""

from __future__ import annotations

from itertools import accumulate, repeat, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segline.inference.tiled import Network

#: Pixels to each side after which a network counts as one that looks at everything, by the number of axes.
FARTHEST = {2: 2048, 3: 650}
#: Total stride that a network which does not say its own is taken to have: a multiple of the usual ones.
USUAL_STRIDE = 32


def measure_margin(network: Network, in_channels: int, spatial_dims: int, stride: int) -> list[int]:
    """Context that a tile needs along each axis so that its inside is what the whole image would give: multiples of `stride`.

    One cell of the network's grid, `stride` pixels wide, is made nan, and where the output turns nan it has been looked at.

    Args:
        network: In float32.
        in_channels: Bands of its images.
        spatial_dims: Axes of its images.
        stride: Its total stride.

    Raises:
        ValueError: It looks at the whole image, as by instance normalisation or pooling over it.
    """
    margins = []
    for axis in range(spatial_dims):
        found = _wide_enough(network, in_channels, spatial_dims, stride, axis)
        if found is None:
            raise ValueError(
                f"the network looks at more than {FARTHEST[spatial_dims]} pixels around each, as with instance normalisation or "
                "pooling over the whole image: no tiles can give what the whole image would; set blend=gaussian"
            )
        shape, seen = found
        touched, middle = seen // stride, _middle(shape, stride, axis) // stride
        margins.append(int(max(middle - touched.min(), touched.max() - middle)) * stride)
    return margins


def measure_sides(
    network: Network, in_channels: int, spatial_dims: int, stride: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]] | None:
    """How many pixels before and how many behind it an output depends on along each axis; None where that is the whole image.

    Outputs within a cell of the network's grid look differently far: each side is `[stride]`, by the place in the cell. So each pixel of a
    cell is made nan, one by one; a gradient would miss what a maximum or a ReLU happens to hide. Arguments as of `measure_margin`.
    """
    sides: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    known = {}  # an axis along which a cell is seen from the same places as along one before
    for axis in range(spatial_dims):
        found = _wide_enough(network, in_channels, spatial_dims, stride, axis)
        if found is None:
            return None
        shape, seen = found
        key = shape[2 + axis], seen.tobytes()
        if key not in known:
            known[key] = _both_sides(network, shape, stride, axis)
        sides.append(known[key])
    return sides


def measure_field(network: Network, in_channels: int, spatial_dims: int, stride: int) -> list[int] | None:
    """The receptive field: how many pixels along each axis an output depends on, at most; None and arguments as of `measure_sides`."""
    sides = measure_sides(network, in_channels, spatial_dims, stride)
    return None if sides is None else [int((before + behind).max()) + 1 for before, behind in sides]


def _both_sides(
    network: Network, shape: tuple[int, ...], stride: int, axis: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """How far the outputs of a cell look along an axis, before and behind them."""
    before, behind = np.full(stride, -shape[2 + axis]), np.full(stride, -shape[2 + axis])
    middle = _middle(shape, stride, axis)
    for pixel in range(middle, middle + stride):
        outputs = _seen_from(network, shape, axis, slice(pixel, pixel + 1))
        # As one output sees this pixel, the next one of its kind sees the pixel a stride further on.
        np.maximum.at(before, outputs % stride, outputs - pixel)
        np.maximum.at(behind, outputs % stride, pixel - outputs)
    return before, behind


def _wide_enough(
    network: Network, in_channels: int, spatial_dims: int, stride: int, axis: int
) -> tuple[tuple[int, ...], NDArray[np.intp]] | None:
    """The shape of an image at whose ends the cell in its middle is not seen, and from where that is; None if there is none."""
    most = (2 * FARTHEST[spatial_dims] // stride - 1) // 2 * 2 + 1
    sizes = takewhile(lambda cells: cells < most, accumulate(repeat(9), lambda cells, _: 2 * cells + 1))
    for cells in (*sizes, most):
        size = [2 * stride] * spatial_dims  # thin: the field along one axis does not depend on the others
        size[axis] = cells * stride
        shape = (1, in_channels, *size)
        middle = _middle(shape, stride, axis)
        seen = _seen_from(network, shape, axis, slice(middle, middle + stride))
        if seen.min() >= stride and seen.max() < (cells - 1) * stride:
            return shape, seen
    return None


def _middle(shape: tuple[int, ...], stride: int, axis: int) -> int:
    """The first pixel of the cell in the middle."""
    return shape[2 + axis] // stride // 2 * stride


def _seen_from(network: Network, shape: tuple[int, ...], axis: int, place: slice) -> NDArray[np.intp]:
    """Outputs along an axis that turn nan if the image is nan in a place."""
    image: NDArray[Any] = np.zeros(shape, np.float32)
    np.moveaxis(image, 2 + axis, 0)[place] = np.nan
    others = tuple(i for i in range(len(shape)) if i != 2 + axis)
    return np.flatnonzero(np.isnan(network(image)).any(axis=others))
