"""Reflectance of what lies on the ground, in the bands red, green, blue and near infrared."""

from __future__ import annotations

import numpy as np

#: Crop -> reflectance and class.
CROPS = {
    "lush": ((0.050, 0.095, 0.045, 0.46), "vegetation"),
    "pasture": ((0.090, 0.125, 0.065, 0.36), "vegetation"),
    "young": ((0.125, 0.135, 0.085, 0.27), "vegetation"),
    "ripe": ((0.225, 0.205, 0.115, 0.31), "vegetation"),
    "ploughed": ((0.180, 0.140, 0.100, 0.23), "bare_soil"),
    "moist": ((0.115, 0.095, 0.070, 0.155), "bare_soil"),
    "stubble": ((0.245, 0.205, 0.140, 0.30), "bare_soil"),
}
#: How often each crop is grown.
CROP_SHARES = (0.18, 0.22, 0.14, 0.14, 0.14, 0.09, 0.09)
GRASS, CROWN, SAND = (0.085, 0.120, 0.062, 0.33), (0.032, 0.058, 0.030, 0.30), (0.30, 0.26, 0.19, 0.35)
DEEP, MUDDY = (0.022, 0.042, 0.052, 0.014), (0.125, 0.115, 0.085, 0.085)
WEEDS = (0.055, 0.090, 0.042, 0.230)
ASPHALT, CONCRETE, GRAVEL = (0.105, 0.105, 0.108, 0.13), (0.215, 0.21, 0.20, 0.235), (0.235, 0.205, 0.155, 0.27)
ROOFS = np.array(
    [
        (0.290, 0.155, 0.105, 0.300),
        (0.230, 0.125, 0.090, 0.260),
        (0.125, 0.125, 0.130, 0.155),
        (0.200, 0.165, 0.135, 0.235),
        (0.420, 0.420, 0.420, 0.440),
        (0.170, 0.200, 0.260, 0.260),
    ],
    np.float32,
)
