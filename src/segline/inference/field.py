"""How far a network looks, measured."""

from __future__ import annotations

import numpy as np

from segline.inference.tiled import Network

#: Pixels along an axis after which a network counts as one that looks at everything.
_MOST = 4096


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
    return [_along(network, in_channels, spatial_dims, stride, axis) for axis in range(spatial_dims)]


def _along(network: Network, in_channels: int, spatial_dims: int, stride: int, axis: int) -> int:
    cells = 9
    while cells * stride <= _MOST:
        size = [2 * stride] * spatial_dims  # thin: the field along one axis does not depend on the others
        size[axis] = cells * stride
        image = np.zeros((1, in_channels, *size), np.float32)
        middle = cells // 2
        image[
            (
                ...,
                *(
                    slice(middle * stride, (middle + 1) * stride) if i == axis else slice(None)
                    for i in range(spatial_dims)
                ),
            )
        ] = np.nan
        seen = np.isnan(network(image)).any(axis=tuple(i for i in range(spatial_dims + 2) if i != axis + 2))
        touched = np.flatnonzero(seen) // stride
        if touched.min() > 0 and touched.max() < cells - 1:
            return int(max(middle - touched.min(), touched.max() - middle)) * stride
        cells = 2 * cells + 1
    raise ValueError(
        f"the network looks at more than {_MOST // 2} pixels around each, as with instance normalisation or pooling over the whole "
        "image: no tiles can give what the whole image would; set blend=gaussian"
    )
