import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from tiny import Array, make_card, make_network, save

import segline
from segline.config import CONF_DIR
from segline.interpretation.explain import explain
from segline.interpretation.subject import Subject, choose_window
from segline.models.attention_unet import AttentionUNet

RNG = np.random.default_rng(0)
CONTRACT = runpy.run_path(str(Path(__file__).parents[1] / "models" / "test_contract.py"))
PICTURES = {"filters.png", "features.png", "gradcam.png", "receptive_field.png", "explain.json"}


@pytest.fixture
def run(tmp_path: Path) -> str:
    card = make_card(3)
    save(tmp_path / "run" / "best.ckpt", card, make_network(card))
    return str(tmp_path / "run")


def picture(path: Path, size: tuple[int, int] = (110, 61)) -> str:
    Image.fromarray(RNG.integers(0, 256, (8, 9, 3)).astype(np.uint8)).resize(size).save(path)
    return str(path)


def subject(dims: int = 2, bands: int = 3, network: Any = None, **fields: Any) -> Subject:
    card = make_card(bands, dims, **fields)
    size = (60, 70) if dims == 2 else (20, 30, 26)
    smooth = RNG.normal(100, 50, (bands, *size)).astype(np.float32)
    card = replace(card, stride=2)
    place = choose_window(size, card.window, None)
    return Subject(network or make_network(card), card, Array(smooth), place, torch.device("cpu"))


# Which part of the file


@pytest.mark.parametrize(
    ("shape", "size", "center", "window"),
    [
        ((100, 80), [48, 48], None, [(26, 74), (16, 64)]),
        ((100, 80), [48, 48], [0, 79], [(0, 48), (32, 80)]),  # moved inside
        ((30, 80), [48, 48], [2, 40], [(0, 30), (16, 64)]),  # cut
        ((9, 30, 30), [4, 8, 8], [5, 10, 20], [(3, 7), (6, 14), (16, 24)]),
    ],
)
def test_a_window_lies_around_its_centre_inside_the_file(
    shape: Sequence[int], size: Sequence[int], center: Sequence[int] | None, window: list[tuple[int, int]]
) -> None:
    assert [(w.start, w.stop) for w in choose_window(shape, size, center)] == window


@pytest.mark.parametrize(
    ("size", "center", "said"),
    [
        ([48], None, r"window is \[48\]; expected 2 numbers, as the file is 100 x 80"),
        ([0, 48], None, "window is"),
        ([48, 48], [1, 2, 3], "center is"),
        ([48, 48], [100, 2], "center is"),
    ],
)
def test_what_is_no_window_of_the_file_is_refused(size: list[int], center: list[int] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose_window((100, 80), size, center)


# What is asked for


def test_what_cannot_be_looked_into_is_refused_with_what_can(run: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = picture(tmp_path / "images" / "a.png")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"ONNX file, whose layers cannot be looked into; set checkpoint to the run"):
        explain(str(tmp_path / "model.onnx"), image)
    with pytest.raises(ValueError, match="checkpoint names 2 networks; explain them one by one"):
        explain([run, run], image)
    picture(tmp_path / "images" / "b.png")
    with pytest.raises(ValueError, match=r"stands for 2 files; name one of them, such as .*a\.png"):
        explain(run, str(tmp_path / "images"))
    with pytest.raises(
        ValueError, match=r"layer is 'nothing'.* expected one of its levels, down\.0, down\.1, merge\.0"
    ):
        explain(run, image, layer="nothing")
    with pytest.raises(ValueError, match="class is 'nothing', which is no class; expected one of class_"):
        explain(run, image, class_name="nothing")
    assert not (tmp_path / "run" / "explain").exists()


def test_a_class_that_is_not_predicted_is_refused() -> None:
    one = subject()
    with torch.no_grad():
        one.network.head.bias[1] = -1e6
    with pytest.raises(
        ValueError, match="'class_1', which is predicted nowhere in this window; expected one of class_"
    ):
        one.grad_cams(None, "class_1")


# What is found


@pytest.mark.slow
def test_a_file_leaves_pictures_and_numbers_in_the_run(run: str, tmp_path: Path, capsys: Any) -> None:
    folder = explain(run, picture(tmp_path / "a.png"))
    assert folder == tmp_path / "run" / "explain" / "a"
    assert {path.name for path in folder.iterdir()} == PICTURES
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in PICTURES)
    assert "down.0, down.1, merge.0" in said
    numbers = json.loads((folder / "explain.json").read_text())
    assert numbers["window"] == [[6, 54], [31, 79]]
    assert numbers["filters"] == {"layer": "down.0.0", "shape": [4, 3, 3, 3]}
    assert [level["size"] for level in numbers["features"]["levels"]] == [[48, 48], [24, 24], [48, 48]]
    assert numbers["gradcam"]["layer"] == "down.1"
    assert sum(one["pixels"] for one in numbers["gradcam"]["classes"].values()) == 48 * 48
    field = numbers["receptive_field"]
    assert field["effective"] <= max(field["theoretical"])


