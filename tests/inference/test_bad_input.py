"""What a prediction makes of files and checkpoints that are not as they should be: done, or refused by name and remedy."""

import os
import shutil
import socket
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from tiny import UNET, make_card, make_network, pictures, predict_files, save

from segline import checkpoints
from segline.inference.ensemble import Ensemble
from segline.inference.network import build_network

RNG = np.random.default_rng(0)
PLACE = Affine(1.9, 0.4, 733000.0, 0.4, -1.9, 3725000.0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    card = make_card(3)
    return save(tmp_path / "best.ckpt", card, make_network(card))


@pytest.fixture
def checkpoint_3d(tmp_path: Path) -> str:
    card = make_card(1, dims=3)
    return save(tmp_path / "3d.ckpt", card, make_network(card))


def raster(path: Path, bands: int = 3, shape: tuple[int, int] = (60, 70), **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(1, 255, (bands, *shape)).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", count=bands, height=shape[0], width=shape[1], dtype="uint8", **profile
        ) as file:
            file.write(values)
    return path


def volume(path: Path, shape: tuple[int, ...] = (9, 9, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(RNG.integers(0, 200, shape).astype(np.int16), np.eye(4)), path)
    return path


def faults(checkpoint: str, folder: Path, done: list[str]) -> dict[str, str]:
    """What is said of the files of a folder that are not done."""
    with pytest.raises(ValueError, match="files could not be predicted") as raised:
        predict_files(checkpoint, str(folder), str(folder.parent / "out"))
    assert [path.name for path in sorted((folder.parent / "out").glob("[!.]*"))] == done
    assert list((folder.parent / "out").glob(".*.partial")) == []
    lines = [line.strip() for line in str(raised.value).splitlines()[1:]]
    return {Path(line.split(" ")[0]).name: line for line in lines}


# Files


def test_files_of_fewer_or_more_bands_are_refused_with_what_would_fit(tmp_path: Path, checkpoint: str) -> None:
    for bands in (2, 3, 6):
        raster(tmp_path / "in" / f"{bands}.tif", bands)
    said = faults(checkpoint, tmp_path / "in", ["3.tif"])
    assert "2 bands, but the network was trained on 3 (tiny); give it files with all of those 3" in said["2.tif"]
    assert "or a network that was trained on 2" in said["2.tif"]
    assert "6 bands, but the network was trained on 3 (tiny); give it files with only those 3" in said["6.tif"]
    assert "or a network that was trained on 6" in said["6.tif"]


def test_a_file_without_a_band_that_was_chosen_in_training_is_refused(tmp_path: Path) -> None:
    card = make_card(2, bands=[4, 1])
    path = save(tmp_path / "best.ckpt", card, make_network(card))
    raster(tmp_path / "in" / "3.tif", 3)
    raster(tmp_path / "in" / "5.tif", 5)
    said = faults(path, tmp_path / "in", ["5.tif"])
    assert "has 3 bands, but the network was trained on bands [4, 1] (tiny)" in said["3.tif"]


def test_a_raster_without_a_coordinate_system_has_a_mask_without_one(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, profile in {"nowhere": {}, "placed": {"transform": PLACE}}.items():
        (mask,) = predict_files(checkpoint, str(raster(tmp_path / "in" / f"{name}.tif", **profile)), "out")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(mask) as file:
                assert (file.crs, file.shape) == (None, (60, 70))
                assert file.transform.almost_equals(profile.get("transform", Affine.identity()))
    assert "arning" not in capsys.readouterr().err


def test_a_rotated_transform_is_kept(tmp_path: Path, checkpoint: str) -> None:
    turned = Affine.translation(733000, 3725000) @ Affine.rotation(30) @ Affine.scale(2, -2)
    file = raster(tmp_path / "in" / "a.tif", transform=turned, crs="EPSG:32616")
    (mask,) = predict_files(checkpoint, str(file), "out")
    with rasterio.open(mask) as written:
        assert written.transform.almost_equals(turned)
        assert written.crs.to_epsg() == 32616


def test_empty_truncated_and_misnamed_files_are_named_with_a_remedy(tmp_path: Path, checkpoint: str) -> None:
    folder = tmp_path / "in"
    pictures(folder, "good.png", "cut.jpg", "a.png", "b.png")
    raster(folder / "cut.tif")
    raster(folder / "tiff.tif").rename(folder / "tiff.png")
    volume(folder / "v.nii").rename(folder / "nifti.tif")
    (folder / "a.png").rename(folder / "png.tif")
    Image.open(folder / "b.png").save(folder / "jpeg.png", format="JPEG")  # either is read under either name
    (folder / "text.png").write_text("hello")
    (folder / "empty.tif").touch()
    (folder / "b.png").write_bytes(b"")
    for name in ("cut.jpg", "cut.tif"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    said = faults(checkpoint, folder, ["good.png", "jpeg.png"])
    expected = {
        "b.png": "is empty (0 bytes); export or copy it again",
        "empty.tif": "is empty (0 bytes); export or copy it again",
        "cut.jpg": "is not a whole PNG or JPEG file",
        "cut.tif": "it is truncated or damaged: export or copy it again",
        "nifti.tif": "is a NIfTI volume by its content, not what its name says; rename it to end in .nii",
        "png.tif": "is a PNG picture by its content, not what its name says; rename it to end in .png",
        "text.png": "is not a whole PNG or JPEG file",
        "tiff.png": "is a TIFF by its content, not what its name says; rename it to end in .tif",
    }
    assert said.keys() == expected.keys()
    assert all(text in said[name] for name, text in expected.items())


def test_a_virtual_raster_in_disguise_reads_no_foreign_file_and_asks_no_network(tmp_path: Path) -> None:
    card = make_card(1)
    path = save(tmp_path / "best.ckpt", card, make_network(card))
    secret = raster(tmp_path / "secret.tif", 1)
    asked: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            asked.append(server.accept())

        threading.Thread(target=listen, daemon=True).start()
        address = f"/vsicurl/http://127.0.0.1:{server.getsockname()[1]}/a.tif"
        (tmp_path / "in").mkdir()
        for name, source in {"file.tif": secret, "net.tif": address}.items():
            (tmp_path / "in" / name).write_text(
                '<VRTDataset rasterXSize="70" rasterYSize="60"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
                f"<SourceFilename>{source}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
            )
        said = faults(path, tmp_path / "in", [])
        assert asked == []
    for name in ("file.tif", "net.tif"):
        assert "is a virtual raster (VRT), which refers to other files, and is not opened" in said[name]
        assert f"gdal_translate -of GTiff {name}" in said[name]


def test_a_nifti_of_four_dimensions_is_refused(tmp_path: Path, checkpoint_3d: str) -> None:
    volume(tmp_path / "in" / "series.nii.gz", (9, 8, 7, 2))
    volume(tmp_path / "in" / "one.nii.gz")
    said = faults(checkpoint_3d, tmp_path / "in", ["one.nii.gz"])
    assert "shape (9, 8, 7, 2); expected a volume of three dimensions: split series" in said["series.nii.gz"]


@pytest.mark.parametrize("how", [{}, {"blend": "gaussian", "tta": ["flips", 0.5]}, {"blend": "exact"}])
def test_an_image_of_one_pixel_is_predicted(
    tmp_path: Path, checkpoint: str, checkpoint_3d: str, how: dict[str, Any]
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "in" / "a.png")
    raster(tmp_path / "in" / "b.tif", shape=(1, 1))
    picture, place = predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), **how)
    (voxel,) = predict_files(checkpoint_3d, str(volume(tmp_path / "c.nii.gz", (1, 1, 1))), str(tmp_path / "out"), **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(place) as file, Image.open(picture) as image:
            assert (file.shape, image.size, nib.load(voxel).shape) == ((1, 1), (1, 1), (1, 1, 1))
            assert file.read().max() < 3


def test_a_raster_without_any_data_has_a_mask_without_any(tmp_path: Path, checkpoint: str) -> None:
    path, profile = tmp_path / "in.tif", {"driver": "GTiff", "count": 3, "dtype": "float32", "transform": PLACE}
    with rasterio.open(path, "w", height=100, width=90, nodata=-9999, **profile) as file:
        file.write(np.full((3, 100, 90), -9999, np.float32))
    (mask,) = predict_files(checkpoint, str(path), str(tmp_path / "out"), also=["probs"])
    with rasterio.open(mask) as file, rasterio.open(tmp_path / "out" / "in_probs.tif") as probs:
        assert (file.read() == 255).all()
        assert np.isnan(probs.read()).all()


# Folders


@pytest.mark.parametrize("pattern", ["set", "set/*.png", "set/**/*.png"])
def test_a_folder_of_masks_inside_that_of_the_images_is_no_input(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    pictures(tmp_path / "set", "a.png")
    if "**" in pattern:
        pictures(tmp_path / "set", "more/b.png")
    first = predict_files(checkpoint, pattern, "set/masks", also=["overlay"])
    asked: list[object] = []
    monkeypatch.setattr(Ensemble, "__call__", lambda _, images: asked.append(images))
    assert predict_files(checkpoint, pattern, "set/masks", also=["overlay"]) == first
    assert asked == []
    assert not (tmp_path / "set" / "masks" / "masks").exists()


def test_hidden_files_are_no_images(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path / "in", "a.png")
    (tmp_path / "in" / "._a.png").write_bytes(b"macOS's attributes")
    assert [path.name for path in predict_files(checkpoint, "in", "out")] == ["a.png"]


def test_what_another_process_has_just_made_is_no_input(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path, "set/a.png", "set/masks/a.png")
    (tmp_path / "set" / "masks" / ".a.png.claim").touch()  # no line of the journal yet
    assert [path.name for path in predict_files(checkpoint, "set/**/*.png", "set/masks")] == ["a.png"]


def test_inputs_among_the_results_are_refused(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path, "set/a.png", "set/more/b.png")
    before = (tmp_path / "set" / "more" / "b.png").read_bytes()
    with pytest.raises(ValueError, match=r"more/b\.png is an input and lies in output=set/more, .*name another folder"):
        predict_files(checkpoint, "set/**/*.png", "set/more")
    assert (tmp_path / "set" / "more" / "b.png").read_bytes() == before


def test_images_that_lie_below_the_output_may_be_predicted_again(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path, "set/a.png", "set/more/b.png")
    for _ in range(2):
        written = predict_files(checkpoint, "set/**/*.png", ".")
        assert [str(path) for path in written] == ["a.png", "more/b.png"]


# Checkpoints


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["CANARY"],)


def refusal(tmp_path: Path, path: Path) -> str:
    """What is said of a checkpoint; before it is said nothing is made."""
    pictures(tmp_path / "in", "a.png")
    with pytest.raises(ValueError, match=path.name) as raised:
        predict_files(str(path), str(tmp_path / "in"), str(tmp_path / "out"))
    assert list((tmp_path / "out").glob("[!.]*")) == []
    return str(raised.value)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "random", "text"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, checkpoint: str, damage: str) -> None:
    path, data = Path(checkpoint), Path(checkpoint).read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
    damaged = {"empty": b"", "cut": data[:middle], "flipped": flipped, "random": RNG.bytes(5000), "text": b"hello"}
    path.write_bytes(damaged[damage])
    said = refusal(tmp_path, path)
    assert "is damaged: the checksum" in said if damage == "flipped" else "truncated" in said
    assert "use another checkpoint of the run" in said


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    pictures(tmp_path / "in", "a.png")
    with pytest.raises(ValueError, match=r"no checkpoint .*run/best\.ckpt; expected a run folder of src/train\.py"):
        predict_files(str(tmp_path / "run"), str(tmp_path / "in"), str(tmp_path / "out"))


@pytest.mark.parametrize("where", ["state_dict", "card", "weight"])
def test_a_payload_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    card = make_card(3)
    weights: dict[str, Any] = {f"network.{name}": w for name, w in make_network(card).state_dict().items()}
    content: dict[str, Any] = {"card": card.to_dict(), "state_dict": weights}
    if where == "weight":
        weights["network.head.bias"] = Payload()
    else:
        content[where] = Payload()
    torch.save(content, tmp_path / "evil.ckpt")
    said = refusal(tmp_path, tmp_path / "evil.ckpt")
    assert "holds more than tensors and plain data, such as posix.mkdir, and is not read" in said
    assert not (tmp_path / "canary").exists()
    (tmp_path / "canary").mkdir()
    with pytest.raises(FileExistsError):  # unpickled it would have run
        torch.load(tmp_path / "evil.ckpt", weights_only=False)


def test_a_foreign_network_is_named_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_networks.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    card = make_card(3, network={"_target_": "evil_networks.Net", "in_channels": 3})
    said = refusal(tmp_path, Path(save(tmp_path / "x.ckpt", card, make_network(make_card(3)))))
    assert "network is evil_networks.Net, which is not segline's own; add trust=[evil_networks] if you trust" in said
    assert "evil_networks" not in sys.modules


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "the card is of version 2; this segline reads version 1; use the segline that wrote it"),
        ({"version": "1"}, "the card is of version '1'"),
        ({"window": None}, "the card lacks ['window']"),
        ({"labels": {}}, "the card's labels cannot be read"),
        ({"normalize": {"scope": "dataset", "mean": [1.0], "std": [1.0]}}, "takes 3 bands, but its normalize has 1"),
    ],
)
def test_a_card_of_another_version_or_with_gaps_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    card = {name: value for name, value in {**make_card(3).to_dict(), **change}.items() if value is not None}
    card = {"bands": None, "spacing_mm": None, **card}
    weights = {f"network.{name}": w for name, w in make_network(make_card(3)).state_dict().items()}
    checkpoints.write({"card": card, "state_dict": weights}, tmp_path / "x.ckpt")
    assert said in refusal(tmp_path, tmp_path / "x.ckpt")


