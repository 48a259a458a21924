from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.losses.combination import DeepSupervision
from segline.losses.entropy import CrossEntropyLoss
from segline.models.residual_unet import ResidualBlock, ResidualUNet

CHANNELS, BLOCKS = [4, 6, 8, 8], [1, 2, 1, 2]
#: Sizes of kernels and strides of images, and of volumes of thick slices.
FLAT: tuple[Any, Any] = ([[3, 3]] * 4, [[1, 1], *[[2, 2]] * 3])
DEEP: tuple[Any, Any] = ([[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 1]])


def small(sizes: list[list[int]], steps: list[list[int]], norm: str = "instance") -> ResidualUNet:
    """Of four stages, with weights as learnt."""
    torch.manual_seed(0)
    stages: Any = {"channels": CHANNELS, "num_blocks": BLOCKS, "kernel_sizes": sizes, "strides": steps}
    network = ResidualUNet(2, 3, spatial_dims=len(sizes[0]), norm=norm, **stages)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize(
    ("arguments", "weights"),
    [
        # As nnU-Net plans ResEnc M for BraTS, of which others report the same number.
        (
            {"spatial_dims": 3, "channels": [32, 64, 128, 256, 320, 320], "strides": [1, 2, 2, 2, 2, [2, 2, 1]]},
            101_945_177,
        ),
        ({"spatial_dims": 3, "channels": [32, 64, 128, 256, 320, 320]}, 102_354_777),
        ({"channels": [32, 64, 128, 256, 512, 512, 512]}, 105_922_206),
    ],
)
def test_the_number_of_weights_is_nnunets(arguments: Any, weights: int) -> None:
    """Counted of the ResidualEncoderUNet of dynamic-network-architectures 0.4.4 and 0.3.1, for four bands and five classes."""
    with torch.device("meta"):
        network = ResidualUNet(4, 5, **arguments)
    unused = (arguments["channels"][-2] + 1) * 5  # their coarsest head
    assert sum(p.numel() for p in network.parameters()) + unused == weights


