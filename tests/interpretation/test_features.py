from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segline.interpretation.features import Anatomy, FeatureMap, hooked
from segline.models.attention_unet import AttentionUNet
from segline.models.unet import UNet
from segline.models.unet_2015 import UNet2015
from segline.models.unet_plus_plus import UNetPlusPlus

UNET = ["down.0", "down.1", "down.2", "merge.1", "merge.0"]


def image(*size: int, bands: int = 3) -> Tensor:
    return torch.randn(1, bands, *size, generator=torch.Generator().manual_seed(0))


def make(kind: type[nn.Module], **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(3, 3, **arguments).eval()


@pytest.mark.parametrize(
    ("kind", "arguments", "levels"),
    [
        (UNet, {"channels": [4, 6, 8]}, UNET),
        # Gates lie between levels: their maps of one channel are no level, and they make none the last before the coarsest.
        (AttentionUNet, {"channels": [4, 6, 8]}, UNET),
        (AttentionUNet, {"channels": [4, 6, 8], "heads": True}, UNET),
        (UNetPlusPlus, {"channels": [4, 6, 8]}, ["nodes.0_0", "nodes.1_0", "nodes.2_0", "nodes.1_1", "nodes.0_2"]),
        (UNet2015, {"channels": [4, 6, 8]}, UNET),
    ],
)
def test_a_level_is_its_last_block_down_to_the_coarsest_and_up_again(
    kind: type[nn.Module], arguments: dict[str, Any], levels: list[str]
) -> None:
    anatomy = Anatomy(make(kind, **arguments), image(32, 32), 4)
    assert anatomy.levels == levels
    assert anatomy.coarsest == levels[2]
    assert anatomy.first is not None
    assert anatomy.first.startswith((levels[0], "down.0"))


def test_values_are_what_the_modules_give_even_where_the_next_works_in_place() -> None:
    network, seen = make(UNet, channels=[4, 6]), image(16, 16)
    norm, block = Anatomy(network, seen, 2).maps(["down.0.1", "down.0"])
    with torch.no_grad():
        by_hand = network.down[0][1](network.down[0][0](seen))[0]
        assert (by_hand < 0).any()
        torch.testing.assert_close(norm.values, by_hand)
        torch.testing.assert_close(block.values, network.down[0](seen)[0])


def test_layers_stand_for_levels_without_blocks_and_the_head_for_none() -> None:
    convs = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.Upsample(scale_factor=2)]
    network = nn.Sequential(*convs, nn.Conv2d(6, 2, 1), nn.Sigmoid())
    assert Anatomy(network, image(16, 16), 2).levels == ["1", "2", "3"]
    assert Anatomy(nn.Sequential(nn.Conv2d(3, 2, 1)), image(16, 16), 1).levels == ["0"]
    with pytest.raises(ValueError, match="has no feature maps"):
        Anatomy(nn.Sequential(nn.Flatten(2)), image(16, 16), 1)


class Pooling(nn.Module):
    """Context pooled to fixed sizes, as PSPNet does, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 4, 1)
        self.bins = nn.ModuleList(nn.AdaptiveAvgPool2d(size) for size in (1, 2, 3, 6))
        self.mix = nn.Conv2d(20, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        pooled = [nn.functional.interpolate(pool(features), features.shape[2:]) for pool in self.bins]
        return nn.functional.interpolate(self.head(self.mix(torch.cat([features, *pooled], 1))), image.shape[2:])


def test_pooled_context_is_no_level_and_leaves_the_scale_as_it_was() -> None:
    anatomy = Anatomy(Pooling().eval(), image(64, 64), 4)
    assert anatomy.levels == ["mix"]
    (mix,) = anatomy.maps(["mix"])
    assert (mix.step, mix.start) == ((4, 4), (0, 0))


class Turned(nn.Module):
    """A layer with channels last, and one that gives tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.tokens = nn.Conv2d(3, 64, 3, padding=1), nn.Identity(), nn.Identity()
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        self.tokens(features.flatten(2))
        return self.head(self.last(features.movedim(1, -1)).movedim(-1, 1))


