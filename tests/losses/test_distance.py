import pytest
import torch
from loss_cases import make, sample, value_and_gradient

from segline.losses.distance import BoundaryLoss, HausdorffLoss


def square(at: int, size: int = 16, width: int = 4) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    mask[..., 4 : 4 + width, at : at + width] = 1
    return mask


@pytest.mark.parametrize("loss", [BoundaryLoss(), HausdorffLoss()])
def test_the_farther_off_a_prediction_the_larger_the_loss(loss: torch.nn.Module) -> None:
    """Where the masks no longer overlap, Dice is the same."""
    values = [loss((square(at) * 200.0) - 100, square(1)).item() for at in (1, 3, 5, 8, 11)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert sorted(set(values)) == values


def test_boundary_loss_is_the_distance_of_what_is_wrong() -> None:
    """Of a column that is moved by d, the pixels at 1, .., d outside and those from 0 to 1 - d inside."""
    truth, moved = torch.zeros(1, 1, 1, 12, dtype=torch.uint8), torch.full((1, 1, 1, 12), -100.0)
    truth[..., 6:] = 1
    moved[..., 4:] = 100.0
    torch.testing.assert_close(BoundaryLoss()(moved, truth), torch.tensor((1 + 2) / 12))
    moved = torch.where(torch.arange(12) < 8, -100.0, 100.0).view_as(moved)
    torch.testing.assert_close(BoundaryLoss()(moved, truth), torch.tensor((0 + 1) / 12))


@pytest.mark.parametrize("name", ["boundary", "hausdorff"])
@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_without_a_boundary_has_no_distances(name: str, value: int) -> None:
    logits = sample("overlapping", 0)[0].abs() * (1 if value else -1)  # no boundary in the prediction either
    mask = torch.full(logits.shape, value, dtype=torch.uint8)
    loss, gradient = value_and_gradient(make(name), logits, mask)
    assert loss == 0
    assert not gradient.any()
