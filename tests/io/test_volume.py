import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from segline.io import volume
from segline.io.open import open_image
from segline.io.source import whole
from segline.io.volume import VolumeFile, VolumeSource, native_slabs, resample

RNG = np.random.default_rng(0)
#: All 48 ways in which a file's axes may run.
ORIENTATIONS = [
    "".join(pair[way] for pair, way in zip(axes, ways, strict=True))
    for axes in itertools.permutations(["RL", "AP", "SI"])
    for ways in itertools.product([0, 1], repeat=3)
]


def to_native(values: np.ndarray, like: VolumeFile, order: int) -> np.ndarray:
    return np.concatenate(list(native_slabs(values, like, order)), 2)


def oriented(path: Path, codes: str, tilt: float = 0.0, dtype: type = np.int16) -> tuple[Path, np.ndarray, np.ndarray]:
    """A volume whose axes run as `codes` say; with its voxels and affine."""
    affine = np.eye(4)
    for axis, (code, size) in enumerate(zip(codes, (1.0, 2.0, 3.0), strict=True)):
        world = next(k for k, pair in enumerate(["RL", "AP", "SI"]) if code in pair)
        affine[:3, axis] = 0
        affine[world, axis] = size if code in "RAS" else -size
    c, s = np.cos(tilt), np.sin(tilt)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    affine[:3, 3] = [-7, 11, 5]
    voxels = RNG.integers(0, 1000, (4, 5, 6)).astype(dtype)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path, voxels, affine


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_voxels_lie_where_the_affine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: str) -> None:
    monkeypatch.setattr(volume, "_SLAB", 4 * 5 * 4)  # the last one is thinner
    path, voxels, affine = oriented(tmp_path / "a.nii", codes, tilt=0.2)
    source = VolumeSource(path)
    image = source.read(whole(source.shape))[0]
    places = np.array(list(np.ndindex(voxels.shape)))
    world = nib.affines.apply_affine(affine, places)
    turned = world @ np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    # (D, H, W) are superior, anterior and right, ascending: ranks along the (tilted) world's axes, from the least.
    ranks = [np.unique(np.round(turned[:, axis], 3), return_inverse=True)[1] for axis in (2, 1, 0)]
    expected = np.zeros([rank.max() + 1 for rank in ranks], np.float32)
    expected[tuple(ranks)] = voxels[tuple(places.T)]
    assert np.array_equal(image, expected)
    sizes = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    spacing = [0.0] * 3
    for code, size in zip(codes, (1.0, 2.0, 3.0), strict=True):
        spacing[2 - sizes[code]] = size
    assert source.geometry.spacing == pytest.approx(spacing)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_geometry_places_the_canonical_grid_in_the_world(tmp_path: Path, codes: str) -> None:
    path, voxels, affine = oriented(tmp_path / "a.nii", codes)
    voxels[...] = 0
    voxels[3, 1, 4] = 1
    nib.save(nib.Nifti1Image(voxels, affine), path)
    source = VolumeSource(path)
    ((d, h, w),) = np.argwhere(source.read(whole(source.shape))[0])
    np.testing.assert_allclose(np.array(source.geometry.affine) @ [w, h, d, 1], affine @ [3, 1, 4, 1])


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_mask_comes_back_to_the_files_own_axes(tmp_path: Path, codes: str) -> None:
    path, voxels, _ = oriented(tmp_path / "a.nii", codes)
    like = VolumeFile(path)
    assert np.array_equal(to_native(like.read_raw(whole(like.shape)), like, 0), voxels)


def test_a_mask_of_a_resampled_volume_comes_back_to_its_grid(tmp_path: Path) -> None:
    blocks = np.kron(RNG.integers(0, 3, (2, 3, 2)), np.ones((4, 4, 4), int)).astype(np.int16)
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(blocks, np.diag([-1.0, 1.0, 2.0, 1.0])), path)
    like = VolumeFile(path, spacing_mm=[1.0, 0.5, 0.5], order=0)
    assert like.shape == (16, 24, 16)
    assert np.array_equal(to_native(like.read_raw(whole(like.shape)), like, 0), blocks)


