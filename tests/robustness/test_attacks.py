import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segline.losses.entropy import BCELoss, CrossEntropyLoss
from segline.robustness.attacked import _ignored
from segline.robustness.attacks import ATTACKS, fgsm, loss_of, pgd
from segline.tiling import Tile


def trained(overlapping: bool) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A network that has learnt its only images, its loss, and both."""
    torch.manual_seed(0)
    images = torch.randn(4, 2, 16, 16)
    mask = (images[:, 0] + images[:, 1].roll(1, -1) > 0.3).long()
    outputs = 1 if overlapping else 2
    network = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, outputs, 3, padding=1))
    truth = mask[:, None].to(torch.uint8) if overlapping else mask
    loss = BCELoss() if overlapping else CrossEntropyLoss()
    for _ in range(150):
        gradients = torch.autograd.grad(loss(network(images), truth), list(network.parameters()))
        with torch.no_grad():
            for weights, gradient in zip(network.parameters(), gradients, strict=True):
                weights -= 0.5 * gradient
    return network.eval().requires_grad_(False), loss, images, truth


def test_fgsm_is_the_sign_of_the_gradient_by_hand() -> None:
    # Logits w x and 0: the gradient of the cross-entropy is (p - t) w.
    network = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        network.weight[:] = torch.tensor([0.0, -3.0]).view(2, 1, 1, 1)
    images = torch.tensor([[[[0.5, -0.2, 0.1]]]])
    mask = torch.tensor([[[1, 0, 255]]])
    attacked = fgsm(loss_of(network, CrossEntropyLoss(), mask), images, 0.1, torch.ones(1), torch.zeros(1))
    np.testing.assert_allclose(attacked.detach().numpy().ravel(), [0.6, -0.3, 0.1], rtol=1e-6)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_hurts_and_stays_within_its_size(name: str, overlapping: bool) -> None:
    network, loss, images, mask = trained(overlapping)
    drawn = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    free = torch.ones_like(images)
    free[:, :, :4] = 0
    before, losses = images.clone(), [float(loss(network(images), mask))]
    for size in (0.02, 0.1, 0.3):
        attacked = ATTACKS[name](loss_of(network, loss, mask), images, size, free, drawn)
        change = (attacked - images).abs()
        assert change.max() <= size * (1 + 1e-5)
        assert (change[:, :, 4:] > 0.5 * size).float().mean() > 0.5
        assert not change[:, :, :4].any()
        losses.append(float(loss(network(attacked), mask)))
    assert losses == sorted(losses)
    assert losses[-1] > 1.5 * losses[0]
    assert torch.equal(images, before)


@pytest.mark.parametrize("overlapping", [False, True])
def test_ten_steps_hurt_more_than_one(overlapping: bool) -> None:
    network, loss, images, mask = trained(overlapping)
    drawn = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    free = torch.ones_like(images)
    for size in (0.1, 0.5, 1.0):
        of = {a: ATTACKS[a](loss_of(network, loss, mask), images, size, free, drawn) for a in ATTACKS}
        assert loss(network(of["pgd"]), mask) >= loss(network(of["fgsm"]), mask)
    # The projection is at work: without it the last steps would have left the ball.
    assert ((of["pgd"] - images).abs() > 0.999).float().mean() > 0.3


def test_each_step_follows_the_gradient_of_where_it_stands() -> None:
    images, free = torch.zeros(1, 1, 4, 4), torch.ones(1)
    attacked = pgd(lambda x: -((x - 0.03) ** 2).sum(), images, 0.1, free, torch.zeros(1))
    assert (attacked - 0.03).abs().max() <= 0.025  # a step; along the first gradient alone it would end at 0.1


def test_ignored_pixels_are_not_attacked_for_their_own_sake() -> None:
    network, loss, images, mask = trained(False)
    mask[:, :8] = 255
    for attack in (fgsm, pgd):
        attacked = attack(loss_of(network, loss, mask), images, 0.1, torch.ones_like(images), torch.zeros_like(images))
        change = (attacked - images).abs()
        assert not change[:, :, :6].any()  # beyond what a pixel that counts can see
        assert change[:, :, 8:].any()
    mask[:] = 255
    assert torch.equal(fgsm(loss_of(network, loss, mask), images, 0.1, torch.ones(1), torch.zeros(1)), images)


def test_what_is_no_data_or_outside_of_a_tiles_core_does_not_count() -> None:
    raw = np.ones((2, 4, 6), np.float32)
    raw[:, 0, 2] = np.nan
    raw[0, 1, 2] = np.nan  # one band has data: so has the pixel
    tile = Tile(window=(slice(0, 4), slice(0, 6)), core=(slice(0, 4), slice(1, 5)))
    truth = _ignored(tile, np.zeros((4, 6), np.uint8), raw)
    expected = np.zeros((4, 6), np.uint8)
    expected[:, [0, 5]] = expected[0, 2] = 255
    np.testing.assert_array_equal(truth, expected)
