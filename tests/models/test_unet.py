import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segline.models.unet import UNet


def count(**arguments: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(**arguments).parameters())


def test_the_number_of_weights_is_the_papers() -> None:
    # Ronneberger et al. 2015; the plain U-Net of Zhou et al. 2018: 7.76 M
    assert count(in_channels=1, num_classes=2, channels=[64, 128, 256, 512, 1024], norm="none") == 31_030_658
    assert round(count(in_channels=3, num_classes=1, channels=[32, 64, 128, 256, 512], norm="none") / 1e6, 2) == 7.76


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "linear"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_a_small_one_equals_its_definition(upsampling: str, activation: str) -> None:
    torch.manual_seed(0)
    network = UNet(2, 3, channels=[4, 6, 8], norm="instance", activation=activation, upsampling=upsampling)
    weights = {name: torch.randn_like(p) * 0.2 for name, p in network.named_parameters()}
    network.load_state_dict(weights)

    def convolved_twice(x: Tensor, block: str) -> Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv2d(x, weights[f"{block}.{conv}.weight"], padding=1)
            mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
            scale, shift = (weights[f"{block}.{norm}.{kind}"][:, None, None] for kind in ("weight", "bias"))
            x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
            x = x.clamp_min(0) + (0.01 if activation == "leaky_relu" else 0) * x.clamp_max(0)
        return x

    def doubled(x: Tensor, level: int) -> Tensor:
        if upsampling == "nearest":
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if upsampling == "linear":
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        kernel, bias = weights[f"up.{level}.layer.weight"], weights[f"up.{level}.layer.bias"]
        tiles = torch.einsum("bihw,ioyx->bohywx", x, kernel)
        return tiles.flatten(4, 5).flatten(2, 3) + bias[:, None, None]

    image = torch.randn(2, 2, 12, 8)
    first = convolved_twice(image, "down.0")
    second = convolved_twice(F.max_pool2d(first, 2), "down.1")
    third = convolved_twice(F.max_pool2d(second, 2), "down.2")
    up = convolved_twice(torch.cat([second, doubled(third, 1)], 1), "merge.1")
    up = convolved_twice(torch.cat([first, doubled(up, 0)], 1), "merge.0")
    expected = (
        torch.einsum("bchw,kc->bkhw", up, weights["head.weight"][:, :, 0, 0]) + weights["head.bias"][:, None, None]
    )
    torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)


def test_a_size_that_the_stride_does_not_divide_is_padded_with_zeros_at_the_far_ends() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, channels=[4, 6, 8]).eval()
    image = torch.randn(1, 1, 13, 18)
    expected = network(F.pad(image, (0, 2, 0, 3)))[..., :13, :18]
    torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_deep_one_trains_on_one_small_image(norm: str) -> None:
    network = UNet(1, 2, channels=[4] * 6, norm=norm)  # a stride of 32
    loss = network(torch.randn(1, 1, 16, 16)).square().sum()
    loss.backward()
    assert torch.isfinite(loss)


def test_a_single_level_has_no_skip() -> None:
    assert UNet(1, 2, channels=[4])(torch.zeros(2, 1, 5, 7)).shape == (2, 2, 5, 7)


def test_dropout_drops_whole_channels_of_the_two_coarsest_levels_and_only_in_training() -> None:
    network = UNet(1, 2, channels=[4, 6, 8], dropout=0.5)
    dropped = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Dropout2d)]
    assert {name.rsplit(".", 1)[0] for name in dropped} == {"down.1", "down.2", "merge.1"}
    image = torch.randn(2, 1, 16, 16)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="channels is empty"):
        UNet(1, 2, channels=[])
