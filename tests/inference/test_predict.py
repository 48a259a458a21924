import errno
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from tiny import UNET, Array, make_card, make_network, pictures, predict_files, save

from segline import checkpoints
from segline.card import Card
from segline.inference.ensemble import Ensemble, Member
from segline.inference.network import build_network, on_arrays
from segline.inference.plan import Tiling, choose_tiling
from segline.inference.tiled import predict_tiles
from segline.io.normalize import Normalize
from segline.io.open import open_image
from segline.io.source import whole
from segline.models.attention_unet import AttentionUNet
from segline.models.residual_unet import ResidualUNet
from segline.models.smp import SMP
from segline.models.unet import UNet
from segline.models.unet_2015 import UNet2015
from segline.tiling import tiles

RNG = np.random.default_rng(0)
PLACE = Affine(1.9, 0.4, 733000.0, 0.4, -1.9, 3725000.0)


def decide(card: Card, network: UNet, path: Path) -> np.ndarray:
    """The decision on the whole image at once; its sizes and those of tiles are multiples of the network's stride."""
    source = open_image([path], bands=card.bands)
    image = Normalize(**card.normalize)(source.read(whole(source.shape)))
    with torch.inference_mode():
        logits = network(torch.from_numpy(image)[None])[0]
    inside = logits.numpy()
    assert min(np.bincount(inside.argmax(0).ravel(), minlength=len(inside))) > 20
    return inside.argmax(0)


def share(got: np.ndarray, expected: np.ndarray) -> float:
    """Of pixels that are the same; rounding may turn one that hangs between two classes."""
    assert got.shape == expected.shape
    return float((got == expected).mean())


