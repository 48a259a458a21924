from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from tiny import Array

from segline.io.source import Geometry
from segline.robustness import weather
from segline.robustness.corrupted import CORRUPTIONS, STRENGTHS, CorruptedSource, check, fitting, generator
from segline.robustness.corruptions import (
    band_dropout,
    band_shift,
    bias_field,
    blur,
    contrast,
    ghosting,
    haze,
    jpeg,
    levels,
    noise,
)

#: Offset and factor of values that look like 8-bit frames, uint16 scenes, SAR in decibels and MRI.
KINDS = {"uint8": (20, 200), "uint16": (800, 9000), "sar": (-25, 20), "mri": (0, 1300)}
SHAPES = {2: (48, 60), 3: (12, 24, 28)}
FLAT = {"haze", "band_dropout", "band_shift", "rain", "fog", "night"}


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def picture(bands: int, dims: int = 2, kind: str = "uint8") -> np.ndarray:
    """Something smooth of values from a band's low end to its high one."""
    drawn = np.random.default_rng(0).normal(size=(bands, *SHAPES[dims]))
    smooth = ndimage.gaussian_filter(drawn, (0, *[3] * dims))
    low, factor = KINDS[kind]
    smooth -= smooth.min()
    values = low + factor * smooth / smooth.max()
    return (values if kind == "sar" else values.round()).astype(np.float32)


def cases() -> list[tuple[str, int, int]]:
    found = []
    for name in CORRUPTIONS:
        for bands in (1, 3, 4, 13):
            if bands > 1 or not name.startswith("band_"):
                found += [(name, bands, dims) for dims in (2, 3) if dims == 2 or name not in FLAT]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "bands", "dims"), cases())
