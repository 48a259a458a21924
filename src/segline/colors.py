"""Colours that are told apart, by colour-blind readers, too."""

from __future__ import annotations

import colorsys

# Okabe and Ito's eight colours, made for colour-blind readers, without their black.
_OKABE_ITO = (0xE69F00, 0x56B4E9, 0x009E73, 0xF0E442, 0x0072B2, 0xD55E00, 0xCC79A7)
# Each in turn the one that is farthest, in Oklab (Ottosson 2020), from all before it, from black and from white; in steps of 15.
# fmt: off
_FARTHEST = (
    0x78003C, 0x004B00, 0x9600FF, 0x3C00A5, 0xFF0FFF, 0x00E100, 0x00FFE1, 0xFFB4FF, 0xB40F96,
    0x785A4B, 0x003CFF, 0xFF0069, 0x7878FF, 0x2D3C5A, 0xC3C3B4, 0xB40000, 0x007800,
)
# fmt: on
_COLORS = (*_OKABE_ITO, *_FARTHEST)


def default_color(index: int, background: bool) -> int:
    """Colour 0xRRGGBB of the class of an index: black for the background, and different ones for any number of classes."""
    if background:
        return 0x000000
    if index < len(_COLORS):
        return _COLORS[index]
    # Golden-angle steps around the hue circle keep neighbours apart.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.55 + 0.15 * (index % 3), 0.9 - 0.15 * (index % 2))
    return int(red * 255) << 16 | int(green * 255) << 8 | int(blue * 255)