def linear(values: np.ndarray, at: float) -> float:
    """Between voxels along one axis; beyond the first and last voxel's centre as there."""
    at = min(max(at, 0.0), len(values) - 1.0)
    low = min(int(at), len(values) - 2) if len(values) > 1 else 0
    high = min(low + 1, len(values) - 1)
    return float(values[low] * (1 - (at - low)) + values[high] * (at - low))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_resampling_is_linear_between_voxels_that_are_areas(before: int, after: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((1, before, 1)).astype(np.float32)
    expected = [linear(values[0, :, 0], (i + 0.5) * before / after - 0.5) for i in range(after)]
    np.testing.assert_allclose(resample(values, (1, after, 1), 1)[0, :, 0], expected, atol=1e-5)


@given(st.tuples(*[st.integers(1, 7)] * 3), st.tuples(*[st.integers(1, 7)] * 3), st.integers(0, 99))
def test_resampled_labels_are_those_of_the_nearest_voxel(
    before: tuple[int, ...], after: tuple[int, ...], seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 250, before).astype(np.uint8)
    got = resample(labels, after, 0)
    assert got.dtype == np.uint8
    for place in np.ndindex(after):
        at = [(i + 0.5) * n / m for i, n, m in zip(place, before, after, strict=True)]
        # On the border between two voxels either is right.
        near = itertools.product(*({int(a - 1e-6), min(int(a + 1e-6), n - 1)} for a, n in zip(at, before, strict=True)))
        assert got[place] in [labels[p] for p in near]


def zoomed(values: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """What scipy makes of the whole at once."""
    factors = [m / n for n, m in zip(values.shape, shape, strict=True)]
    values = values.astype(np.float32) if order else values
    found: np.ndarray = ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
    return found


@given(st.data(), st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 12)] * 3), st.sampled_from([0, 1]))
def test_a_part_is_that_of_the_whole_as_scipy_resamples_it(
    data: st.DataObject, before: tuple[int, int, int], after: tuple[int, int, int], order: int
) -> None:
    values = np.random.default_rng(0).integers(0, 30000, before).astype(np.int16)
    starts = [data.draw(st.integers(0, n - 1)) for n in after]
    part = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, after, strict=True))
    expected = zoomed(values, after, order)
    for got, wanted in (
        (resample(values, after, order), expected),
        (resample(values, after, order, part), expected[part]),
    ):
        assert got.dtype == wanted.dtype
        if order:
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-2)  # of 30000
        else:
            assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    "codes",  # quick: each slowest axis, both ways
    [codes if k % 5 == 0 else pytest.param(codes, marks=pytest.mark.slow) for k, codes in enumerate(ORIENTATIONS)],
)
@pytest.mark.parametrize("order", [0, 1])
def test_a_volume_that_is_resampled_slab_by_slab_is_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: str, order: int
) -> None:
    path, _, _ = oriented(tmp_path / "a.nii.gz", codes)
    native = VolumeFile(path)
    values = native.read_raw(whole(native.shape))
    monkeypatch.setattr(volume, "_SLAB", 50)
    source = VolumeFile(path, [0.8, 1.7, 2.3], order)
    assert source.shape != native.shape
    got = source.read_raw(whole(source.shape))
    np.testing.assert_allclose(got, zoomed(values, source.shape, order), rtol=1e-5)
    back = list(native_slabs(got, source, order))
    assert len(back) > 1
    # The file's own axes are those of the canonical grid, permuted and turned.
    turned = nib.as_closest_canonical(nib.Nifti1Image(np.concatenate(back, 2), nib.load(path).affine))
    np.testing.assert_allclose(turned.get_fdata().transpose(2, 1, 0), zoomed(got, native.shape, order), rtol=1e-5)


def test_what_is_no_data_spreads_no_further_than_its_neighbours() -> None:
    values = np.zeros((1, 1, 5), np.float32)
    values[..., 2] = np.nan
    # Three voxels of each: those in the middle of the ones beside it have nothing of it.
    assert np.flatnonzero(np.isnan(resample(values, (1, 1, 15), 1))).tolist() == [5, 6, 7, 8, 9]
    values[..., 2] = np.inf
    assert np.flatnonzero(~np.isfinite(resample(values, (1, 1, 15), 1))).tolist() == [5, 6, 7, 8, 9]


def test_the_spacing_asked_for_is_the_spacing_read(tmp_path: Path) -> None:
    path, _, _ = oriented(tmp_path / "a.nii", "SAR")  # 1 mm up, 2 mm ahead, 3 mm to the right
    source = VolumeSource(path, [2.0, 2.0, 1.0])
    assert source.shape == (2, 5, 18)
    assert source.geometry.spacing == (2.0, 2.0, 1.0)
    assert source.read(whole(source.shape)).shape == (1, 2, 5, 18)


def test_files_of_one_space_lie_on_one_grid_whatever_their_voxels(tmp_path: Path) -> None:
    fine, coarse = tmp_path / "fine.nii", tmp_path / "coarse.nii"
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.diag([1.0, 1.0, 1.0, 1.0])), fine)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 0.5  # centres of voxels of twice the size
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), affine), coarse)
    one, other = (VolumeFile(path, [1.6, 1.6, 1.6]).geometry.affine for path in (fine, coarse))
    np.testing.assert_allclose(one, other)


