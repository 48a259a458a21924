import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
import yaml
from affine import Affine
from omegaconf import OmegaConf
from PIL import Image
from tiny import make_card, make_network, predict_files, save

from segline.config import compose, own_data
from segline.evaluation.evaluate import Options
from segline.evaluation.measure import Scale
from segline.inference.predictor import Settings, calibration_path, digest
from segline.io.open import open_image
from segline.io.source import Block, whole
from segline.metrics.calibration import Calibration
from segline.scoring import _open_data, _refuse_useless_root, score
from segline.tables import further_table

RNG = np.random.default_rng(0)
CLASSES = {f"class_{k}": k for k in range(3)}
NAMES = tuple("abcdef")


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A network and its images; the masks are what it says, with some faults."""
    (tmp_path / "set").mkdir()
    for name in NAMES:
        smooth = Image.fromarray(RNG.integers(0, 256, (8, 9, 3)).astype(np.uint8)).resize((110, 61))
        smooth.save(tmp_path / "set" / f"{name}.png")
    card = make_card(3, labels={"classes": CLASSES, "ignore": [255]})
    network = make_network(card)
    with torch.no_grad():  # surer of itself than it should be
        network.head.weight *= 8
        network.head.bias *= 8
    path = save(tmp_path / "run" / "best.ckpt", card, network)
    predict_files(path, str(tmp_path / "set"), str(tmp_path / "said"))
    for name in NAMES:
        mask = np.array(Image.open(tmp_path / "said" / f"{name}.png"))
        mask = np.where(RNG.random(mask.shape) < 0.2, RNG.integers(0, 3, mask.shape), mask).astype(np.uint8)
        mask[:10, :10] = 255
        mask[25:60, 50:100] = 1
        Image.fromarray(mask).save(tmp_path / "set" / f"{name}_mask.png")
    return path


def config(tmp_path: Path, checkpoint: str, *overrides: str) -> Any:
    data = [
        "data=folder",
        f"data.images='{tmp_path}/set/{{name}}.png'",
        f"data.masks='{tmp_path}/set/{{name}}_mask.png'",
        "data.num_workers=0",
    ]
    return compose([f"checkpoint={checkpoint}", f"output={tmp_path / 'out'}", *data, *overrides], name="eval")


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_every_number_is_that_of_the_masks_that_prediction_writes(tmp_path: Path, checkpoint: str) -> None:
    summary = score(config(tmp_path, checkpoint), "folder", Settings(checkpoint))
    rows = {row["case"]: row for row in pq.read_table(tmp_path / "out" / "cases.parquet").to_pylist()}
    assert sorted(rows) == list(NAMES)
    tp = fp = fn = 0
    for name in NAMES:
        pred, mask = read(tmp_path / "said" / f"{name}.png"), read(tmp_path / "set" / f"{name}_mask.png")
        counted = mask != 255
        for k in range(3):
            said, true = (pred == k) & counted, (mask == k) & counted
            counts = [int((said & true).sum()), int((said & ~true).sum()), int((~said & true & counted).sum())]
            assert [rows[name][f"{part}/class_{k}"] for part in ("tp", "fp", "fn")] == counts
            assert rows[name][f"size_true/class_{k}"] == true.sum()
            if k == 1:
                tp, fp, fn = tp + counts[0], fp + counts[1], fn + counts[2]
    assert summary["scores"]["iou/class_1"] == pytest.approx(tp / (tp + fp + fn))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["classes"][1]["iou"] == pytest.approx(
        tp / (tp + fp + fn)
    )
    assert (tmp_path / "out" / "scores.md").read_text().startswith("| Class")


def test_the_page_holds_all_that_it_shows(tmp_path: Path, checkpoint: str) -> None:
    summary = score(config(tmp_path, checkpoint), "folder", Settings(checkpoint))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http" not in page
    assert page.count("data:image/webp;base64,") == 4
    assert "labelled class_1" not in page  # titles are within the picture
    assert "Look at these labels" in page
    assert f"{summary['classes'][-1]['iou']:.3f}" in page
    for name in (*CLASSES, *NAMES):
        assert name in page


@pytest.mark.slow
def test_temperature_and_thresholds_are_fitted_to_validation_and_used_by_both_commands(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(checkpoint)
    before = score(config(tmp_path, checkpoint, "split=val", "data.val=0.5"), "folder", settings)
    asked = config(tmp_path, checkpoint, "split=val", "data.val=0.5", "calibrate=true")
    after = score(asked, "folder", settings)
    assert "temperature" in capsys.readouterr().out
    calibration = Calibration.load(calibration_path(Path(checkpoint)))
    assert calibration.split == "val"
    assert calibration.ece_after <= calibration.ece_before + 1e-3
    assert after["ece"] < before["ece"]
    assert after["scores"]["dice"] >= before["scores"]["dice"]
    image = str(tmp_path / "set" / "a.png")
    for how, folder in (({}, "plain"), ({"calibrated": True}, "fitted")):
        predict_files(checkpoint, image, str(tmp_path / folder), also=["probs"], **how)
    sources = [open_image([tmp_path / folder / "a_probs.tif"]) for folder in ("plain", "fitted")]
    plain, fitted = (np.log(np.maximum(source.read(whole(source.shape)), 1e-6)) for source in sources)
    assert calibration.temperature > 1.2
    # Divided by the temperature, up to what is the same for all classes.
    known = (plain > -10).all(0)
    difference = (plain - plain[:1])[:, known] / calibration.temperature
    np.testing.assert_allclose((fitted - fitted[:1])[:, known], difference, atol=1e-2)


def test_what_was_fitted_to_other_weights_is_not_used(tmp_path: Path, checkpoint: str) -> None:
    image, out = str(tmp_path / "set" / "a.png"), str(tmp_path / "out")
    with pytest.raises(ValueError, match=r"needs .*best\.calibration\.json; run src/eval\.py .*calibrate=true"):
        predict_files(checkpoint, image, out, calibrated=True)
    Calibration(1.5, None, "val", 10, "0" * 64, 0.2, 0.1).save(calibration_path(Path(checkpoint)))
    with pytest.raises(ValueError, match="fitted to other weights"):
        predict_files(checkpoint, image, out, calibrated=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.labels.classes={a: 0, b: 1, c: 2}"], "has the exclusive classes a, b, c, but the network knows"),
        (
            ["data.in_channels=1"],
            r"data=folder has 1 band, but the network was trained on 3 \(tiny\); evaluate it on files",
        ),
        (["split=tset"], "split is 'tset'; expected one of train, val, test, all"),
        (["split=test"], r"the test part is empty; there is train \(5 cases\), val \(1 case\)"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, checkpoint: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(config(tmp_path, checkpoint, *overrides), "folder", Settings(checkpoint))


def alone(tmp_path: Path, checkpoint: str, *overrides: str) -> Any:
    """An evaluation of one file of another data set."""
    paths = [f"data.{key}={tmp_path}/set/a{end}.png" for key, end in (("images", ""), ("masks", "_mask"))]
    return config(tmp_path, checkpoint, *paths, *overrides)


@pytest.mark.slow
def test_a_lone_file_of_the_user_is_measured_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(RNG.integers(0, 256, (61, 110, 3)).astype(np.uint8)).save(tmp_path / "set" / "a.png")
    Image.fromarray(RNG.integers(0, 3, (61, 110)).astype(np.uint8)).save(tmp_path / "set" / "a_mask.png")
    card = make_card(3, labels={"classes": CLASSES, "ignore": [255]}, normalize={"scope": "case"})
    checkpoint = save(tmp_path / "run" / "best.ckpt", card, make_network(card))
    with pytest.raises(
        ValueError, match=r"data\.blocks is 32, but .* normalises each file by its own .*data\.blocks=0"
    ):
        score(alone(tmp_path, checkpoint, "data.blocks=32"), "folder", Settings(checkpoint))
    with pytest.raises(ValueError, match=r"the test part is empty; there is train \(1 case\)"):
        score(alone(tmp_path, checkpoint, "split=test"), "folder", Settings(checkpoint))
    with_tile = _open_data(alone(tmp_path, checkpoint, "data.tile=[32,32]"), "folder", card, Path(checkpoint))
    assert with_tile.tile == card.window  # pictures are made by the tiles of prediction, whatever another set says
    summary = score(alone(tmp_path, checkpoint), "folder", Settings(checkpoint))
    assert (summary["split"], summary["cases"]) == ("all", 1)
    (mask,) = predict_files(checkpoint, str(tmp_path / "set" / "a.png"), str(tmp_path / "said"))
    (row,) = pq.read_table(tmp_path / "out" / "cases.parquet").to_pylist()
    assert row["size_pred/class_1"] == (read(mask) == 1).sum()


@pytest.mark.slow
def test_a_set_of_test_cases_alone_is_measured(tmp_path: Path, checkpoint: str) -> None:
    rows = [f"{tmp_path}/set/{name}.png,{tmp_path}/set/{name}_mask.png,test" for name in "ab"]
    (tmp_path / "cases.csv").write_text("\n".join(["image,mask,split", *rows]))
    table = ["data.images=null", "data.masks=null", f"data.table={tmp_path / 'cases.csv'}"]
    with pytest.raises(ValueError, match="calibrate=true needs a validation part"):
        score(config(tmp_path, checkpoint, *table, "calibrate=true"), "folder", Settings(checkpoint))
    summary = score(config(tmp_path, checkpoint, *table), "folder", Settings(checkpoint))
    assert (summary["split"], summary["cases"]) == ("test", 2)


def test_metres_and_pixels_are_not_averaged(tmp_path: Path, checkpoint: str) -> None:
    place = Affine(2.0, 0, 5e5, 0, -2.0, 5e6)
    for name, crs in (("x", "EPSG:32632"), ("y", None)):
        for kind, count in (("", 3), ("_mask", 1)):
            profile = {"driver": "GTiff", "count": count, "dtype": "uint8", "crs": crs, "transform": place}
            with rasterio.open(tmp_path / "set" / f"{name}{kind}.tif", "w", height=40, width=50, **profile) as file:
                file.write(RNG.integers(0, 3, (count, 40, 50)).astype(np.uint8))
    paths = [f"data.images='{tmp_path}/set/{{name}}.tif'", f"data.masks='{tmp_path}/set/{{name}}_mask.tif'"]
    with pytest.raises(ValueError, match=r"in px in y \(.*y\.tif\) but in m in x \(.*x\.tif\).*; evaluate them apart"):
        score(config(tmp_path, checkpoint, *paths), "folder", Settings(checkpoint))


@pytest.mark.parametrize("how", [{"tta": ["flips"]}, {"dropout_passes": 3}, {"blend": "gaussian"}])
def test_nothing_is_fitted_to_a_mean_of_predictions(tmp_path: Path, checkpoint: str, how: dict[str, Any]) -> None:
    (name,) = how
    with pytest.raises(ValueError, match=f"fits single predictions, but {name}.* averages several; leave it out"):
        score(config(tmp_path, checkpoint, "calibrate=true"), "folder", Settings(checkpoint, **how))


def test_evaluations_that_differ_lie_in_folders_that_do(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr("segline.scoring.evaluate", lambda *args: called.append(args))
    last = str(Path(checkpoint).with_name("last.ckpt"))
    Path(last).write_bytes(Path(checkpoint).read_bytes())
    averaged = {"tta": ["flips", 1.25], "blend": "gaussian", "dropout_passes": 4}
    hows: list[dict[str, Any]] = [{}, {"calibrated": True}, averaged, {"window": [64, 96], "overlap": 0.5}]
    for settings in (*(Settings(checkpoint, **how) for how in hows), Settings(last)):
        score(config(tmp_path, checkpoint, "output=null"), "folder", settings)
    assert [args[3].relative_to(tmp_path / "run" / "eval").as_posix() for args in called] == [
        "folder-all",
        "folder-all_calibrated",
        "folder-all_tta-flips-1.25_dropout-4_gaussian",
        "folder-all_window-64x96_overlap-0.5",
        "folder-all_last.ckpt",
    ]
    score(config(tmp_path, checkpoint, "output=null", "tolerance=2", "object_iou=0.3"), "folder", Settings(checkpoint))
    assert called[-1][3].name == "folder-all_tolerance-2_object-iou-0.3"
    both = Settings([checkpoint, last], tta=["flips"])
    with pytest.raises(ValueError, match=r"checkpoint names 2 networks.* set output="):
        score(config(tmp_path, checkpoint, "output=null"), "folder", both)
    score(config(tmp_path, checkpoint), "folder", both)
    assert called[-1][6] == "run + run/last.ckpt on folder, all, tta-flips"


def test_a_summary_says_what_was_asked_and_a_tolerance_of_nothing_is_said(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = score(config(tmp_path, checkpoint, "tolerance=0"), "folder", Settings(checkpoint, tta=("flips",)))
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["checkpoints"] == [checkpoint]
    assert (written["settings"]["tta"], written["settings"]["blend"]) == (["flips"], "cores")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "within 0 px of each other" in page
    (doubt,) = [note for note in written["notes"] if note.startswith("Bounds come from")]
    assert doubt in page
    assert doubt in capsys.readouterr().out
    assert "Surface Dice (0 px)" in further_table(summary)


@pytest.mark.slow
def test_areas_of_a_scene_are_square_metres(tmp_path: Path) -> None:
    card = make_card(1)
    path = save(tmp_path / "best.ckpt", card, make_network(card))
    (tmp_path / "set").mkdir()
    mask = np.zeros((64, 80), np.uint8)
    mask[10:30, 10:50], mask[40:50] = 1, 2
    place = Affine(2.0, 0, 5e5, 0, -2.0, 5e6)
    for name in ("a", "b"):
        for kind, values in (("", RNG.integers(0, 255, mask.shape).astype(np.uint8)), ("_mask", mask)):
            profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32632", "transform": place}
            with rasterio.open(tmp_path / "set" / f"{name}{kind}.tif", "w", height=64, width=80, **profile) as file:
                file.write(values[None])
    overrides = [f"data.images='{tmp_path}/set/{{name}}.tif'", f"data.masks='{tmp_path}/set/{{name}}_mask.tif'"]
    summary = score(config(tmp_path, path, *overrides, "data.val=0.5"), "folder", Settings(path))
    rows = pq.read_table(tmp_path / "out" / "cases.parquet").to_pylist()
    assert (summary["unit"], summary["size_unit"], len(rows)) == ("m", "m²", 2)
    assert rows[0]["size_true/class_1"] == 20 * 40 * 4


def test_the_data_of_a_run_is_data_and_not_code(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.ckpt").write_text("")
    assert own_data(str(run)) == {}
    node = {
        "_target_": "segline.data.datamodule.SegmentationDataModule",
        "labels": {"_target_": "segline.labels.Labels", "classes": {"a": 0}},
        "augment": {"a": 1},
        "weight_map": {"_target_": "segline.weight_map.BorderWeights"},
    }
    (run / "config.yaml").write_text(yaml.safe_dump({"data": node}))
    assert own_data(str(run)) == own_data(str(run / "best.ckpt")) == {**node, "augment": None, "weight_map": None}
    strange: list[dict[str, Any]] = [
        {"deeper": [{"_target_": "os.system"}]},
        {"root": "${oc.env:HOME}"},
        # Reached by attributes of a module of ours, and a class of ours where none belongs.
        {"origin": {"_target_": "segline.data.loaders.torch.hub.load", "_args_": [str(run), "e"], "source": "local"}},
        {"_target_": "segline.data.loaders.os.mkdir"},
        {"origin": {"_target_": "segline.labels.Labels"}},
        {"labels": {"_target_": "segline.labels.Labels", "_args_": [1]}},
        {"_partial_": True},
    ]
    for bad in strange:
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {**node, **bad}}))
        with pytest.raises(
            ValueError, match=r"config\.yaml: data\..* which no data set of segline's has; set data= yourself"
        ):
            own_data(str(run))
    for content in ("[1, 2]", "data: 5", ""):
        (run / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match="describes no data"):
            own_data(str(run))


@pytest.mark.slow
def test_options_of_the_command_reach_the_measures(tmp_path: Path, checkpoint: str) -> None:
    assert set(Options.__dataclass_fields__) <= set(OmegaConf.to_container(compose(name="eval")))
    found = {}
    for name, asked in {
        "plain": [],
        "far": ["tolerance=30"],
        "near": ["tolerance=0"],
        "any": ["object_iou=0.01"],
    }.items():
        found[name] = score(config(tmp_path, checkpoint, *asked), "folder", Settings(checkpoint))["classes"][-1]
    assert found["near"]["surface_dice"] < found["plain"]["surface_dice"] < found["far"]["surface_dice"]
    assert found["any"]["object_f1"] > found["plain"]["object_f1"]


@pytest.mark.parametrize("asked", ["tolerance=-1", "object_iou=1.5"])
def test_options_that_cannot_be_are_refused_before_the_work(tmp_path: Path, checkpoint: str, asked: str) -> None:
    with pytest.raises(ValueError, match=f"{asked.split('=')[0]} is {asked.split('=')[1]}; expected"):
        score(config(tmp_path, checkpoint, asked), "folder", Settings(checkpoint))


def test_a_scene_that_is_cut_into_blocks_is_measured_in_metres(tmp_path: Path) -> None:
    place = Affine(2.0, 0, 5e5, 0, -2.0, 5e6)
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=64, width=80, count=1, dtype="uint8", crs="EPSG:32632", transform=place
    ) as file:
        file.write(np.zeros((1, 64, 80), np.uint8))
    block = Block(open_image([path]), (slice(10, 30), slice(40, 70)))
    assert Scale.of(block.geometry, block.shape).unit == "m"
    assert np.array(block.geometry.affine)[:2, 2].tolist() == [5e5 + 80, 5e6 - 20]


@pytest.mark.slow
def test_of_a_case_too_large_for_the_memory_all_that_adds_up_is_measured(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_ = score(config(tmp_path, checkpoint), "folder", Settings(checkpoint))
    monkeypatch.setattr("segline.evaluation.evaluate._LARGEST", 100)
    parts = score(config(tmp_path, checkpoint), "folder", Settings(checkpoint))
    assert sorted(parts["large"]) == list(NAMES)
    for one, other in zip(whole_["classes"], parts["classes"], strict=True):
        assert {key: one[key] for key in ("iou", "dice_case", "size_true", "size_pred")} == {
            key: other[key] for key in ("iou", "dice_case", "size_true", "size_pred")
        }
        assert other["hd95"] is other["object_f1"] is None
    assert "too large to be measured as a whole: a, " in (tmp_path / "out" / "report.html").read_text()


def test_masks_of_an_older_calibration_are_not_taken_for_new_ones(tmp_path: Path, checkpoint: str) -> None:
    image, out, masks = str(tmp_path / "set" / "a.png"), str(tmp_path / "masks"), []
    for thresholds in ([0.05, 0.05, 0.9], [0.9, 0.05, 0.05]):
        digest_ = digest(Path(checkpoint))
        Calibration(1.0, thresholds, "val", 10, digest_, 0.2, 0.1).save(calibration_path(Path(checkpoint)))
        (mask,) = predict_files(checkpoint, image, out, calibrated=True)
        masks.append(read(mask))
    assert not np.array_equal(*masks)
    with pytest.raises(ValueError, match="calibrated=true is of one network"):
        predict_files([checkpoint, checkpoint], image, out, calibrated=True)


def test_a_root_that_full_paths_would_leave_unread_is_refused() -> None:
    """The run is measured on its own files again, and not on those that are meant."""
    own = {"root": "/work", "images": "/x/{name}.png", "masks": "/x/{name}_mask.png", "table": None}
    with pytest.raises(
        ValueError, match=r"data.root is /elsewhere, but .* full paths, such as /x/\{name\}.png; set data.images="
    ):
        _refuse_useless_root(OmegaConf.create({**own, "root": "/elsewhere"}), own)
    _refuse_useless_root(OmegaConf.create(own), own)
    _refuse_useless_root(OmegaConf.create({**own, "root": "/elsewhere", "images": "/y/{name}.png"}), own)
    below = {**own, "images": "{name}.png", "masks": "{name}_mask.png"}
    _refuse_useless_root(OmegaConf.create({**below, "root": "/elsewhere"}), below)