def test_pictures_become_palette_pngs_under_their_own_names(tmp_path: Path) -> None:
    card = make_card(3)
    network = make_network(card)
    (tmp_path / "in").mkdir()
    for name in ("one.png", "two.jpg"):
        smooth = Image.fromarray(RNG.integers(0, 256, (8, 9, 3)).astype(np.uint8)).resize((158, 84))
        smooth.save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    written = predict_files(save(tmp_path / "best.ckpt", card, network), str(tmp_path / "in"), str(tmp_path / "out"))
    assert written == [tmp_path / "out" / "one.png", tmp_path / "out" / "two.png"]
    assert sorted((tmp_path / "out").glob("[!.]*")) == written
    for name, path in zip(("one.png", "two.jpg"), written, strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert share(np.asarray(picture), decide(card, network, tmp_path / "in" / name)) > 0.999


def test_a_geotiff_keeps_its_place_its_chosen_bands_and_its_holes(tmp_path: Path) -> None:
    card = make_card(2, bands=[3, 1])
    network = make_network(card)
    bands = np.kron(RNG.integers(0, 255, (3, 8, 10)), np.ones((1, 8, 8))).astype(np.float32)
    bands[:, 20:30, 5:25] = -9999
    bands[0, 40:, 40:] = -9999  # of one band only: the other still tells something
    path = tmp_path / "scene.v2.tif"
    profile = {"driver": "GTiff", "count": 3, "dtype": "float32", "crs": "EPSG:32616", "transform": PLACE}
    with rasterio.open(path, "w", height=64, width=80, nodata=-9999, **profile) as file:
        file.write(bands)
    (written,) = predict_files(save(tmp_path / "best.ckpt", card, network), str(path), str(tmp_path / "out"))
    assert written == tmp_path / "out" / "scene.v2.tif"
    expected = decide(card, network, path)
    expected[20:30, 5:25] = 255
    with rasterio.open(written) as file:
        assert (file.crs.to_epsg(), file.count, file.nodata) == (32616, 1, 255)
        assert file.transform.almost_equals(PLACE)
        assert share(file.read(1), expected) > 0.999


def test_a_nifti_keeps_its_affine_and_axes(tmp_path: Path) -> None:
    card = make_card(1, dims=3, normalize={"scope": "case"})
    network = make_network(card)
    affine = np.array([[0, -2, 0, 7], [-1, 0, 0, 5], [0, 0, 3, -4], [0, 0, 0, 1.0]])
    voxels = np.kron(RNG.integers(0, 2000, (4, 5, 4)), np.ones((8, 8, 8))).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    run = tmp_path / "run"
    save(run / checkpoints.BEST, card, network)
    (written,) = predict_files(str(run), str(tmp_path / "*.nii.gz"), str(tmp_path / "out"))
    assert written == tmp_path / "out" / "a.nii.gz"
    mask = nib.load(written)
    assert np.array_equal(mask.affine, affine)
    values = voxels.astype(np.float32)
    whole_card = make_card(
        1, dims=3, normalize={"scope": "dataset", "mean": [float(values.mean())], "std": [float(values.std())]}
    )
    expected = decide(whole_card, network, tmp_path / "a.nii.gz")
    assert share(nib.as_closest_canonical(mask).get_fdata().transpose(2, 1, 0), expected) > 0.999


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    card = make_card(3)
    return save(tmp_path / "best.ckpt", card, make_network(card))


def test_files_of_equal_names_in_several_folders_are_kept_apart(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path / "set", "Tile 1/images/part.png", "Tile 2/images/part.png")
    written = predict_files(checkpoint, str(tmp_path / "set" / "*" / "images" / "*.png"), str(tmp_path / "out"))
    assert written == [tmp_path / "out" / f"Tile {k}" / "images" / "part.png" for k in (1, 2)]
    assert all(path.is_file() for path in written)


def test_files_whose_masks_would_have_one_name_are_refused(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path / "in", "a.png", "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png would both be .*a\.png"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"))


@pytest.mark.parametrize("output", ["in", "in/../in", "link"])
def test_the_folder_of_the_input_is_refused_as_output(tmp_path: Path, checkpoint: str, output: str) -> None:
    pictures(tmp_path / "in", "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = (tmp_path / "in" / "a.png").read_bytes()
    with pytest.raises(ValueError, match=r"folder of the input.*overwritten"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / output))
    assert (tmp_path / "in" / "a.png").read_bytes() == before


def test_no_mask_is_written_over_another_input(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path, "in/a.png", "in/out/a.png")
    before = (tmp_path / "in" / "out" / "a.png").read_bytes()
    with pytest.raises(ValueError, match="overwritten"):
        predict_files(checkpoint, str(tmp_path / "in" / "**" / "*.png"), str(tmp_path / "in" / "out"))
    assert (tmp_path / "in" / "out" / "a.png").read_bytes() == before


def test_files_with_faults_are_said_at_the_end_and_the_others_are_done(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path / "in", "a.png")
    pictures(tmp_path / "in", "grey.png", bands=1)
    (tmp_path / "in" / "broken.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:45])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "in" / "volume.nii")
    with pytest.raises(ValueError, match="3 of 4 files could not be predicted") as raised:
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"))
    text = str(raised.value)
    assert "grey.png has 1 band, but the network was trained on 3 (tiny)" in text
    assert "broken.png is not a whole PNG" in text
    assert "volume.nii has 3 dimensions, but the network was trained on 2 (tiny)" in text
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["a.png"]


def test_the_same_command_does_what_is_left(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "in", "a.png", "b.png", "c.png")

    def predict(**how: Any) -> set[str]:
        """Names of the masks that are new."""
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
        written = predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), **how)
        assert [path.name for path in written] == ["a.png", "b.png", "c.png"]
        return {path.name for path in written if before.get(path) != path.stat().st_mtime_ns}

    assert predict() == {"a.png", "b.png", "c.png"}
    assert predict() == set()
    assert "3 of 3 files done already" in capsys.readouterr().out
    (tmp_path / "out" / "b.png").unlink()
    pictures(tmp_path / "in", "c.png")  # written anew
    assert predict() == {"b.png", "c.png"}
    assert predict(blend="linear") == {"a.png", "b.png", "c.png"}
    card = make_card(3)
    save(Path(checkpoint), card, UNet(3, 3, channels=[4, 6], norm="none"))
    assert predict(blend="linear") == {"a.png", "b.png", "c.png"}


def test_what_other_settings_left_beside_masks_is_named_as_long_as_it_lies_there(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "in", "a.png", "b.png")
    folders = (str(tmp_path / "in"), str(tmp_path / "out"))
    predict_files(checkpoint, *folders, also=["probs", "overlay"])
    predict_files(checkpoint, *folders)  # of the same settings: nothing to do, and nothing that doesn't belong
    said = capsys.readouterr()
    assert "2 of 2 files done already" in said.out
    assert "warning" not in said.err
    for _ in range(2):
        predict_files(checkpoint, *folders, also=["overlay"], blend="linear")
        said = capsys.readouterr().err
        assert "a_probs.tif and 1 more were made with other settings" in said
        assert "adding probs to also=" in said
    for path in (tmp_path / "out").glob("*_probs.tif"):
        path.unlink()
    predict_files(checkpoint, *folders, also=["overlay"], blend="linear")
    assert "warning" not in capsys.readouterr().err


def test_a_mask_whose_name_is_that_of_an_extra_is_no_stray(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "in", "a.png", "a_overlay.png")
    for blend in ("cores", "linear"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), blend=blend)
    assert "warning" not in capsys.readouterr().err