def test_a_header_whose_pixdim_contradicts_its_affine_is_read_by_the_affine(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header["pixdim"][1:4] = 1
    image.header["qform_code"] = 0
    nib.save(image, tmp_path / "a.nii")
    assert VolumeFile(tmp_path / "a.nii").geometry.spacing == (3.0, 2.0, 1.0)


def test_intensities_are_scaled_as_the_header_says_and_nothing_is_no_data(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    source = VolumeSource(tmp_path / "a.nii.gz")
    stored = nib.load(tmp_path / "a.nii.gz").get_fdata()
    assert np.array_equal(source.read(whole(source.shape))[0], stored.transpose(2, 1, 0))
    values = np.array([1.0, np.nan, np.inf, 1e300]).reshape(4, 1, 1)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "b.nii")
    assert np.isnan(VolumeSource(tmp_path / "b.nii").read(whole((1, 1, 4)))).ravel().tolist() == [
        False,
        True,
        True,
        True,
    ]


def test_windows_of_a_compressed_volume_come_from_one_unpacked_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGLINE_CACHE", str(tmp_path / "cache"))
    path, voxels, _ = oriented(tmp_path / "a.nii.gz", "RAS")
    window = (slice(1, 4), slice(0, 5), slice(2, 3))
    for _ in range(2):
        source = VolumeSource(path)
        assert np.array_equal(source.read(window)[0], voxels.transpose(2, 1, 0)[window])
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_volume_is_refused_wherever_it_was_cut(tmp_path: Path, suffix: str) -> None:
    data = oriented(tmp_path / f"a{suffix}", "RAS")[0].read_bytes()
    end = len(data) - (8 if suffix == ".nii.gz" else 0)  # the checksum at the end of a gzip file holds no voxels
    for length in range(0, end, 13):
        cut = tmp_path / f"{length}{suffix}"
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=rf"(?s){length}{suffix} .*copy it again"):
            VolumeSource(cut).read(whole((6, 5, 4)))


def test_a_damaged_volume_is_read_or_refused_but_never_breaks_the_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    data = oriented(tmp_path / "a.nii", "RAS")[0].read_bytes()
    rng, refused = np.random.default_rng(0), {}
    telling = [*range(40, 56), *range(70, 112), *range(252, 348)]  # sizes, types, offset, affines, magic
    for number in range(150):
        damaged = bytearray(data)
        damaged[rng.choice(telling)] = rng.integers(256)
        path = tmp_path / f"{number}.nii{'.gz' if number % 2 else ''}"
        path.write_bytes(gzip.compress(damaged) if number % 2 else damaged)
        try:
            source = open_image([path])
            assert source.read(whole(source.shape)).shape[1:] == source.shape
        except ValueError as error:
            refused[path.name] = str(error)
    assert 15 < len(refused) < 135
    assert all(name in message for name, message in refused.items())


def test_damage_deep_inside_a_compressed_volume_is_said(tmp_path: Path) -> None:
    voxels = np.repeat(RNG.integers(0, 1000, (64, 64, 48)), 2, axis=0).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    data = bytearray((tmp_path / "a.nii.gz").read_bytes())
    assert len(data) > 200_000  # more than is read with the header
    data[-20_000:-10_000] = bytes(10_000)
    (tmp_path / "b.nii.gz").write_bytes(data)
    source = VolumeSource(tmp_path / "b.nii.gz")
    with pytest.raises(ValueError, match=r"b\.nii\.gz is truncated or damaged .*copy it again"):
        source.read(whole(source.shape))


def test_damage_that_unpacks_all_the_same_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(RNG.integers(0, 1000, (96, 96, 96)).astype(np.int16), np.eye(4)), path)
    data = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))  # stored: any byte is a right one
    data[-1000] ^= 1
    path.write_bytes(data)
    source = VolumeSource(path)
    with pytest.raises(ValueError, match=r"a\.nii\.gz is truncated or damaged .*CRC"):
        source.read(whole(source.shape))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path: Path, suffix: str) -> None:
    header = bytearray(oriented(tmp_path / "a.nii", "RAS")[0].read_bytes())
    header[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    path = tmp_path / f"b{suffix}"
    path.write_bytes(gzip.compress(header) if suffix == ".nii.gz" else header)
    with pytest.raises(ValueError, match=r"claims 16,000,000,352 bytes"):
        VolumeSource(path)


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), np.eye(4), r"shape \(2, 3, 4, 5\).*one file a volume"),
        (np.zeros((2, 3), np.uint8), np.eye(4), r"shape \(2, 3\).*three dimensions"),
        (np.zeros((2, 3, 4), np.complex64), np.eye(4), "complex64.*expected whole or real"),
        (np.zeros((2, 3, 4), np.uint8), np.diag([1.0, 0.0, 1.0, 1.0]), "affine that places no voxels"),
        (np.zeros((2, 3, 4), np.uint8), np.full((4, 4), np.nan), "affine that places no voxels"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, voxels: np.ndarray, affine: np.ndarray, message: str) -> None:
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header.set_sform(affine, code=1)
    image.header["qform_code"] = 0
    nib.Nifti1Image(voxels, None, image.header).to_filename(tmp_path / "a.nii")
    with pytest.raises(ValueError, match=message):
        open_image([tmp_path / "a.nii"])