def test_tokens_and_channels_last_are_no_maps() -> None:
    network, seen = Turned().eval(), image(16, 16)
    anatomy = Anatomy(network, seen, 1)
    assert anatomy.levels == ["stem"]
    with pytest.raises(ValueError, match="'last', which gives no feature map; expected one of its levels, stem"):
        anatomy.check("last")
    with pytest.raises(ValueError, match="'nothing', but the network has no such module"):
        anatomy.check("nothing")


class Borders(nn.Module):
    """A convolution with a wide border of its own, as FCN has it, and a path of mirrored blocks of 3 x 3 pixels, as DeepMedic has it."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=70), nn.MaxPool2d(2, ceil_mode=True))
        self.coarse = nn.Sequential(nn.AvgPool2d(3), nn.Conv2d(in_channels, 4, 5), nn.Conv2d(4, 4, 5))
        self.hidden = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(4, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        around = nn.functional.pad(image, [12, 12, 12, 12], "reflect")
        paths = [self.coarse(around), nn.functional.interpolate(self.fine(image), scale_factor=2)[..., 69:-69, 69:-69]]
        seen = [nn.functional.interpolate(path, image.shape[2:]) for path in paths]
        return self.head(self.hidden(torch.cat(seen, 1)))


def test_levels_have_the_scale_of_their_strides_whatever_borders_there_are() -> None:
    anatomy = Anatomy(Borders(3, 3).eval(), image(48, 60), None)
    steps = {one.name: one.step for one in anatomy.maps([*anatomy.levels, "fine", "fine.0"])}
    assert steps == {"coarse": (3, 3), "fine": (2, 2), "fine.0": (1, 1), "hidden": (1, 1)}


@pytest.mark.parametrize(
    ("kind", "arguments", "size", "stride"),
    [
        (UNet, {"channels": [4, 6, 8]}, (33, 46), 4),
        (UNet2015, {"channels": [4, 6, 8]}, (81, 97), 4),  # mirrors, and takes off
        (UNet2015, {"channels": [4, 6, 8, 8]}, (172, 110), 8),
        (Borders, {}, (48, 60), 6),
        (UNet, {"channels": [4, 6, 8], "spatial_dims": 3, "norm": "none"}, (9, 20, 16), 4),
    ],
)
def test_a_map_lies_where_the_image_is_that_it_is_of(
    kind: type[nn.Module], arguments: dict[str, Any], size: tuple[int, ...], stride: int
) -> None:
    network, seen = make(kind, **arguments), image(*size)
    anatomy = Anatomy(network, seen, stride)
    pixel = tuple(n // 2 for n in size)
    seen[(0, slice(None), *pixel)] = torch.nan  # in place: the anatomy's own image
    for one in anatomy.maps(anatomy.levels):
        touched = one.values.isnan().any(0).nonzero().float()
        assert len(touched)
        for axis, (step, start) in enumerate(zip(one.step, one.start, strict=True)):
            assert step in (1, 2, 3, 4, 8)
            begin = start + touched[:, axis].min() * step
            end = start + (touched[:, axis].max() + 1) * step
            # The field is even to both sides, but for the cell of the coarsest level that the pixel lies in.
            assert abs((begin + end) / 2 - (pixel[axis] + 0.5)) <= stride / 2


def test_what_went_into_the_network_is_covered_by_maps_over_it() -> None:
    anatomy = Anatomy(make(UNet, channels=[4, 6, 8]), image(33, 46), 4)
    one = anatomy.over("gate", torch.zeros(1, 9, 12))
    assert (one.step, one.start) == ((4, 4), (0, 0))
    assert isinstance(one, FeatureMap)


def test_no_hook_is_left_even_after_an_error() -> None:
    network = make(UNet, channels=[4, 6])
    anatomy = Anatomy(network, image(16, 16), 2)
    anatomy.maps(anatomy.levels)

    def fail(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError), hooked(network, fail):
        network(image(16, 16))
    assert not any(module._forward_hooks for module in network.modules())
