import pytest
import torch
from loss_cases import sample

from segline.losses.overlap import DiceLoss
from segline.losses.skeleton import ClDiceLoss, skeletonize


def tube(*breaks: int, radius: int = 2) -> torch.Tensor:
    mask = torch.zeros(1, 1, 15, 40, dtype=torch.uint8)
    mask[..., 7 - radius : 8 + radius, :] = 1
    for at in breaks:
        mask[..., at] = 0
    return mask


def test_a_tube_that_is_broken_costs_more_than_one_that_is_too_thick() -> None:
    truth, broken, thick = tube(), tube(10, 20, 30), tube(radius=3)
    cldice, dice = (
        [loss(pred * 200.0 - 100, truth).item() for pred in (broken, thick)] for loss in (ClDiceLoss(), DiceLoss())
    )
    assert cldice[0] > cldice[1]
    assert dice[0] < dice[1]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_skeleton_of_a_tube_is_its_centre_line_if_iterations_reach_it(dims: int) -> None:
    mask = torch.zeros(1, 1, 11, 21) if dims == 2 else torch.zeros(1, 1, 11, 11, 21)
    mask[(..., *[slice(3, 8)] * (dims - 1), slice(None))] = 1  # 5 wide
    middle = torch.zeros_like(mask)
    middle[(..., *[slice(5, 6)] * (dims - 1), slice(None))] = 1
    if dims == 2:
        assert torch.equal(skeletonize(mask, 2), middle)
        assert not skeletonize(mask, 1).any()
    else:  # a square tube has edges, too
        assert (skeletonize(mask, 2) >= middle).all()
        assert not (skeletonize(mask, 1) * middle).any()


def test_more_iterations_than_needed_change_nothing() -> None:
    logits, mask, _ = sample("overlapping", 0, (12, 12))
    torch.testing.assert_close(ClDiceLoss(iterations=12)(logits, mask), ClDiceLoss(iterations=20)(logits, mask))
