"""Fluorescence micrographs of cell nuclei: 16-bit grey TIFFs.

Layout: `images/{slide}_{field}.tif` and `masks/{slide}_{field}.png` (`slide1_00`, `slide1_01`, ...), four fields a slide; the
slide is the group. Images are uint16 counts of a camera; masks 8-bit ids as in `CLASSES`.

What makes them hard: nuclei touch and differ in size and brightness, some are slightly out of focus; blobs far out of focus,
debris, fibres and glowing cytoplasm are background; the light is uneven, the dye of each slide takes differently, and the
camera adds shot and read noise. Dividing nuclei (about one pixel in a hundred) are small, bright and of several shapes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from segline.data.synthetic.publish import write_once
from segline.data.synthetic.texture import Field, fractal

#: Class -> id in the masks.
CLASSES = {"background": 0, "nucleus": 1, "mitosis": 2}
#: Class -> colour for pictures.
COLORS = {"background": "#000000", "nucleus": "#3f8fd6", "mitosis": "#f0a830"}
FIELDS_PER_SLIDE = 4

#: Blur of the focal planes in pixels; nuclei lie in the first three, the last is far out of focus.
_PLANES = (0.7, 1.3, 2.1, 6.0)


class Slide(NamedTuple):
    """What the fields of one slide have in common."""

    density: float
    radius: float
    gain: float
    glow: float
    offset: float
    read_noise: float


class Nucleus(NamedTuple):
    """Centre, mean radius, elongation and direction of a nucleus; pixels and radians."""

    row: float
    column: float
    radius: float
    elongation: float
    angle: float


def write_biomedical(root: Path, count: int = 24, seed: int = 0) -> Path:
    """Write `count` micrographs of 256 x 256 to 288 x 320 pixels into `root`, once; returns `root`."""
    return write_once(root, partial(_write_fields, count=count, seed=seed))


def _write_fields(folder: Path, count: int, seed: int) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(count):
        slide, field = divmod(index, FIELDS_PER_SLIDE)
        image, mask = make_field(
            make_slide(np.random.default_rng([seed, 1, slide])), np.random.default_rng([seed, 1, slide, field + 1])
        )
        name = f"slide{slide + 1}_{field:02d}"
        Image.fromarray(image).save(folder / "images" / f"{name}.tif", compression="tiff_adobe_deflate")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def make_slide(rng: np.random.Generator) -> Slide:
    """Staining, magnification and camera of one slide."""
    return Slide(
        density=rng.uniform(0.45, 1.0),
        radius=rng.uniform(8.0, 11.5),
        gain=float(np.exp(rng.uniform(np.log(500), np.log(4_000)))),
        glow=rng.uniform(0.08, 0.22),
        offset=rng.uniform(80, 400),
        read_noise=rng.uniform(6, 16),
    )


def make_field(slide: Slide, rng: np.random.Generator) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """One field of view `[H, W]` and its mask."""
    shape = (int(rng.choice([256, 272, 288])), int(rng.choice([256, 288, 320])))
    nuclei = _place(rng, shape, slide)
    mask = np.zeros(shape, np.uint8)
    planes = np.zeros((len(_PLANES), *shape), np.float32)
    nearest = np.full(shape, np.inf, np.float32)
    for nucleus in nuclei:
        plane = rng.choice(3, p=(0.5, 0.32, 0.18))
        if rng.random() < 0.13:
            _draw_mitosis(rng, nucleus, mask, planes[min(plane, 1)])
        else:
            _draw_nucleus(rng, nucleus, mask, planes, plane, nearest)
    glow = ndimage.gaussian_filter((mask > 0).astype(np.float32), slide.radius * 0.8)
    granules = np.clip(1 + 0.55 * fractal(rng, shape, 14, 0.55), 0.2, None)
    _draw_clutter(rng, planes, slide, len(nuclei))
    light = slide.glow * (0.35 + 2.2 * glow * granules)
    light += sum(ndimage.gaussian_filter(plane, sigma) for plane, sigma in zip(planes, _PLANES, strict=True))
    return _expose(rng, light, slide), mask


def _place(rng: np.random.Generator, shape: tuple[int, int], slide: Slide) -> list[Nucleus]:
    """Nuclei in clumps: each new one lies anywhere or touches one that is there."""
    nuclei: list[Nucleus] = []
    wanted = int(slide.density * shape[0] * shape[1] / (10 * slide.radius**2))
    for _ in range(wanted * 12):
        if len(nuclei) == wanted:
            break
        radius = slide.radius * float(np.clip(np.exp(rng.normal(0, 0.28)), 0.5, 2.0))
        row, column = rng.uniform(-0.02, 1.02, 2) * shape
        if nuclei and rng.random() < 0.6:
            near = nuclei[rng.integers(len(nuclei))]
            direction, gap = rng.uniform(0, 2 * np.pi), (radius + near.radius) * rng.uniform(0.86, 1.02)
            row, column = near.row + gap * np.sin(direction), near.column + gap * np.cos(direction)
        if all(np.hypot(row - other.row, column - other.column) > 0.85 * (radius + other.radius) for other in nuclei):
            nuclei.append(Nucleus(row, column, radius, rng.uniform(1, 1.45), rng.uniform(0, np.pi)))
    return nuclei


def _around(nucleus: Nucleus, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], Field, Field]:
    """The window around a nucleus, and coordinates along and across it there, in radii."""
    reach = int(2 * nucleus.radius) + 4
    top, left = max(int(nucleus.row) - reach, 0), max(int(nucleus.column) - reach, 0)
    bottom, right = (
        max(min(int(nucleus.row) + reach, shape[0]), top),
        max(min(int(nucleus.column) + reach, shape[1]), left),
    )
    rows, columns = np.mgrid[top:bottom, left:right]
    cos, sin, stretch = np.cos(nucleus.angle), np.sin(nucleus.angle), np.sqrt(nucleus.elongation)
    along = ((rows - nucleus.row) * cos + (columns - nucleus.column) * sin) / (nucleus.radius * stretch)
    across = ((columns - nucleus.column) * cos - (rows - nucleus.row) * sin) * stretch / nucleus.radius
    return np.s_[top:bottom, left:right], along.astype(np.float32), across.astype(np.float32)


def _bumpy(rng: np.random.Generator, along: Field, across: Field, size: float) -> Field:
    """Distance from the centre in radii of an outline that waves: below 1 is inside."""
    direction = np.arctan2(across, along)
    outline = 1 + sum(rng.normal(0, size / k) * np.cos(k * direction + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    return (np.hypot(along, across) / outline).astype(np.float32)


def _draw_nucleus(
    rng: np.random.Generator, nucleus: Nucleus, mask: NDArray[np.uint8], planes: Field, plane: int, nearest: Field
) -> None:
    """A nucleus with chromatin, nucleoli and a bright rim; where two meet, each pixel goes to the nearer."""
    window, along, across = _around(nucleus, mask.shape)
    if along.size < 4:
        return
    away = _bumpy(rng, along, across, 0.09)
    inside = (away < 1) & (away < nearest[window])
    chromatin = 1 + 0.30 * fractal(rng, away.shape, 6, 0.7) + 0.25 * np.exp(-(((away - 0.9) / 0.12) ** 2))
    for _ in range(rng.integers(1, 4)):
        row, column = rng.uniform(-0.5, 0.5, 2)
        chromatin *= 1 - 0.5 * np.exp(-((along - row) ** 2 + (across - column) ** 2) / 0.03)
    brightness = np.exp(rng.normal(-0.45, 0.42))
    planes[:, *window][:, inside] = 0  # it covers what it overlaps
    planes[plane][window][inside] = (
        brightness * np.clip(chromatin, 0.2, None) * np.sqrt(np.clip(1.25 - away**2, 0, 1))
    )[inside]
    nearest[window][inside] = away[inside]
    mask[window][inside] = CLASSES["nucleus"]


def _draw_mitosis(rng: np.random.Generator, nucleus: Nucleus, mask: NDArray[np.uint8], plane: Field) -> None:
    """A dividing nucleus: one ragged bright plate, or two that drift apart."""
    window, along, across = _around(nucleus._replace(elongation=1.0), mask.shape)
    if along.size < 4:
        return
    apart = rng.choice([0.0, rng.uniform(0.4, 0.75)])
    bent = np.abs(along + 0.25 * across**2) if apart == 0 else np.abs(np.abs(along) - apart - 0.2 * across**2)
    away = np.maximum(bent / rng.uniform(0.22, 0.34), np.abs(across) / rng.uniform(0.65, 0.9)) + 0.12 * fractal(
        rng, along.shape, 10, 1.3
    )
    inside = away < 1
    cell = np.hypot(along, across) < 1
    plane[window][cell] = 0
    mask[window][cell & (mask[window] == CLASSES["nucleus"])] = CLASSES["background"]
    plane[window][inside] = rng.uniform(1.1, 2.0) * (1 + 0.15 * fractal(rng, along.shape, 4, 0.6))[inside]
    mask[window][inside] = CLASSES["mitosis"]


def _draw_clutter(rng: np.random.Generator, planes: Field, slide: Slide, num_nuclei: int) -> None:
    """What is no nucleus: blobs far out of focus, bright debris, fibres."""
    shape = planes.shape[1:]
    rows, columns = np.indices(shape, np.float32)
    for _ in range(rng.integers(3, 5 + num_nuclei // 8)):
        row, column = rng.uniform(0, 1, 2) * shape
        blob = np.hypot(rows - row, columns - column) < slide.radius * rng.uniform(0.7, 1.7)
        planes[-1][blob] += rng.uniform(0.35, 1.1)
    for _ in range(rng.integers(8, 30)):
        row, column, size = rng.integers(shape[0] - 6), rng.integers(shape[1] - 6), rng.integers(1, 6)
        grain = rng.random((size, size)) < 0.7
        planes[rng.integers(0, 3)][row : row + size, column : column + size][grain] += rng.uniform(0.4, 2.5)
    for _ in range(rng.integers(0, 3)):
        ridge = np.abs(fractal(rng, shape, 220, 1.3) - rng.uniform(-0.5, 0.5)) < 0.015
        part = fractal(rng, shape, 120, 1.2) > rng.uniform(0.2, 0.8)
        planes[0][ridge & part] += rng.uniform(0.25, 0.6)


def _expose(rng: np.random.Generator, light: Field, slide: Slide) -> NDArray[np.uint16]:
    """Uneven illumination and a camera with shot noise and read noise."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, size) for size in light.shape), indexing="ij")
    row, column = rng.uniform(-0.5, 0.5, 2)
    vignette = 1 - rng.uniform(0.15, 0.35) * ((rows - row) ** 2 + (columns - column) ** 2) / 2
    uneven = vignette * (1 + 0.08 * fractal(rng, light.shape, 300, 1.3))
    electrons = rng.poisson(np.clip(light * uneven, 0, None) * slide.gain * rng.uniform(0.8, 1.25) / 4) * 4.0
    counts = slide.offset + electrons + rng.normal(0, slide.read_noise, light.shape)
    return np.clip(np.rint(counts), 0, 65_535).astype(np.uint16)
