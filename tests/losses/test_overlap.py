import pytest
import torch
from loss_cases import make, sample, value_and_gradient

from segline.labels import IGNORE_INDEX
from segline.losses.overlap import DiceLoss, GeneralizedDiceLoss, JaccardLoss, LovaszLoss, TverskyLoss

OVER_BATCHES = ["dice", "jaccard", "tversky", "focal_tversky", "generalized_dice"]


def test_dice_leaves_out_a_class_that_the_batch_lacks() -> None:
    logits = torch.zeros(1, 3, 1, 4)  # a probability of 1/3 everywhere
    mask = torch.tensor([[[0, 0, 1, IGNORE_INDEX]]])
    expected = 1 - (2 * 2 / 3 / (1 + 2) + 2 * 1 / 3 / (1 + 1)) / 2
    assert DiceLoss(smooth=0.0)(logits, mask).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", OVER_BATCHES)
def test_the_batch_is_one_image_unless_each_case_is(name: str) -> None:
    logits, mask, _ = sample("exclusive", 0, (6, 7))
    joined = torch.cat(list(logits), 1)[None], torch.cat(list(mask))[None]
    batch, cases = make(name), make(name, per_case=True)
    torch.testing.assert_close(batch(logits, mask), batch(*joined))
    torch.testing.assert_close(cases(*joined), batch(*joined))
    alone = [batch(logits[i, None], mask[i, None]) for i in range(2)]
    torch.testing.assert_close(cases(logits, mask), (alone[0] + alone[1]) / 2)  # all classes occur in both
    assert not torch.isclose(cases(logits, mask), batch(logits, mask))


@pytest.mark.parametrize("scheme", ["exclusive", "overlapping"])
def test_tversky_has_dice_and_jaccard_in_it(scheme: str) -> None:
    logits, mask, weight = sample(scheme, 0)
    dice, jaccard = TverskyLoss(None, 0.5, alpha=0.5, beta=0.5), TverskyLoss(alpha=1.0, beta=1.0)
    torch.testing.assert_close(dice(logits, mask, weight), DiceLoss()(logits, mask, weight))
    torch.testing.assert_close(jaccard(logits, mask, weight), JaccardLoss()(logits, mask, weight))


def test_generalised_dice_of_sizes_that_are_far_apart_stays_in_float32() -> None:
    """1e-12 and 1 as weights of classes; with weights of 1 / true^2, what is added to a divisor would drown them."""
    mask = torch.zeros(1, 1000, 1001, dtype=torch.long)
    mask[0, 0, 0] = 1
    logits = torch.zeros(1, 2, 1000, 1001)
    n = mask.numel() - 1
    top, bottom = n / 2 / n**2 + 0.5, (1.5 * n + 0.5) / n**2 + (n + 1) / 2 + 1
    assert GeneralizedDiceLoss()(logits, mask).item() == pytest.approx(1 - 2 * top / bottom, abs=1e-6)
    many = torch.zeros(1, 1000, 1001, dtype=torch.long) + 1  # only one class, of a million pixels
    value, gradient = value_and_gradient(GeneralizedDiceLoss(), logits, many)
    assert value.item() == pytest.approx(1 - 2 * 0.5 / 1.5)
    assert gradient.any()


def test_lovasz_at_a_decision_is_the_jaccard_loss() -> None:
    _, mask, _ = sample("exclusive", 0, (8, 8), ignored=0.0)
    pred = sample("exclusive", 1, (8, 8), ignored=0.0)[1]
    logits = torch.nn.functional.one_hot(pred, 3).movedim(-1, 1) * 200.0
    iou = [[float((p == k).logical_and(m == k).sum() / (p == k).logical_or(m == k).sum()) for k in range(3)]
           for p, m in zip(pred, mask, strict=True)]  # fmt: skip
    assert LovaszLoss()(logits, mask).item() == pytest.approx(1 - torch.tensor(iou).mean().item())


def test_lovasz_steps_of_many_pixels_are_exact() -> None:
    """Differences of neighbours in float32 would be off by a percent each."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 500, 500, generator=generator)
    mask = (torch.rand(1, 1, 500, 500, generator=generator) < 0.3).to(torch.uint8)
    gradient = value_and_gradient(LovaszLoss(), logits, mask)[1]
    precise = logits.double().requires_grad_()
    LovaszLoss().compute(precise, mask, None).backward()
    assert precise.grad is not None
    torch.testing.assert_close(gradient.double(), precise.grad, rtol=1e-4, atol=0)


def test_the_lovasz_hinge_of_an_absent_class_is_its_largest_error() -> None:
    logits = torch.tensor([[[-3.0, 2.0, 0.5]]])
    value, gradient = value_and_gradient(LovaszLoss(), logits, torch.zeros(1, 1, 3, dtype=torch.uint8))
    assert value == 3.0
    assert gradient.tolist() == [[[0.0, 1.0, 0.0]]]
