"""Image, mask and instances move together, and no band, range or axis is too much."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import albumentations
import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from segline.augment import (
    Albumentations,
    Augment,
    Brightness,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    Sample,
    Turn,
    Warp,
)
from segline.config import CONF_DIR

IGNORED = 255
FILES = sorted(CONF_DIR.joinpath("data", "augment").glob("*.yaml"))
GEOMETRIC = (Turn, Albumentations, Warp)
INTENSITY = {
    "brightness": Brightness(1.0, 0.4, 0.2),
    "contrast": Contrast(1.0),
    "gamma": Gamma(1.0),
    "noise": GaussianNoise(1.0, 0.3),
    "blur": GaussianBlur(1.0),
}
AFFINE = {"rotate": [-30, 30], "scale": [0.8, 1.25], "translate_percent": [-0.1, 0.1], "border_mode": 4, "p": 1.0}
SHAPES = {2: [(24, 24), (20, 32)], 3: [(8, 20, 14), (12, 12, 12)]}

seeds = st.integers(0, 2**32)


def config(stem: str) -> DictConfig:
    return OmegaConf.create(
        {
            "data": {
                "spacing_mm": None,
                "augment": OmegaConf.load(CONF_DIR / "data" / "augment" / f"{stem}.yaml"),
            }
        }
    )


def build(stem: str) -> Augment:
    augment: Augment = instantiate(config(stem).data.augment, _convert_="all")
    return augment


BUILT = {file.stem: build(file.stem) for file in FILES}
#: Every file with every number of axes that it is meant for.
CASES = [
    (stem, axes)
    for stem, augment in BUILT.items()
    for axes in (2, 3)
    if axes == 2 or not any(isinstance(t, Albumentations) for t in augment.transforms.values())
]


def traced(size: tuple[int, ...], classes: int | None = None) -> Sample:
    """Bands are the pixels' own coordinates, an instance is its pixel's number, and labels are scattered anyhow."""
    rng = np.random.default_rng(len(size))
    mask = rng.choice([0, 1, 2, IGNORED], size=size if classes is None else (classes, *size)).astype(np.uint8)
    mask = mask if classes is None else np.where(mask == 2, 0, mask).astype(np.uint8)
    return {
        "image": np.indices(size).astype(np.float32),
        "mask": mask,
        "instances": np.arange(np.prod(size), dtype=np.int32).reshape(size),
    }


def came_from(sample: Sample) -> NDArray[np.intp]:
    """Source of each pixel by its instance, `[axes, *S]`."""
    return np.stack(np.unravel_index(sample["instances"], sample["instances"].shape))


def noisy(bands: int, size: tuple[int, ...], seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((bands, *size), np.float32),
        "mask": rng.choice([0, 3, IGNORED], size=size).astype(np.uint8),
    }


def same(one: Sample, other: Sample) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("stem", "axes"), CASES)
@pytest.mark.parametrize("classes", [None, 1, 3])
@settings(max_examples=12)
@given(seed=seeds, oblong=st.booleans())
def test_image_mask_and_instances_move_together(
    stem: str, axes: int, classes: int | None, seed: int, oblong: bool
) -> None:
    before = traced(SHAPES[axes][oblong], classes)
    geometry = Augment({n: t for n, t in BUILT[stem].transforms.items() if isinstance(t, GEOMETRIC)})
    after = geometry(before, np.random.default_rng(seed))
    source = came_from(after)
    np.testing.assert_array_equal(after["mask"], before["mask"][..., *source])
    off = after["image"] - source
    # Half a pixel for the nearest neighbour, once more where two transforms resample one after the other.
    assert np.abs(off).max() < 1.6
    assert np.abs(off.mean(axis=tuple(range(1, axes + 1)))).max() < 0.12
    assert {name: (array.shape, array.dtype) for name, array in after.items()} == {
        name: (array.shape, array.dtype) for name, array in before.items()
    }


@pytest.mark.parametrize(("stem", "axes"), CASES)
@settings(max_examples=15)
@given(
    seed=seeds,
    bands=st.sampled_from([1, 3, 13]),
    scale=st.sampled_from([1e-3, 1.0, 65_535.0, 1e6]),
    offset=st.sampled_from([0.0, -1e6, 40_000.0]),
    oblong=st.booleans(),
)
def test_any_bands_and_range_stay_finite_float32_with_the_same_labels(
    stem: str, axes: int, seed: int, bands: int, scale: float, offset: float, oblong: bool
) -> None:
    sample = noisy(bands, SHAPES[axes][oblong], seed)
    sample["image"] = sample["image"] * np.float32(scale) + np.float32(offset)
    sample["image"][0] = offset  # a band without contrast
    before = {name: array.copy() for name, array in sample.items()}
    after = BUILT[stem](sample, np.random.default_rng(seed))
    assert same(sample, before)  # what came in is as it was
    assert after["image"].dtype == np.float32
    assert after["image"].shape == sample["image"].shape
    assert np.isfinite(after["image"]).all()
    assert after["image"].flags.c_contiguous
    assert after["mask"].dtype == np.uint8
    assert set(np.unique(after["mask"])) <= {0, 3, IGNORED}


@pytest.mark.parametrize(("stem", "axes"), CASES)
def test_chance_0_is_identity(stem: str, axes: int) -> None:
    def never(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: 0.0 if key == "p" else never(value) for key, value in node.items()}
        return node

    plain = OmegaConf.to_container(config(stem), resolve=True)
    augment = instantiate(never(plain)["data"]["augment"], _convert_="all")
    sample = {**noisy(3, SHAPES[axes][1]), "instances": traced(SHAPES[axes][1])["instances"]}
    assert all(same(augment(sample, np.random.default_rng(seed)), sample) for seed in range(20))


@pytest.mark.parametrize(("stem", "axes"), CASES)
def test_the_generator_alone_decides(stem: str, axes: int) -> None:
    sample, results = noisy(3, SHAPES[axes][0]), []
    for other in range(3):  # neither the global generators nor what was drawn before
        np.random.seed(other)
        random.seed(other)
        BUILT[stem](sample, np.random.default_rng(1000 + other))
        results.append(BUILT[stem](sample, np.random.default_rng(7)))
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    others = [BUILT[stem](sample, np.random.default_rng(seed)) for seed in range(5)]
    assert stem == "none" or any(not same(results[0], other) for other in others)


def test_a_horizontal_and_a_vertical_flip_of_albumentations_are_drawn_independently() -> None:
    flips = Albumentations(
        {"h": albumentations.HorizontalFlip(p=0.5), "v": albumentations.VerticalFlip(p=0.5), "none": None}
    )
    sample = traced((4, 4))
    drawn = Counter(int(flips(sample, np.random.default_rng(seed))["instances"][0, 0]) for seed in range(400))
    assert set(drawn) == {0, 3, 12, 15}
    assert min(drawn.values()) > 65  # of 100 expected


@pytest.mark.parametrize(("size", "symmetries"), [((6, 6), 8), ((4, 6), 4), ((2, 3, 3), 16), ((3, 3, 3), 48)])
def test_a_turn_is_each_symmetry_of_the_window_equally_often(size: tuple[int, ...], symmetries: int) -> None:
    sample, times = traced(size), 60 * symmetries
    results = [Turn()(sample, np.random.default_rng(seed)) for seed in range(times)]
    drawn = Counter(result["instances"].tobytes() for result in results)
    assert len(drawn) == symmetries
    assert min(drawn.values()) > 30
    assert {result["instances"].shape for result in results} == {size}
    assert all(np.array_equal(result["image"], came_from(result)) for result in results)


@pytest.mark.parametrize("fill", [0, 7, 255])
def test_new_pixels_at_the_border_are_ignored_whatever_the_fill(fill: int) -> None:
    right = albumentations.Affine(translate_px={"x": 5, "y": 0}, fill_mask=fill, p=1.0)
    before = {**noisy(2, (12, 12)), "instances": np.full((12, 12), 9, np.int32)}
    after = Albumentations({"right": right})(before, np.random.default_rng(0))
    assert (after["mask"][:, :5] == IGNORED).all()
    np.testing.assert_array_equal(after["mask"][:, 5:], before["mask"][:, :-5])
    assert (after["instances"][:, :5] == 0).all()
    assert (after["instances"][:, 5:] == 9).all()


def test_object_numbers_beyond_16_bits_survive_albumentations() -> None:
    sample = noisy(1, (16, 16)) | {"instances": 1_000_000 + np.arange(256, dtype=np.int32).reshape(16, 16)}
    after = Albumentations({"affine": albumentations.Affine(**AFFINE)})(sample, np.random.default_rng(0))
    assert after["instances"].dtype == np.int32
    assert after["mask"].dtype == np.uint8
    assert np.isin(after["instances"], sample["instances"]).all()


@pytest.mark.parametrize("transform", [albumentations.RandomGamma(), albumentations.OneOf([])])
def test_albumentations_that_are_not_geometric_are_refused(transform: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(transform).__name__}.*segline.augment"):
        Albumentations({"wrong": transform})


def test_albumentations_that_change_the_size_are_refused_with_a_remedy() -> None:
    crop = Albumentations({"crop": albumentations.RandomCrop(8, 6, p=1.0)})
    with pytest.raises(ValueError, match=r"8 x 6 out of one of 12 x 12.*Turn"):
        crop(noisy(1, (12, 12)), np.random.default_rng(0))


def test_albumentations_refuse_a_volume_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="data/augment=volume"):
        BUILT["aerial"](noisy(1, (8, 8, 8)), np.random.default_rng(0))


# The warp


def source_matrix(warp: Warp, size: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """The linear part of where pixels come from, fitted to the middle of a traced window."""
    after = warp(traced(size), np.random.default_rng(seed))
    middle = tuple(slice(n // 2 - 2, n // 2 + 3) for n in size)
    to = np.indices(size)[:, *middle].reshape(len(size), -1) - np.array([[n // 2] for n in size])
    source = after["image"][:, *middle].reshape(len(size), -1)
    solution, *_ = np.linalg.lstsq(np.vstack([to, np.ones(to.shape[1])]).T, source.T.astype(float), rcond=None)
    return solution[:-1].T


@pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 0.5)])
def test_a_volume_is_turned_rigidly_about_all_three_axes(spacing: tuple[float, ...] | None) -> None:
    warp = Warp(degrees=20, scale=(1, 1), spacing=spacing)
    unit = np.diag(spacing or (1.0, 1.0, 1.0))
    for seed in range(5):
        turn = unit @ source_matrix(warp, (21, 25, 23), seed) @ np.linalg.inv(unit)  # in millimetres
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-3)
        assert np.linalg.det(turn) == pytest.approx(1, abs=1e-3)
        assert np.count_nonzero(np.abs(turn - np.diag(np.diag(turn))) > 1e-3) == 6


def test_a_warp_scales_within_its_limits_and_shifts_by_a_share_of_each_axis() -> None:
    scales = [np.linalg.det(source_matrix(Warp(degrees=10), (31, 41), seed)) ** -0.5 for seed in range(40)]
    assert min(scales) < 0.9
    assert max(scales) > 1.1
    assert all(0.85 - 1e-3 < scale < 1.15 + 1e-3 for scale in scales)
    still = Warp(degrees=0, scale=(1, 1), shift=0.1)
    moves = np.array(
        [still(traced((20, 40)), np.random.default_rng(s))["image"][:, 10, 20] - [10, 20] for s in range(60)]
    )
    assert (np.abs(moves).max(0) <= [2.0, 4.0]).all()
    assert (np.abs(moves).max(0) > [1.6, 3.2]).all()


@pytest.mark.parametrize(("size", "spacing"), [((16, 24), None), ((9, 20, 16), None), ((9, 20, 16), (2.0, 1.0, 1.0))])
def test_elastic_deformation_bends_every_axis_within_its_limit(
    size: tuple[int, ...], spacing: tuple[float, ...] | None
) -> None:
    after = Warp(degrees=0, scale=(1, 1), elastic=1.5, spacing=spacing)(traced(size), np.random.default_rng(3))
    inner = (slice(None), *(slice(2, -2) for _ in size))
    moved = (after["image"] - np.indices(size))[inner]
    limit = 1.5 / np.array(spacing or [1.0] * len(size))
    assert (np.abs(moved).reshape(len(size), -1).max(1) <= limit + 1e-4).all()
    for axis in range(1, len(size) + 1):  # no slice is bent like its neighbour
        assert (np.abs(np.diff(moved, axis=axis)).max(axis=tuple(range(1, len(size) + 1))) > 0.02).all()
    np.testing.assert_allclose(np.diff(moved, n=2, axis=-1).max(), 0, atol=1.0)  # smooth: no pixel jumps


def test_a_warp_mirrors_at_the_border_as_far_as_it_must() -> None:
    size = (7, 9)
    after = Warp(degrees=180, scale=(0.1, 0.1), shift=1.0)(traced(size), np.random.default_rng(0))
    off = np.abs(after["image"] - came_from(after))
    assert off.max() < 0.75  # half a pixel, and the fold that linear interpolation cuts off
    assert np.unique(after["instances"]).size > 20


def test_a_warp_takes_an_axis_of_one_pixel() -> None:
    after = Warp(elastic=1.0)(noisy(2, (1, 16, 16)), np.random.default_rng(0))
    assert np.isfinite(after["image"]).all()
    assert after["mask"].shape == (1, 16, 16)


# Intensities


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", ["contrast", "gamma", "blur"])
@pytest.mark.parametrize(("scale", "offset"), [(500.0, -4e4), (1e-2, 3.0), (65_535.0, 0.0)])
def test_contrast_gamma_and_blur_work_alike_in_any_range(name: str, axes: int, scale: float, offset: float) -> None:
    sample = noisy(13, SHAPES[axes][1])
    expected = INTENSITY[name](sample, np.random.default_rng(5))["image"] * scale + offset
    moved = {**sample, "image": (sample["image"] * scale + offset).astype(np.float32)}
    found = INTENSITY[name](moved, np.random.default_rng(5))["image"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2 * scale)
    assert not np.allclose(found, moved["image"], rtol=1e-4, atol=1e-2 * scale)


@pytest.mark.parametrize("name", ["brightness", "noise"])
@pytest.mark.parametrize("size", [(20, 32), (8, 20, 14)])
def test_brightness_and_noise_add_the_same_to_any_range(name: str, size: tuple[int, ...]) -> None:
    sample = noisy(13, size)
    far = {**sample, "image": sample["image"] * 100 - 300}
    added = [
        INTENSITY[name](s, np.random.default_rng(5))["image"].astype(float) - s["image"].astype(float)
        for s in (sample, far)
    ]
    np.testing.assert_allclose(added[0], added[1], atol=1e-3)
    assert np.abs(added[0]).max() > 0.01


@pytest.mark.parametrize("transform", INTENSITY.values(), ids=INTENSITY)
def test_intensities_leave_masks_and_instances_alone(transform: Callable[..., Sample]) -> None:
    sample = {**noisy(3, (16, 16)), "instances": traced((16, 16))["instances"]}
    after = transform(sample, np.random.default_rng(0))
    assert after["mask"] is sample["mask"]
    assert after["instances"] is sample["instances"]


def test_brightness_is_one_number_for_all_bands_and_a_small_one_for_each() -> None:
    sample = noisy(5, (8, 8))
    added = np.array(
        [
            (Brightness(1.0, 0.4, 0.1)(sample, np.random.default_rng(s))["image"] - sample["image"]).mean((1, 2))
            for s in range(50)
        ]
    )
    assert np.abs(added).max() <= 0.5 + 1e-5
    assert np.ptp(added, axis=1).max() <= 0.2 + 1e-5
    assert np.ptp(added, axis=1).min() > 0.02
    assert added.mean(1).min() < -0.3
    assert added.mean(1).max() > 0.3


def test_contrast_stretches_each_band_about_its_own_mean() -> None:
    sample = {"image": np.array([[[0.0, 2.0]], [[10.0, 30.0]]], np.float32), "mask": np.zeros((1, 2), np.uint8)}
    after = Contrast(1.0, factor=(1.5, 1.5))(sample, np.random.default_rng(0))
    np.testing.assert_allclose(after["image"], [[[-0.5, 2.5]], [[5.0, 35.0]]])


def test_gamma_bends_the_order_of_no_values_and_keeps_mean_and_deviation() -> None:
    sample = noisy(3, (16, 16))
    after = Gamma(1.0, power=(2.0, 2.0))(sample, np.random.default_rng(0))["image"]
    for band, curved in zip(sample["image"], after, strict=True):
        order = band.ravel().argsort()
        assert (np.diff(curved.ravel()[order]) >= 0).all()
        assert curved.mean() == pytest.approx(band.mean(), abs=1e-4)
        assert curved.std() == pytest.approx(band.std(), rel=1e-4)
        assert np.median(curved) < np.median(band) - 0.05  # squares: dark values come closer together


def test_noise_is_of_each_pixel_and_of_up_to_its_limit() -> None:
    sample = {**noisy(2, (48, 48)), "image": np.zeros((2, 48, 48), np.float32)}
    deviations = [float(GaussianNoise(1.0, 0.3)(sample, np.random.default_rng(s))["image"].std()) for s in range(30)]
    assert max(deviations) < 0.31
    assert min(deviations) < 0.05
    noise = GaussianNoise(1.0, 0.3)(sample, np.random.default_rng(1))["image"]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("size", [(15, 15), (15, 15, 15)])
def test_blur_spreads_a_point_along_all_axes_of_its_own_band_alone(size: tuple[int, ...]) -> None:
    image = np.zeros((2, *size), np.float32)
    middle = tuple(n // 2 for n in size)
    image[0, *middle] = 1
    sample = {"image": image, "mask": np.zeros(size, np.uint8)}
    blurred = GaussianBlur(1.0, sigma=(1.0, 1.0))(sample, np.random.default_rng(0))["image"]
    assert (blurred[1] == 0).all()
    assert blurred[0].sum() == pytest.approx(1, abs=1e-5)
    beside = np.exp(-0.5)  # of a Gauss curve of deviation 1, one pixel from its top
    for axis in range(len(size)):
        place = list(middle)
        place[axis] += 1
        assert blurred[0, *place] / blurred[0, *middle] == pytest.approx(beside, rel=0.02)


def test_a_transform_set_to_null_is_left_out() -> None:
    augment = Augment({"first": None, "second": Contrast(1.0, (2.0, 2.0))})
    assert list(augment.transforms) == ["second"]
    assert Augment({"first": None})(noisy(1, (4, 4)), np.random.default_rng(0))["mask"].shape == (4, 4)
