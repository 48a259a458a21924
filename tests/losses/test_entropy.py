from typing import Any

import pytest
import torch
from loss_cases import sample

from segline.config import build, compose
from segline.labels import IGNORE_INDEX
from segline.losses.entropy import CrossEntropyLoss, FocalLoss, TopKLoss


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_torchs_with_class_weights_and_smoothing(
    weights: list[float] | None, smoothing: float
) -> None:
    logits, mask, _ = sample("exclusive", 0)
    of_classes = None if weights is None else torch.tensor(weights)
    oracle = torch.nn.CrossEntropyLoss(of_classes, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)
    torch.testing.assert_close(CrossEntropyLoss(weights, smoothing)(logits, mask), oracle(logits, mask))


def test_smoothing_of_classes_without_weight_leaves_nothing_to_divide_by() -> None:
    logits, mask = torch.zeros(1, 2, 3, requires_grad=True), torch.zeros(1, 3, dtype=torch.long)
    value = CrossEntropyLoss([0.0, 1.0], 0.1)(logits, mask)
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, mask, weight = sample("exclusive", 0)
    torch.testing.assert_close(FocalLoss(gamma=0.0)(logits, mask, weight), CrossEntropyLoss()(logits, mask, weight))


def test_alpha_balances_where_a_class_is_against_where_it_is_not() -> None:
    logits, mask = torch.zeros(1, 1, 2), torch.tensor([[[1, 0]]], dtype=torch.uint8)
    plain = FocalLoss()(logits, mask)
    torch.testing.assert_close(FocalLoss(alpha=0.25)(logits, mask), plain / 2)
    torch.testing.assert_close(FocalLoss(alpha=0.25)(logits[..., :1], mask[..., :1]), plain / 4)
    with pytest.raises(
        ValueError, match=r"labels are exclusive; set loss\.alpha=null and balance them by class_weights"
    ):
        FocalLoss(alpha=0.25)(*sample("exclusive", 0)[:2])


def test_the_hardest_pixels_of_each_sample_are_kept_not_those_of_the_batch() -> None:
    logits, mask, weight = sample("exclusive", 0, (8, 8))
    logits[1] *= 20  # harder, all of it
    loss = TopKLoss(fraction=0.2)
    alone = [loss(logits[i, None], mask[i, None], weight[i, None]) for i in range(2)]
    torch.testing.assert_close(loss(logits, mask, weight), (alone[0] + alone[1]) / 2)


def test_of_pixels_that_are_equally_hard_all_are_kept() -> None:
    logits, mask = torch.zeros(1, 2, 10, requires_grad=True), torch.zeros(1, 10, dtype=torch.long)
    TopKLoss(fraction=0.1)(logits, mask).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, 0], torch.full([10], -0.05))


@pytest.mark.parametrize(("fraction", "threshold"), [(0.0, 0.5), (1.5, 0.5), (0.1, -0.1), (0.1, 2.0)])
def test_shares_and_probabilities_that_are_none_are_refused(fraction: float, threshold: float) -> None:
    with pytest.raises(ValueError, match="expected a share above 0 and up to 1, and a probability"):
        TopKLoss(fraction=fraction, threshold=threshold)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.5"):
        CrossEntropyLoss(label_smoothing=1.5)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("focal", {"gamma": -1.0}, "loss.gamma is -1.0; expected 0"),
        ("focal", {"alpha": 1.5}, "loss.alpha is 1.5; expected a share from 0 to 1"),
        ("focal_tversky", {"gamma": 0.0}, "loss.gamma is 0.0; expected a number above 0"),
        ("cldice", {"iterations": -1}, "loss.iterations is -1; expected 0 or more"),
    ],
)
def test_numbers_with_which_nothing_or_the_wrong_thing_is_learnt_are_refused(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(Exception, match=said):
        build(compose([f"loss={name}"]).loss, **arguments)