@pytest.mark.slow
def test_another_checkpoint_of_the_run_or_an_output_has_a_folder_of_its_own(run: str, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    other = Path(run, "best.ckpt").rename(Path(run, "last.ckpt"))
    assert explain(str(other), image) == Path(run) / "explain" / "a_last"
    assert explain(str(other), image, str(tmp_path / "mine")) == tmp_path / "mine"
    assert (tmp_path / "mine" / "gradcam.png").exists()


@pytest.mark.slow
def test_rasters_of_many_bands_with_no_data_are_read_as_in_prediction(tmp_path: Path) -> None:
    card = make_card(13, normalize={"scope": "case", "mean": None, "std": None})
    path = save(tmp_path / "run" / "best.ckpt", card, make_network(card))
    values = RNG.normal(3000, 500, (13, 61, 110)).astype(np.float32)
    values[:, :30, :60] = -9999
    profile = {"driver": "GTiff", "height": 61, "width": 110, "count": 13, "dtype": "float32", "nodata": -9999}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile, transform=Affine(10, 0, 0, 0, -10, 0)) as file:
        file.write(values)
    folder = explain(path, str(tmp_path / "scene.tif"), center=[31, 60])
    assert {path.name for path in folder.iterdir()} == PICTURES


@pytest.mark.slow
def test_of_a_volume_the_middle_slice_is_drawn(tmp_path: Path) -> None:
    card = make_card(1, 3)
    path = save(tmp_path / "run" / "best.ckpt", card, make_network(card))
    nib.save(nib.Nifti1Image(RNG.normal(100, 50, (40, 36, 31)).astype(np.float32), np.eye(4)), tmp_path / "v.nii.gz")
    folder = explain(path, str(tmp_path / "v.nii.gz"), center=[0, 10, 10])
    numbers = json.loads((folder / "explain.json").read_text())
    assert folder.name == "v"
    assert numbers["window"][0] == [0, 24]
    assert numbers["slice"] == 12
    assert len(numbers["receptive_field"]["theoretical"]) == 3


def test_the_window_is_normalised_as_the_card_says() -> None:
    one = subject()
    torch.testing.assert_close(one.image[0].mean().item(), 0.0, atol=0.1, rtol=0)
    assert one.image.shape == (1, 3, 48, 48)
    assert one.canvas.rgb.shape == (48, 48, 3)


def test_overlapping_classes_each_have_their_pixels() -> None:
    labels = {"classes": {f"class_{k}": k + 1 for k in range(3)}, "scheme": "overlapping"}
    one = subject(labels=labels)
    assert one.mask.shape == (3, 48, 48)
    drawn = one.grad_cams("merge.0", None)
    counts = {name: found["pixels"] for name, found in drawn.numbers["classes"].items()}
    assert counts == {f"class_{k}": int(one.mask[k].sum()) for k in range(3) if one.mask[k].any()}
    with torch.no_grad():
        one.network.head.bias[:] = -1e6
    del one.mask
    assert "no class, as none is predicted" in one.grad_cams(None, None).line


