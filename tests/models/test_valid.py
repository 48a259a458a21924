"""The U-Nets of valid convolutions: U-Net as published in 2015, and 3D U-Net."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.models.unet3d import UNet3D
from segline.models.unet_2015 import UNet2015
from segline.models.valid import ValidUNet, mirror


def small(dims: int, **arguments: Any) -> ValidUNet:
    torch.manual_seed(0)
    make: Any = UNet2015 if dims == 2 else UNet3D
    network: ValidUNet = make(1, 2, channels=[4, 6, 8], **arguments).eval()
    return network


def test_the_numbers_of_weights_are_the_papers() -> None:
    with torch.device("meta"):
        flat, deep = UNet2015(1, 2), UNet3D(3, 3)
    assert sum(p.numel() for p in flat.parameters()) == 31_030_658
    norms = [module for module in deep.modules() if isinstance(module, nn.BatchNorm3d)]
    counted = sum(p.numel() for p in deep.parameters()) - sum(2 * norm.num_features for norm in norms)
    assert counted == 19_069_955


@pytest.mark.parametrize(
    ("make", "size", "sizes"),
    [
        (UNet2015, (572, 572), [(568, 568), (280, 280), (136, 136), (64, 64), (28, 28), (52,) * 2, (100,) * 2, (196,) * 2, (388,) * 2]),
        (UNet3D, (116, 132, 132), [(112, 128, 128), (52, 60, 60), (22, 26, 26), (7, 9, 9), (10, 14, 14), (16, 24, 24), (28, 44, 44)]),
    ],
)  # fmt: skip
def test_every_level_has_the_size_of_the_papers_figure(
    make: Any, size: tuple[int, ...], sizes: list[tuple[int, ...]]
) -> None:
    network = make(1, 2).to("meta")
    seen: list[tuple[int, ...]] = []
    for block in [*network.down, *network.merge]:
        block.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[2:])))
    logits = network.valid(torch.zeros(1, 1, *size, device="meta"))
    assert seen == sizes
    assert logits.shape == (1, 2, *sizes[-1])


@pytest.mark.parametrize(("dims", "size", "out"), [(2, (44, 60), (4, 20)), (3, (44, 44, 60), (4, 4, 20))])
def test_a_small_one_equals_its_definition(dims: int, size: tuple[int, ...], out: tuple[int, ...]) -> None:
    network = small(dims)
    for module in network.modules():  # statistics as after training
        if isinstance(module, nn.BatchNorm3d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                assert values is not None
                nn.init.uniform_(values, 0.5, 2.0)
    weights = network.state_dict()
    conv, pool, transposed = {
        2: (F.conv2d, F.max_pool2d, F.conv_transpose2d),
        3: (F.conv3d, F.max_pool3d, F.conv_transpose3d),
    }[dims]

    def along(values: Tensor) -> Tensor:
        return values.view(-1, *[1] * dims)

    def twice(x: Tensor, block: str) -> Tensor:
        for place in (0, 2) if dims == 2 else (0, 3):
            x = conv(x, weights[f"{block}.{place}.weight"], weights[f"{block}.{place}.bias"])
            if dims == 3:
                mean, var, scale, shift = (
                    along(weights[f"{block}.{place + 1}.{name}"])
                    for name in ("running_mean", "running_var", "weight", "bias")
                )
                x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
            x = x.clamp_min(0)
        return x

    def doubled(x: Tensor, level: int) -> Tensor:
        return transposed(x, weights[f"up.{level}.weight"], weights.get(f"up.{level}.bias"), stride=2)

    def inside(x: Tensor, border: int) -> Tensor:
        return x[(..., *[slice(border, -border)] * dims)]

    image = torch.randn(1, 1, *size)
    first = twice(image, "down.0")
    second = twice(pool(first, 2), "down.1")
    third = twice(pool(second, 2), "down.2")
    # 2D: widths 4, 6, 8, of both convolutions; 3D: the first one has half of the width, which doubles before pooling.
    assert [len(weights[f"down.{k}.0.weight"]) for k in range(3)] == ([4, 6, 8] if dims == 2 else [2, 3, 4])
    assert [x.shape[1] for x in (first, second, third)] == [4, 6, 8]
    up = twice(torch.cat([inside(second, 4), doubled(third, 1)], 1), "merge.1")
    up = twice(torch.cat([inside(first, 16), doubled(up, 0)], 1), "merge.0")
    expected = conv(up, weights["head.weight"], weights["head.bias"])
    assert expected.shape[2:] == out
    torch.testing.assert_close(network.valid(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 40), (16, 17)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 1), (20, 31)])
def test_borders_are_mirrored_as_numpy_does(size: tuple[int, int], before: int, after: int) -> None:
    image = torch.randn(2, 3, *size)
    pads = [(0, 0), (0, 0), *[(before, after)] * 2]
    assert np.array_equal(mirror(image, before, [after, after]), np.pad(image, pads, mode="reflect"))


@pytest.mark.parametrize(("dims", "sizes"), [(2, [(16, 16), (1, 1), (19, 50)]), (3, [(16, 16, 16), (1, 9, 22)])])
def test_every_pixel_is_seen_with_mirrored_surroundings(dims: int, sizes: Sequence[tuple[int, ...]]) -> None:
    network = small(dims)
    context = 20  # of three levels: 2 pixels each way and 4 of the coarser, 8 of the coarsest
    for size in sizes:
        image = torch.randn(1, 1, *size)
        wide = np.pad(image, [(0, 0), (0, 0), *[(context, context + 8)] * dims], mode="reflect")
        fits = torch.from_numpy(wide)[(..., *(slice(0, -(-(s - 4) // 4) * 4 + 4 + 2 * context) for s in size))]
        expected = network.valid(fits)[(..., *(slice(0, s) for s in size))]
        with torch.inference_mode():
            torch.testing.assert_close(network(image), expected)


def test_tiles_with_their_surroundings_give_what_the_whole_image_gives() -> None:
    """The overlap-tile strategy, by hand: a window with the context that the network loses."""
    network = small(2)
    image = torch.randn(1, 1, 80, 96)
    with torch.inference_mode():
        whole = network(image)
        tile = network.valid(image[..., 8:64, 20:76])  # from multiples of the stride, as all tiles are
    torch.testing.assert_close(tile, whole[..., 28:44, 40:56], rtol=1e-4, atol=1e-4)


def test_weights_start_as_the_paper_says() -> None:
    torch.manual_seed(0)
    network = UNet2015(1, 2, channels=[64, 128, 256])
    for layer, incoming in [(network.down[1][0], 9 * 64), (network.merge[0][0], 9 * 128), (network.up[0], 128)]:
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / incoming), rel=0.02)
        assert not layer.bias.any()


def test_dropout_stands_at_the_end_of_the_contracting_path() -> None:
    network = UNet2015(1, 2, channels=[2, 3, 4, 5], dropout=0.3)
    places = [name for name, module in network.named_modules() if isinstance(module, nn.Dropout)]
    assert places == ["down.2.4", "down.3.4"]
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.3}


@pytest.mark.parametrize(("make", "dims", "said"), [(UNet2015, 3, "model=unet3d"), (UNet3D, 2, "model=unet_2015")])
def test_other_dimensions_are_sent_to_the_network_that_takes_them(make: Any, dims: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(1, 2, spatial_dims=dims)
    with pytest.raises(ValueError, match="channels is empty"):
        make(1, 2, channels=[])
    with pytest.raises(ValueError, match=r"channels is \[0, 4\]; expected"):
        make(1, 2, channels=[0, 4])
