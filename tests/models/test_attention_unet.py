import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segline.models.attention_unet import AttentionGate, AttentionUNet


@pytest.mark.parametrize(("num_gates", "weights"), [(0, 5_888_004), (3, 6_214_151)])
def test_the_number_of_weights_is_that_of_the_authors_code(num_gates: int, weights: int) -> None:
    with torch.device("meta"):
        network = AttentionUNet(
            1, 4, spatial_dims=3, channels=[16, 32, 64, 128, 256], upsampling="linear", heads=True, num_gates=num_gates
        )
    # Theirs has biases before each batch norm, which undoes them.
    needless = sum(module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm3d))
    assert sum(p.numel() for p in network.parameters()) + needless == weights


def test_a_gate_equals_the_papers_equations() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(2, skip_channels=3, gate_channels=5, norm="none", activation="relu").double()
    skip, signal = torch.randn(2, 3, 8, 6).double(), torch.randn(2, 5, 4, 3).double()
    gated, attention = gate(skip, signal)

    theta, phi, psi = gate.theta.weight, gate.phi.weight[:, :, 0, 0], gate.psi.weight[0, :, 0, 0]
    coarse = torch.zeros(2, 1, 4, 3).double()
    for b in range(2):
        for y in range(4):
            for x in range(3):
                patch = skip[b, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                seen = (theta * patch).sum((1, 2, 3)) + phi @ signal[b, :, y, x] + gate.phi.bias
                coarse[b, 0, y, x] = 1 / (1 + torch.exp(-(psi @ seen.clamp_min(0) + gate.psi.bias)))
    expected = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(attention, expected)
    first, second = gate.out[0], gate.out[2]
    mixed = torch.einsum("bchw,oc->bohw", expected * skip, first.weight[:, :, 0, 0]) + first.bias[:, None, None]
    mixed = torch.einsum("bchw,oc->bohw", mixed, second.weight[:, :, 0, 0]) + second.bias[:, None, None]
    torch.testing.assert_close(gated, mixed.clamp_min(0))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_three_coarser_skips_are_gated_and_the_finest_is_not(spatial_dims: int) -> None:
    network = AttentionUNet(1, 2, spatial_dims=spatial_dims, channels=[2, 3, 4, 5, 6]).eval()
    maps = network.attention_maps(torch.randn(2, 1, *[32] * spatial_dims))
    assert [tuple(m.shape) for m in maps] == [(2, 1, *[size] * spatial_dims) for size in (4, 8, 16)]
    assert all(0 < m.min() < m.max() < 1 for m in maps)


def test_less_than_no_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="num_gates is -1; expected how many"):
        AttentionUNet(1, 2, num_gates=-1)
    with pytest.raises(ValueError, match=r"channels is \[4, 8\], which leaves no skip to be gated"):
        AttentionUNet(1, 2, channels=[4, 8])


def test_a_skip_is_gated_by_the_level_below_it() -> None:
    torch.manual_seed(0)
    network = AttentionUNet(1, 2, channels=[2, 3, 4, 5]).eval()
    signals: dict[str, torch.Size] = {}
    for name, gate in network.gates.items():
        gate.register_forward_pre_hook(lambda _, inputs, name=name: signals.update({name: inputs[1].shape}))
    network(torch.randn(1, 1, 32, 32))
    assert signals == {"2": (1, 5, 4, 4), "1": (1, 4, 8, 8)}


def test_what_a_closed_gate_holds_back_changes_nothing() -> None:
    torch.manual_seed(0)
    network = AttentionUNet(1, 2, channels=[8, 8, 8], norm="none", activation="leaky_relu").eval()
    image = torch.randn(1, 1, 16, 16)
    nn.init.constant_(network.gates["1"].psi.bias, -1e4)
    assert all(m.max() == 0 for m in network.attention_maps(image))
    before = network(image)
    nn.init.normal_(network.gates["1"].out[0].weight)  # what the skip would be mixed with
    assert torch.equal(network(image), before)
    nn.init.constant_(network.gates["1"].psi.bias, 1e4)
    assert not torch.equal(network(image), before)


def test_heads_of_all_levels_are_joined_into_the_output() -> None:
    torch.manual_seed(0)
    network = AttentionUNet(1, 2, channels=[2, 3, 4], heads=True).eval()
    features: dict[int, torch.Tensor] = {}
    for level, merge in enumerate(network.merge):
        merge.register_forward_hook(lambda _, __, output, level=level: features.update({level: output}))
    logits = network(torch.randn(1, 1, 16, 16))
    scores = [head(features[level]) for level, head in enumerate(network.heads)]
    coarse = F.interpolate(scores[1], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, network.join(torch.cat([scores[0], coarse], 1)))
    assert len(scores) == 2


@pytest.mark.parametrize("heads", [False, True])
def test_a_single_level_has_nothing_to_gate(heads: bool) -> None:
    network = AttentionUNet(1, 2, channels=[4], num_gates=0, heads=heads)
    assert network(torch.zeros(2, 1, 5, 7)).shape == (2, 2, 5, 7)
