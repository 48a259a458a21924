"""What holds for every loss of the config folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import NUM_CLASSES, OWN, every_loss, is_foreign, make, own_loss, sample, value_and_gradient
from torch import Tensor

from segline.labels import IGNORE_INDEX


def weights(file: Path, weight: Tensor) -> Tensor | None:
    """Weights of pixels, for losses that take them."""
    return None if is_foreign(file) else weight


@every_loss
@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1.0, 100.0]))
def test_ignored_pixels_change_neither_value_nor_gradient(file: Path, scheme: str, seed: int, scale: float) -> None:
    loss = make(file)
    logits, mask, weight = sample(scheme, seed)
    ignored = (mask == IGNORE_INDEX)[:, None].expand_as(logits) if scheme == "exclusive" else mask == IGNORE_INDEX
    other = torch.where(
        ignored, torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)) * scale, logits
    )
    (before, gradient), (after, same) = (
        value_and_gradient(loss, z, mask, weights(file, weight)) for z in (logits, other)
    )
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(same[~ignored], gradient[~ignored], rtol=1e-5, atol=1e-7)
    assert not same[ignored].any()


@every_loss
def test_where_all_is_ignored_the_loss_and_its_gradient_are_zero(file: Path, scheme: str) -> None:
    logits, mask, _ = sample(scheme, 0, ignored=2.0)
    loss = make(file) if is_foreign(file) else make(file, class_weights=[1.0, 2.0, 3.0])
    value, gradient = value_and_gradient(loss, logits, mask)
    assert value == 0
    assert not gradient.any()


@every_loss
def test_an_ignored_sample_changes_nothing(file: Path, scheme: str) -> None:
    logits, mask, weight = sample(scheme, 5)
    loss = make(file)
    alone = value_and_gradient(loss, logits[:1], mask[:1], weights(file, weight[:1]))
    mask[1] = IGNORE_INDEX
    value, gradient = value_and_gradient(loss, logits, mask, weights(file, weight))
    if file.stem == "monai":  # its means are over the ignored ones, too
        assert 0 < value < alone[0]
    else:
        torch.testing.assert_close((value, gradient[:1]), alone)


@own_loss
def test_a_pixel_of_weight_zero_counts_as_little_as_an_ignored_one(file: Path, scheme: str) -> None:
    logits, mask, weight = sample(scheme, 1)
    weight[:, 0] = 0
    without = mask.clone()
    without[..., 0, :] = IGNORE_INDEX
    loss = make(file)
    one, other = (value_and_gradient(loss, logits, m, weight) for m in (mask, without))
    torch.testing.assert_close(one, other)
    assert one[0] != loss(logits, mask)


@every_loss
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_logits_are_computed_in_float32(file: Path, scheme: str, autocast: bool) -> None:
    logits, mask, weight = sample(scheme, 2, size=(16, 16))
    low, loss = logits.bfloat16(), make(file)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value, gradient = value_and_gradient(loss, low, mask, weights(file, weight))
    same, precise = value_and_gradient(loss, low.float(), mask, weights(file, weight))
    assert value.dtype == torch.float32
    assert value == same
    torch.testing.assert_close(gradient, precise.bfloat16())


@pytest.mark.parametrize("name", ["ce", "bce"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_cross_entropy_pulls_as_hard_as_a_network_is_wrong(name: str, share: float) -> None:
    """Its gradient is (p - t) / N, however sure the network."""
    logits, mask, _ = sample("exclusive" if name == "ce" else "overlapping", 3, ignored=0.0)
    logits = logits + share * 100 * logits.sign()
    probs = logits.softmax(1) if name == "ce" else logits.sigmoid()
    truth = torch.nn.functional.one_hot(mask, NUM_CLASSES).movedim(-1, 1) if name == "ce" else mask
    _, gradient = value_and_gradient(make(name), logits, mask)
    torch.testing.assert_close(gradient, (probs - truth) / mask.numel())


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
    if kind == "wrong":
        assert value > 1e-4
    else:
        assert value < 1e-3


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_a_step_down_the_gradient_lowers_the_loss(file: Path, scheme: str, seed: int) -> None:
    logits, mask, weight = sample(scheme, seed, size=(6, 7))
    loss = make(file)
    before, gradient = value_and_gradient(loss, logits, mask, weights(file, weight))
    after = loss(logits - 1e-2 * gradient / gradient.norm(), mask, weights(file, weight))
    assert after < before


@own_loss
@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
def test_the_gradient_is_that_of_differences(file: Path, scheme: str, size: tuple[int, ...]) -> None:
    logits, mask, weight = sample(scheme, 6, size)
    loss = make(file, class_weights=[0.5, 2.0, 3.0])
    assert torch.autograd.gradcheck(
        lambda z: loss.compute(z, mask, weight.double()), logits.double().requires_grad_(), fast_mode=True
    )


@pytest.mark.parametrize("file", [file for file in OWN if len(make(file).schemes) == 1], ids=lambda file: file.stem)
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
    assert torch.isfinite(make(offered[0])(logits, mask))


@own_loss
def test_too_few_class_weights_are_refused(file: Path, scheme: str) -> None:
    logits, mask, _ = sample(scheme, 0)
    with pytest.raises(ValueError, match="class_weights has 2 values, but there are 3 classes"):
        make(file, class_weights=[1.0, 2.0])(logits, mask)
