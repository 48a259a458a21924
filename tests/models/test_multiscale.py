"""DeepMedic, against its paper's numbers and against the same graph by hand, patch for patch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import make_card
from torch import Tensor, nn

from segline.inference.ensemble import Ensemble, Member
from segline.inference.network import on_arrays
from segline.inference.plan import choose_tiling
from segline.models.multiscale import MultiScale

NARROW = [2, 3, 2, 3, 2, 3, 2, 3]


def small(dims: int = 2, channels: list[int] | None = None, **arguments: Any) -> MultiScale:
    """A narrow network whose norms and slopes do something."""
    torch.manual_seed(0)
    network = MultiScale(1, 2, spatial_dims=dims, channels=channels or NARROW, hidden_channels=[5, 4], **arguments)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.2, 0.4)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.9)
    return network.eval()


def cut(image: Tensor, middle: tuple[int, ...], reach: int) -> Tensor:
    """A patch around a pixel."""
    return image[(..., *(slice(m - reach, m + reach + 1) for m in middle))]


@pytest.mark.parametrize(("factors", "dims"), [([3], 3), ([3, 5], 3), ([3], 2)])
def test_the_number_of_weights_is_that_of_the_papers_widths(factors: list[int], dims: int) -> None:
    network = MultiScale(4, 5, spatial_dims=dims, factors=factors)
    paths = 1 + len(factors)
    pathway = 3**dims * (4 * 30 + 30 * 30 + 30 * 40 + 40 * 40 + 40 * 40 + 40 * 40 + 40 * 50 + 50 * 50)
    hidden = paths * 50 * 150 + 150 * 150
    of_norms_and_slopes = 3 * (paths * (30 + 30 + 40 + 40 + 40 + 40 + 50 + 50) + 150 + 150)
    head = 150 * 5 + 5
    counted = sum(p.numel() for p in network.parameters())
    assert counted == paths * pathway + hidden + of_norms_and_slopes + head
    if (factors, dims) == ([3], 3):
        assert counted == 663_155


def by_hand(weights: dict[str, Tensor], fine: Tensor, coarse: Tensor) -> Tensor:
    """Logits of the pixel in the middle of both patches, the coarse one of full resolution still; 2 hidden layers, factor 3."""
    dims = fine.ndim - 2
    conv = F.conv2d if dims == 2 else F.conv3d

    def layer(x: Tensor, path: str, place: int) -> Tensor:
        at = (-1, *[1] * dims)
        x = conv(x, weights[f"{path}.{place}.weight"])
        mean, var, scale, shift = (
            weights[f"{path}.{place + 1}.{name}"].reshape(at)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
        return torch.where(x > 0, x, weights[f"{path}.{place + 2}.weight"].reshape(at) * x)

    blocks = coarse.shape[-1] // 3
    averages = coarse.reshape(1, 1, *[blocks, 3] * dims).mean(dim=[3 + 2 * axis for axis in range(dims)])
    seen = []
    for path, x in (("paths.0", fine), ("paths.1", averages)):
        for k in range(blocks // 2):
            x = layer(x, path, 1 + 3 * k)  # 0 is the pooling
        assert x.shape[2:] == (1,) * dims
        seen.append(x)
    x = layer(layer(torch.cat(seen, 1), "hidden", 0), "hidden", 4)
    return conv(x, weights["head.weight"], weights["head.bias"]).flatten()


@pytest.mark.parametrize(
    ("channels", "size", "middle"),
    [(NARROW, (54, 57), (28, 28)), ([3, 2, 3], (24, 24, 27), (10, 13, 16))],
)
def test_a_pixel_has_the_logits_and_gradients_of_its_two_patches(
    channels: list[int], size: tuple[int, ...], middle: tuple[int, ...]
) -> None:
    """17 and 51 pixels wide where there are eight convolutions; the coarse patch is centred on the middle of the pixel's block."""
    dims, depth = len(size), len(channels)
    network, image = small(dims, channels).double(), torch.randn(1, 1, *size).double().requires_grad_()
    logits, weights = network(image), network.state_dict(keep_vars=True)
    for shift in (-1, 0, 1):  # all pixels of a block have the same coarse patch
        pixel = (middle[0] + shift, *middle[1:])
        expected = by_hand(weights, cut(image, pixel, depth), cut(image, middle, 3 * depth + 1))
        said = logits[(0, slice(None), *pixel)]
        torch.testing.assert_close(said, expected)
    leaves = [image, *network.parameters()]
    ours, theirs = (torch.autograd.grad(output[0], leaves) for output in (said, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("factors", "fields"), [([3], {1: 17, 3: 51}), ([3, 5], {1: 17, 3: 51, 5: 85}), ([2], {1: 17, 2: 34})]
)
def test_fields_of_view_are_those_that_nan_shows(factors: list[int], fields: dict[int, int]) -> None:
    network, length = small(factors=factors), 150
    assert network.fields_of_view == fields
    images = torch.zeros(length, 1, 2, length)
    images[torch.arange(length), ..., torch.arange(length)] = math.nan
    pixel = torch.arange(length)
    for factor, path in zip(network.factors, network.paths, strict=True):
        others = [
            other.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
            for other in network.paths
            if other is not path
        ]
        with torch.inference_mode():
            seen = network(images)[:, 0, 0].isnan()  # [where nan is, where it is seen]
        for hook in others:
            hook.remove()
        # Of blocks of 2 pixels the middle lies between them.
        distance = (pixel[:, None] - (pixel // factor * factor + (factor - 1) / 2)).abs()
        inside = slice(50, 100)  # nothing mirrored is seen from here
        assert torch.equal(seen[:, inside], (distance <= fields[factor] / 2)[:, inside])
        assert seen[:, inside].sum(0).unique().tolist() == [fields[factor]]


@pytest.mark.parametrize("dims", [2, 3])
def test_segments_of_the_papers_sizes_give_what_the_whole_image_gives(dims: int) -> None:
    """9 positions from 25 of the image and 19 averages of it, wherever blocks begin."""
    network = small(dims)
    image = torch.randn(1, 1, *[66 if dims == 2 else 57] * dims)
    with torch.inference_mode():
        whole = network(image)
        for begin in (24, 27, 33) if dims == 2 else (24,):
            place = (begin,) * dims
            fine = cut(image, tuple(b + 4 for b in place), 12)
            coarse = cut(image, tuple(b + 4 for b in place), 28)
            pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
            assert fine.shape[-1] == 25
            assert pool(coarse, 3).shape[-1] == 19
            near, far = network.paths[0](fine), network.paths[1](coarse)
            assert (near.shape[-1], far.shape[-1]) == (9, 3)
            far = far[(..., *torch.meshgrid(*[torch.arange(9) // 3] * dims, indexing="ij"))]
            segment = network.head(network.hidden(torch.cat([near, far], 1)))
            torch.testing.assert_close(segment, whole[(..., *(slice(b, b + 9) for b in place))], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (19, 50), (1, 9, 22)])
def test_every_pixel_is_seen_with_mirrored_surroundings(size: tuple[int, ...]) -> None:
    network = small(len(size), [2, 3, 2], factors=[3, 2])
    context = 12  # whole blocks of both, and more than is seen
    image = torch.randn(1, 1, *size)
    wide = torch.from_numpy(np.pad(image, [(0, 0), (0, 0), *[(context, context + 6)] * len(size)], mode="reflect"))
    with torch.inference_mode():
        expected = network(wide)[(..., *(slice(context, context + s) for s in size))]
        torch.testing.assert_close(network(image), expected)


def test_mirrored_borders_have_no_exact_tiles() -> None:
    network = small(channels=[2, 3])
    assert network.stride == 3
    member = Member(make_card(1, window=[33, 33]), on_arrays(network, torch.device("cpu"), "32-true"), network.stride)
    with pytest.raises(ValueError, match="does otherwise at their far ends, as by mirroring; set blend=gaussian"):
        choose_tiling(Ensemble([member]), "exact", None, None)


def test_weights_start_and_dropout_stands_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    network = MultiScale(2, 3, dropout=0.3)
    for conv, incoming in [(network.paths[0][4], 9 * 30), (network.paths[1][22], 9 * 50), (network.hidden[0], 100)]:
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / incoming), rel=0.03)
    slopes = [module.weight for module in network.modules() if isinstance(module, nn.PReLU)]
    assert len(slopes) == 2 * 8 + 2
    assert all((slope == 0.01).all() for slope in slopes)
    places = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert places == {"hidden.3": 0.3, "hidden.7": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_an_export_holds_for_any_size(dims: int) -> None:
    """As ONNX has it: without the guards of torch, which tell sizes apart that slices are as long as."""
    network = small(dims, factors=[3, 5])
    size = {axis + 2: torch.export.Dim.DYNAMIC for axis in range(dims)}
    program = torch.export.export(
        network, (torch.randn(2, 1, *[20] * dims),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC, **size},)
    )
    for sizes in ([1, 1, *[1] * dims], [3, 1, *range(16, 16 + dims)], [1, 1, *range(30, 30 + dims)]):
        images = torch.randn(sizes)
        torch.testing.assert_close(program.module(check_guards=False)(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factors", [[], [1], [3, 0]])
def test_factors_that_are_none_are_refused(factors: list[int]) -> None:
    with pytest.raises(ValueError, match=r"factors is \[.*\]; expected one coarse pathway or more"):
        MultiScale(1, 2, factors=factors)
    with pytest.raises(ValueError, match="channels is empty"):
        MultiScale(1, 2, channels=[])
