"""Brain-like volumes around an organ of two touching parts: NIfTI files.

Layout: `images/{patient}.nii.gz` and `labels/{patient}.nii.gz` (`patient00`, `patient01`, ...); each patient is its own group.
About 40 x 48 x 28 voxels, different in each; spacing 1 x 1 x 1 to 1 x 1 x 2 mm; stored in several orientations, every other
one oblique; float32, int16 or uint8 with an arbitrary scale from 100 to 100,000. Labels are uint8 ids as in `CLASSES`.

What makes them hard: the organ is grey matter like the folds around it and the blobs that touch it, its two parts differ in
place and shape only, and a bias field, noise and thick slices lie over everything.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from segline.data.synthetic.publish import write_once
from segline.data.synthetic.texture import Field, fractal

#: Class -> id in the masks.
CLASSES = {"background": 0, "anterior": 1, "posterior": 2}
#: Class -> colour for pictures.
COLORS = {"background": "#000000", "anterior": "#e8743b", "posterior": "#3f8fd6"}

_ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR")
_DTYPES = ("float32", "int16", "uint8")
_WHITE, _GREY, _FLUID = 1.0, 0.70, 0.28


def write_biomedical3d(root: Path, count: int = 16, seed: int = 0) -> Path:
    """Write `count` volumes into `root`, once; returns `root`."""
    return write_once(root, partial(_write_volumes, count=count, seed=seed))


def _write_volumes(folder: Path, count: int, seed: int) -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(count):
        rng = np.random.default_rng([seed, 2, index])
        affine, shape = make_grid(rng, oblique=index % 2 == 1)
        image, mask = make_volume(rng, affine, shape)
        stored = _digitize(rng, image, _DTYPES[index % 3])
        for kind, values in (("images", stored), ("labels", mask)):
            _save(folder / kind / f"patient{index:02d}.nii.gz", values, affine, _ORIENTATIONS[index % 4])


def _save(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64], orientation: str) -> None:
    """Write a volume, given in RAS, with its axes in another order and direction."""
    volume = nib.Nifti1Image(values, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    volume = volume.as_reoriented(turn)
    volume.header.set_xyzt_units("mm")
    volume.set_sform(volume.affine, code=1)
    volume.set_qform(volume.affine, code=1)
    nib.save(volume, path)


def make_grid(rng: np.random.Generator, oblique: bool) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Affine in mm and shape of a volume whose axes point right, forward and up, or, oblique, nearly so."""
    thickness = rng.choice([1.0, 1.5, 2.0])
    spacing = np.array([rng.choice([0.9, 1.0, 1.1]), 1.0, thickness])
    depth = int(rng.uniform(40, 48) / thickness)
    shape = (int(rng.integers(36, 46)), int(rng.integers(46, 56)), depth)
    turn = Rotation.from_euler("xyz", rng.uniform(-9, 9, 3) if oblique else np.zeros(3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    centre = np.array([28.0, -22.0, -14.0]) + rng.normal(0, 4, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine, shape


def make_volume(
    rng: np.random.Generator, affine: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[Field, NDArray[np.uint8]]:
    """One volume, white matter at about 1, and its mask, both of `shape`."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    pose = Rotation.from_euler("xyz", rng.normal(0, 5, 3), degrees=True).as_matrix()
    at = (world - world.mean((0, 1, 2)) + rng.normal(0, 2.2, 3)) @ pose * rng.normal(1, 0.07)
    at = at + np.stack([0.8 * fractal(rng, shape, 18 / spacing, 2) for _ in range(3)], -1)
    depth, forward = _organ(rng, at)
    mask = np.where(depth < 1, np.where(forward > 0, CLASSES["anterior"], CLASSES["posterior"]), 0).astype(np.uint8)
    tissue = _surroundings(rng, at, shape, spacing)
    tissue[(depth < 1.25) & (at[..., 2] > -3)] = _WHITE  # a thin coat that is open below
    tissue[(depth < 1.42) & (at[..., 0] > 1.5)] = _FLUID  # the ventricle beside it
    tissue[_neighbours(rng, at) < 1] = _GREY * rng.uniform(0.96, 1.06)
    tissue[mask > 0] = _GREY
    texture = 1 + 0.05 * fractal(rng, shape, 6 / spacing, 0.7)
    bias = np.exp(0.20 * fractal(rng, shape, 100 / spacing, 2.5))
    image = ndimage.gaussian_filter(tissue * texture, 0.55 / spacing) * bias
    real, imaginary = rng.normal(0, rng.uniform(0.03, 0.065), (2, *shape))
    return np.hypot(image + real, imaginary).astype(np.float32), mask


def _organ(rng: np.random.Generator, at: NDArray[np.float64]) -> tuple[Field, Field]:
    """A bent club along the y axis: distance from its axis in radii, and how far in front of the border of its parts, mm."""
    x, y, z = at[..., 0], at[..., 1], at[..., 2]
    length, border = rng.uniform(16, 19), rng.uniform(1.5, 4.5)
    t = np.clip(y / length, -1, 1)
    head = np.exp(-(((t - 0.55) / 0.34) ** 2))
    radius = (4.2 + rng.uniform(2.8, 4.0) * head + 0.8 * np.exp(-(((t + 0.5) / 0.3) ** 2))) * np.sqrt(1 - t**6)
    centre_x = 4.5 * t**2 - 2 + rng.normal(0, 0.5) * t
    centre_z = -5 * t + 3.5 * t**2 - 1
    away = np.hypot((x - centre_x) / 1.15, (z - centre_z) * 1.1) / np.maximum(radius, 0.05)
    forward = y - border + 0.25 * (z - centre_z) - 0.02 * (x - centre_x) ** 2
    return away.astype(np.float32), forward.astype(np.float32)


def _surroundings(
    rng: np.random.Generator, at: NDArray[np.float64], shape: tuple[int, ...], spacing: NDArray[np.float64]
) -> Field:
    """White matter with folded grey ribbons, fluid in the deepest furrows, and vessels."""
    fold = fractal(rng, shape, 24 / spacing, 2) + 0.02 * (np.abs(at[..., 0]) - 8)
    tissue = np.full(shape, _WHITE, np.float32)
    tissue[fold > 0.3] = _GREY
    tissue[fold > 1.2] = _FLUID
    vessels = np.abs(fractal(rng, shape, 30 / spacing, 2)) + np.abs(fractal(rng, shape, 30 / spacing, 2))
    tissue[vessels < 0.12] = 1.35
    return tissue


def _neighbours(rng: np.random.Generator, at: NDArray[np.float64]) -> Field:
    """Blobs of the organ's intensity, one touching its head and some anywhere: below 1 is inside."""
    away = np.full(at.shape[:-1], np.inf, np.float32)
    touching = np.array([[1.0, 17.0, 6.0]])
    for centre in np.concatenate([touching, rng.uniform(-1, 1, (rng.integers(2, 5), 3)) * (18, 22, 20)]):
        radii = rng.uniform(3.5, 7, 3)
        away = np.minimum(away, np.linalg.norm((at - centre - rng.normal(0, 1, 3)) / radii, axis=-1))
    return away


def _digitize(rng: np.random.Generator, image: Field, dtype: str) -> NDArray[np.generic]:
    """Give an image the scale of some scanner and a type of number that holds it."""
    if dtype == "float32":
        return (image / image.max() * 10 ** rng.uniform(2, 5)).astype(np.float32)
    top = 10 ** rng.uniform(2, 4.5) if dtype == "int16" else 255
    return np.rint(image / image.max() * top).astype(dtype)
