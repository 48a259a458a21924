import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import set_external_data
from PIL import Image
from tiny import make_card, make_network, predict_files, save

from segline import checkpoints
from segline.card import Card
from segline.inference import export
from segline.inference.ensemble import Ensemble
from segline.inference.export import export_network
from segline.inference.members import open_member, read_card
from segline.inference.network import build_network
from segline.inference.onnx import CARD, WEIGHTS, digest, num_threads
from segline.inference.plan import choose_tiling
from segline.inference.predictor import calibration_path
from segline.inference.predictor import digest as file_digest
from segline.metrics.calibration import Calibration
from segline.models.unet import UNet

#: Each export takes seconds.
pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its ONNX file: an export takes seconds."""
    folder = tmp_path_factory.mktemp("exported")
    card = make_card(3)
    save(folder / "run" / checkpoints.BEST, card, make_network(card))
    export_network(str(folder / "run"), str(folder))
    return folder


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy of the ONNX file, alone."""
    return Path(shutil.copy(exported / "run.onnx", tmp_path / "model.onnx"))


def alter(path: Path, change: Callable[[Any], object]) -> None:
    """Change a model and let its checksum fit again."""
    model = onnx.load(path)
    change(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, said | {WEIGHTS: digest(model)})
    onnx.save(model, path)


def picture(path: Path) -> Path:
    Image.fromarray(RNG.integers(0, 256, (8, 9, 3)).astype(np.uint8)).resize((110, 61)).save(path)
    return path


# What is written


def test_masks_are_those_of_the_checkpoint(exported: Path, tmp_path: Path) -> None:
    image = str(picture(tmp_path / "a.png"))
    (ours,) = predict_files(str(exported / "run.onnx"), image, str(tmp_path / "onnx"))
    (theirs,) = predict_files(str(exported / "run"), image, str(tmp_path / "torch"), precision="32-true")
    assert len(np.unique(np.asarray(Image.open(ours)))) == 3
    assert ours.read_bytes() == theirs.read_bytes()


def test_calibration_comes_along_if_it_is_of_the_weights(
    exported: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(picture(tmp_path / "a.png"))
    with pytest.raises(
        ValueError, match=r"eval\.py checkpoint=.*model\.onnx calibrate=true, .* src/export\.py takes along"
    ):
        predict_files(str(model), image, str(tmp_path / "none"), calibrated=True)
    run = Path(shutil.copytree(exported / "run", tmp_path / "run"))
    fitted = Calibration(1.5, [0.9, 0.05, 0.05], "val", 10, file_digest(run / "best.ckpt"), 0.2, 0.1)
    fitted.save(calibration_path(run / "best.ckpt"))
    file = export_network(str(run), str(tmp_path / "calibrated.onnx"))
    (ours,) = predict_files(str(file), image, str(tmp_path / "onnx"), calibrated=True)
    (theirs,) = predict_files(str(run), image, str(tmp_path / "torch"), precision="32-true", calibrated=True)
    (plain,) = predict_files(str(file), image, str(tmp_path / "plain"))
    assert ours.read_bytes() == theirs.read_bytes() != plain.read_bytes()
    replace(fitted, checkpoint="0" * 64).save(calibration_path(run / "best.ckpt"))
    capsys.readouterr()
    export_network(str(run), str(tmp_path / "other.onnx"))
    assert "was fitted to other weights" in capsys.readouterr().out
    assert not (tmp_path / "other.calibration.json").exists()


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (31, 48), (65, 33)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_any_batch_and_size_gives_what_torch_gives(exported: Path, size: tuple[int, int], temperature: float) -> None:
    ours = open_member(exported / "run.onnx", device="cpu", temperature=temperature)
    theirs = open_member(
        exported / "run" / checkpoints.BEST, device="cpu", precision="32-true", temperature=temperature
    )
    for batch in (1, 3):
        images = RNG.normal(size=(batch, 3, *size)).astype(np.float32)
        np.testing.assert_allclose(ours.network(images), theirs.network(images), atol=1e-5)
        if batch == 3:  # one image says nothing of another
            np.testing.assert_allclose(ours.network(images)[:1], ours.network(images[:1]), atol=1e-6)


def test_the_card_lies_inside_and_beside_and_knows_the_stride(exported: Path) -> None:
    card = make_card(3, stride=2)
    assert read_card(exported / "run.onnx") == card
    assert json.loads((exported / "run.json").read_text()) == card.to_dict()
    assert sorted(path.name for path in exported.iterdir()) == ["run", "run.json", "run.onnx"]
    (value,) = onnx.load(exported / "run.onnx").graph.output
    assert [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]


def test_exact_tiles_are_those_of_the_checkpoint(exported: Path) -> None:
    members = [
        open_member(exported / name, device="cpu", precision="32-true") for name in ("run.onnx", "run/best.ckpt")
    ]
    ours, theirs = (choose_tiling(Ensemble([member]), "exact", None, None) for member in members)
    assert ours == theirs  # the field is measured by nan, which ONNX Runtime has to pass on as torch does


def test_prediction_loads_no_torch(model: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(SRC)!r})
        sys.argv[1:] = ["trainer=cpu", "checkpoint={model}", "input={image}", "output={tmp_path}/masks", "tta=[flips]"]
        from segline.cli import main
        main("predict")
        heavy = {{"torch", "pytorch_lightning", "segmentation_models_pytorch", "albumentations"}} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "a.png").is_file()