def test_a_full_disk_ends_it_and_leaves_nothing_half_written(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "in", "a.png", "b.png")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ValueError, match=r"a\.png: the disk is full; the same command goes on"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "out"))
    assert list((tmp_path / "out").glob("[!.]*")) == []


# How tiles are put together


@pytest.mark.parametrize("make", [UNet, AttentionUNet])
def test_exact_tiles_give_what_the_whole_image_would(make: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    network = make(2, 3, channels=[4, 6, 8]).eval()
    card = make_card(2, window=[16, 16])
    call = on_arrays(network, torch.device("cpu"), "32-true")
    tiling = choose_tiling(Ensemble([Member(card, call, network.stride)]), "exact", None, None)
    image = RNG.normal(size=(2, 211, 175)).astype(np.float32)
    source = Array(image)
    normalize = Normalize("dataset", [0, 0], [1, 1])

    def difference(tiling: Tiling) -> float:
        logits = np.full((3, *source.shape), np.nan, np.float32)
        for place, values in predict_tiles(call, source, normalize, **asdict(tiling)):
            logits[(slice(None), *place)] = values
        return float(np.abs(logits - call(image[None])[0]).max())

    assert len(tiles(source.shape, tiling.window, tiling.margin, tiling.multiple)) > 8
    assert difference(tiling) < 1e-4
    less = [margin - network.stride for margin in tiling.margin]
    assert difference(replace(tiling, margin=less)) > 1e-4  # the measured field is not too large
    assert difference(replace(tiling, window=[w + 1 for w in tiling.window])) > 1e-4  # off the network's grid
    assert difference(replace(tiling, multiple=None)) > 1e-4  # the last tiles padded otherwise than the whole image


def test_exact_tiles_end_where_the_network_pads_each_axis_to() -> None:
    """Few slices of a volume are filled up less than its planes, and what fills them up by hand changes what is said of them."""
    torch.manual_seed(0)
    network = ResidualUNet(
        1, 2, spatial_dims=3, channels=[4, 5], num_blocks=[1, 1], strides=[1, [1, 2, 2]], norm="batch"
    )
    for parameter in network.parameters():  # as learnt: of zeros something else is made
        torch.nn.init.normal_(parameter, std=0.3)
    call = on_arrays(network.eval(), torch.device("cpu"), "32-true")
    tiling = choose_tiling(
        Ensemble([Member(make_card(1, 3, window=[8, 8, 8]), call, network.stride)]), "exact", None, None
    )
    assert tiling.multiple == [1, 2, 2]
    image = RNG.normal(size=(1, 27, 17, 31)).astype(np.float32)
    whole_logits = call(image[None])[0]

    def difference(tiling: Tiling) -> float:
        pieces = predict_tiles(call, Array(image), Normalize("dataset", [0], [1]), **asdict(tiling))
        return max(float(np.abs(values - whole_logits[(slice(None), *place)]).max()) for place, values in pieces)

    assert difference(tiling) < 1e-4 * np.abs(whole_logits).max()
    assert difference(replace(tiling, multiple=[2, 2, 2])) > 1e-3 * np.abs(whole_logits).max()


def test_a_network_that_mirrors_its_borders_has_no_exact_tiles() -> None:
    """Tiles at the far ends are filled up with zeros, and mirrored borders would show those instead of the image."""
    torch.manual_seed(0)
    network = UNet2015(2, 3, channels=[4, 6, 8]).eval()
    call = on_arrays(network, torch.device("cpu"), "32-true")
    with pytest.raises(ValueError, match="does otherwise at their far ends, as by mirroring; set blend=gaussian"):
        choose_tiling(Ensemble([Member(make_card(2, window=[16, 16]), call, network.stride)]), "exact", None, None)


@pytest.mark.slow
def test_exact_tiles_of_a_network_of_smp_give_what_the_whole_image_would() -> None:
    torch.manual_seed(0)
    network = SMP(3, 2, architecture="unet", encoder_name="resnet18").eval()
    call = on_arrays(network, torch.device("cpu"), "32-true")
    member = Member(make_card(3, window=[64, 64]), call, network.stride)
    tiling = choose_tiling(Ensemble([member]), "exact", None, None)
    assert all(255 <= margin <= 320 for margin in tiling.margin)
    image = RNG.normal(size=(3, 745, 790)).astype(np.float32)
    source, whole_logits = Array(image), call(image[None])[0]
    tiled = np.full_like(whole_logits, np.nan)
    pieces = predict_tiles(call, source, Normalize("dataset", [0] * 3, [1] * 3), batch_size=1, **asdict(tiling))
    for place, values in pieces:
        tiled[(slice(None), *place)] = values
    assert len(tiles(source.shape, tiling.window, tiling.margin, tiling.multiple)) > 1
    np.testing.assert_allclose(tiled, whole_logits, atol=1e-4)


def test_a_network_that_looks_at_everything_has_no_exact_tiles() -> None:
    network = UNet(1, 2, channels=[4, 6], norm="instance").eval()
    call = on_arrays(network, torch.device("cpu"), "32-true")
    with pytest.raises(ValueError, match=r"looks at more than 2048 pixels.*instance normalisation.*set blend=gaussian"):
        choose_tiling(Ensemble([Member(make_card(1), call, network.stride)]), "exact", None, None)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"blend": "exact", "window": [32, 32]}, r"needs \[24, 24\] pixels of context .*window=\[52, 52\] or larger"),
        ({"blend": "exact", "overlap": 0.5}, "leave overlap out"),
        ({"blend": "cubic"}, "expected one of cores, linear, gaussian, exact"),
        ({"overlap": 1.0}, "expected a share of the window from 0 to less than 1"),
        ({"window": [16]}, r"window is \[16\]; expected 2 sizes, such as \[48, 48\]"),
    ],
)
def test_tiles_that_cannot_be_are_answered_with_what_can(how: dict[str, Any], said: str) -> None:
    network = UNet(1, 2, channels=[4, 6, 8]).eval()
    call = on_arrays(network, torch.device("cpu"), "32-true")
    with pytest.raises(ValueError, match=said):
        choose_tiling(
            Ensemble([Member(make_card(1), call, network.stride)]),
            **{"blend": "cores", "window": None, "overlap": None, **how},
        )


