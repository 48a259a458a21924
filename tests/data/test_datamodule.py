"""Data are found, checked, split, normalised and served; whatever is wrong is said before the first step, all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from segline.data.datamodule import SegmentationDataModule
from segline.data.describe import describe
from segline.io.open import open_image
from segline.labels import IGNORE_INDEX, Labels
from segline.weight_map import BorderWeights

LABELS = Labels({"background": 0, "cell": 1, "rare": 2}, background="background", ignore=[9])


def module(root: Path | None, **changes: Any) -> SegmentationDataModule:
    settings: dict[str, Any] = {
        "root": root and str(root), "images": "{name}.png", "masks": "m/{name}.png", "labels": LABELS, "in_channels": 1, "spatial_dims": 2,
        "window": [16, 16], "margin": [2, 2], "batch_size": 2, "steps_per_epoch": 3, "num_workers": 0,
    }  # fmt: skip
    return SegmentationDataModule(**settings | changes)


def write(root: Path, name: str, image: NDArray[Any], mask: NDArray[np.uint8]) -> None:
    (root / "m").mkdir(exist_ok=True)
    Image.fromarray(image).save(root / f"{name}.png")
    Image.fromarray(mask).save(root / f"m/{name}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten pictures, each of another brightness."""
    rng = np.random.default_rng(0)
    for number in range(10):
        image = rng.integers(number * 20, number * 20 + 50, (20, 24)).astype(np.uint8)
        write(tmp_path, f"s{number}", image, rng.choice([0, 0, 0, 1, 9], (20, 24)).astype(np.uint8))
    return tmp_path


def training_pictures(data: SegmentationDataModule) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(case.images[0])) for case in data.cases["train"]]


def training_masks(data: SegmentationDataModule) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(case.masks[0])) for case in data.cases["train"]])


def test_statistics_are_those_of_the_training_part_alone(root: Path) -> None:
    data = module(root, test=0.2)
    data.prepare()
    assert [len(data.cases[split]) for split in ("train", "val", "test")] == [6, 2, 2]
    pixels = np.stack(training_pictures(data)).astype(float)
    assert data.card_fields()["normalize"] == {
        "scope": "dataset", "mean": [pytest.approx(pixels.mean())], "std": [pytest.approx(pixels.std())],
    }  # fmt: skip
    case = data.cases["val"][0]
    sample = data.reader("val").read(0, (slice(0, 20), slice(0, 24)))
    expected = (np.asarray(Image.open(case.images[0])) - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(sample["image"][0], expected, rtol=1e-5, atol=1e-5)


def test_each_case_is_normalised_by_itself_where_asked(root: Path) -> None:
    data = module(root, normalize="case")
    data.prepare()
    image = data.reader("val").read(0, (slice(0, 20), slice(0, 24)))["image"]
    assert image.mean() == pytest.approx(0, abs=1e-5)
    assert image.std() == pytest.approx(1, abs=1e-5)


def test_class_weights_follow_the_root_of_the_training_shares(root: Path) -> None:
    data = module(root)
    data.prepare()
    masks = training_masks(data)
    counts = [(masks == value).sum() for value in (0, 1)]
    weights = data.class_weights()
    assert weights[1] / weights[0] == pytest.approx(np.sqrt(counts[0] / counts[1]))
    assert np.mean(weights[:2]) == pytest.approx(1)
    assert weights[2] == 0  # never seen


def test_a_weight_map_balances_the_classes_by_the_training_part_alone(root: Path) -> None:
    data = module(root, weight_map=BorderWeights(w0=3.0, sigma=0.1))  # too narrow to reach from object to object
    data.prepare()
    batch, weights = next(iter(data.train_dataloader())), torch.tensor(data.class_weights())
    valid = batch["mask"] != IGNORE_INDEX
    assert batch["weight"].shape == batch["mask"].shape
    assert torch.equal(batch["weight"][valid], weights[batch["mask"][valid]].float())
    assert weights[0] < weights[1]
    assert "weight" not in next(iter(data.val_dataloader()))


def test_what_will_be_trained_on_is_described(root: Path) -> None:
    data = module(root)
    data.prepare()
    text = "\n".join(describe(data))
    masks, pixels = training_masks(data), np.stack(training_pictures(data)).astype(float)
    share = (masks == 1).sum() / (masks != 9).sum()
    assert "train: 8 in 8 groups, val: 2 in 2 groups" in text
    assert f"cell {share:.1%}, rare 0.0% (exclusive, means without background)" in text
    assert f"1: {pixels.mean():.4g} ± {pixels.std():.3g}; normalised by the dataset" in text
    assert "16 x 16, 2 a step, 3 steps an epoch, 0 workers" in text
    assert "never in the training part, so not to be learnt: rare" in text


def test_a_group_in_both_parts_of_an_official_split_is_said(tmp_path: Path) -> None:
    rows = []
    for split in ("train", "val"):
        write(tmp_path, split, np.zeros((8, 8), np.uint8) + np.arange(8, dtype=np.uint8), np.ones((8, 8), np.uint8))
        rows.append({"image": f"{split}.png", "mask": f"m/{split}.png", "split": split, "group": "sequence 16"})
    data = module(tmp_path, table=rows)
    data.prepare()
    assert any("beware: sequence 16 is in more than one part" in line for line in describe(data))


def test_preparing_twice_is_preparing_once(root: Path) -> None:
    data = module(root)
    data.prepare()
    cases, normalize = data.cases, data.normalize
    data.setup("fit")
    assert data.cases is cases
    assert data.normalize is normalize


def test_training_goes_on_within_an_epoch_with_the_batches_that_would_have_come(root: Path) -> None:
    whole, resumed = module(root), module(root)
    whole.prepare()
    resumed.prepare()
    resumed.go_on(epoch=0, batches=2)
    expected, found = list(whole.train_dataloader()), list(resumed.train_dataloader())
    assert (len(expected), len(found)) == (3, 1)
    assert torch.equal(found[0]["image"], expected[2]["image"])


def test_another_seed_gives_other_windows(root: Path) -> None:
    batches = []
    for seed in (0, 0, 1):
        data = module(root, seed=seed)
        data.prepare()
        batches.append(next(iter(data.train_dataloader()))["image"])
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_tiles_may_be_larger_than_training_windows(root: Path) -> None:
    data = module(root, tile=[20, 24], margin=[0, 0])
    data.prepare()
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 16, 16)
    assert [batch["image"].shape for batch in data.val_dataloader()] == [(2, 1, 20, 24)]  # each picture in one piece
    assert data.card_fields()["window"] == [20, 24]  # and so in prediction
    assert any("evaluated by tiles of 20 x 24" in line for line in describe(data))


