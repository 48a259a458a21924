import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from segline.models import smp as ours
from segline.models.smp import SMP

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