def test_each_is_farther_from_the_clean_image_the_stronger_it_is(name: str, bands: int, dims: int, kind: str) -> None:
    image = picture(bands, dims, kind)
    before = image.copy()
    far = [0.0]
    for strength in STRENGTHS:
        result = CORRUPTIONS[name](image, strength, rng())
        assert result.dtype == np.float32
        assert result.shape == image.shape
        assert np.array_equal(result, CORRUPTIONS[name](image, strength, rng()))
        far.append(float(np.abs(result - image).mean()))
    assert np.array_equal(image, before)
    if name == "band_dropout":  # all but one band at most
        assert far == sorted(far)
        assert far[1] > 0
    else:
        assert all(a < b for a, b in pairwise(far)), far
        assert far[-1] < KINDS[kind][1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_value_means_the_same_in_any_unit(name: str) -> None:
    image = picture(3)
    offset = 0 if name == "bias_field" else 700  # which multiplies
    result = CORRUPTIONS[name](image, 3, rng())
    scaled = CORRUPTIONS[name](40 * image + offset, 3, rng())
    np.testing.assert_allclose(scaled, 40 * result + offset, rtol=1e-3, atol=40 * 2 if name == "jpeg" else 4)


@pytest.mark.parametrize(("name", "bands", "dims"), [case for case in cases() if case[1] in (1, 3)])
def test_no_data_stays_where_it_was_and_leaks_nowhere(name: str, bands: int, dims: int) -> None:
    image = picture(bands, dims)
    image[..., 5:9, 7:12] = np.nan
    image[-1, ..., 20, :] = np.nan  # of one band alone
    for strength in (1, 5):
        result = CORRUPTIONS[name](image, strength, rng())
        assert np.array_equal(np.isnan(result), np.isnan(image))
    image[-1] = np.nan
    assert np.array_equal(np.isnan(CORRUPTIONS[name](image, 5, rng())), np.isnan(image))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_of_one_value_is_no_error(name: str) -> None:
    assert np.isfinite(CORRUPTIONS[name](np.full((3, 20, 24), 7, np.float32), 5, rng())).all()


def test_levels_leave_out_outliers_but_not_all_there_is() -> None:
    image = picture(2)
    image[0, 0, 0], image[1] = 1e9, 0
    image[1, 3, 3] = 40  # one bright pixel on black
    image[:, 1, 1] = np.nan
    found = levels(image)
    assert found.high[0, 0, 0] < 300
    assert (found.low[1, 0, 0], found.high[1, 0, 0]) == (0, 40)
    assert found.mean[1, 0, 0] == pytest.approx(40 / (48 * 60 - 1))


def test_noise_has_the_deviation_that_it_says() -> None:
    ramp = np.linspace(0, 1, 300 * 300, dtype=np.float32).reshape(1, 300, 300)
    image = np.concatenate([100 * ramp, 5000 * ramp - 7])
    for strength, share in zip(STRENGTHS, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True):
        difference = noise(image, strength, rng()) - image
        np.testing.assert_allclose(difference.std((1, 2)), [99 * share, 4950 * share], rtol=0.01)
        assert abs(np.corrcoef(difference.reshape(2, -1))[0, 1]) < 0.02


def test_blur_is_a_mean_of_neighbours_that_have_data() -> None:
    np.testing.assert_allclose(blur(np.full((2, 20, 30), 3.7, np.float32), 5, rng()), 3.7, rtol=1e-6)
    image = picture(1)
    image[0, 20:40, 10:30] = np.nan
    weights = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    square = np.outer(weights, weights)
    padded = np.pad(image[0], 8, mode="edge")
    result = blur(image, 2, rng())[0]
    for place in ((3, 4), (19, 20), (30, 31), (47, 59)):
        around = padded[place[0] : place[0] + 17, place[1] : place[1] + 17]
        there = ~np.isnan(around)
        assert result[place] == pytest.approx((square * np.nan_to_num(around)).sum() / square[there].sum(), rel=1e-4)
    spot = np.zeros((1, 21, 21, 21), np.float32)
    spot[0, 10, 10, 10] = 1
    line = blur(spot, 4, rng())[0, 10, 10]
    assert line[11] / line[10] == pytest.approx(np.exp(-0.5 / 4), rel=1e-3)  # 2 voxels, where an image has 4 pixels


def test_contrast_is_exactly_its_formula() -> None:
    image = picture(4)
    mean = image.astype(np.float64).mean((1, 2), keepdims=True)
    for strength, kept in zip(STRENGTHS, (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        np.testing.assert_allclose(contrast(image, strength, rng()), mean + kept * (image - mean), rtol=1e-5)


def test_jpeg_of_a_photograph_is_that_of_its_bytes() -> None:
    image = np.random.default_rng(1).integers(0, 256, (3, 64, 48)).astype(np.float32)
    low, high = levels(image).low.min(), levels(image).high.max()
    assert (low, high) == (1, 254)
    for strength, quality in zip(STRENGTHS, (25, 18, 15, 10, 7), strict=True):
        pixels = np.clip(np.rint((image - low) / (high - low) * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        code = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        read = cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).transpose(2, 0, 1)
        np.testing.assert_allclose(jpeg(image, strength, rng()), low + read / 255 * (high - low), rtol=1e-5, atol=1e-4)


def test_jpeg_keeps_bands_and_slices_apart() -> None:
    image = picture(4, 3)
    whole = jpeg(image, 3, rng())
    np.testing.assert_allclose(whole[2:3], jpeg(image[2:3], 3, rng()), rtol=1e-6)
    other = image.copy()
    other[:, 3] = image[:, 3, ::-1]  # of the same levels
    np.testing.assert_allclose(jpeg(other, 3, rng())[:, 4:], whole[:, 4:], rtol=1e-6)
    assert np.abs(whole - image).mean() < 10


@pytest.mark.parametrize("dims", [2, 3])
def test_a_bias_field_is_the_exponential_of_a_polynomial(dims: int) -> None:
    image = picture(2, dims, "mri") + 10
    field = bias_field(image, 4, rng()) / image
    assert (field > 0).all()
    np.testing.assert_allclose(field[0], field[1], rtol=1e-5)
    places = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape[1:]), indexing="ij")
    drawn = rng().uniform(-1, 1, [4] * dims)
    total = np.zeros(image.shape[1:])
    for powers in np.ndindex(*[4] * dims):
        if sum(powers) <= 3:
            total += 0.4 * drawn[powers] * np.prod([p**power for p, power in zip(places, powers, strict=True)], 0)
    np.testing.assert_allclose(np.log(field[0]), total, atol=1e-4)


def test_ghosts_are_copies_that_lie_evenly_along_an_axis() -> None:
    # Weaker every n-th line of k-space is the same as taking away the mean of n copies moved by an n-th of the length.
    image = picture(1)[:, :40, :40]
    image = np.concatenate([image, image[:, ::-1] * 3])
    for seed in range(20):
        draws = np.random.default_rng(seed)
        axis, every = int(draws.integers(1, 3)), int(draws.integers(2, 5))
        if every == 3:  # of which 40 pixels are no multiple
            continue
        copies = np.mean([np.roll(image, i * 40 // every, axis) for i in range(every)], 0)
        wanted = image - 0.6 * (copies - image.mean(axis, keepdims=True))
        np.testing.assert_allclose(ghosting(image, 3, np.random.default_rng(seed)), wanted, rtol=1e-4, atol=1e-3)
    assert np.isfinite(ghosting(picture(1)[:, :3, :2], 5, rng())).all()


def test_haze_lies_between_the_image_and_its_bright_end() -> None:
    image = picture(4, kind="uint16")
    result = haze(image, 4, rng())
    thickness = ((result - image) / (levels(image).high - image + 1e-9))[
        :, np.abs(levels(image).high - image).min(0) > 50
    ]
    np.testing.assert_allclose(
        thickness, np.broadcast_to(thickness[:1], thickness.shape), atol=1e-3
    )  # same in all bands
    assert 0.3 - 1e-3 <= thickness.min() < 0.35
    assert 0.55 < thickness.max() <= 0.6 + 1e-3


def test_lost_bands_hold_their_mean_and_stay_lost_when_more_are() -> None:
    image = picture(4)
    before: set[int] = set()
    for strength, count in zip(STRENGTHS, (1, 2, 3, 3, 3), strict=True):
        result = band_dropout(image, strength, rng())
        lost = {band for band in range(4) if not np.array_equal(result[band], image[band])}
        assert len(lost) == count
        assert before <= lost
        for band in lost:
            np.testing.assert_allclose(result[band], image[band].astype(np.float64).mean(), rtol=1e-5)
        before = lost


def test_bands_are_shifted_by_the_strength_in_pixels() -> None:
    image = picture(4)
    for strength in STRENGTHS:
        result = band_shift(image, strength, rng())
        assert np.array_equal(result[0], image[0])
        for band in range(1, 4):
            inside = result[band, 5:-5, 5:-5]
            moves = [
                (dy, dx)
                for dy in range(-5, 6)
                for dx in range(-5, 6)
                if np.array_equal(inside, image[band, 5 + dy : 43 + dy, 5 + dx : 55 + dx])
            ]
            assert len(moves) == 1
            assert set(map(abs, moves[0])) <= {0, strength}
            assert moves[0] != (0, 0)


def test_fog_is_thicker_the_farther_and_night_is_lighter_before_the_car() -> None:
    image = picture(3)
    fogged = weather.fog(image, 3, rng())
    seen = fogged.std((0, 2)) / image.std((0, 2))
    assert seen[-1] > 0.75
    assert seen[:20].max() < 0.35
    dark = weather.night(np.where(np.arange(60) % 2, 200, 20) * np.ones((3, 48, 1), np.float32), 4, rng())
    assert dark.max() < 200
    bright = dark[..., 1::2]  # what was bright by day, not the noise of what was dark
    assert bright[:, -5:, 12:18].mean() > 1.25 * bright[:, -5:, :5].mean()
    assert bright[:, -5:, 12:18].mean() > 1.25 * bright[:, :20, 12:18].mean()


def test_rain_falls_in_streaks_that_are_brighter_than_what_lies_behind() -> None:
    # What is not constant: the levels are those of the frame.
    image = np.where(np.arange(240) < 20, 220, 60) * np.ones((3, 200, 1), np.float32)
    shares, before = [], np.zeros((200, 200), bool)
    for strength in STRENGTHS:
        rained = weather.rain(image, strength, rng())[0, :, 30:230]
        wet = rained > np.median(rained) + 10
        shares.append(wet.mean())
        assert (before & ~wet).mean() < 0.01  # more falls where some fell before
        before = wet
    assert shares == sorted(shares)
    assert 0.002 < shares[0] < shares[-1] < 0.4
    along, across = (np.abs(np.diff(rained, axis=axis)).mean() for axis in (0, 1))
    assert across > 1.5 * along


def test_what_draws_depends_on_case_and_corruption_alone() -> None:
    first = [
        generator(*key).random() for key in ((0, "a", "rain"), (0, "a", "fog"), (0, "b", "rain"), (1, "a", "rain"))
    ]
    assert len(set(first)) == 4
    assert generator(0, "a", "rain").random() == first[0]


def test_a_corrupted_source_lies_where_the_image_lies() -> None:
    source = Array(picture(3))
    source.geometry = Geometry(crs="EPSG:32632")
    corrupted = CorruptedSource(source, "noise", 2, rng())
    assert (corrupted.shape, corrupted.num_bands, corrupted.path) == (source.shape, 3, source.path)
    assert corrupted.geometry is source.geometry
    window = (slice(3, 20), slice(40, 60))
    part = corrupted.read(window)
    assert np.array_equal(part, noise(source.values, 2, rng())[:, 3:20, 40:60])
    part[:] = 0
    assert corrupted.read(window).any()


def test_what_is_too_large_is_refused_before_it_is_read() -> None:
    source = Array(picture(1))
    source.shape = (2**14, 2**14)
    with pytest.raises(
        ValueError, match=r"16384 x 16384 of 1 band, more than the 134,217,728 values .* set data\.blocks"
    ):
        CorruptedSource(source, "noise", 1, rng())
    tile = Array(picture(13))  # of Sentinel-2, whose pixels alone would do
    tile.shape = (10_980, 10_980)
    with pytest.raises(ValueError, match="10980 x 10980 of 13 bands"):
        CorruptedSource(tile, "noise", 1, rng())


def test_corruptions_fit_the_data() -> None:
    general = ["noise", "blur", "contrast", "jpeg"]
    scene, radar = Array(picture(2)), Array(picture(1))
    scene.geometry = radar.geometry = Geometry(crs="EPSG:4326")
    assert fitting(Array(picture(1))) == general
    assert fitting(Array(picture(3))) == [*general, "rain", "fog", "night"]
    assert fitting(Array(picture(3)), outdoors=False) == general
    assert fitting(Array(picture(4))) == fitting(scene) == [*general, "haze", "band_dropout", "band_shift"]
    assert fitting(radar) == [*general, "haze"]
    assert fitting(Array(picture(1, 3))) == [*general, "bias_field", "ghosting"]


@pytest.mark.parametrize(
    ("names", "bands", "dims", "message"),
    [
        (["noise", "foggy"], 3, 2, "no corruption 'foggy'; did you mean fog"),
        (["xyzzy"], 3, 2, "did you mean .*There are noise, blur"),
        (["rain"], 1, 3, "rain is a corruption of images only; for volumes there are noise.*bias_field"),
        (["band_shift"], 1, 2, "band_shift needs two bands, but array has one"),
    ],
)
def test_what_does_not_fit_is_said(names: list[str], bands: int, dims: int, message: str) -> None:
    source = Array(picture(bands, dims))
    source.path = Path("array")
    with pytest.raises(ValueError, match=message):
        check(names, source)
