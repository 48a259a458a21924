from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import make_card, make_network
from torch import Tensor, nn

from segline.models.attention_unet import AttentionUNet
from segline.models.smp import SMP
from segline.precision import autocast, cast_weights, memory_format

CPU = torch.device("cpu")
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@pytest.fixture(autouse=True)
def _fast_at_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any CPU computes in bfloat16, if not fast."""
    monkeypatch.setattr("segline.precision.fast_precision", lambda accelerator: "bf16-mixed")


class StandardizedConv(nn.Conv2d):
    """As timm's StdConv2d."""

    def forward(self, image: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(image, (self.weight - mean) / std, self.bias)


def said(network: nn.Module, image: Tensor, precision: str) -> Tensor:
    with torch.inference_mode(), autocast(CPU, precision):
        return network(image)


def trained(network: nn.Module) -> nn.Module:
    """A network with biases and norms that bfloat16 does not hold exactly, unlike the zeros and ones of a new one."""
    for value in (*network.parameters(), *network.buffers()):
        if value.ndim == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize(
    ("make", "dims"),
    [
        (lambda: make_network(make_card(3)), 2),
        (lambda: make_network(make_card(3, dims=3)), 3),
        (lambda: AttentionUNet(3, 2, channels=[4, 6, 8]), 2),
        (lambda: AttentionUNet(3, 2, spatial_dims=3, channels=[4, 6, 8], norm="instance", upsampling="linear"), 3),
        pytest.param(lambda: SMP(3, 2), 2, marks=pytest.mark.slow),
    ],
    ids=["unet-2d", "unet-3d", "attention_unet-2d", "attention_unet-3d", "smp"],
)
def test_a_network_says_the_same_to_the_last_bit(make: Callable[[], nn.Module], dims: int) -> None:
    torch.manual_seed(0)
    network, image = trained(make()), torch.randn(2, 3, *[32] * dims)
    form = memory_format(image.ndim)
    network, image = network.to(memory_format=form), image.to(memory_format=form)
    before = said(network, image, "bf16-mixed")
    assert not torch.equal(before.float(), said(network, image, "32-true"))  # it is computed in bfloat16
    cast_weights(network, CPU, "bf16-mixed")
    after = said(network, image, "bf16-mixed")
    assert after.dtype == before.dtype
    assert torch.equal(after, before)
    for module in network.modules():
        for value in module.parameters(recurse=False):
            assert value.dtype == (torch.float32 if isinstance(module, NORMS) else torch.bfloat16), module


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_in_a_precision_that_is_not_computed_in_nothing_is_cast(precision: str) -> None:
    network = make_network(make_card(3))
    cast_weights(network, CPU, precision)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_weights_that_a_layer_standardizes_itself_are_left_to_it() -> None:
    torch.manual_seed(0)
    network, image = nn.Sequential(StandardizedConv(3, 8, 3), nn.Conv2d(8, 4, 3)), torch.randn(2, 3, 32, 32)
    before = said(network, image, "bf16-mixed")
    cast_weights(network, CPU, "bf16-mixed")
    assert [layer.weight.dtype for layer in network] == [torch.float32, torch.bfloat16]
    assert torch.equal(said(network, image, "bf16-mixed"), before)
