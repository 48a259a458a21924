import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_card, make_network, predict_files, save

import segline
from segline.config import compose
from segline.inference.predictor import Settings
from segline.robustness import measure
from segline.robustness.attacked import no_attacks
from segline.robustness.corrupted import CORRUPTIONS
from segline.scoring import score, try_out

RNG = np.random.default_rng(0)
NAMES = tuple("abcde")


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A network and its images; the masks are what it says, with some faults."""
    (tmp_path / "set").mkdir()
    for name in NAMES:
        smooth = Image.fromarray(RNG.integers(0, 256, (8, 9, 3)).astype(np.uint8)).resize((70, 61))
        smooth.save(tmp_path / "set" / f"{name}.png")
    card = make_card(3, labels={"classes": {"a": 0, "b": 1, "c": 2}, "ignore": [255]})
    path = save(tmp_path / "run" / "best.ckpt", card, make_network(card))
    predict_files(path, str(tmp_path / "set"), str(tmp_path / "said"))
    for name in NAMES:
        mask = np.array(Image.open(tmp_path / "said" / f"{name}.png"))
        mask[:10, :10], mask[40:, 40:] = 255, 1
        Image.fromarray(mask).save(tmp_path / "set" / f"{name}_mask.png")
    return path


def config(tmp_path: Path, checkpoint: str, *overrides: str, name: str = "robustness") -> Any:
    data = [
        "data=folder",
        f"data.images='{tmp_path}/set/{{name}}.png'",
        f"data.masks='{tmp_path}/set/{{name}}_mask.png'",
        "data.num_workers=0",
        "split=all",
    ]
    return compose([f"checkpoint={checkpoint}", *data, *overrides], name=name)


@pytest.mark.slow
def test_the_clean_column_is_the_score_of_evaluation_and_the_others_fall(tmp_path: Path, checkpoint: str) -> None:
    asked = config(tmp_path, checkpoint, "corruptions=[noise,contrast]", "sizes=[0.05,0.5]", "metric=dice")
    summary = try_out(asked, "folder", Settings(checkpoint))
    evaluated = score(
        config(tmp_path, checkpoint, f"output={tmp_path}/eval", name="eval"), "folder", Settings(checkpoint)
    )
    columns = summary["columns"]
    assert {k: v for k, v in columns["clean"].items() if v == v} == evaluated["scores"]
    assert summary["clean"] == evaluated["scores"]["dice"]
    assert columns["attacks/0"]["dice"] == pytest.approx(summary["clean"], abs=1e-3)
    for name in ("noise", "contrast"):
        assert summary["corruptions"][name][-1] < summary["clean"] - 0.1
        assert summary["corruptions"][name][-1] == columns[f"{name}/5"]["dice"]
    for values in summary["attacks"].values():
        assert summary["attacks_clean"] > values[0] > values[1]
    assert summary["mean"] == pytest.approx(np.mean(list(summary["corruptions"].values())))
    output = tmp_path / "run" / "robustness" / "folder-all"
    assert {file.name for file in output.iterdir()} == {
        "robustness.json",
        "robustness.md",
        "robustness.png",
        "examples.png",
    }
    written = json.loads((output / "robustness.json").read_text())
    assert written["corruptions"] == summary["corruptions"]
    lines = (output / "robustness.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| noise")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    values = summary["corruptions"]["noise"]
    assert cells == ["noise", *(f"{v:.3f}" for v in (summary["clean"], *values, np.mean(values)))]
    (row,) = [line for line in lines if line.startswith("| dice") and "0.05" in line]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["dice", "clean", "0.05", "0.5", "mean"]


@pytest.mark.slow
def test_a_column_is_the_score_of_files_that_are_corrupted_so(tmp_path: Path, checkpoint: str) -> None:
    summary = try_out(
        config(tmp_path, checkpoint, "corruptions=[blur]", "attacks=[]", "seed=3"), "folder", Settings(checkpoint)
    )
    tp, wrong = np.zeros(3), np.zeros(3)
    for name in NAMES:
        image = np.array(Image.open(tmp_path / "set" / f"{name}.png"), np.float32).transpose(2, 0, 1)
        blurred = CORRUPTIONS["blur"](image, 5, np.random.default_rng())
        Image.fromarray(blurred.round().astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / "blurred.png")
        (path,) = predict_files(checkpoint, str(tmp_path / "blurred.png"), str(tmp_path / "masks" / name))
        pred, mask = np.array(Image.open(path)), np.array(Image.open(tmp_path / "set" / f"{name}_mask.png"))
        for k in range(3):
            tp[k] += ((pred == k) & (mask == k)).sum()
            wrong[k] += ((pred == k) ^ (mask == k))[mask != 255].sum()
    # Files hold whole numbers, the column does not.
    assert summary["corruptions"]["blur"][4] == pytest.approx((tp / (tp + wrong)).mean(), abs=0.02)
    assert summary["clean"] - summary["corruptions"]["blur"][4] > 0.05


@pytest.mark.slow
def test_a_stop_loses_only_the_column_that_was_measured(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["corruptions=[rain,noise]", "limit=2", "sizes=[0.1]", "attacks=[fgsm]"]
    settings = Settings(checkpoint)
    whole = try_out(config(tmp_path, checkpoint, *asked, f"output={tmp_path}/whole"), "folder", settings)
    assert [case[0] for case in whole["made_of"]["cases"]] == ["a", "e"]
    made: list[tuple[str, int]] = []
    corrupted = measure.CorruptedSource

    def stop(source: Any, name: str, strength: int, rng: Any) -> Any:
        made.append((name, strength))
        if len(made) == 6:
            raise KeyboardInterrupt
        return corrupted(source, name, strength, rng)

    monkeypatch.setattr(measure, "CorruptedSource", stop)
    again = ["corruptions=[noise,rain]", *asked[1:], f"output={tmp_path}/again"]
    with pytest.raises(KeyboardInterrupt):
        try_out(config(tmp_path, checkpoint, *again), "folder", settings)
    assert made[-1] == ("noise", 3)
    resumed = try_out(config(tmp_path, checkpoint, *again), "folder", settings)
    assert made[6:8] == [("noise", 3)] * 2
    assert resumed["columns"] == whole["columns"]  # whatever else was asked, and in whatever order
    count = len(made)
    try_out(config(tmp_path, checkpoint, *again, "metric=dice_case"), "folder", settings)
    assert len(made) == count
    try_out(config(tmp_path, checkpoint, *again, "seed=1"), "folder", settings)
    assert len(made) == count + 20
    mask = Path(tmp_path / "set" / "a_mask.png")
    Image.fromarray(np.minimum(np.array(Image.open(mask)), 1)).save(mask)
    try_out(config(tmp_path, checkpoint, *again, "seed=1"), "folder", settings)
    assert len(made) == count + 40  # another truth


def test_means_of_several_are_corrupted_but_not_attacked(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = config(tmp_path, checkpoint, "corruptions=contrast", "limit=1")
    summary = try_out(asked, "folder", Settings(checkpoint, tta=["flips"]))
    assert summary["attacks"] == {}
    assert "Attacks are left out: they are of single predictions" in capsys.readouterr().out
    assert (tmp_path / "run" / "robustness" / "folder-all_tta-flips" / "robustness.md").is_file()
    both = [Path(checkpoint), Path(checkpoint)]
    assert "several" in str(no_attacks(both, Settings(checkpoint)))
    assert "an ONNX file gives no gradients" in str(no_attacks([Path("a.onnx")], Settings("a.onnx")))
    assert no_attacks(both[:1], Settings(checkpoint)) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corruptions=[nois]"], "there is no corruption 'nois'; did you mean noise"),
        (["metric=iuo"], "there is no metric 'iuo'; did you mean iou.*of a class, as iou/a"),
        (["attacks=[cw]"], "there is no attack 'cw'; expected some of fgsm, pgd"),
        (["sizes=[0]"], r"sizes is \[0\]; expected numbers above 0"),
        (["limit=0"], "limit is 0; expected a number of cases"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, checkpoint: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        try_out(config(tmp_path, checkpoint, *overrides), "folder", Settings(checkpoint))


def test_the_attacked_pixels_are_those_that_count(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, ...]] = []

    def look(loss: Any, images: Any, size: float, free: Any, drawn: Any) -> Any:
        seen.append((images, free, drawn))
        return images

    monkeypatch.setitem(measure.ATTACKS, "fgsm", look)
    asked = config(tmp_path, checkpoint, "corruptions=[]", "attacks=[fgsm]", "sizes=[0.1]", "limit=1")
    summary = try_out(asked, "folder", Settings(checkpoint))
    assert summary["attacks"]["fgsm"] == [summary["attacks_clean"]]
    images, free, drawn = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert images.shape == (4, 3, 48, 48)  # 61 x 70 pixels by windows of 48
    assert images.dtype == torch.float32
    assert free.unique().tolist() == [1]
    assert -1 <= drawn.min() < -0.99
    assert 0.99 < drawn.max() <= 1


@pytest.mark.slow
def test_the_command_leaves_tables_and_pictures_of_a_run(tmp_path: Path) -> None:
    scripts, run = Path(segline.__file__).parents[1], tmp_path / "run"
    train = [
        "data=biomedical3d",
        "trainer=cpu",
        "trainer.max_steps=4",
        "model.channels=[4,6,8]",
        "logger=none",
        "callbacks.pictures=false",
        f"hydra.run.dir={run}",
    ]
    asked = [f"checkpoint={run}", "trainer=cpu", "limit=1", "sizes=[0.1]"]
    for script, arguments in (("train", train), ("robustness", asked)):
        done = subprocess.run(
            [sys.executable, str(scripts / f"{script}.py"), *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    summary = json.loads((run / "robustness" / "val" / "robustness.json").read_text())
    assert list(summary["corruptions"]) == ["noise", "blur", "contrast", "jpeg", "bias_field", "ghosting"]
    assert list(summary["attacks"]) == ["fgsm", "pgd"]
    assert "flatters" in done.stdout
    with Image.open(run / "robustness" / "val" / "examples.png") as picture:
        assert picture.width > 800
