"""A pinhole camera over a street: surfaces are painted with perspective and a depth test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segline.data.synthetic.texture import Field

#: What a surface says of the places asked about: which belong to it `[*S]`, their colours (broadcast to `[3, *S]`), and their class ids.
Painted = tuple[NDArray[np.bool_], NDArray[np.floating], NDArray[np.uint8] | int]
#: A surface of two coordinates in metres.
Surface = Callable[[Field, Field], Painted]
CAMERA_HEIGHT = 1.5


class Camera(NamedTuple):
    """Size of the frame, focal length, and the vanishing point of the street; pixels."""

    shape: tuple[int, int]
    focal: float
    row: float
    column: float


class Canvas:
    """A frame while it is painted. Metres: x to the right, y up from the ground, z forward from the camera."""

    def __init__(self, camera: Camera) -> None:
        height, width = camera.shape
        self.camera = camera
        self.color = np.zeros((3, height, width), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), np.inf, np.float32)
        self._right = ((np.arange(width, dtype=np.float32) + 0.5 - camera.column) / camera.focal)[None]
        self._up = ((camera.row - np.arange(height, dtype=np.float32) - 0.5) / camera.focal)[:, None]

    def sky(self, color: NDArray[np.floating], label: int) -> None:
        """Fill the frame."""
        self.color[:] = color
        self.label[:] = label

    def ground(self, surface: Surface, far: float = 400) -> None:
        """Paint the plane y = 0 with a surface of (x, z)."""
        top = int(np.searchsorted(-self._up[:, 0], CAMERA_HEIGHT / far))
        depth = CAMERA_HEIGHT / -self._up[top:]
        depth = np.broadcast_to(depth, self.label[top:].shape)
        self._put(np.s_[top:, :], depth, surface(self._right * depth, depth))

    def wall(self, x: float, near: float, far: float, height: float, surface: Surface) -> None:
        """Paint a plane along the street, at `x` from depth `near` to `far`, with a surface of (z, y)."""
        near = max(near, 0.5)
        if far <= near:
            return
        left, right = sorted((x / near, x / far))
        window = self._window(left, right, height, 0.0, far if height < CAMERA_HEIGHT else near, near)
        rays = self._right[:, window[1]]
        depth = x / np.where(np.sign(rays) == np.sign(x), rays, np.nan)
        up = CAMERA_HEIGHT + self._up[window[0]] * depth
        depth = np.broadcast_to(depth, up.shape)
        with np.errstate(invalid="ignore"):
            inside = (depth >= near) & (depth <= far) & (up >= 0) & (up <= height)
        self._put(window, depth, _within(inside, surface(np.nan_to_num(depth), np.nan_to_num(up))))

    def board(self, x: float, depth: float, width: float, height: float, surface: Surface) -> None:
        """Paint an upright rectangle that faces the camera, standing at `x`, with a surface of (x from its middle, y)."""
        if depth < 0.8:
            return
        window = self._window((x - width / 2) / depth, (x + width / 2) / depth, height, 0.0, depth, depth)
        across = self._right[:, window[1]] * depth - x
        up = CAMERA_HEIGHT + self._up[window[0]] * depth
        across, up = np.broadcast_arrays(across, up)
        inside = (np.abs(across) <= width / 2) & (up >= 0) & (up <= height)
        self._put(window, np.full(across.shape, depth, np.float32), _within(inside, surface(across, up)))

    def _window(
        self, left: float, right: float, top: float, bottom: float, top_depth: float, bottom_depth: float
    ) -> tuple[slice, slice]:
        """Pixels that rays between `left` and `right` and heights between `bottom` and `top` can reach."""
        camera = self.camera
        columns = slice(
            *(
                int(np.clip(camera.column + camera.focal * ray + pad, 0, camera.shape[1]))
                for ray, pad in ((left, -1), (right, 2))
            )
        )
        highest = camera.row - camera.focal * (top - CAMERA_HEIGHT) / top_depth
        lowest = camera.row - camera.focal * (bottom - CAMERA_HEIGHT) / bottom_depth
        rows = slice(*(int(np.clip(row + pad, 0, camera.shape[0])) for row, pad in ((highest, -1), (lowest, 2))))
        return rows, columns

    def _put(self, window: tuple[slice, slice], depth: NDArray[np.floating], painted: Painted) -> None:
        where, color, label = painted
        where = where & (depth < self.depth[window])
        view = self.color[:, *window]
        view[:, where] = np.broadcast_to(color, view.shape)[:, where]
        self.label[window][where] = np.broadcast_to(np.asarray(label, np.uint8), where.shape)[where]
        self.depth[window][where] = depth[where]


def _within(inside: NDArray[np.bool_], painted: Painted) -> Painted:
    where, color, label = painted
    return inside & where, color, label
