"""Corruptions of driving frames: rain, fog and night.

As in `segline.robustness.corruptions`, of images `[C, H, W]` of three bands. No frame says how far its pixels are: a level road and a
horizon at 45 % of the height are taken for granted (`_distance`), as a camera behind a windscreen sees them; what stands upright near by
is taken for farther than it is.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from segline.robustness.corruptions import Image, levels, smooth_field

#: Share of the height that the horizon lies at, and how many times farther than the last row of the road anything is at most.
_HORIZON, _FARTHEST = 0.45, 8.0


def _distance(height: int) -> NDArray[np.float32]:
    """Of each row, `[H, 1]`, in distances of the last one: of a level road it falls with the rows below the horizon."""
    below = (np.arange(height) + 1) / height - _HORIZON
    nearness = np.minimum(np.hypot(np.maximum(below / (1 - _HORIZON), 0), 1 / _FARTHEST), 1)
    return (1 / nearness).astype(np.float32)[:, None]


def _light(image: Image) -> tuple[np.float32, np.float32]:
    """The dark and the bright end of all bands together, which keeps colours."""
    low, high, _ = levels(image)
    return low.min(), high.max()


def fog(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Fog by Koschmieder's law, `t x + (1 - t) A` with `t = exp(-b d)`: grey light A at 85 % of the range, and the distance d of the row.

    b is 0.05, 0.1, 0.17, 0.27, 0.4 a distance of the last row, so that 67, 45, 26, 12, 4 % of the horizon are seen; it swells and thins
    by 15 % over the frame. After Sakaridis et al., Semantic Foggy Scene Understanding with Synthetic Data, IJCV 2018, who know the depth.
    """
    density = (0.05, 0.1, 0.17, 0.27, 0.4)[strength - 1]
    low, high = _light(image)
    uneven = 0.85 + 0.3 * smooth_field(image.shape[1:], rng)
    seen = np.exp(-density * _distance(image.shape[1]) * uneven)
    return (seen * image + (1 - seen) * (low + np.float32(0.85) * (high - low))).astype(np.float32)


def night(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Night: light falls by 1, 1.8, 2.6, 3.4, 4.2 stops, half of it where head lamps reach, and the sensor's noise stays.

        y = (2^-stops x^2.2 + s n)^(1 / 2.2)

    x goes from 0 at the dark end of the range to 1 at the bright one, and 2.2 is the exponent of displays. Head lamps light the road in
    front, and little of its sides. The noise s is 0.04, 0.08, 0.12, 0.16, 0.2 % of the light of day at the bright end, of normal n.
    """
    low, high = _light(image)
    if high <= low:
        return image.copy()
    height, width = image.shape[1:]
    aside = np.linspace(-1, 1, width, dtype=np.float32)
    lit = np.exp(-2 * aside**2) / _distance(height)
    stops = (0.2 + 0.8 * strength) * (1 - 0.5 * lit)
    light = np.clip((image - low) / (high - low), 0, None) ** 2.2
    drawn: Image = rng.standard_normal(image.shape, np.float32)
    dark = light * np.exp2(-stops) + np.float32(0.0004 * strength) * drawn
    return (low + (high - low) * np.clip(dark, 0, None) ** (1 / 2.2)).astype(np.float32)


def rain(image: Image, strength: int, rng: np.random.Generator) -> Image:
    """Rain, `(1 - a) x + a A`: streaks of drops that fall while the shutter is open, before a veil of those too far to be told apart.

    Drops are drawn at 0.1, 0.2, 0.3, 0.45, 0.6 % of the pixels; each leaves a streak of light A, the bright end of the range, long and
    faint ones near by and short ones farther away, all falling within 20 degrees of the vertical. The veil takes 4 to 20 % of the
    contrast, and 3 to 15 % of the light. After Garg and Nayar, Vision and Rain, IJCV 2007, who say why streaks are brighter than
    what lies behind.
    """
    share = (0.001, 0.002, 0.003, 0.0045, 0.006)[strength - 1]
    low, high = _light(image)
    height, width = image.shape[1:]
    slant = rng.uniform(-20, 20)
    alpha = np.zeros((height, width), np.float32)
    for length, thick, dense, clear in ((0.12, 0.0022, 0.25, 0.5), (0.05, 0.0012, 0.75, 0.35)):
        drops = rng.random((height, width), np.float32)
        bright = np.where(drops < share * dense, rng.uniform(0.4, 1, (height, width)), 0).astype(np.float32)
        streaks = cv2.filter2D(
            bright, -1, _streak(length * height, thick * height, slant), borderType=cv2.BORDER_REFLECT
        )
        alpha = np.maximum(alpha, np.float32(clear) * np.clip(streaks, 0, 1))
    veiled = image + np.float32(0.04 * strength) * (low + np.float32(0.6) * (high - low) - image)
    veiled = low + (veiled - low) * np.float32(1 - 0.03 * strength)
    return veiled + alpha * (high - veiled)


def _streak(length: float, thick: float, slant: float) -> NDArray[np.float32]:
    """The picture of a falling drop, `[n, n]`, 1 where it is brightest; `slant` in degrees from the vertical."""
    half = int(length / 2) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle = np.deg2rad(slant)
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    fade = np.clip(1 - np.abs(along) / max(length / 2, 1), 0, 1) ** 0.5
    return (fade * np.exp(-0.5 * (across / max(thick, 0.5)) ** 2)).astype(np.float32)
