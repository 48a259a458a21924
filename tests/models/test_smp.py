import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segline.labels import Labels
from segline.models import smp as ours
from segline.models.smp import SMP
from segline.module import SegmentationModule

pytestmark = pytest.mark.slow  # the import alone takes seconds

#: Architectures that need an encoder of another kind than resnet18.
ENCODERS = {"dpt": "tu-vit_tiny_patch16_224"}


@pytest.fixture(scope="module")
def architectures() -> list[str]:
    import segmentation_models_pytorch as smp

    return sorted(smp.MODEL_ARCHITECTURES_MAPPING)


def test_every_architecture_takes_any_size_and_any_number_of_bands(architectures: list[str]) -> None:
    assert len(architectures) >= 12
    for architecture in architectures:
        torch.manual_seed(0)
        network = SMP(5, 3, architecture=architecture, encoder_name=ENCODERS.get(architecture, "resnet18")).eval()
        for size in ((16, 16), (17, 31), (48, 33), (130, 140)):
            with torch.inference_mode():
                logits = network(torch.randn(1, 5, *size))
            assert logits.shape == (1, 3, *size), architecture
            assert torch.isfinite(logits).all(), architecture
            assert logits.flatten(2).std(-1).min() > 0, architecture


def test_a_size_that_fits_goes_to_the_network_as_it_is(architectures: list[str]) -> None:
    for architecture in architectures:
        torch.manual_seed(0)
        network = SMP(3, 2, architecture=architecture, encoder_name=ENCODERS.get(architecture, "resnet18")).eval()
        image = torch.randn(1, 3, 128, 160)
        with torch.inference_mode():
            assert torch.equal(network(image), network.network(image)), architecture