def test_threads_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, threads in (("3", 3), ("2,1", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert num_threads() == threads
    for asked in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert num_threads() == len(os.sched_getaffinity(0))


# What is refused at the export


def test_what_differs_from_torch_is_not_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = export._convert

    def tampered(network: Any, card: Card) -> bytes:
        with torch.no_grad():
            network.head.bias[1] += 0.01
            content = original(network, card)
            network.head.bias[1] -= 0.01
        return content

    monkeypatch.setattr(export, "_convert", tampered)
    with pytest.raises(
        ValueError, match=r"differs from torch by .*e-03 for images of 1 x 3 x 48 x 48; at most 1\.0e-04"
    ):
        export_network(str(exported / "run"), str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []
    assert "1 x 3 x 1 x 3" in capsys.readouterr().out
    export_network(str(exported / "run"), str(tmp_path / "out"), tolerance=0.1)


def test_weights_beyond_one_file_are_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"one ONNX file holds less than 2"):
        export_network(str(exported / "run"), str(tmp_path))


def test_a_name_of_another_format_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.pt, but what is written is ONNX; name a file that ends in \.onnx"):
        export_network(str(tmp_path / "no run"), str(tmp_path / "model.pt"))
    assert not list(tmp_path.iterdir())


def test_a_name_that_something_else_has_is_refused(exported: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"would overwrite .*metrics\.json"):
        export_network(str(exported / "run"), str(tmp_path / "metrics.onnx"))
    with pytest.raises(ValueError, match=r"model\.onnx is an ONNX file already"):
        export_network(str(model), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="there is no checkpoint nowhere"):
        export_network("nowhere", str(tmp_path / "out"))


# What is refused at the prediction


def swap_card(**change: Any) -> Callable[[Any], None]:
    def change_card(model: Any) -> None:
        card = make_card(3).to_dict() | change
        onnx.helper.set_model_props(model, {CARD: json.dumps(card)})

    return change_card


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.ClearField("metadata_props"), "holds no segline card; expected an ONNX file that"),
        (swap_card(version=99), "the card is of version 99"),
        (swap_card(window="large"), "the card's window is 'large'"),
        (swap_card(stride=-8), "the card's stride is -8"),
    ],
)
def test_a_model_without_a_card_of_ours_is_refused(model: Path, change: Callable[[Any], object], said: str) -> None:
    alter(model, change)
    with pytest.raises(ValueError, match=rf"model\.onnx:? .*{said}"):
        read_card(model)


@pytest.mark.parametrize("change", [{"window": [8, 8, 8], "margin": [1, 1, 1]}, {"labels": make_card(3, 2, 4).labels}])
def test_a_model_of_another_card_is_refused(model: Path, change: dict[str, Any]) -> None:
    alter(model, swap_card(**change))
    with pytest.raises(ValueError, match=r"is not the network of its card|has 3 classes, but its labels 4"):
        open_member(model, device="cpu")


