from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import Array, make_card, make_network, predict_files, save

from segline.card import Card
from segline.inference.ranges import doubt_range, sample
from segline.io.open import open_image

RNG = np.random.default_rng(0)
#: Reflectance, 0..10000.
LEARNT = make_card(3, normalize={"scope": "dataset", "mean": [900.0, 1100.0, 2500.0], "std": [400.0, 500.0, 900.0]})


def scene(shape: tuple[int, ...] = (150, 170), card: Card = LEARNT) -> np.ndarray:
    """Values as the network has learnt them."""
    mean, std = (np.array(card.normalize[name], np.float32) for name in ("mean", "std"))
    place = (-1, *[1] * len(shape))
    return (
        mean.reshape(place) + std.reshape(place) * np.random.default_rng(1).normal(size=(len(mean), *shape))
    ).astype(np.float32)


def doubt(values: np.ndarray, card: Card = LEARNT) -> str | None:
    return doubt_range(Array(values), card)


def test_reflectance_of_another_unit_is_doubted_with_both_statistics_and_the_factor() -> None:
    said = doubt(scene() / 10000)
    assert said is not None
    assert "\n" not in said
    assert said.startswith("array has bands of mean 0.0895, 0.11, 0.25 and deviation 0.0397, 0.0501, 0.0898")
    assert "has learnt 900, 1100, 2500 and 400, 500, 900 (tiny)" in said
    assert "scale the values by about 10000, or train with data.normalize=case" in said


@pytest.mark.parametrize(
    ("factor", "offset"),
    [
        (10000, 0),  # the other way round
        (1 / 255, 0),  # a picture as 0..1
        (257, 0),  # 16 bits for 8
        (1, 30000),  # hundredths of kelvin for degrees
    ],
)
def test_another_scale_is_doubted(factor: float, offset: float) -> None:
    assert doubt(scene() * factor + offset) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values,
        lambda values: values * 2,
        lambda values: values / 2,
        lambda values: values / 20,  # a dark night
        lambda values: values * 0,  # flat
        lambda values: values * 0 + 900,
        lambda values: values * np.array([1, 1, 0])[:, None, None],  # one band is broken
        lambda values: np.where(RNG.random(values.shape) < 0.99, np.nan, values),
        lambda values: np.full_like(values, np.nan),
        lambda values: values[:, :1, :1],
    ],
)
def test_ordinary_images_are_not_doubted(change) -> None:  # type: ignore[no-untyped-def]
    assert doubt(change(scene()).astype(np.float32)) is None


def test_files_that_are_normalised_by_themselves_are_not_doubted() -> None:
    assert doubt(scene() / 10000, make_card(3, normalize={"scope": "case"})) is None


def test_a_band_whose_mean_is_far_off_is_doubted_though_it_is_flat() -> None:
    values = scene()
    values[1] = 20000
    said = doubt(values)
    assert said is not None
    assert "scale the values, or train" in said


def test_no_more_is_read_than_a_few_windows() -> None:
    windows = sample((20000, 30000))
    assert len(windows) == 16
    assert {w[0].start for w in windows} == {0, 6645, 13291, 19936}
    assert all(w.stop - w.start == 64 for window in windows for w in window)
    assert len(sample((200, 300, 10))) == 4
    assert sample((1, 1)) == [(slice(0, 1), slice(0, 1))]


def test_the_prediction_says_it_once_a_file_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = make_card(1, dims=3)
    (tmp_path / "in").mkdir()
    for name, factor in {"right": 1.0, "wrong": 1e-4}.items():
        voxels = scene((30, 40, 50), card)[0] * factor
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / f"{name}.nii.gz")
    written = predict_files(
        save(tmp_path / "best.ckpt", card, make_network(card)), str(tmp_path / "in"), str(tmp_path / "out")
    )
    assert [path.name for path in written] == ["right.nii.gz", "wrong.nii.gz"]
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert len(warned) == 1
    assert "wrong.nii.gz has bands of mean 0.00996 and" in warned[0]


@pytest.mark.parametrize(
    "pattern",
    [
        "camvid/train/*.png",
        "dsb2018_nuclei/stage1_train/*/images/*.png",
        "isbi2012_em/train/image/*.png",
        "dubai_aerial/**/*.jpg",
        "ccp_fashion/**/*.jpg",
    ],
)
@pytest.mark.slow
def test_no_file_of_real_data_is_doubted_by_its_own_statistics(real_data: Path, pattern: str) -> None:
    from segline.io.normalize import BandStatistics, measure

    sources = [open_image([path]) for path in sorted(real_data.glob(pattern))[:40]]
    sources = [source for source in sources if source.num_bands == sources[0].num_bands]
    total = BandStatistics(sources[0].num_bands)
    for source in sources:
        total.merge(measure(source))
    normalize = {"scope": "dataset", "mean": total.mean.tolist(), "std": total.std.tolist()}
    card = make_card(total.mean.size, normalize=normalize)
    assert len(sources) >= 5
    assert [said for source in sources if (said := doubt_range(source, card))] == []