def test_options_reach_the_class() -> None:
    wide, narrow = (SMP(3, 2, options={"decoder_channels": [w, 32, 16, 8, 8]}) for w in (256, 64))
    assert wide.network.decoder.blocks[0].conv1[0].out_channels == 256
    assert narrow.network.decoder.blocks[0].conv1[0].out_channels == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_lr": -0.1}, "model.encoder_lr is -0.1; expected a factor of 0"),
        ({"spatial_dims": 3}, "images only; for volumes set model=unet"),
        ({"architecture": "unett"}, "model.architecture is 'unett'.*Did you mean unet"),
        ({"encoder_name": "resnet99"}, "unet on resnet99: .*Wrong encoder name `resnet99`, supported encoders"),
        ({"encoder_name": "tu-nonsense"}, "unet on tu-nonsense: Unknown model"),
        ({"architecture": "dpt"}, "dpt on resnet18: Only Timm encoders are supported for DPT"),
        ({"architecture": "unetplusplus", "encoder_name": "mit_b0"}, "UnetPlusPlus is not support encoder_name=mit_b0"),
        ({"architecture": "deeplabv3", "encoder_name": "vgg11"}, "do not support dilated mode"),
        ({"encoder_weights": "nonsense"}, r"encoder_weights=nonsense .*Wrong pretrained weights `nonsense`"),
        ({"options": {"decoder_width": 3}}, "model.options has decoder_width; unet takes .*decoder_channels"),
        ({"options": {"classes": 3}}, "multiple values for keyword argument 'classes'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_the_words_of_the_library(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SMP(3, 2, **arguments)


# Pretrained weights


def pretrained(encoder: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put weights of three bands where the hub's lie once they are fetched; the arguments that take them from there."""
    import timm
    from segmentation_models_pytorch.encoders import encoders

    torch.manual_seed(1)
    if encoder.startswith("tu-"):
        save_file(timm.create_model(encoder[3:]).state_dict(), folder / "weights.safetensors")
        overlay = {"pretrained_cfg_overlay": {"file": str(folder / "weights.safetensors")}}
        return {"encoder_name": encoder, "encoder_weights": "imagenet", "options": overlay}
    known = encoders[encoder]["pretrained_settings"]["imagenet"]
    files = folder / f"models--{known['repo_id'].replace('/', '--')}" / "snapshots" / known["revision"]
    files.mkdir(parents=True)
    (files / "config.json").write_text("{}")
    weights = SMP(3, 2, encoder_name=encoder).network.encoder.state_dict()
    save_file(
        {name: w.clone() for name, w in weights.items()}, files / "model.safetensors"
    )  # clones: tied ones are refused
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return {"encoder_name": encoder, "encoder_weights": "imagenet"}


def encoder_of(bands: int, arguments: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(bands)
    weights: dict[str, Tensor] = SMP(bands, 2, **arguments).network.encoder.state_dict()
    return weights


@pytest.mark.parametrize(
    "encoder", ["resnet18", "mobileone_s0", "efficientnet-b0", "mit_b0", "tu-resnet18", "tu-convnext_atto"]
)
def test_the_first_convolution_takes_other_bands_by_one_rule(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = pretrained(encoder, tmp_path, monkeypatch)
    rgb, first = encoder_of(3, arguments), set()
    for bands in (1, 2, 4, 7):
        for name, w in encoder_of(bands, arguments).items():
            expected = rgb[name]
            if w.shape != expected.shape:
                first.add(name)
                taken = [expected[:, band % 3] * 3 / bands for band in range(bands)]
                expected = torch.stack([expected.sum(1)] if bands == 1 else taken, 1)
            torch.testing.assert_close(w, expected, rtol=1e-5, atol=1e-7, msg=f"{name} of {bands} bands")
    assert len(first) == (2 if encoder == "mobileone_s0" else 1)  # its first layer is two convolutions, added


def test_a_first_convolution_without_a_rule_is_an_error_and_no_random_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = pretrained("tu-tresnet_m", tmp_path, monkeypatch)
    SMP(3, 2, **arguments)
    with pytest.raises(
        ValueError, match=r"tu-tresnet_m, pretrained on three bands, takes 4.*set data\.bands to one or three"
    ):
        SMP(4, 2, **arguments)


# The encoder's learning rate


def trained(encoder_lr: float, encoder: str = "resnet18") -> tuple[SMP, dict[str, Tensor]]:
    """A network after a step of SGD, through validation before it, and its weights and statistics before."""
    torch.manual_seed(0)
    network = SMP(3, 2, encoder_name=encoder, encoder_lr=encoder_lr)
    module = SegmentationModule(network, nn.Identity(), Labels({"a": 0, "b": 1}), {}, partial(torch.optim.SGD, lr=0.5))
    optimizer = module.configure_optimizers()
    before = {name: w.clone() for name, w in network.state_dict().items()}
    module.eval(), module.train()
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    return network, before


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0", "tu-convnext_atto"])
def test_a_frozen_encoder_keeps_weights_and_statistics_to_the_last_bit(encoder: str) -> None:
    network, before = trained(0.0, encoder)
    after = network.state_dict()
    kept = {name for name, w in before.items() if torch.equal(w, after[name])}
    assert kept >= {name for name in before if name.startswith("network.encoder.")}
    assert any(name.startswith("network.decoder.") for name in before.keys() - kept)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():  # no dropout and no dropped paths either
        once, again, evaluated = (network.train(mode).network.encoder(image) for mode in (True, True, False))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(once, again, evaluated, strict=True))


def test_an_encoder_moves_by_its_own_learning_rate() -> None:
    (whole, before), (tenth, _) = trained(1.0), trained(0.1)
    for name, w in dict(whole.named_parameters()).items():
        factor = 0.1 if name.startswith("network.encoder.") else 1.0
        moved = tenth.get_parameter(name) - before[name]
        torch.testing.assert_close(moved, factor * (w - before[name]), rtol=1e-3, atol=2e-7)
    assert (whole.network.encoder.conv1.weight - before["network.encoder.conv1.weight"]).abs().max() > 1e-5


# Weights that take no part


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0", "mobilenet_v2", "mit_b0", "tu-convnext_atto"])
def test_all_weights_that_get_no_gradient_are_frozen_and_no_others(architectures: list[str], encoder: str) -> None:
    built = 0
    for architecture in architectures:
        try:
            network = SMP(3, 2, architecture=architecture, encoder_name=ENCODERS.get(architecture, encoder))
        except ValueError:
            continue  # a pair that SMP refuses
        frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        network.requires_grad_(True)
        network(torch.randn(2, 3, 128, 128)).square().sum().backward()
        assert {name for name, p in network.named_parameters() if p.grad is None} == frozen, architecture
        built += 1
    assert built >= 8


def test_what_is_frozen_does_not_depend_on_who_builds() -> None:
    with torch.no_grad():
        network = SMP(3, 2, architecture="pspnet", encoder_name="resnet18")
    layers = {name.split(".")[2] for name, p in network.named_parameters() if not p.requires_grad}
    assert layers == {"layer3", "layer4"}  # PSPNet takes three stages of five


@pytest.mark.parametrize("encoder", ["tu-swin_tiny_patch4_window7_224", "tu-maxvit_pico_rw_256"])
def test_encoders_of_one_size_are_built(encoder: str) -> None:
    size = int(encoder[-3:])
    assert SMP(3, 2, encoder_name=encoder).eval()(torch.zeros(1, 3, size, size)).shape == (1, 2, size, size)


def test_a_batch_of_one_that_cannot_be_trained_says_what_can(architectures: list[str]) -> None:
    refused: dict[str, str] = {}
    for architecture in architectures:
        network = SMP(3, 2, architecture=architecture, encoder_name=ENCODERS.get(architecture, "resnet18")).train()
        network(torch.randn(2, 3, 128, 128))
        try:
            network(torch.randn(1, 3, 128, 128))
        except ValueError as error:
            refused[architecture] = str(error)
    assert refused.keys() == {"deeplabv3", "deeplabv3plus", "pan", "upernet"}
    assert all("no spread in a batch of one: set data.batch_size=2" in said for said in refused.values())


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_weights_that_cannot_be_fetched_are_an_error_and_no_random_start(encoder: str, tmp_path: Path) -> None:
    code = f"from segline.models.smp import SMP; SMP(3, 2, encoder_name={encoder!r}, encoder_weights='imagenet')"
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    nowhere |= {"https_proxy": "http://127.0.0.1:9", "PYTHONPATH": str(Path(ours.__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert "ValueError: segmentation-models-pytorch does not build unet" in result.stderr
    assert "encoder_weights=imagenet (null starts at random)" in result.stderr


@pytest.mark.slow
def test_an_encoder_of_one_size_says_which_and_how_to_set_it() -> None:
    name = "tu-swin_tiny_patch4_window7_224"
    with pytest.raises(ValueError, match=r"one size only .*\(224\).*model.options=\{img_size: 256\}"):
        SMP(3, 2, encoder_name=name).eval()(torch.zeros(1, 3, 96, 96))
    network = SMP(3, 2, encoder_name=name, options={"img_size": 128}).eval()
    assert network(torch.zeros(1, 3, 128, 128)).shape == (1, 2, 128, 128)
