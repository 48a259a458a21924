"""Colours that are told apart, by colour-blind readers, too."""

from __future__ import annotations

import colorsys

# Okabe and Ito's eight colours, made for colour-blind readers, without their black.
_OKABE_ITO = (0xE69F00, 0x56B4E9, 0x009E73, 0xF0E442, 0x0072B2, 0xD55E00, 0xCC79A7)


def default_color(index: int, background: bool) -> int:
    """Colour 0xRRGGBB of the class of an index: black for the background, and different ones for any number of classes."""
    if background:
        return 0x000000
    if index < len(_OKABE_ITO):
        return _OKABE_ITO[index]
    # Golden-angle steps around the hue circle keep neighbours apart.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.55 + 0.15 * (index % 3), 0.9 - 0.15 * (index % 2))
    return int(red * 255) << 16 | int(green * 255) << 8 | int(blue * 255)