def test_a_card_beside_that_says_something_else_is_refused(model: Path) -> None:
    card = read_card(model).to_dict()
    beside = model.with_suffix(".json")
    beside.write_text(json.dumps(card))
    assert read_card(model).to_dict() == card
    beside.write_text(json.dumps(card | {"margin": [8, 8]}))
    with pytest.raises(ValueError, match=r"model\.json differs from the card inside .*model\.onnx"):
        read_card(model)
    beside.write_text("{")
    with pytest.raises(ValueError, match=r"model\.json: "):
        read_card(model)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"no ONNX file", b"PK\x03\x04" * 50])
def test_what_is_no_onnx_file_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"model\.onnx (is not an ONNX file|holds no segline card)"):
        open_member(tmp_path / "model.onnx", device="cpu")
    assert time.perf_counter() - start < 1


def test_a_damaged_file_is_refused(model: Path) -> None:
    content = model.read_bytes()
    model.write_bytes(content[:-200])
    with pytest.raises(ValueError, match="is damaged"):
        read_card(model)
    weight = onnx.load_model_from_string(content).graph.initializer[0].raw_data
    assert len(weight) > 8
    model.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    with pytest.raises(ValueError, match="checksum of its weights"):
        read_card(model)


@pytest.mark.parametrize("inside", ["initializer", "attribute"])
def test_weights_in_other_files_are_refused(model: Path, tmp_path: Path, inside: str) -> None:
    (tmp_path / "secret").write_bytes(b"\x00" * 4096)

    def point_outside(model: Any) -> None:
        if inside == "initializer":
            set_external_data(model.graph.initializer[0], location="secret", offset=0, length=64)
            return
        tensor = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [4], [0.0] * 4)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["x"], value=tensor)], "g", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))

    model_proto = onnx.load(model)
    point_outside(model_proto)
    model.write_bytes(model_proto.SerializeToString())
    with pytest.raises(ValueError, match="refers to other files"):
        read_card(model)


def test_what_onnx_runtime_cannot_do_is_said(model: Path) -> None:
    with pytest.raises(ValueError, match="holds no dropout"):
        open_member(model, dropout=True)
    with pytest.raises(ValueError, match=r"device is 'tpu'; expected auto, cpu"):
        open_member(model, device="tpu")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ValueError, match=r"device is cuda:1, but ONNX Runtime .* sees no GPU here; set device=cpu"):
            open_member(model, device="cuda:1")
    alter(model, lambda proto: proto.graph.node[0].ClearField("input"))
    with pytest.raises(ValueError, match=r"model\.onnx: ONNX Runtime .* does not take it"):
        open_member(model, device="cpu")


# Further networks

ATTENTION = {"_target_": "segline.models.attention_unet.AttentionUNet", "channels": [4, 6, 8, 10]}
PLAIN = {"_target_": "segline.models.unet.UNet", "channels": [4, 6, 8]}
SMP = {"_target_": "segline.models.smp.SMP"}
NESTED = {"_target_": "segline.models.unet_plus_plus.UNetPlusPlus", "channels": [4, 6, 8]}
RESIDUAL = {"_target_": "segline.models.residual_unet.ResidualUNet", "channels": [4, 6, 8], "num_blocks": [1, 2, 1]}
VALID = {
    2: {"_target_": "segline.models.unet_2015.UNet2015", "channels": [4, 6, 8]},
    3: {"_target_": "segline.models.unet3d.UNet3D", "channels": [4, 6, 8]},
}


