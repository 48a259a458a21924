import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.interpretation.gradcam import grad_cam
from segline.models.attention_unet import AttentionUNet


def image(*size: int) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


def two_layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 2, 1)).eval()


def some_pixels() -> Tensor:
    pixels = torch.zeros(2, 8, 9)
    pixels[0, 2:5, 3:8] = 1
    pixels[1, 7] = 1
    return pixels


def test_it_is_the_definition_worked_out_for_two_layers() -> None:
    network, seen, pixels = two_layers(), image(8, 9), some_pixels()
    found = grad_cam(network, seen, "1", pixels)
    with torch.no_grad():
        features = F.relu(network[0](seen))[0]
    for k in range(2):
        # A logit is a weighted sum of the features at its own pixel: the mean of its gradient is the weight times the share of pixels.
        weights = network[2].weight[k, :, 0, 0] * pixels[k].mean()
        by_hand = F.relu(sum(w * plane for w, plane in zip(weights, features, strict=True)))
        torch.testing.assert_close(found[k], by_hand)
        assert by_hand.any()
        assert not by_hand.all()


def test_a_layer_counts_as_it_was_before_what_follows_works_in_place() -> None:
    network, seen, pixels = two_layers(), image(8, 9), some_pixels()
    found = grad_cam(network, seen, "0", pixels)
    with torch.no_grad():
        before = network[0](seen)[0]
    slope = network[2].weight[0, :, 0, 0][:, None, None] * pixels[0] * (before > 0)
    torch.testing.assert_close(found[0], F.relu((slope.mean((1, 2))[:, None, None] * before).sum(0)))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["down.2", "merge.1"])
def test_captum_says_the_same(layer: str) -> None:
    from captum.attr import LayerGradCam

    torch.manual_seed(0)
    network = AttentionUNet(3, 2, channels=[4, 6, 8]).eval()
    seen = image(16, 24)
    with torch.no_grad():
        pixels = F.one_hot(network(seen)[0].argmax(0), 2).movedim(-1, 0).float()
    found = grad_cam(network, seen, layer, pixels)
    for k in range(2):
        oracle = LayerGradCam(lambda x, k=k: (network(x)[:, k] * pixels[k]).sum((1, 2)), network.get_submodule(layer))
        theirs = oracle.attribute(seen, relu_attributions=True)[0, 0]
        assert theirs.any()
        torch.testing.assert_close(found[k], theirs.detach(), rtol=1e-4, atol=1e-6)


def test_nothing_speaks_for_a_class_without_pixels() -> None:
    found = grad_cam(two_layers(), image(8, 9), "1", torch.zeros(2, 8, 9))
    assert not torch.stack(found).any()


def test_weights_are_left_as_they_were() -> None:
    network = two_layers().requires_grad_(False)
    grad_cam(network, image(8, 9), "1", some_pixels())
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


class Dangling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        self.unused(image)
        return self.used(image)


def test_a_layer_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="'unused', which no logit depends on"):
        grad_cam(Dangling(), image(8, 9), "unused", some_pixels())