def test_grad_cam_is_of_the_pixels_of_the_class_alone() -> None:
    one = subject()
    every, alone = one.grad_cams("merge.0", None).numbers, one.grad_cams("merge.0", "class_2").numbers
    assert alone["classes"] == {"class_2": every["classes"]["class_2"]}
    # The head's 1 x 1 convolution: the mean of the gradient is the weight times the share of the pixels.
    (merged,) = one.anatomy.maps(["merge.0"])
    weights = one.network.head.weight[2, :, 0, 0] * (one.mask == 2).mean()
    largest = (weights[:, None, None] * merged.values).sum(0).relu().max()
    assert alone["classes"]["class_2"]["largest"] == pytest.approx(float(largest), rel=1e-4)


def test_gates_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    network = AttentionUNet(3, 3, channels=[4, 6, 8]).eval()
    one = subject(network=network)
    (gate,) = network.attention_maps(one.image)
    drawn = one.attention()
    assert drawn is not None
    (numbers,) = drawn.numbers["gates"]
    assert numbers["size"] == [24, 24]
    assert numbers["mean"] == pytest.approx(gate.mean().item())
    assert (numbers["least"], numbers["most"]) == pytest.approx((gate.min().item(), gate.max().item()))
    assert subject().attention() is None


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("file", sorted((CONF_DIR / "model").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_network_can_be_looked_into(file: Path, dims: int) -> None:
    network = CONTRACT["make"](file, dims).eval()
    one = subject(dims, network=network, window=[64] * 2 if dims == 2 else [16, 32, 16], margin=[4] * dims)
    one.card = replace(one.card, stride=getattr(network, "stride", None))
    levels = one.features().numbers["levels"]
    assert len(levels) > 1 or max(levels[0]["step"]) == 1
    assert all(level["channels"] > 0 for level in levels)
    filters, cams, field = one.filters(), one.grad_cams(None, None), one.receptive_field()
    assert filters is not None
    assert filters.numbers["shape"][1] == 3
    assert cams.numbers["classes"]
    assert field.numbers["effective"] > 0
    assert not any(module._forward_hooks for module in network.modules())


# From the command line


@pytest.mark.slow
def test_pictures_of_a_trained_run_go_into_its_own_run_of_wandb(tmp_path: Path) -> None:
    tracking = runpy.run_path(str(Path(__file__).parents[1] / "test_tracking.py"))
    how = ["logger=wandb", "model=attention_unet", "model.channels=[4,6,8]", "callbacks.pictures=false"]
    tracking["train"](tmp_path / "run", *how, "trainer.max_epochs=1")
    scene = next(Path(os.environ["SEGLINE_CACHE"]).glob("synthetic/satellite*/scenes/*.tif"))
    script = Path(segline.__file__).parents[1] / "explain.py"
    asked = [f"checkpoint={tmp_path}/run", f"input={scene}", "trainer=cpu", "wandb=true", "window=[64,64]"]
    done = subprocess.run([sys.executable, str(script), *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "explain" / scene.stem
    assert {path.name for path in folder.iterdir()} == {*PICTURES, "attention.png"}
    assert "wandb sync" in done.stdout
    paths = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.stem for path in paths}) == 1
    latest = max(paths, key=lambda path: path.stat().st_mtime)
    rows = [r.history for r in tracking["records"](latest) if r.HasField("history")]
    shown = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in rows[-1].item}
    for name in ("filters", "features", "attention", "gradcam", "receptive_field"):
        assert (latest.parent / "files" / shown[f"explain/{scene.stem}/{name}/path"]).exists()


@pytest.mark.slow
def test_a_run_that_has_logged_to_no_wandb_has_none_to_show_pictures_in(run: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has logged to no run of W&B .* leave wandb=true out"):
        explain(run, picture(tmp_path / "a.png"), wandb=True)
    assert not Path(run, "explain").exists()  # it is said before the work