def test_validation_counts_every_pixel_of_its_part_once(root: Path) -> None:
    data = module(root, test=0.2)
    data.prepare()
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        counted = sum(int((batch["mask"] != IGNORE_INDEX).sum()) for batch in loader)
        assert counted == sum(int((np.asarray(Image.open(case.masks[0])) != 9).sum()) for case in data.cases[split])


def raster(path: Path, bands: NDArray[Any]) -> None:
    profile = {
        "driver": "GTiff",
        "height": bands.shape[1],
        "width": bands.shape[2],
        "count": len(bands),
        "dtype": bands.dtype,
    }
    with rasterio.open(path, "w", crs="EPSG:32633", transform=Affine(2, 0, 0, 0, -2, 0), **profile) as file:
        file.write(bands)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """One raster of four bands, each of which says its number in the hundreds and the row in the units."""
    rows = np.broadcast_to(np.arange(64)[:, None], (64, 96))
    raster(tmp_path / "a.tif", np.stack([rows + 100 * band for band in (1, 2, 3, 4)]).astype(np.uint16))
    raster(tmp_path / "m.tif", (rows[None] // 22).astype(np.uint8))
    return tmp_path


def test_one_raster_is_split_in_blocks(scene: Path) -> None:
    data = module(scene, images="a.tif", masks="m.tif", in_channels=4, blocks=32, val=0.34)
    data.prepare()
    assert (len(data.cases["train"]), len(data.cases["val"])) == (4, 2)
    case = data.cases["val"][0]
    assert case.block is not None
    sample = data.reader("val").read(0, (slice(0, 32), slice(0, 32)))
    np.testing.assert_array_equal(sample["mask"], np.arange(64)[case.block[0], None] // 22 * np.ones(32, int))
    pixels = np.concatenate([open_image(c.images).read(c.block)[0].ravel() for c in data.cases["train"] if c.block])
    assert data.statistics().mean[0] == pytest.approx(pixels.mean())
    counted = sum(int((batch["mask"] != IGNORE_INDEX).sum()) for batch in data.val_dataloader())
    assert counted == 2 * 32 * 32


def test_bands_are_chosen_in_the_order_given(scene: Path) -> None:
    data = module(scene, images="a.tif", masks="m.tif", in_channels=2, bands=[4, 2], val=0.0)
    data.prepare()
    assert (data.statistics().mean // 100).tolist() == [4, 2]
    assert data.card_fields()["bands"] == [4, 2]
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 2, 16, 16)


def test_overlapping_classes_reach_the_batches(root: Path) -> None:
    labels = Labels({"any": [1, 2], "rare": 2}, scheme="overlapping", ignore=[9])
    data = module(root, labels=labels)
    data.prepare()
    batch = next(iter(data.train_dataloader()))
    assert (batch["mask"].shape, batch["mask"].dtype) == ((2, 2, 16, 16), torch.uint8)
    assert any("(overlapping)" in line for line in describe(data))
    assert sum(int((batch["mask"][:, 0] == 1).sum()) for batch in data.val_dataloader()) == sum(
        int((np.asarray(Image.open(case.masks[0])) == 1).sum()) for case in data.cases["val"]
    )


# Bad input


def fault(data: SegmentationDataModule) -> str:
    with pytest.raises(ValueError, match=r"\w") as error:
        data.prepare()
    return str(error.value)


def test_a_missing_folder_says_what_to_set_and_where_the_data_come_from(tmp_path: Path) -> None:
    text = fault(module(tmp_path / "none", origin="the moon"))
    assert f"there is no folder {tmp_path}/none; set data.root" in text
    assert "SEGLINE_DATA" in text
    assert text.endswith("It comes from the moon.")


def test_a_data_set_without_root_or_synthetic_scenes_says_so() -> None:
    assert "data.root is null" in fault(module(None))


def test_a_wrong_number_of_bands_names_the_file_and_both_remedies(scene: Path, root: Path) -> None:
    text = fault(module(scene, images="a.tif", masks="m.tif", in_channels=3))
    assert (
        f"data.in_channels is 3 but {scene}/a.tif has 4 bands; set data.in_channels=4 or data.bands=[1, 2, 3]" in text
    )
    text = fault(module(scene, images="a.tif", masks="m.tif", in_channels=5))
    assert "set data.in_channels=4" in text
    assert "data.bands" not in text
    assert "there is no band 7; set data.bands to some of 1 to 4" in fault(
        module(scene, images="a.tif", masks="m.tif", in_channels=2, bands=[1, 7])
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"window": 16}, r"data.window is 16; expected a number for each axis: \[16, 16\]"),
        ({"window": [16]}, r"data.window is \[16\], data.tile is .* expected 2 sizes each"),
        ({"bands": [1, 2]}, r"data.bands names 2 bands but data.in_channels is 1; set data.in_channels=2"),
        ({"normalize": "batch"}, r"data.normalize is 'batch'; expected one of dataset, case"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_once(
    root: Path, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        module(root, **change)


def test_all_faults_of_all_files_are_said_in_one_go(root: Path) -> None:
    write(root, "s1", np.zeros((20, 24), np.uint8), np.zeros((20, 20), np.uint8))
    unknown = np.zeros((20, 24), np.uint8)
    unknown[3, :5] = 77
    write(root, "s2", np.zeros((20, 24), np.uint8), unknown)
    (root / "s3.png").write_bytes((root / "s3.png").read_bytes()[:150])
    write(root, "s4", np.zeros((20, 24, 3), np.uint8), np.zeros((20, 24), np.uint8))
    (root / "m" / "s5.png").unlink()
    text = fault(module(root))
    assert text.startswith("5 faults in the data:\n")
    assert f"{root}/s5.png has no mask: there is no {root}/m/s5.png" in text
    assert f"{root}/m/s1.png is 20 x 20, but {root}/s1.png is 20 x 24" in text
    assert f"{root}/m/s2.png: mask values outside the classes: 77 (5 pixels)" in text
    assert f"{root}/s3.png is not a whole PNG" in text
    assert f"data.in_channels is 1 but {root}/s4.png has 3 bands" in text


def test_a_raster_that_cannot_be_cut_does_not_hide_the_others(scene: Path) -> None:
    for name in ("b", "c"):
        (scene / f"{name}.tif").write_bytes(b"II*\0 and no more")
    rows = [{"image": f"{name}.tif", "mask": "m.tif"} for name in "abc"]
    text = fault(module(scene, table=rows, in_channels=4, blocks=32))
    assert text.startswith("2 faults")
    assert f"{scene}/b.tif is not a whole TIFF" in text
    assert f"{scene}/c.tif is not a whole TIFF" in text


def test_volumes_given_to_a_config_of_images_say_so(tmp_path: Path) -> None:
    import nibabel as nib

    for name in ("a", "m"):
        nib.save(nib.Nifti1Image(np.ones((8, 9, 10), np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    assert "data.spatial_dims is 2 but" in fault(module(tmp_path, images="a.nii.gz", masks="m.nii.gz"))


def test_cases_that_teach_nothing_are_left_out_and_noted(root: Path) -> None:
    write(root, "s1", np.ones((20, 24), np.uint8), np.full((20, 24), 9, np.uint8))
    data = module(root)
    data.prepare()
    assert sum(map(len, data.cases.values())) == 9
    assert "note      s1: its mask is ignored everywhere" in describe(data)


def test_a_set_that_teaches_nothing_at_all_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path, name, np.ones((20, 24), np.uint8), np.full((20, 24), 9, np.uint8))
    text = fault(module(tmp_path))
    assert text.startswith("2 faults")
    assert f"{tmp_path}/a.png: its mask is ignored everywhere" in text
    assert "data.labels.ignore" in text
