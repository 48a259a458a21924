from pathlib import Path

import hydra
import pytest
import torch
from loss_cases import NUM_CLASSES, make, sample

from segline.config import CONF_DIR, build, compose
from segline.labels import IGNORE_INDEX
from segline.losses.combination import DeepSupervision, DiceCELoss, WeightedSum
from segline.losses.distance import BoundaryLoss
from segline.losses.entropy import BCELoss, CrossEntropyLoss, FocalLoss
from segline.losses.overlap import DiceLoss

# Weighted sums


def test_class_weights_reach_all_losses_inside_but_those_that_have_their_own() -> None:
    inner = WeightedSum(
        losses={"both": DiceCELoss(), "dice": DiceLoss([3.0, 3.0, 3.0])}, weights={"both": 1, "dice": 1}
    )
    weights = [0.5, 2.0, 1.0]
    outer = WeightedSum(weights, losses={"focal": FocalLoss(), "sum": inner}, weights={"focal": 2.0, "sum": 1.0})
    logits, mask, weight = sample("exclusive", 0)
    parts = [(2.0, FocalLoss(weights)), (1.0, DiceCELoss(weights)), (1.0, DiceLoss())]
    expected = sum(share * loss(logits, mask, weight) for share, loss in parts)
    torch.testing.assert_close(outer(logits, mask, weight), expected)


def test_class_weights_of_a_job_are_one_argument_of_any_sum() -> None:
    logits, mask, _ = sample("exclusive", 0)
    weights = [0.5, 2.0, 1.0]
    loss = build(compose(["loss=dice_focal"]).loss, class_weights=weights)
    torch.testing.assert_close(loss(logits, mask), DiceLoss(weights)(logits, mask) + FocalLoss(weights)(logits, mask))


def test_a_loss_is_added_on_the_command_line() -> None:
    config = compose(["loss=dice_focal", "+loss@loss.losses.far=boundary", "+loss.weights.far=0.1"])
    logits, mask, _ = sample("exclusive", 0)
    expected = make("dice_focal")(logits, mask) + 0.1 * BoundaryLoss()(logits, mask)
    torch.testing.assert_close(build(config.loss)(logits, mask), expected)


def test_any_sum_is_a_file_of_few_lines(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text(
        "defaults: [jaccard@losses.one, lovasz@losses.two, _self_]\n"
        "_target_: segline.losses.combination.WeightedSum\n"
        "weights: {one: 0.25, two: 4}\n"
    )
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = hydra.compose("train", overrides=[f"hydra.searchpath=[{tmp_path}]", "loss=mine"])
    logits, mask, _ = sample("overlapping", 0)
    expected = 0.25 * make("jaccard")(logits, mask) + 4 * make("lovasz")(logits, mask)
    torch.testing.assert_close(build(config.loss)(logits, mask), expected)


def test_a_sum_takes_the_schemes_that_all_of_it_take() -> None:
    losses = {"dice": DiceLoss(), "ce": CrossEntropyLoss()}
    assert WeightedSum(losses=losses, weights={"dice": 1, "ce": 1}).schemes == {"exclusive"}
    with pytest.raises(ValueError, match=r"no label scheme in common \(bce: overlapping; ce: exclusive\)"):
        WeightedSum(losses={"bce": BCELoss(), "ce": CrossEntropyLoss()}, weights={"bce": 1, "ce": 1})


def test_names_of_losses_and_weights_are_the_same() -> None:
    with pytest.raises(ValueError, match=r"loss.weights names \['dise'\], but loss.losses \['dice'\]"):
        WeightedSum(losses={"dice": DiceLoss()}, weights={"dise": 1})
    with pytest.raises(ValueError, match="name at least one"):
        WeightedSum(losses={}, weights={})


# Deep supervision


@pytest.mark.parametrize("scheme", ["exclusive", "overlapping"])
@pytest.mark.parametrize("size", [(8, 12), (7, 10), (4, 6, 8)])
def test_every_output_is_compared_with_the_mask_at_its_size(scheme: str, size: tuple[int, ...]) -> None:
    logits, mask, weight = sample(scheme, 0, size)
    outputs = [logits]
    while len(outputs) < 3:  # halved as networks do it, rounding up
        outputs.append(torch.randn(2, NUM_CLASSES, *(-(-s // 2) for s in outputs[-1].shape[2:])))
    loss = DiceCELoss()
    expected = 0.0
    for output, share in zip(outputs, (4 / 7, 2 / 7, 1 / 7), strict=True):
        near_mask, near_weight = mask, weight
        for axis, (new, old) in enumerate(zip(output.shape[2:], size, strict=True)):
            place = [int((k + 0.5) * old / new) for k in range(new)]  # the pixel that the centre lies in
            near_mask = near_mask.index_select(axis - len(size), torch.tensor(place))
            near_weight = near_weight.index_select(axis - len(size), torch.tensor(place))
        expected = expected + share * loss(output, near_mask, near_weight)
    assert (mask == IGNORE_INDEX).any()
    torch.testing.assert_close(DeepSupervision(loss)(outputs, mask, weight), expected)


def test_weights_of_outputs_are_the_networks_or_halve() -> None:
    logits, mask, _ = sample("exclusive", 0)
    other, loss = logits + 1.5 * torch.randn_like(logits), CrossEntropyLoss()
    one, two = loss(logits, mask), loss(other, mask)
    torch.testing.assert_close(DeepSupervision(loss)([logits, other], mask), 2 / 3 * one + 1 / 3 * two)
    torch.testing.assert_close(DeepSupervision(loss, [0.5, 0.5])([logits, other], mask), (one + two) / 2)
    assert torch.equal(DeepSupervision(loss, [0.5, 0.5])(logits, mask), one)
    with pytest.raises(ValueError, match="zip"):
        DeepSupervision(loss, [1.0])([logits, other], mask)
