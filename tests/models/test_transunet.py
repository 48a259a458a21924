from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.models.transunet import ResNet, StandardizedConv2d, TransUNet


def small(**arguments: Any) -> TransUNet:
    torch.manual_seed(0)
    few: dict[str, Any] = {"embed_dim": 8, "num_heads": 2, "num_layers": 2, "image_size": 64}
    return TransUNet(2, 3, **{**few, "channels": [4, 6, 8], "decoder_channels": [10, 8, 6, 5, 4], **arguments})


#: Of two classes DA-TransUNet counts as many (Sun et al., 2024, https://arxiv.org/abs/2310.12570); of nine it is 105.28 M.
@pytest.mark.parametrize(("num_classes", "weights"), [(2, 105_276_066), (9, 105_277_081)])
def test_the_number_of_weights_is_that_of_the_authors_code(num_classes: int, weights: int) -> None:
    with torch.device("meta"):
        network = TransUNet(3, num_classes)
    needless = 12 * 768  # biases of keys
    assert sum(p.numel() for p in network.parameters()) + needless == weights


def test_levels_have_the_sizes_and_widths_of_the_authors_code() -> None:
    with torch.device("meta"):
        network = TransUNet(3, 2).eval()
    sizes: dict[str, tuple[int, ...]] = {}
    for name, part in network.named_modules():
        part.register_forward_hook(lambda _, __, out, name=name: sizes.update({name: getattr(out, "shape", ())}))
    network(torch.zeros(1, 3, 224, 256, device="meta"))
    wanted = {
        "resnet.root": (64, 112, 128),
        "resnet.stages.0": (256, 55, 63),
        "resnet.stages.1": (512, 28, 32),
        "resnet.stages.2": (1024, 14, 16),
        "transformer.embed": (768, 14, 16),
        "bottom": (512, 14, 16),
        "merge.0": (256, 28, 32),
        "merge.1": (128, 56, 64),
        "merge.2": (64, 112, 128),
        "merge.3": (16, 224, 256),
    }
    assert {name: tuple(sizes[name][1:]) for name in wanted} == wanted


def test_the_scale_and_the_mean_of_a_filter_change_nothing() -> None:
    torch.manual_seed(0)
    conv, features = StandardizedConv2d(3, 4, 3, stride=2).double(), torch.randn(2, 3, 7, 6).double()
    before = conv(features)
    filters = conv.weight.flatten(1)
    wanted = (filters - filters.mean(1, keepdim=True)) / (filters.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(before, F.conv2d(features, wanted.view_as(conv.weight), stride=2, padding=1))
    with torch.no_grad():
        conv.weight.mul_(torch.tensor([2.0, 3.0, 4.0, 5.0]).reshape(4, 1, 1, 1)).add_(0.7)
    torch.testing.assert_close(conv(features), before, rtol=1e-3, atol=1e-3)


@pytest.mark.slow  # the import alone takes seconds
def test_the_resnet_equals_timms() -> None:
    from timm.layers import GroupNormAct, StdConv2d
    from timm.models.resnetv2 import DownsampleConv, ResNetV2

    torch.manual_seed(0)
    ours = ResNet(2, [32, 64, 96]).double()
    theirs = ResNetV2(
        (3, 4, 9),
        channels=(128, 256, 384),
        num_classes=0,
        in_chans=2,
        stem_chs=32,
        preact=False,
        conv_layer=partial(StdConv2d, eps=1e-5),
        norm_layer=partial(GroupNormAct, num_groups=32, eps=1e-6),
    ).double()
    # As in TransUNet's code: pooling without padding, and shortcuts whose channels are normalised each for itself.
    theirs.stem.pool = nn.MaxPool2d(3, 2)
    for module in theirs.modules():
        if isinstance(module, DownsampleConv):
            module.norm.num_groups, module.norm.eps = module.norm.num_channels, 1e-5
    pairs: list[tuple[Any, Any]] = [(ours.root, theirs.stem)]
    for mine, other in zip(ours.stages, theirs.stages, strict=True):
        for block, same in zip(mine, other.blocks, strict=True):
            rest = [same.conv1, same.norm1, same.conv2, same.norm2, same.conv3, same.norm3]
            pairs.append((block.residual, nn.ModuleList(rest)))
            pairs.append((block.shortcut, same.downsample or nn.Identity()))
    parameters = [pq for mine, other in pairs for pq in zip(mine.parameters(), other.parameters(), strict=True)]
    assert len(parameters) == len(list(theirs.stem.parameters())) + len(list(theirs.stages.parameters()))
    with torch.no_grad():
        for p, q in parameters:
            p.copy_(q.normal_())

    image = torch.randn(2, 2, 48, 64).double()
    half, other_half = ours.root(image), theirs.stem[:-1](image)
    features, expected = F.max_pool2d(half, 3, 2), theirs.stem(image)
    torch.testing.assert_close(half, other_half)
    for mine, other in zip(ours.stages, theirs.stages, strict=True):
        features, expected = mine(features), other(expected)
        torch.testing.assert_close(features, expected)
    draw = torch.randn_like(features)
    features.mul(draw).sum().backward()
    expected.mul(draw).sum().backward()
    for p, q in parameters:
        torch.testing.assert_close(p.grad, q.grad)


def test_the_decoder_equals_its_definition() -> None:
    network = small().double().train()
    weights = dict(network.named_parameters())
    made: dict[str, Tensor] = {}
    parts = {"half": network.resnet.root, "quarter": network.resnet.stages[0], "eighth": network.resnet.stages[1]}
    for name, part in {**parts, "layers": network.transformer}.items():
        part.register_forward_hook(lambda _, __, output, name=name: made.update({name: output}))
    image = torch.randn(2, 2, 41, 48).double()
    logits = network(image)

    def conv(name: str, index: int, features: Tensor) -> Tensor:
        features = F.conv2d(features, weights[f"{name}.{index}.weight"], padding=1)
        features = features - features.mean((0, 2, 3), keepdim=True)
        features = features / (features.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        scale, shift = (weights[f"{name}.{index + 1}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (scale * features + shift).clamp_min(0)

    def double(features: Tensor) -> Tensor:
        """Linear between the first and the last position, which stay where they are."""
        for axis in (2, 3):
            size = features.shape[axis]
            place = torch.linspace(0, size - 1, 2 * size, dtype=torch.float64)
            share = (1 - (place[:, None] - torch.arange(size)).abs()).clamp_min(0)
            features = torch.tensordot(features, share, dims=([axis], [1])).movedim(-1, axis)
        return features

    half, eighth, layers = (made[name] for name in ("half", "eighth", "layers"))
    quarter = torch.zeros(2, 16, 12, 12).double()
    quarter[:, :, :11, :11] = made["quarter"]  # what the pooling left of it
    x = conv("bottom", 0, layers[-1])
    for k, skip in enumerate([eighth, quarter, half]):
        x = conv(f"merge.{k}", 3, conv(f"merge.{k}", 0, torch.cat([double(x), skip], 1)))
    x = conv("merge.3", 3, conv("merge.3", 0, double(x)))
    expected = F.conv2d(x, weights["head.weight"], weights["head.bias"], padding=1)
    torch.testing.assert_close(logits, expected[:, :, :41, :48])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"channels": [4, 8]}, "^channels is .4, 8.; expected 3 widths"),
        ({"decoder_channels": [4, 8]}, "^decoder_channels is .4, 8.; expected 5 widths"),
        ({"spatial_dims": 3}, "images only; for volumes set model=unetr"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**arguments)