def test_a_network_larger_than_its_weights_takes_no_memory(tmp_path: Path) -> None:
    card = make_card(3, network={**UNET, "in_channels": 3, "num_classes": 3, "channels": [10**6, 10**7]})
    said = refusal(tmp_path, Path(save(tmp_path / "x.ckpt", card, make_network(make_card(3)))))
    assert "weights do not fit the network of its card" in said
    assert "use another checkpoint" in said


@pytest.mark.parametrize("arguments", [{"channels": "wide"}, {"channels": []}, {"norm": 3}, {"spatial_dims": 7}])
def test_arguments_that_cannot_be_are_a_fault_of_the_checkpoint(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"arguments do not fit|expected"):
        build_network(make_card(3, network={**UNET, "in_channels": 3, "num_classes": 3, **arguments}))


@pytest.mark.parametrize("content", ["text", "random", "empty", "checkpoint"])
def test_an_onnx_file_that_is_none_is_refused(tmp_path: Path, checkpoint: str, content: str) -> None:
    path = tmp_path / "network.onnx"
    if content == "checkpoint":
        shutil.copy(checkpoint, path)
    else:
        path.write_bytes({"text": b"hello", "random": RNG.bytes(5000), "empty": b""}[content])
    assert "src/export.py" in refusal(tmp_path, path)