def test_tiles_are_those_of_validation_unless_said_otherwise() -> None:
    def tiling(*how: Any) -> Tiling:
        return choose_tiling(Ensemble([Member(make_card(1), lambda images: images)]), *how)

    assert tiling("cores", None, None) == Tiling([48, 48], [12, 12])
    assert tiling("cores", [96, 64], None) == Tiling([96, 64], [24, 16])
    assert tiling("gaussian", None, None) == Tiling([48, 48], [12, 12], "gaussian")
    assert tiling("linear", None, 0.25) == Tiling([48, 48], [6, 6], "linear")


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path: Path, checkpoint: str) -> None:
    pictures(tmp_path / "in", "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output.*file.*another folder"):
        predict_files(checkpoint, str(tmp_path / "in"), str(tmp_path / "file"))


def test_what_is_refused_leaves_no_folder(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", "a.png")
    folders = (str(tmp_path / "in"), str(tmp_path / "out" / "masks"))
    with pytest.raises(ValueError, match="cog=true is how TIFFs are written"):
        predict_files(checkpoint, *folders, cog=True)
    with pytest.raises(ValueError, match="disagreement is that of several"):
        predict_files(checkpoint, *folders, also=["disagreement"])
    assert not (tmp_path / "out").exists()
    assert "masks in" not in capsys.readouterr().out
    predict_files(checkpoint, *folders, also=["probs"], cog=True)  # of photographs measures are TIFFs


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nowhere", "no such file or folder"), ("*.tif", "no file matches"), (".", "none of its files ends in .png")],
)
def test_an_input_without_images_is_refused(tmp_path: Path, checkpoint: str, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"input=.*: {message}"):
        predict_files(checkpoint, str(tmp_path / pattern), str(tmp_path / "out"))


