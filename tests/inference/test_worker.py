import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import fiona
import nibabel as nib
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from tiny import make_card, make_network, pictures, predict_files, save

import segline
from segline.inference import predict, worker
from segline.inference.ensemble import Ensemble
from segline.inference.inputs import plan_outputs
from segline.inference.journal import Journal
from segline.inference.predictor import digest

RNG = np.random.default_rng(0)
PLACE = Affine(1.9, 0.4, 733000.0, 0.4, -1.9, 3725000.0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    card = make_card(2)
    return save(tmp_path / "best.ckpt", card, make_network(card))


def scene(path: Path, shape: tuple[int, int] = (150, 130)) -> Path:
    """A GeoTIFF with a hole."""
    path.parent.mkdir(exist_ok=True)
    bands = np.kron(RNG.integers(0, 255, (2, -(-shape[0] // 8), -(-shape[1] // 8))), np.ones((1, 8, 8)))
    bands = bands[:, : shape[0], : shape[1]].astype(np.float32)
    bands[:, 20:30, 5:25] = -9999
    profile = {"driver": "GTiff", "count": 2, "dtype": "float32", "crs": "EPSG:32616", "transform": PLACE}
    with rasterio.open(path, "w", height=shape[0], width=shape[1], nodata=-9999, **profile) as file:
        file.write(bands)
    return path


def read(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return file.read()


def test_probabilities_and_measures_of_a_raster_lie_where_it_lies(tmp_path: Path, checkpoint: str) -> None:
    out, also = tmp_path / "out", ["probs", "entropy", "disagreement"]
    (mask,) = predict_files(checkpoint, str(scene(tmp_path / "in" / "a.tif")), str(out), also=also, tta=["flips"])
    with rasterio.open(out / "a_probs.tif") as file:
        assert (file.crs.to_epsg(), file.dtypes, file.descriptions) == (
            32616,
            ("float32",) * 3,
            ("class_0", "class_1", "class_2"),
        )
        assert np.isnan(file.nodata)
        assert file.transform.almost_equals(PLACE)
        probs = file.read()
    ids, entropy, disagreement = (read(p)[0] for p in (mask, out / "a_entropy.tif", out / "a_disagreement.tif"))
    hole = ids == 255
    assert hole.sum() == 10 * 20
    for measure in (*probs, entropy, disagreement):
        assert np.array_equal(np.isnan(measure), hole)
    np.testing.assert_allclose(probs[:, ~hole].sum(0), 1, atol=1e-5)
    assert np.array_equal(probs.argmax(0)[~hole], ids[~hole])
    expected = -(probs * np.log(np.maximum(probs, 1e-30))).sum(0) / np.log(3)
    np.testing.assert_allclose(entropy[~hole], expected[~hole], atol=1e-5)
    assert 0 <= disagreement[~hole].min() < 0.01 < disagreement[~hole].max() <= 1


def test_measures_of_photographs_are_tiffs_and_those_of_volumes_niftis(tmp_path: Path) -> None:
    flat, deep = make_card(3), make_card(1, dims=3)
    pictures(tmp_path / "in", "a.png")
    predict_files(
        save(tmp_path / "2d.ckpt", flat, make_network(flat)),
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        also=["probs"],
    )
    with Image.open(tmp_path / "out" / "a.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(read(tmp_path / "out" / "a_probs.tif").argmax(0), np.asarray(mask))
    affine = np.array([[0, -2, 0, 7], [-1, 0, 0, 5], [0, 0, 3, -4], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(RNG.integers(0, 200, (14, 20, 30)).astype(np.int16), affine), tmp_path / "v.nii.gz")
    path = save(tmp_path / "3d.ckpt", deep, make_network(deep))
    predict_files(path, str(tmp_path / "v.nii.gz"), str(tmp_path / "out"), also=["probs", "entropy"])
    probs, mask = nib.load(tmp_path / "out" / "v_probs.nii.gz"), nib.load(tmp_path / "out" / "v.nii.gz")
    assert probs.shape == (14, 20, 30, 3)
    assert np.array_equal(probs.affine, affine)
    assert np.array_equal(probs.get_fdata().argmax(-1), mask.get_fdata())
    assert nib.load(tmp_path / "out" / "v_entropy.nii.gz").get_data_dtype() == np.float32


def test_several_checkpoints_are_averaged(tmp_path: Path) -> None:
    card, own = make_card(2), {"normalize": {"scope": "dataset", "mean": [80.0, 90.0], "std": [30.0, 40.0]}}
    paths = [
        save(tmp_path / "a.ckpt", card, make_network(card)),
        save(tmp_path / "b.ckpt", make_card(2, **own), make_network(card)),
    ]
    file, probs = scene(tmp_path / "in" / "a.tif"), []
    for name, checkpoints in {"0": paths[0], "1": paths[1], "both": paths}.items():
        predict_files(checkpoints, str(file), str(tmp_path / name), also=["probs"])
        probs.append(read(tmp_path / name / "a_probs.tif"))
    assert np.abs(probs[0] - probs[1])[:, 40:].max() > 0.05
    np.testing.assert_allclose(probs[2], (probs[0] + probs[1]) / 2, atol=1e-5)


def test_dropout_at_work_disagrees_with_itself(tmp_path: Path) -> None:
    card = make_card(2)
    card.network["dropout"] = 0.3
    path = save(tmp_path / "best.ckpt", card, make_network(card))
    file = scene(tmp_path / "in" / "a.tif")
    how: dict[str, Any] = {"also": ["disagreement"], "dropout_passes": 5}
    predict_files(path, str(file), str(tmp_path / "out"), **how)
    first = read(tmp_path / "out" / "a_disagreement.tif")
    assert np.nanmean(first) > 1e-3
    scene(tmp_path / "in" / "0.tif")  # what comes before it changes nothing
    predict_files(path, str(tmp_path / "in"), str(tmp_path / "both"), **how)
    assert np.array_equal(read(tmp_path / "both" / "a_disagreement.tif"), first, equal_nan=True)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"dropout_passes": 3}, r"has no dropout; train with model\.dropout=0\.2"),
        ({"dropout_passes": 0}, "dropout_passes is 0; expected 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"also": ["disagreement"]}, r"that of several predictions; set tta=\[flips\]"),
        ({"also": ["heatmap"]}, "also names 'heatmap'; expected some of probs, entropy"),
        ({"blend": "exact", "tta": ["flips"]}, "leave tta out"),
        ({"device": "cuda"}, r"sees no GPU here; set device=cpu"),
        ({"device": "tpu"}, "expected auto, cpu, cuda"),
        ({"window": 256}, r"window is 256; expected two or three sizes, such as \[256,256\]"),
        ({"precision": "64"}, r"trainer\.precision is 64; expected auto, 32, bf16, 16"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    tmp_path: Path, checkpoint: str, how: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        predict_files(checkpoint, str(scene(tmp_path / "in" / "a.tif")), str(tmp_path / "out"), **how)
    assert not list((tmp_path / "out").glob("*"))


def test_a_gpu_that_is_asked_for_is_none_the_less_by_several_processes(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="sees no GPU here; set device=cpu"):
        predict_files(checkpoint, str(scene(tmp_path / "in" / "a.tif")), str(tmp_path / "out"), device="cuda")


def test_what_no_process_can_do_is_said_by_one_and_without_wrong_advice(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.tif", "b.tif"):
        scene(tmp_path / "in" / name)

    def share(request: str, processes: int, *_: object) -> list[int]:
        for rank in range(processes):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            with pytest.raises(SystemExit) as ended:
                worker.main(request)
        return [ended.value.code] * processes

    monkeypatch.setattr(predict, "_share", share)
    with pytest.raises(ValueError, match="the reason stands above") as raised:
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), processes=3, dropout_passes=2)
    assert "goes on" not in str(raised.value)
    said = capsys.readouterr().err
    assert said.count("error: ") == said.count("has no dropout; train with model.dropout=0.2") == 1


def test_extras_of_one_file_never_lie_over_the_mask_of_another(tmp_path: Path) -> None:
    files = [tmp_path / "in" / name for name in ("a.tif", "a_probs.tif")]
    assert len(plan_outputs(files, tmp_path / "out")) == 2
    with pytest.raises(ValueError, match=r"a\.tif and .*a_probs\.tif would both be .*out/a_probs\.tif"):
        plan_outputs(files, tmp_path / "out", ["probs"])


def test_names_of_extras_keep_the_files_own() -> None:
    names = ["s.v1.tif", "b.nii.gz", "c.JPG"]
    made = plan_outputs([Path("in", name) for name in names], Path("out"), ["probs", "overlay", "gpkg"])
    assert [[path.name for path in paths.values()] for paths in made.values()] == [
        ["s.v1.tif", "s.v1_probs.tif", "s.v1_overlay.png", "s.v1.gpkg"],
        ["b.nii.gz", "b_probs.nii.gz", "b_overlay.png", "b.gpkg"],
        ["c.png", "c_probs.tif", "c_overlay.png", "c.gpkg"],
    ]


@pytest.mark.parametrize("shape", [(70, 60), pytest.param((700, 600), marks=pytest.mark.slow)])
def test_a_raster_becomes_polygons_an_overlay_and_a_cog(
    tmp_path: Path, checkpoint: str, shape: tuple[int, int]
) -> None:
    file, out = scene(tmp_path / "in" / "a.tif", shape), tmp_path / "out"
    (plain,) = predict_files(checkpoint, str(file), str(tmp_path / "plain"))
    (mask,) = predict_files(checkpoint, str(file), str(out), also=["gpkg", "geojson", "overlay"], cog=True)
    assert sorted(path.name for path in out.glob("[!.]*")) == ["a.geojson", "a.gpkg", "a.tif", "a_overlay.png"]
    assert np.array_equal(read(mask), read(plain))
    with rasterio.open(mask) as written:
        assert written.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert written.tags()["CLASSES"] == "class_0,class_1,class_2"
        assert bool(written.overviews(1)) == (shape[0] > 512)
    with fiona.open(out / "a.gpkg", driver="GPKG") as polygons:
        areas = [(shape["properties"]["class"], shape["properties"]["area_m2"]) for shape in polygons]
    counts = np.bincount(read(mask).ravel(), minlength=256)
    for k in range(3):
        of_class = sum(area for name, area in areas if name == f"class_{k}")
        assert of_class == pytest.approx(counts[k] * abs(PLACE.determinant))


def test_volumes_have_no_polygons(tmp_path: Path) -> None:
    card = make_card(1, dims=3)
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), tmp_path / "v.nii")
    path = save(tmp_path / "best.ckpt", card, make_network(card))
    with pytest.raises(ValueError, match="volumes have no polygons"):
        predict_files(path, str(tmp_path / "v.nii"), str(tmp_path / "out"), also=["gpkg"])


# Going on, and sharing


class Killed(BaseException):
    """As SIGKILL: nothing but what lies on the disk is left."""


def predict_until_killed(checkpoint: str, file: str, output: str, **how: Any) -> None:
    """Leave what a prediction leaves that is killed when it has noted more than 100 rows."""
    reach = worker.Claim.reach

    def killed(self: worker.Claim, rows: int) -> None:
        reach(self, rows)
        if rows > 100:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.Claim, "reach", killed)
        with pytest.raises(Killed):
            predict_files(checkpoint, file, output, **how)


@pytest.mark.parametrize("blend", ["cores", "gaussian"])
def test_a_killed_prediction_goes_on_within_the_file_and_ends_in_the_same_mask(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, blend: str
) -> None:
    file, how = scene(tmp_path / "in" / "a.tif", (300, 130)), {"blend": blend, "batch_size": 3, "also": ["probs"]}
    (expected,) = predict_files(checkpoint, str(file), str(tmp_path / "whole"), **how)
    asked: list[int] = []
    call = Ensemble.__call__

    def counted(self: Ensemble, images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        if len(asked) == limit:
            raise Killed
        return call(self, images)

    monkeypatch.setattr(Ensemble, "__call__", counted)
    limit = 0
    predict_files(checkpoint, str(file), str(tmp_path / "counted"), **how)
    needed = sum(asked)
    for limit in (9, 7, 7):  # noqa: B007 - read by `counted`
        asked.clear()
        with pytest.raises(Killed):
            predict_files(checkpoint, str(file), str(tmp_path / "out"), **how)
        assert not list((tmp_path / "out").glob("[!.]*"))
    asked.clear()
    limit = 0
    (mask,) = predict_files(checkpoint, str(file), str(tmp_path / "out"), **how)
    for name in ("a.tif", "a_probs.tif"):
        assert np.array_equal(read(mask.with_name(name)), read(expected.with_name(name)), equal_nan=True)
    assert sum(asked) < needed  # not all from the start
    assert sorted(path.name for path in mask.parent.iterdir()) == [".predicted.jsonl", "a.tif", "a_probs.tif"]


def test_with_other_settings_nothing_of_what_a_kill_left_is_used(tmp_path: Path, checkpoint: str) -> None:
    file = scene(tmp_path / "in" / "a.tif", (300, 130))
    (expected,) = predict_files(checkpoint, str(file), str(tmp_path / "whole"), tta=["flips"])
    predict_until_killed(checkpoint, str(file), str(tmp_path / "out"))
    (mask,) = predict_files(checkpoint, str(file), str(tmp_path / "out"), tta=["flips"])
    assert np.array_equal(read(mask), read(expected))


def test_a_disk_that_is_full_is_found_before_the_work_and_keeps_what_is_done(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.tif", "b.tif"):
        scene(tmp_path / "in" / name)
    reserve = os.posix_fallocate

    def full(handle: int, start: int, size: int) -> None:
        if b"b.tif" in os.readlink(f"/proc/self/fd/{handle}").encode():
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(handle, start, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"b\.tif: the disk is full; the same command goes on"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["a.tif"]
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    before = (tmp_path / "out" / "a.tif").stat().st_mtime_ns
    assert len(predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"))) == 2
    assert (tmp_path / "out" / "a.tif").stat().st_mtime_ns == before


@pytest.mark.slow
def test_processes_share_the_files_and_give_the_same_masks(
    tmp_path: Path, checkpoint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        scene(tmp_path / "in" / f"{number}.tif", (100 + 7 * number, 90))
    (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0")
    alone = tmp_path / "alone"
    with pytest.raises(ValueError, match=r"1 of 6 files could not be predicted:\n.*broken\.tif"):
        predict_files(checkpoint, str(tmp_path / "in"), str(alone), batch_size=4)
    with pytest.raises(ValueError, match=r"1 of 6 files could not be predicted:\n.*broken\.tif"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), processes=2, batch_size=1)
    assert f"5 masks in {tmp_path / 'out'}" in capfd.readouterr().out
    for number in range(5):
        assert np.array_equal(read(tmp_path / "out" / f"{number}.tif"), read(alone / f"{number}.tif"))
    lines = (tmp_path / "out" / ".predicted.jsonl").read_text().splitlines()
    assert len(lines) == 6  # each once


@pytest.mark.slow
def test_a_command_killed_at_any_moment_goes_on(tmp_path: Path, checkpoint: str) -> None:
    file = scene(tmp_path / "in" / "a.tif", (1500, 400))
    (expected,) = predict_files(checkpoint, str(file), str(tmp_path / "whole"))
    script = Path(segline.__file__).parents[1] / "predict.py"
    command = [sys.executable, str(script), f"checkpoint={checkpoint}", f"input={file}", f"output={tmp_path / 'out'}"]
    rng, kills = np.random.default_rng(0), 0
    while (process := subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)).poll() is None:
        claim = tmp_path / "out" / ".a.tif.claim"
        while process.poll() is None and not claim.exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5))
        if kills < 4 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if (tmp_path / "out" / "a.tif").exists():
            break
    assert kills
    assert np.array_equal(read(tmp_path / "out" / "a.tif"), read(expected))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".predicted.jsonl", "a.tif"]


@pytest.mark.parametrize("change", ["the image", "the folder"])
def test_what_a_kill_left_of_another_image_is_not_gone_on_with(tmp_path: Path, checkpoint: str, change: str) -> None:
    file, other = scene(tmp_path / "in" / "a.tif", (300, 130)), scene(tmp_path / "other" / "a.tif", (300, 130))
    (expected,) = predict_files(checkpoint, str(other), str(tmp_path / "whole"))
    predict_until_killed(checkpoint, str(file), str(tmp_path / "out"))
    if change == "the image":
        shutil.copy(other, file)
        other = file
    (mask,) = predict_files(checkpoint, str(other), str(tmp_path / "out"))
    assert np.array_equal(read(mask), read(expected))


def test_links_are_predicted_under_their_own_names_and_broken_ones_stop_nobody(tmp_path: Path, checkpoint: str) -> None:
    scene(tmp_path / "store" / "one.tif")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").symlink_to(tmp_path / "store" / "one.tif")
    (tmp_path / "in" / "b.tif").symlink_to(tmp_path / "store" / "none.tif")
    scene(tmp_path / "in" / "c.tif")
    with pytest.raises(ValueError, match=r"1 of 3 files could not be predicted:\n  .*b\.tif"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["a.tif", "c.tif"]


def test_what_a_killed_call_for_more_has_left_is_removed_by_one_for_less(tmp_path: Path, checkpoint: str) -> None:
    file = scene(tmp_path / "in" / "a.tif")
    predict_until_killed(checkpoint, str(file), str(tmp_path / "out"), also=["probs"])
    predict_files(checkpoint, str(file), str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".predicted.jsonl", "a.tif"]


def test_pictures_of_overlapping_classes_never_lie_over_another_mask() -> None:
    files = [Path("in/a.png"), Path("in/a_core.png")]
    with pytest.raises(ValueError, match=r"would both be out/a_core\.png"):
        plan_outputs(files, Path("out"), classes=["whole", "core"])


def test_a_fault_of_any_kind_is_the_files_own(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tif", "b.tif"):
        scene(tmp_path / "in" / name)
    predict = worker.Worker._predict

    def strange(self: worker.Worker, file: Path, *rest: Any) -> None:
        if file.name == "a.tif":
            raise RuntimeError("a network of the user's fell over")
        predict(self, file, *rest)

    monkeypatch.setattr(worker.Worker, "_predict", strange)
    with pytest.raises(ValueError, match=r"a\.tif: RuntimeError: a network of the user's fell over"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"))
    assert (tmp_path / "out" / "b.tif").exists()


def test_a_fault_in_an_extra_is_the_files_own(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tif", "b.tif"):
        scene(tmp_path / "in" / name)
    write = worker.write_polygons

    def strange(mask: Path, *rest: Any) -> None:
        if mask.name == "a.tif":
            raise IndexError("no such vertex")
        write(mask, *rest)

    monkeypatch.setattr(worker, "write_polygons", strange)
    with pytest.raises(ValueError, match=r"1 of 2 .*\n.*a\.gpkg: .* written \(IndexError: no such vertex\)$") as raised:
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), also=["gpkg"])
    assert "room" not in str(raised.value)
    assert (tmp_path / "out" / "b.gpkg").exists()


def test_a_mask_that_a_killed_call_has_replaced_is_not_taken_for_the_earlier_calls(
    tmp_path: Path, checkpoint: str
) -> None:
    file, out = scene(tmp_path / "in" / "a.tif"), tmp_path / "out"
    (mask,) = predict_files(checkpoint, str(file), str(out))
    expected = read(mask)

    def killed(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", killed)
        with pytest.raises(Killed):
            predict_files(checkpoint, str(file), str(out), tta=["flips"])
    assert not np.array_equal(read(mask), expected)
    predict_files(checkpoint, str(file), str(out))
    assert np.array_equal(read(mask), expected)
    assert len((out / ".predicted.jsonl").read_text().splitlines()) == 3


def test_settings_that_change_no_mask_make_none_anew(tmp_path: Path, checkpoint: str) -> None:
    file, out = scene(tmp_path / "in" / "a.tif"), tmp_path / "out"
    (mask,) = predict_files(checkpoint, str(file), str(out), also=["probs", "entropy"])
    before = mask.stat().st_mtime_ns
    predict_files(checkpoint, str(file), str(out), also=["entropy", "probs"], batch_size=1, trust=["mine"])
    assert mask.stat().st_mtime_ns == before


def test_what_kills_have_left_in_folders_below_is_removed(tmp_path: Path, checkpoint: str) -> None:
    for name in ("x", "y"):
        pictures(tmp_path / "in", f"{name}/a.png")
    left = tmp_path / "out" / "x" / f".{'0' * 32}.png"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (0, 0))
    with pytest.raises(ValueError, match="2 of 2 files could not"):  # which have one band more
        predict_files(checkpoint, str(tmp_path / "in" / "*" / "*.png"), str(tmp_path / "out"))
    assert not left.exists()


def test_a_checkpoint_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"weights")
    first, now = digest(path), path.stat()
    path.write_bytes(b"changed")
    os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert digest(path) == first  # it looks the same
    path.write_bytes(b"changed, and longer")
    assert digest(path) != first


FULL = """
import resource, sys
from pathlib import Path
from segline.inference.predict import predict_files
from segline.inference.predictor import Settings
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), -1))
predict_files(sys.argv[2], sys.argv[3], Settings(sys.argv[1], also=sys.argv[5:], cog="probs" in sys.argv[5:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("also", "limit"), [([], 9_000), (["gpkg"], 60_000), (["geojson"], 60_000), (["probs"], 300_000)]
)
def test_a_disk_that_fills_while_the_file_is_written_leaves_no_half_one(
    tmp_path: Path, checkpoint: str, also: list[str], limit: int
) -> None:
    """The limit of a file's size stands for the disk's; its reservation is as large as the scratch."""
    file = scene(tmp_path / "in" / "a.tif", (300, 290))
    limit = max(limit, 300 * 290) if also else limit
    environment = {**os.environ, "PYTHONPATH": str(Path(segline.__file__).parents[1])}
    arguments = [checkpoint, str(file), str(tmp_path / "out"), str(limit), *also]
    done = subprocess.run([sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode
    assert "the same command goes on with it when there is room" in done.stderr
    assert not [path for path in (tmp_path / "out").glob("[!.]*") if path.suffix in (".gpkg", ".geojson")]
    (mask,) = predict_files(checkpoint, str(file), str(tmp_path / "out"), also=also)
    (expected,) = predict_files(checkpoint, str(file), str(tmp_path / "whole"))
    assert np.array_equal(read(mask), read(expected))


@pytest.mark.slow
def test_jobs_of_hydras_launchers_share_the_files(tmp_path: Path, checkpoint: str) -> None:
    for number in range(3):
        scene(tmp_path / "in" / f"{number}.tif")
    script = Path(segline.__file__).parents[1] / "predict.py"
    asked = [f"checkpoint={checkpoint}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    command = [sys.executable, str(script), "-m", "part=1,2", *asked]
    # Two launchers at once, as a cluster's scheduler would start their jobs.
    jobs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert all("#1 : part=2" in text for text in said)
    assert len((tmp_path / "out" / ".predicted.jsonl").read_text().splitlines()) == 3  # each once
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["0.tif", "1.tif", "2.tif"]
    assert not (tmp_path / "multirun.yaml").exists()


@pytest.mark.slow
def test_a_process_that_dies_is_said_by_the_exit_code(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        scene(tmp_path / "in" / f"{number}.tif")
    monkeypatch.setenv("PYTHONOPTIMIZE", "x")  # an interpreter that does not start
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(ValueError, match="2 processes ended before its time"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), processes=2)