@pytest.mark.parametrize(
    ("dims", "network"),
    [
        (2, {**PLAIN, "norm": "instance", "upsampling": "linear", "activation": "leaky_relu", "dropout": 0.2}),
        (2, {**PLAIN, "upsampling": "nearest"}),
        (2, ATTENTION),
        (2, {**ATTENTION, "heads": True, "upsampling": "linear"}),
        (2, {**SMP, "architecture": "unet", "encoder_name": "resnet18", "encoder_weights": "imagenet"}),
        (2, {**SMP, "architecture": "deeplabv3plus", "encoder_name": "mobilenet_v2"}),
        (2, {**SMP, "architecture": "segformer", "encoder_name": "mit_b0"}),
        (3, PLAIN),
        (3, {**PLAIN, "norm": "instance", "upsampling": "linear"}),
        (3, {**ATTENTION, "heads": True, "upsampling": "nearest"}),
        (2, NESTED),
        (3, {**NESTED, "depth": 1}),
        (2, VALID[2]),
        (3, VALID[3]),
        (2, RESIDUAL),
        (3, {**RESIDUAL, "kernel_sizes": [[1, 3, 3], 3, 3], "strides": [1, [1, 2, 2], 2]}),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else f"{value}D",
)
def test_networks_are_exported_for_any_size(tmp_path: Path, dims: int, network: dict[str, Any]) -> None:
    size = {"in_channels": 2, "num_classes": 3, "spatial_dims": dims}
    card = make_card(2, dims, network={**network, **size})
    path = save(tmp_path / "tiny.ckpt", card, build_network(card))
    written = export_network(path, str(tmp_path / "out"))
    ours, theirs = open_member(written, device="cpu"), open_member(Path(path), device="cpu", precision="32-true")
    assert ours.stride == theirs.stride is not None
    for shape in ([1, 2, *[5] * dims], [2, 2, *range(37, 37 + dims)]):
        images = RNG.normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(ours.network(images), theirs.network(images), atol=1e-4)


def test_masks_of_volumes_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    card = make_card(1, dims=3, normalize={"scope": "case"})
    path = save(tmp_path / "tiny.ckpt", card, make_network(card))
    voxels = np.kron(RNG.integers(0, 2000, (4, 5, 4)), np.ones((8, 8, 8))).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    written = export_network(path, str(tmp_path / "tiny.onnx"))
    masks = [
        nib.load(predict_files(str(p), str(tmp_path / "a.nii.gz"), str(tmp_path / p.suffix[1:]), precision=how)[0])
        for p, how in ((written, None), (Path(path), "32-true"))
    ]
    ours, theirs = (mask.get_fdata() for mask in masks)
    assert len(np.unique(theirs)) == 3
    assert (ours == theirs).mean() >= 0.9999


def test_a_network_that_decides_by_the_size_is_refused(tmp_path: Path) -> None:
    network = {**SMP, "architecture": "pan", "encoder_name": "resnet18", "in_channels": 2, "num_classes": 3}
    card = make_card(2, network=network)
    path = save(tmp_path / "tiny.ckpt", card, build_network(card))
    with pytest.raises(
        ValueError, match=r"SMP pan resnet18 as ONNX differs.*decides by the size and cannot be exported"
    ):
        export_network(path, str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_network_that_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moody_networks.py").write_text(
        "import torch\nclass Moody(torch.nn.Conv2d):\n"
        "    def __init__(self, in_channels, num_classes):\n        super().__init__(in_channels, num_classes, 1)\n"
        "    def forward(self, image):\n        return super().forward(image if image.mean() > 0 else -image)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    card = make_card(1, network={"_target_": "moody_networks.Moody", "in_channels": 1, "num_classes": 3})
    path = save(tmp_path / "tiny.ckpt", card, build_network(card, ["moody_networks"]))
    with pytest.raises(ValueError, match=r"trust=\[moody_networks\]"):
        export_network(path, str(tmp_path / "out"))
    with pytest.raises(
        ValueError, match=r"torch\.onnx cannot export Moody for images of any size \(.*predict from its"
    ):
        export_network(path, str(tmp_path / "out"), trust=["moody_networks"])
    assert not (tmp_path / "out").exists()


def test_the_command_exports_and_the_next_one_predicts(tmp_path: Path) -> None:
    card = make_card(3)
    network = UNet(**{key: value for key, value in card.network.items() if key != "_target_"})
    save(tmp_path / "0_loss=ce" / checkpoints.BEST, card, network)
    image = picture(tmp_path / "a.png")
    for script, arguments in (
        ("export", [f"checkpoint={tmp_path}/0_loss=ce", f"output={tmp_path}"]),
        ("predict", [f"checkpoint={tmp_path}/0_loss=ce.onnx", f"input={image}", f"output={tmp_path}/masks"]),
    ):
        done = subprocess.run(
            [sys.executable, SRC / f"{script}.py", *arguments], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "a.png").is_file()
