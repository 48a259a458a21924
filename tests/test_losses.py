from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from segline.config import CONF_DIR, build
from segline.labels import IGNORE_INDEX
from segline.losses import BCELoss, CrossEntropyLoss, DeepSupervision, DiceCELoss, DiceLoss, FocalLoss, Loss, MSELoss

NUM_CLASSES = 3


def make(file: Path, **arguments: object) -> Loss:
    """The loss of a YAML file."""
    loss = build(OmegaConf.merge(OmegaConf.load(file), arguments))
    assert isinstance(loss, Loss)
    return loss


#: Every loss of the config folder with each label scheme that it takes.
FILES = sorted((CONF_DIR / "loss").glob("*.yaml"))
CHOICES = [(file, scheme) for file in FILES for scheme in sorted(make(file).schemes)]
every_loss = pytest.mark.parametrize(("file", "scheme"), CHOICES, ids=lambda value: getattr(value, "stem", value))


def sample(
    scheme: str, seed: int, size: tuple[int, ...] = (3, 4), ignored: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a mask with ignored pixels, and a weight of each pixel."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, NUM_CLASSES, *size, generator=generator) * 3
    shape = (2, *size) if scheme == "exclusive" else logits.shape
    mask = torch.randint(0, NUM_CLASSES if scheme == "exclusive" else 2, shape, generator=generator)
    mask[torch.rand(shape, generator=generator) < ignored] = IGNORE_INDEX
    mask = mask if scheme == "exclusive" else mask.to(torch.uint8)
    return logits, mask, torch.rand(2, *size, generator=generator) + 0.1


def value_and_gradient(loss: Loss, logits: Tensor, mask: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, mask, weight)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


# An independent form of each formula, in float64: pixels that count are picked out class by class, not weighed away.


def picked(logits: Tensor, mask: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each class: probability, 0/1 truth and weight of the pixels that count."""
    classes = range(logits.shape[1])
    if mask.ndim == logits.ndim - 1:
        probs, valid = logits.softmax(1), mask != IGNORE_INDEX
        return [(probs[:, k][valid], (mask[valid] == k).double(), weight[valid]) for k in classes]
    valids = [mask[:, k] != IGNORE_INDEX for k in classes]
    return [
        (logits[:, k].sigmoid()[valid], mask[:, k][valid].double(), weight[valid]) for k, valid in enumerate(valids)
    ]


def cross_entropy(loss: Loss, classes: list[tuple[Tensor, Tensor, Tensor]], exclusive: bool) -> Tensor:
    gamma = getattr(loss, "gamma", 0.0)
    total, weights = torch.zeros(()), torch.zeros(())
    for (p, t, w), of_class in zip(classes, class_weights(loss), strict=True):
        truth = p if exclusive else torch.where(t == 1, p, 1 - p)
        counts = of_class * w * (t if exclusive else 1)
        total = total + (counts * (1 - truth) ** gamma * -truth.log()).sum()
        weights = weights + counts.sum()
    return total / weights


def squares(loss: Loss, classes: list[tuple[Tensor, Tensor, Tensor]], exclusive: bool) -> Tensor:
    parts = [
        (of_class * w * (p - t) ** 2, of_class * w)
        for (p, t, w), of_class in zip(classes, class_weights(loss), strict=True)
    ]
    return torch.cat([part[0] for part in parts]).sum() / torch.cat([part[1] for part in parts]).sum()


def dice(loss: Loss, classes: list[tuple[Tensor, Tensor, Tensor]], exclusive: bool) -> Tensor:
    smooth = loss.dice.smooth if isinstance(loss, DiceCELoss) else loss.smooth
    total, weights = torch.zeros(()), 0.0
    for (p, t, w), of_class in zip(classes, class_weights(loss), strict=True):
        if t.any():
            total = total + of_class * (1 - (2 * (w * p * t).sum() + smooth) / ((w * p).sum() + (w * t).sum() + smooth))
            weights += of_class
    return total / weights


def dice_and_cross_entropy(loss: Loss, classes: list[tuple[Tensor, Tensor, Tensor]], exclusive: bool) -> Tensor:
    return cross_entropy(loss, classes, exclusive) + loss.dice_weight * dice(loss, classes, exclusive)


def class_weights(loss: Loss) -> list[float]:
    return [1.0] * NUM_CLASSES if loss.class_weights is None else loss.class_weights.tolist()


FORMULAS = {
    CrossEntropyLoss: cross_entropy,
    BCELoss: cross_entropy,
    FocalLoss: cross_entropy,
    DiceLoss: dice,
    DiceCELoss: dice_and_cross_entropy,
    MSELoss: squares,
}


@every_loss
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("size", [(5, 6), (2, 3, 4)])
def test_value_and_gradient_equal_the_formula_in_float64(
    file: Path, scheme: str, weights: list[float] | None, size: tuple[int, ...]
) -> None:
    loss = make(file, class_weights=weights)
    formula = FORMULAS.get(type(loss))
    if formula is None:
        pytest.skip("no formula here: it is tested where it is described")
    logits, mask, weight = sample(scheme, 0, size)
    precise = logits.double().requires_grad_()
    expected = formula(loss, picked(precise, mask, weight.double()), scheme == "exclusive")
    expected.backward()
    value, gradient = value_and_gradient(loss, logits, mask, weight)
    torch.testing.assert_close(value, expected.detach().float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, precise.grad.float(), rtol=1e-4, atol=1e-6)


@every_loss
@settings(max_examples=15)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1.0, 100.0]))
def test_ignored_pixels_change_neither_value_nor_gradient(file: Path, scheme: str, seed: int, scale: float) -> None:
    loss = make(file)
    logits, mask, weight = sample(scheme, seed)
    ignored = (mask == IGNORE_INDEX)[:, None].expand_as(logits) if scheme == "exclusive" else mask == IGNORE_INDEX
    other = torch.where(
        ignored, torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)) * scale, logits
    )
    (before, gradient), (after, same) = (value_and_gradient(loss, z, mask, weight) for z in (logits, other))
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(same[~ignored], gradient[~ignored], rtol=1e-5, atol=1e-7)
    assert not same[ignored].any()


@every_loss
def test_where_all_is_ignored_the_loss_and_its_gradient_are_zero(file: Path, scheme: str) -> None:
    logits, mask, _ = sample(scheme, 0, ignored=2.0)
    value, gradient = value_and_gradient(make(file, class_weights=[1.0, 2.0, 3.0]), logits, mask)
    assert value == 0
    assert not gradient.any()


@every_loss
def test_a_pixel_of_weight_zero_counts_as_little_as_an_ignored_one(file: Path, scheme: str) -> None:
    logits, mask, weight = sample(scheme, 1)
    weight[:, 0] = 0
    without = mask.clone()
    without[..., 0, :] = IGNORE_INDEX
    loss = make(file)
    torch.testing.assert_close(loss(logits, mask, weight), loss(logits, without, weight))
    assert loss(logits, mask, weight) != loss(logits, mask)


@every_loss
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_logits_are_computed_in_float32(file: Path, scheme: str, autocast: bool) -> None:
    logits, mask, weight = sample(scheme, 2, size=(16, 16))
    low, loss = logits.bfloat16(), make(file)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(low, mask, weight)
    assert value.dtype == torch.float32
    assert value == loss(low.float(), mask, weight)


@every_loss
@pytest.mark.parametrize("kind", ["right", "wrong", "one class"])
def test_extreme_logits_give_finite_values_and_gradients(file: Path, scheme: str, kind: str) -> None:
    _, mask, _ = sample(scheme, 3)
    if kind == "one class":
        mask = torch.where(mask == IGNORE_INDEX, mask, torch.zeros_like(mask))  # of overlapping labels: nothing at all
    truth = torch.stack([mask == k for k in range(NUM_CLASSES)], 1) if scheme == "exclusive" else mask == 1
    logits = torch.where(truth == (kind != "wrong"), 100.0, -100.0)
    value, gradient = value_and_gradient(make(file), logits, mask)
    assert torch.isfinite(value)
    assert value >= 0
    assert torch.isfinite(gradient).all()
    if kind != "wrong":
        assert value < 1e-3


@pytest.mark.parametrize("file", [file for file in FILES if len(make(file).schemes) == 1], ids=lambda file: file.stem)
def test_a_loss_refuses_the_other_label_scheme_and_names_one_that_takes_it(file: Path) -> None:
    loss = make(file)
    (other,) = {"exclusive", "overlapping"} - loss.schemes
    logits, mask, _ = sample(other, 0)
    with pytest.raises(ValueError, match=rf"{type(loss).__name__} does not take {other} labels") as refusal:
        loss(logits, mask)
    offered = [
        word.strip(",;").removeprefix("loss=") for word in str(refusal.value).split() if word.startswith("loss=")
    ]
    assert len(offered) == 1
    assert torch.isfinite(make(CONF_DIR / "loss" / f"{offered[0]}.yaml")(logits, mask))


def test_too_few_class_weights_are_refused() -> None:
    logits, mask, _ = sample("exclusive", 0)
    with pytest.raises(ValueError, match="class_weights has 2 values, but there are 3 classes"):
        CrossEntropyLoss(class_weights=[1.0, 2.0])(logits, mask)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, mask, weight = sample("exclusive", 0)
    torch.testing.assert_close(FocalLoss(gamma=0.0)(logits, mask, weight), CrossEntropyLoss()(logits, mask, weight))


def test_dice_leaves_out_a_class_that_the_batch_lacks() -> None:
    logits = torch.zeros(1, 3, 1, 4)  # a probability of 1/3 everywhere
    mask = torch.tensor([[[0, 0, 1, IGNORE_INDEX]]])
    expected = 1 - (2 * 2 / 3 / (1 + 2) + 2 * 1 / 3 / (1 + 1)) / 2
    assert DiceLoss(smooth=0.0)(logits, mask).item() == pytest.approx(expected)


def test_dice_sees_the_batch_as_one_image() -> None:
    logits, mask, _ = sample("exclusive", 0)
    joined = torch.cat(list(logits), 1)[None], torch.cat(list(mask))[None]
    torch.testing.assert_close(DiceLoss()(logits, mask), DiceLoss()(*joined))


@pytest.mark.slow  # imports MONAI and segmentation-models-pytorch
@pytest.mark.parametrize("size", [(9, 8), (4, 5, 6)])
def test_other_libraries_give_the_same_where_they_have_the_same_loss(size: tuple[int, ...]) -> None:
    import monai.losses
    import segmentation_models_pytorch as smp
    import torchvision.ops

    logits, mask, _ = sample("exclusive", 4, size)
    full = mask.where(mask != IGNORE_INDEX, 0)
    regions, sets, _ = sample("overlapping", 4, size, ignored=0.0)
    # SMP halves numerator and denominator, and so doubles what smooth does.
    oracle = smp.losses.DiceLoss("multiclass", smooth=0.5, ignore_index=IGNORE_INDEX)(logits, mask)
    torch.testing.assert_close(DiceLoss(smooth=1.0)(logits, mask), oracle)
    oracle = smp.losses.DiceLoss("multilabel", smooth=0.5)(regions, sets)
    torch.testing.assert_close(DiceLoss(smooth=1.0)(regions, sets), oracle)
    alike = {"to_onehot_y": True, "softmax": True, "batch": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
    oracle = monai.losses.DiceCELoss(**alike)(logits, full[:, None])
    torch.testing.assert_close(DiceCELoss(smooth=1.0)(logits, full), oracle)
    focal = monai.losses.FocalLoss(gamma=2.0, use_softmax=True, to_onehot_y=True, reduction="none")
    oracle = focal(logits, full[:, None]).sum(1).mean()
    torch.testing.assert_close(FocalLoss(gamma=2.0)(logits, full), oracle)
    oracle = torchvision.ops.sigmoid_focal_loss(regions, sets.float(), alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(FocalLoss(gamma=2.0)(regions, sets), oracle)
    weights = torch.tensor([0.5, 2.0, 3.0])
    oracle = torch.nn.CrossEntropyLoss(weights, ignore_index=IGNORE_INDEX)(logits, mask)
    torch.testing.assert_close(CrossEntropyLoss(weights.tolist())(logits, mask), oracle)
    torch.testing.assert_close(BCELoss()(regions, sets), torch.nn.BCEWithLogitsLoss()(regions, sets.float()))


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