# What a checkpoint of a stranger may name


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, r"os\.system.*trust=\[os\]"),
        ({"_target_": "torch.nn.Linear"}, r"trust=\[torch\]"),
        ({"_target_": "segline.modelsevil.Net"}, "not segline's own"),
        ({"_target_": "segline.run.train"}, "not segline's own"),
        ({"_target_": "eval"}, "not segline's own"),
        ({"_target_": "segline.models.unet.CONV"}, "not a torch.nn.Module"),
        ({"_target_": "segline.models.unet.check_spatial_dims"}, "not a torch.nn.Module"),
        ({"_target_": "segline.models.unet.Nothing"}, "not a torch.nn.Module"),
        ({"_target_": "segline.models.nothing.Net"}, "cannot be imported"),
        ({**UNET, "norm": {"_target_": "os.system"}}, r"arguments that name code \(norm\)"),
        ({**UNET, "channels": [{"a": {"_target_": "os.system"}}]}, r"arguments that name code \(channels\)"),
        ({**UNET, "in_channels": 1, "num_classes": 2, "width": 3}, "do not fit .*UNet.*width"),
    ],
)
def test_a_network_that_is_not_ours_is_not_built(network: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(make_card(1, network=network))


def test_a_package_that_is_trusted_may_bring_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "import torch\nclass Mine(torch.nn.Conv2d):\n"
        "    def __init__(self, in_channels, num_classes):\n        super().__init__(in_channels, num_classes, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    card = make_card(1, network={"_target_": "my_networks.Mine", "in_channels": 1, "num_classes": 3})
    with pytest.raises(ValueError, match=r"trust=\[my_networks\]"):
        build_network(card)
    assert "my_networks" not in sys.modules  # not even imported
    assert type(build_network(card, trust=["my_networks"])).__name__ == "Mine"


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "a.png")
    path = save(tmp_path / "best.ckpt", make_card(3, classes=4), make_network(make_card(3)))
    with pytest.raises(ValueError, match="weights do not fit the network of its card"):
        predict_files(path, str(tmp_path / "in"), str(tmp_path / "out"))


def test_the_network_is_built_from_the_card_alone() -> None:
    card = make_card(2, dims=3)
    ours, theirs = build_network(card).state_dict(), make_network(card).state_dict()
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}
