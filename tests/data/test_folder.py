"""The user's own files of any kind are trained on without a config; what is found can be kept, and what is given stands."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from segline.config import CONF_DIR, build, compose
from segline.data.folder import discover
from segline.data.mask_values import MOST_CLASSES

TRAIN = Path(__file__).resolve().parents[2] / "src" / "train.py"


@functools.cache
def composed(*overrides: str) -> DictConfig:
    return compose(["data=folder", *overrides])


def found(given: dict[str, str], *overrides: str) -> DictConfig:
    """The data config that a command line with these paths and overrides trains on."""
    config = copy.deepcopy(composed(*overrides))
    for key, value in given.items():
        config.data[key] = value
    config.data = discover(config.data)
    OmegaConf.resolve(config.model)  # reads bands, classes and dimensions
    return config.data


def files(root: Path, images: str, masks: str) -> dict[str, str]:
    return {"root": str(root), "images": images, "masks": masks}


def picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def raster(path: Path, bands: NDArray[Any], **options: Any) -> None:
    profile = {
        "driver": "GTiff",
        "height": bands.shape[1],
        "width": bands.shape[2],
        "count": len(bands),
        "dtype": bands.dtype,
    }
    with rasterio.open(path, "w", crs="EPSG:32633", transform=Affine(2, 0, 0, 0, -2, 0), **profile, **options) as file:
        file.write(bands)


def ids(*values: int, shape: tuple[int, ...] = (50, 70), seed: int = 0) -> NDArray[np.uint8]:
    """A mask that holds these values alone, and all of them."""
    mask = np.random.default_rng(seed).choice(values, shape).astype(np.uint8)
    mask.flat[: len(values)] = values
    return mask


def pictures(root: Path, *masks: NDArray[np.uint8]) -> dict[str, str]:
    """Grey images beside these masks."""
    for number, mask in enumerate(masks):
        picture(root / f"{number}.png", np.random.default_rng(9).integers(0, 255, mask.shape[:2]).astype(np.uint8))
        picture(root / f"{number}_m.png", mask)
    return files(root, "{name}.png", "{name}_m.png")


def prepared(data: DictConfig) -> Any:
    module = build(OmegaConf.merge(data, {"augment": None}))  # whose library takes seconds to import
    module.prepare()
    return module


def test_pictures_with_ids(tmp_path: Path) -> None:
    data = found(pictures(tmp_path, ids(0, 1), ids(0, 7, 255), ids(0, 1)))
    assert data.labels.classes == {"background": 0, "class_1": 1, "class_7": 7}
    assert (data.labels.background, data.labels.ignore) == ("background", [255])
    assert (data.in_channels, data.spatial_dims, data.normalize, data.blocks, data.bands) == (1, 2, "case", None, None)
    assert data.augment == OmegaConf.load(CONF_DIR / "data/augment/biomedical.yaml")
    assert [len(prepared(data).cases[split]) for split in ("train", "val")] == [2, 1]


@pytest.mark.parametrize(
    ("values", "classes"), [((0, 255), {"background": 0, "foreground": 255}), ((1, 2), {"class_1": 1, "class_2": 2})]
)
def test_two_values_are_two_classes(tmp_path: Path, values: tuple[int, ...], classes: dict[str, int]) -> None:
    data = found(pictures(tmp_path, ids(*values), ids(values[0])))
    assert data.labels.classes == classes
    assert data.labels.ignore == []
    assert data.labels.background == ("background" if 0 in values else None)


def test_colours_are_classes_by_their_names(tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [132, 41, 246]], np.uint8)
    grey = np.zeros((50, 70, 3), np.uint8)  # a mask of one colour that happens to be grey
    palette = Image.fromarray(ids(0, 1, shape=(50, 70)), "P")
    palette.putpalette([0, 0, 0, 0, 255, 0])
    options = pictures(tmp_path, colors[ids(0, 1, 2, 3)], grey, ids(0))
    palette.save(tmp_path / "2_m.png")
    data = found(options)
    assert data.labels.classes == {
        "background": "#000000", "blue": "#0000ff", "lime": "#00ff00", "color_8429f6": "#8429f6", "red": "#ff0000",
    }  # fmt: skip
    assert prepared(data).labels.num_classes == 5


def test_the_opacity_of_a_picture_is_no_band(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / f"{number}.png", np.full((40, 40, 4), 255, np.uint8))
        picture(tmp_path / "m" / f"{number}.png", ids(0, 1, shape=(40, 40)))
    data = found(files(tmp_path, "{name}.png", "m/{name}.png"))
    assert (data.in_channels, data.bands) == (3, [1, 2, 3])
    prepared(data)


def test_rasters_with_polygons(tmp_path: Path) -> None:
    for number in range(2):
        raster(tmp_path / f"{number}.tif", np.random.default_rng(0).integers(0, 9000, (5, 40, 300)).astype(np.uint16))
        square = [[10, -10], [60, -10], [60, -50], [10, -50], [10, -10]]
        feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [square]}}
        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
        (tmp_path / f"{number}.geojson").write_text(
            json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]})
        )
    data = found(files(tmp_path, "{name}.tif", "{name}.geojson"))
    assert data.labels.classes == {"background": 0, "foreground": 1}
    assert (data.in_channels, data.normalize, data.window) == (5, "dataset", [64, 256])
    assert data.augment == OmegaConf.load(CONF_DIR / "data/augment/aerial.yaml")
    assert prepared(data).pixels("train").tolist() == [40 * 300 - 25 * 20, 25 * 20]


def test_rasters_with_ids_and_no_data(tmp_path: Path) -> None:
    for number in range(2):
        raster(tmp_path / f"{number}.tif", np.ones((1, 40, 40), np.float32) * np.arange(40, dtype=np.float32))
        mask = np.random.default_rng(0).choice([-1, 0, 4, 99], (1, 40, 40)).astype(np.int16)
        raster(tmp_path / f"{number}_m.tif", mask, nodata=99)
    data = found(files(tmp_path, "{name}.tif", "{name}_m.tif"))
    assert data.labels.classes == {"background": 0, "foreground": 4}
    assert data.labels.ignore == [-1, 99]


def test_a_stray_pixel_does_not_turn_255_into_nothing(tmp_path: Path) -> None:
    masks = [ids(0, 255) for _ in range(4)]
    masks[2][:2, :3] = 77
    options = pictures(tmp_path, *masks)
    with pytest.raises(
        ValueError, match=r"77 \(0\.0\d%, only in 2_m\.png\), 255 .*is 255 a class, or pixels to be ignored\?"
    ):
        found(options)
    assert found(options, "data.labels.ignore=[255]").labels.classes == {"background": 0, "foreground": 77}
    assert found(options, "data.labels.ignore=[77]").labels.classes == {"background": 0, "foreground": 255}


def test_the_values_in_the_masks_are_said_with_their_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = [np.zeros((10, 10), np.uint8) for _ in range(3)]
    masks[0][:5], masks[1][:5], masks[2][0, 0] = 1, 1, 3
    found(pictures(tmp_path, *masks))
    said = capsys.readouterr().out
    assert "values in the masks: 0 (66.33%, in 3 masks), 1 (33.33%, in 2 masks), 3 (0.33%, only in 2_m.png)\n" in said


def test_a_single_raster_is_cut_in_blocks(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 255, (3, 300, 260)).astype(np.uint8))
    raster(tmp_path / "m.tif", ids(0, 1, 2, shape=(1, 300, 260)))
    data = found(files(tmp_path, "a.tif", "m.tif"))
    assert (data.blocks, data.window) == (64, [64, 64])
    assert sum(map(len, prepared(data).cases.values())) == 20


def test_a_single_picture_in_blocks_is_normalised_as_prediction_will_see_it_whole(tmp_path: Path) -> None:
    data = found(pictures(tmp_path, ids(0, 1, shape=(300, 260))))
    assert (data.blocks, data.normalize) == (64, "dataset")


def volumes(root: Path, *slices: tuple[float, int]) -> dict[str, str]:
    """Volumes of these spacings and numbers of slices."""
    for number, (spacing, depth) in enumerate(slices):
        mask = ids(0, 1, 2, shape=(30, 24, depth), seed=number)
        for name, values in (("img", mask * 7.0), ("seg", mask)):
            nib.save(nib.Nifti1Image(values, np.diag([1, 1, spacing, 1])), root / f"{number}_{name}.nii.gz")
    return files(root, "{name}_img.nii.gz", "{name}_seg.nii.gz")


def test_volumes(tmp_path: Path) -> None:
    data = found(volumes(tmp_path, (1.0, 20), (1.0, 20)))
    assert data.labels.classes == {"background": 0, "class_1": 1, "class_2": 2}
    assert (data.in_channels, data.spatial_dims, data.normalize, data.spacing_mm) == (1, 3, "case", None)
    assert data.window == [24, 24, 32]  # (D, H, W)
    assert data.augment == OmegaConf.load(CONF_DIR / "data/augment/volume.yaml")
    prepared(data)


def test_voxels_that_are_no_cubes_are_said_so_that_rotations_shear_nothing(tmp_path: Path) -> None:
    data = found(volumes(tmp_path, (3.0, 20), (3.0, 20)))
    assert data.spacing_mm == data.augment.transforms.warp.spacing == [3.0, 1.0, 1.0]
    assert {facts.shape for facts in prepared(data).facts.values()} == {(20, 24, 30)}


def test_volumes_of_several_spacings_are_resampled_to_their_median(tmp_path: Path) -> None:
    data = found(volumes(tmp_path, (1.0, 40), (2.0, 20), (4.0, 30)))
    assert data.spacing_mm == [2.0, 1.0, 1.0]
    assert data.window == [24, 24, 32]  # by the sizes after it, of which 20 slices are the median
    assert sorted(facts.shape for facts in prepared(data).facts.values()) == [(20, 24, 30), (20, 24, 30), (60, 24, 30)]


@pytest.mark.parametrize(
    ("shapes", "window"),
    [
        ([(33, 1000)], [64, 256]),
        ([(40, 40), (40, 40), (900, 900)], [64, 64]),
        ([(256, 257)], [256, 256]),
        ([(31, 32)], [32, 32]),
    ],
)
def test_a_window_is_no_larger_than_the_images_need(
    tmp_path: Path, shapes: list[tuple[int, int]], window: list[int]
) -> None:
    data = found(pictures(tmp_path, *(ids(0, 1, shape=shape) for shape in [*shapes, *shapes])))
    assert data.window == window
    assert all(0 < 2 * margin < edge for margin, edge in zip(data.margin, window, strict=True))
    assert all(
        (edge - 2 * margin) % 8 == 0 for margin, edge in zip(data.margin, window, strict=True)
    )  # the network's stride


def test_one_file_an_object(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / f"{number}.png", ids(1, 2, 3))
        for single in range(2):
            mask = np.zeros((50, 70), np.uint8)
            mask[single * 20 : single * 20 + 10] = 255
            (tmp_path / f"{number}").mkdir(exist_ok=True)
            picture(tmp_path / f"{number}" / f"{single}.png", mask)
    data = found(files(tmp_path, "{name}.png", "{name}/*.png"))
    assert data.labels.classes == {"background": 0, "foreground": 1}
    assert prepared(data).pixels("train").tolist() == [50 * 70 - 20 * 70, 20 * 70]


def test_a_table_of_files(tmp_path: Path) -> None:
    pictures(tmp_path, ids(0, 1), ids(0, 1))
    (tmp_path / "t.csv").write_text("image,mask,split\n0.png,0_m.png,train\n1.png,1_m.png,val\n")
    data = found({"root": str(tmp_path), "table": "t.csv"})
    assert [case.name for case in prepared(data).cases["val"]] == ["1"]


def test_templates_are_relative_to_the_working_folder_and_kept_absolute(tmp_path: Path) -> None:
    pictures(tmp_path, ids(0, 1), ids(0, 1))  # the working folder of a test
    data = found({"images": "{name}.png", "masks": "{name}_m.png"})
    assert data.root == str(tmp_path)
    absolute = found({"images": f"{tmp_path}/{{name}}.png", "masks": f"{tmp_path}/{{name}}_m.png"})
    assert [case.images for case in prepared(absolute).cases["train"]] == [
        case.images for case in prepared(data).cases["train"]
    ]


def test_what_is_given_stands(tmp_path: Path) -> None:
    data = found(
        pictures(tmp_path, ids(0, 1, 2), ids(0, 1, 2)),
        "data.labels.classes={ground: [0, 2], tree: 1}", "data.window=[48, 48]", "data.margin=[8, 8]", "data.normalize=dataset",
        "data.val=0.5", "data/augment=none",
    )  # fmt: skip
    assert data.labels.classes == {"ground": [0, 2], "tree": 1}
    assert (data.labels.background, data.window, data.margin, data.normalize) == (None, [48, 48], [8, 8], "dataset")
    assert data.augment == {"_target_": "segline.augment.Augment", "transforms": {}}
    assert prepared(data).pixels("train")[1] > 0


def test_values_that_are_ignored_or_the_rest_are_no_classes(tmp_path: Path) -> None:
    options = pictures(tmp_path, ids(0, 1, 2, 3), ids(0, 1))
    data = found(options, "data.labels.ignore=[3]")
    assert data.labels.classes == {"background": 0, "class_1": 1, "class_2": 2}
    data = found(options, "data.labels.scheme=overlapping")
    assert data.labels.classes == {"class_1": 1, "class_2": 2, "class_3": 3}
    assert data.labels.background is None
    prepared(data)


def test_a_complete_config_is_taken_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    data = compose(["data=satellite"]).data  # without a root, so there are no files to look at
    assert discover(data) is data
    assert capsys.readouterr().out == ""


def test_all_but_the_augmentation_may_be_given(tmp_path: Path) -> None:
    all_given = [
        "spatial_dims=2",
        "in_channels=1",
        "window=[32,32]",
        "margin=[4,4]",
        "normalize=case",
        "labels.classes={a: 0, b: 1}",
    ]
    data = found(pictures(tmp_path, ids(0, 1), ids(0, 1)), *(f"data.{one}" for one in all_given))
    assert data.augment._target_ == "segline.augment.Augment"
    assert (data.window, data.root) == ([32, 32], str(tmp_path))


def test_no_augmentation_is_an_answer(tmp_path: Path) -> None:
    assert found(pictures(tmp_path, ids(0, 1), ids(0, 1)), "data.augment=null").augment is None


@pytest.mark.parametrize(
    "change", [[], ["data/augment=none", "data.bands=[1]", "data.val=0.4", "data.labels.scheme=overlapping"]]
)
def test_what_is_printed_is_a_config_of_the_same_data(
    tmp_path: Path, change: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = found(pictures(tmp_path, ids(0, 1, 2, 255), ids(0, 1, 2)), *change)
    printed = capsys.readouterr().out
    said, config = printed.split("\n\n", 1)
    assert "2 images with masks, the first of 50 x 70 pixels and 1 band, and" in said
    assert "DIR/data/mine.yaml" in said
    picture(tmp_path / "conf" / "unused.png", ids(0))  # makes the folder
    (tmp_path / "conf" / "data").mkdir()
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(config)
    kept = compose(["data=mine", f"hydra.searchpath=['file://{tmp_path}/conf']"])
    assert OmegaConf.to_container(kept.data, resolve=True) == OmegaConf.to_container(data, resolve=True)
    assert "_target_" not in yaml.safe_load(config)["labels"]


def test_what_is_printed_for_absolute_paths_is_a_config_without_a_root_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = pictures(tmp_path, ids(0, 1), ids(0, 1), ids(0, 1))
    found({key: f"{tmp_path}/{given[key]}" for key in ("images", "masks")})
    config = capsys.readouterr().out.split("\n\n", 1)[1]
    assert "root" not in yaml.safe_load(config)
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(config)
    kept = compose(["data=mine", f"hydra.searchpath=['file://{tmp_path}/conf']"])
    assert [len(prepared(discover(kept.data)).cases[split]) for split in ("train", "val")] == [2, 1]


# Bad input


def fault(given: dict[str, str]) -> str:
    with pytest.raises(ValueError, match=r"\w") as error:
        found(given)
    return str(error.value)


def test_nothing_given_says_what_to_give() -> None:
    assert "data.images='/x/{name}.tif' data.masks='/x/{name}_mask.png', or data.table=" in fault({})


def test_a_missing_folder_no_images_and_lacking_masks_are_said(tmp_path: Path) -> None:
    assert "there is no folder /nowhere/at/all" in fault(files(Path("/nowhere/at/all"), "{name}.png", "{name}_m.png"))
    assert "no images found" in fault(files(tmp_path, "{name}.png", "{name}_m.png"))
    options = pictures(tmp_path, ids(0, 1), ids(0, 1), ids(0, 1))
    for number in (0, 2):
        (tmp_path / f"{number}_m.png").unlink()
    text = fault(options)
    assert text.startswith("2 faults")
    assert f"{tmp_path}/2.png has no mask: there is no {tmp_path}/2_m.png" in text


def test_files_that_are_no_masks_are_all_said_at_once(tmp_path: Path) -> None:
    options = pictures(tmp_path, ids(0, 1), ids(*range(MOST_CLASSES + 1)), ids(0, 1), ids(0, 1))
    Image.fromarray(ids(0, 1)).save(tmp_path / "2_m.png", format="JPEG")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    text = fault(options)
    assert text.startswith("3 faults")
    assert f"{tmp_path}/1_m.png holds more than 64 values: rather an image" in text
    assert f"{tmp_path}/2_m.png: a JPEG cannot hold a mask" in text
    assert f"{tmp_path}/3.png is not a whole PNG" in text


def test_many_values_are_classes_if_they_are_named(tmp_path: Path) -> None:
    options = pictures(tmp_path, ids(*range(60)), ids(*range(40, 100)))
    assert "the masks hold 100 values" in fault(options)
    classes = ", ".join(f"k{value}: {value}" for value in range(100))
    assert len(found(options, f"data.labels.classes={{{classes}}}").labels.classes) == 100


def test_masks_of_one_value_are_refused(tmp_path: Path) -> None:
    assert "nothing to tell apart, only 3" in fault(pictures(tmp_path, ids(3), ids(3)))


@pytest.mark.slow
def test_training_on_a_folder_from_the_command_line(tmp_path: Path) -> None:
    pictures(tmp_path, *(ids(0, 1, 2, seed=n) for n in range(4)))
    images, masks = (
        f"""data.{key}="'{tmp_path}/{{name}}{end}.png'" """ for key, end in (("images", ""), ("masks", "_m"))
    )
    small = "trainer=debug logger=none model=unet model.channels=[4,8] data.steps_per_epoch=2 data.num_workers=0"
    command = f"cd {tmp_path} && {sys.executable} {TRAIN} data=folder {images} {masks} {small} hydra.run.dir=run"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "classes: {background: 0, class_1: 1, class_2: 2}" in done.stdout
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["window"] == [64, 96]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camvid", "cwfid", "dsb2018", "dubai", "hippocampus", "isbi2012", "sen1floods11"])
def test_real_data_are_found_as_their_configs_say(real_data: Path, name: str) -> None:
    named = compose([f"data={name}"]).data
    data = found(files(Path(named.root), named.images, named.masks))

    def raw(labels: DictConfig) -> set[Any]:
        return {str(value).lower() for value in [*labels.classes.values(), *labels.ignore]}

    assert raw(data.labels) == raw(named.labels)
    assert (data.in_channels, data.spatial_dims, data.bands) == (named.in_channels, named.spatial_dims, named.bands)