@pytest.mark.parametrize(("sizes", "steps"), [FLAT, DEEP], ids=["2D", "3D"])
def test_a_small_one_equals_its_definition(sizes: list[list[int]], steps: list[list[int]]) -> None:
    network, dims = small(sizes, steps).train(), len(sizes[0])
    weights = dict(network.named_parameters())
    conv, up, pool = (
        (F.conv2d, F.conv_transpose2d, F.avg_pool2d) if dims == 2 else (F.conv3d, F.conv_transpose3d, F.avg_pool3d)
    )

    def normed(x: Tensor, name: str, place: int, size: list[int], step: Any = 1) -> Tensor:
        kernel, bias = weights[f"{name}.{place}.weight"], weights.get(f"{name}.{place}.bias")
        x = conv(x, kernel, bias, stride=step, padding=[s // 2 for s in size])
        mean = x.flatten(2).mean(2).view(*x.shape[:2], *[1] * dims)
        variance = (x - mean).square().flatten(2).mean(2).view(mean.shape)
        scale, shift = (weights[f"{name}.{place + 1}.{kind}"].view(-1, *[1] * dims) for kind in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def act(x: Tensor) -> Tensor:
        return x.clamp_min(0) + 0.01 * x.clamp_max(0)

    image = torch.randn(2, 2, *[16] * dims)
    x, skips = act(normed(image, "stem", 0, sizes[0])), []
    for level, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        for index in range(BLOCKS[level]):
            name, first = f"down.{level}.{index}", index == 0
            inner = act(normed(x, f"{name}.body", 0, size, step if first else 1))
            skip = pool(x, step) if first else x
            if skip.shape[1] != CHANNELS[level]:
                skip = normed(skip, f"{name}.skip", int(level > 0), [1] * dims)
            x = act(normed(inner, f"{name}.body", 3, size) + skip)
        skips.append(x)
    outputs = []
    for level in (2, 1, 0):
        x = up(x, weights[f"up.{level}.weight"], weights[f"up.{level}.bias"], stride=steps[level + 1])
        x = act(normed(torch.cat([x, skips[level]], 1), f"merge.{level}", 0, sizes[level]))
        if level < 2:
            outputs.insert(0, conv(x, weights[f"heads.{level}.weight"], weights[f"heads.{level}.bias"]))
    logits = network(image)
    assert len(logits) == 2
    for ours, expected in zip(logits, outputs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(network.eval()(image), logits[0])


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "steps"), [FLAT, ([[3, 3, 3]] * 4, [[1] * 3, *[[2] * 3] * 3]), DEEP])
def test_outputs_loss_and_gradients_are_those_of_nnunets_network(sizes: Any, steps: Any) -> None:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    ours, dims = small(sizes, steps).train(), len(sizes[0])
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    norm_of: Any = {"norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    theirs = ResidualEncoderUNet(
        2, 4, CHANNELS, conv, sizes, steps, BLOCKS, 3, 1, conv_bias=True, **norm_of,
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip
    decoder = theirs.decoder
    modules = [
        (nn.ModuleList([ours.stem, ours.down]), theirs.encoder),
        *zip(reversed(ours.up), decoder.transpconvs, strict=True),
        *zip(reversed(ours.merge), decoder.stages, strict=True),
        *zip(reversed(ours.heads), decoder.seg_layers[1:], strict=True),
    ]
    pairs = [pair for one, other in modules for pair in zip(one.parameters(), other.parameters(), strict=True)]
    assert len(pairs) == len(list(ours.parameters()))
    for one, other in pairs:
        other.data.copy_(one.data)  # an error for other shapes
    image, mask = torch.randn(2, 2, *[16] * dims), torch.randint(0, 3, (2, *[16] * dims))
    outputs, expected = ours(image), theirs(image)
    assert len(expected) == 3
    for output, wanted in zip(outputs, expected, strict=False):
        torch.testing.assert_close(output, wanted)
    # What nnU-Net's trainer makes of three outputs: 1, 1/2 and 0, divided by their sum.
    DeepSupervision(CrossEntropyLoss())(outputs, mask).backward()
    DeepSupervision(CrossEntropyLoss(), [2 / 3, 1 / 3, 0.0])(expected, mask).backward()
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_outputs_weigh_what_nnunets_do() -> None:
    # For six stages, https://github.com/MIC-DKFZ/nnUNet/issues/1417; the fifth weighs 0 there.
    outputs = ResidualUNet(1, 2, channels=[4] * 6).train()(torch.randn(2, 1, 64, 64))
    shares = [0.53333333, 0.26666667, 0.13333333, 0.06666667]
    masks = [torch.ones(2, *output.shape[2:], dtype=torch.long) for output in outputs]
    expected = sum(w * CrossEntropyLoss()(*pair) for w, *pair in zip(shares, outputs, masks, strict=True))
    torch.testing.assert_close(DeepSupervision(CrossEntropyLoss())(outputs, masks[0]), expected)


@pytest.mark.parametrize(
    "arguments", [{"channels": [4]}, {"channels": [4, 6]}, {"channels": [4, 6, 8, 8], "heads": False}]
)
def test_of_a_single_head_there_is_one_output(arguments: Any) -> None:
    network = ResidualUNet(1, 2, **arguments).train()
    assert network(torch.zeros(1, 1, 17, 30)).shape == (1, 2, 17, 30)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_each_axis_is_padded_with_zeros_to_its_own_stride(norm: str) -> None:
    network = small(*DEEP, norm=norm).eval()
    assert network.stride == 8  # of 2, 8 and 4
    assert ResidualUNet(1, 2, channels=[4, 4], strides=[1, [2, 3]]).stride == 6
    seen: list[torch.Size] = []
    network.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    image = torch.randn(1, 2, 5, 17, 33)
    expected = network(F.pad(image, (0, 3, 0, 7, 0, 1)))[..., :5, :17, :33]
    torch.testing.assert_close(network(image), expected)
    assert seen == [(6, 24, 36)] * 2
    assert [tuple(output.shape[2:]) for output in network.train()(image)] == [(5, 17, 33), (5, 9, 17)]


@pytest.mark.parametrize("size", [16, 17, 23, 33])
def test_a_pixel_of_a_coarser_output_lies_where_that_of_the_mask_does(size: int) -> None:
    """Columns of ones, and where they come out again if nothing but the skips is at work."""
    network = ResidualUNet(1, 1, channels=[1] * 5, kernel_sizes=[1] * 5, norm="none").train()
    for layer in [network.stem[0], *network.heads, *(merge[0] for merge in network.merge)]:
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.weight[:, -1:])  # skips lie behind what comes from below
    masks: list[Tensor] = []

    def look(logits: Tensor, mask: Tensor, _: None) -> Tensor:
        masks.append(mask)
        return logits.sum()

    outputs = network(torch.eye(size)[:, None, None].expand(size, 1, size, size))
    DeepSupervision(look)(outputs, torch.arange(size).expand(size, size, size))  # type: ignore[arg-type]
    assert len(outputs) == len(masks) == 3
    for level, (output, mask) in enumerate(zip(outputs, masks, strict=True)):
        column, shows = (output[:, 0, 0] > 0).nonzero(as_tuple=True)
        assert column.tolist() == list(range(size))  # each in one pixel
        assert shows.tolist() == [place // 2**level for place in column]
        away = shows[mask[0, 0]] - torch.arange(output.shape[-1])
        assert away.abs().max() <= (0 if size == 16 else 1)


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_a_block_starts_as_its_skip(norm: str) -> None:
    torch.manual_seed(0)
    network = ResidualUNet(1, 2, channels=[4, 6, 8], norm=norm)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 1 + 3 + 4
    for block in blocks:
        inside = block.body[0].in_channels
        features = torch.randn(2, inside, 8, 8)
        torch.testing.assert_close(block(features), F.leaky_relu(block.skip(features), 0.01))
        assert block.body[0].weight.any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_blocks": [1, 2]}, r"num_blocks is \[1, 2\]; expected a number, for each of the 3 stages, such as \[1, 3, 4\]"),
        ({"num_blocks": [1, 0, 2]}, "num_blocks is"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes is .* a number or 2, one for each axis, for each of the 3 stages"),
        ({"kernel_sizes": [3, 3, [3, 3, 3]]}, "kernel_sizes is .* or 2"),
        ({"kernel_sizes": [3, 3, [3, 2]]}, "expected odd numbers"),
        ({"strides": [1, 2, 0]}, "strides is .* such as"),
        ({"strides": [2, 2, 2]}, "strides is .* expected 1 first"),
        ({"channels": []}, "channels is empty"),
    ],
)  # fmt: skip
def test_lists_that_fit_no_stages_are_refused(arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResidualUNet(1, 2, **{"channels": [4, 6, 8], **arguments})
