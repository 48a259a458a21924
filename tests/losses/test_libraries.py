"""Where MONAI, SMP or torchvision have the same loss, they give the same value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision.ops
from loss_cases import make, sample, value_and_gradient
from torch import Tensor

from segline.labels import IGNORE_INDEX
from segline.losses.loss import Loss

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("size", [(9, 8), (6, 5, 7)], ids=["2d", "3d"])]

SOFTMAX = {"to_onehot_y": True, "softmax": True}
SMOOTH = {"smooth_nr": 1.0, "smooth_dr": 1.0}


def assert_same(ours: Loss, theirs: Callable[[Tensor, Tensor], Tensor], logits: Tensor, mask: Tensor) -> None:
    one, other = value_and_gradient(ours, logits, mask), value_and_gradient(theirs, logits, mask)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def with_channel(theirs: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """MONAI's masks have a channel."""
    return lambda logits, mask: theirs(logits, mask[:, None])


@pytest.mark.parametrize("per_case", [False, True])
def test_monai_overlap(size: tuple[int, ...], per_case: bool) -> None:
    import monai.losses as monai

    logits, mask, _ = sample("exclusive", 4, size, ignored=0.0)
    regions, sets, _ = sample("overlapping", 4, size, ignored=0.0)
    batch = {"batch": not per_case}
    assert_same(
        make("dice", per_case=per_case), with_channel(monai.DiceLoss(**SOFTMAX, **SMOOTH, **batch)), logits, mask
    )
    theirs = monai.DiceLoss(sigmoid=True, squared_pred=True, **SMOOTH, **batch)
    assert_same(make("dice", per_case=per_case, squared=True), lambda z, m: theirs(z, m.float()), regions, sets)
    theirs = monai.DiceLoss(**SOFTMAX, **batch, jaccard=True, smooth_nr=2.0, smooth_dr=2.0)  # of twice both
    assert_same(make("jaccard", per_case=per_case), with_channel(theirs), logits, mask)
    theirs = monai.TverskyLoss(**SOFTMAX, **SMOOTH, **batch, alpha=0.3, beta=0.7)
    assert_same(make("tversky", per_case=per_case), with_channel(theirs), logits, mask)
    theirs = monai.GeneralizedDiceLoss(**SOFTMAX, **batch, smooth_nr=0.0, smooth_dr=0.0)
    assert_same(make("generalized_dice", per_case=per_case), with_channel(theirs), logits, mask)


def test_monai_sums(size: tuple[int, ...]) -> None:
    import monai.losses as monai

    logits, mask, _ = sample("exclusive", 4, size, ignored=0.0)
    theirs = monai.DiceCELoss(**SOFTMAX, **SMOOTH, batch=True)
    assert_same(make("dice_ce"), with_channel(theirs), logits, mask)
    regions, sets, _ = sample("overlapping", 4, size, ignored=0.0)
    theirs = monai.DiceFocalLoss(sigmoid=True, **SMOOTH, batch=True)  # of softmax its focal part is of sigmoids still
    assert_same(make("dice_focal"), lambda z, m: theirs(z, m.float()), regions, sets)
    theirs = monai.FocalLoss(gamma=2.0, use_softmax=True, to_onehot_y=True, reduction="none")
    assert_same(make("focal"), lambda z, m: theirs(z, m[:, None]).sum(1).mean(), logits, mask)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_monai_distances(size: tuple[int, ...], alpha: float) -> None:
    import monai.losses as monai

    logits, mask, _ = sample("exclusive", 4, size, ignored=0.0)
    logits, mask = (v.repeat_interleave(5, -1).repeat_interleave(5, -2) for v in (logits, mask))  # of some depth
    theirs = monai.HausdorffDTLoss(**SOFTMAX, include_background=True, alpha=alpha)
    assert_same(make("hausdorff", alpha=alpha), with_channel(theirs), logits, mask)
    theirs = with_channel(monai.BoundaryLoss(**SOFTMAX))
    least = theirs(torch.nn.functional.one_hot(mask, 3).movedim(-1, 1) * 200.0, mask)  # what ours adds: 0 at the truth
    assert least < 0
    assert_same(make("boundary"), lambda z, m: theirs(z, m) - least, logits, mask)


@pytest.mark.parametrize("iterations", [0, 3])
def test_monai_skeletons(size: tuple[int, ...], iterations: int) -> None:
    import monai.losses as monai

    logits, mask, _ = sample("overlapping", 4, size, ignored=0.0)
    theirs = monai.SoftclDiceLoss(iterations, sigmoid=True, smooth=1e-12)
    one = logits[:1, :1], mask[:1, :1]  # it sums over classes, and ours over the batch
    assert_same(make("cldice", iterations=iterations), lambda z, m: theirs(z, m.float()), *one)
    both = monai.SoftDiceclDiceLoss(iterations, alpha=0.5, sigmoid=True, smooth=1e-12, **SMOOTH)
    ours = make("dice_cldice", losses={"cldice": {"iterations": iterations}})
    assert_same(ours, lambda z, m: both(z, m.float()), *one)


def test_smp(size: tuple[int, ...]) -> None:
    import segmentation_models_pytorch.losses as smp

    logits, mask, _ = sample("exclusive", 4, size)
    regions, sets, _ = sample("overlapping", 4, size)
    for scheme, mode, case in (
        ("exclusive", "multiclass", (logits, mask)),
        ("overlapping", "multilabel", (regions, sets)),
    ):
        plain = {"mode": mode, "smooth": 1.0, "ignore_index": IGNORE_INDEX}
        # SMP halves numerator and denominator, and so doubles what smooth does.
        assert_same(make("dice", smooth=2.0), smp.DiceLoss(**plain), *case)
        assert_same(make("jaccard"), smp.JaccardLoss(**plain), *case)
        assert_same(make("tversky"), smp.TverskyLoss(**plain, alpha=0.3, beta=0.7), *case)
        if scheme == "exclusive":
            theirs = smp.SoftCrossEntropyLoss(
                smooth_factor=0.2, ignore_index=None
            )  # which divides by ignored pixels, too
            full = mask.where(mask != IGNORE_INDEX, 0)
            assert_same(make("ce", label_smoothing=0.2), theirs, logits, full)
            assert_same(make("lovasz"), smp.LovaszLoss(mode, True, IGNORE_INDEX), *case)
    # Neither of these leaves out ignored pixels of overlapping labels as ours do: one divides by them, the other takes none.
    full = sets.where(sets != IGNORE_INDEX, 0)
    theirs = smp.FocalLoss("multilabel", gamma=2.0)
    assert_same(make("focal"), lambda z, m: theirs(z, m.float()), regions, full)
    theirs = smp.SoftBCEWithLogitsLoss(ignore_index=None)
    assert_same(make("bce"), lambda z, m: theirs(z, m.float()), regions, full)
    one = regions[:, :1], sets[:, :1]  # SMP's power is of the mean over classes, and its hinge of all classes together
    theirs = smp.TverskyLoss(**plain, alpha=0.3, beta=0.7, gamma=0.75)
    assert_same(make("focal_tversky"), theirs, *one)
    assert_same(make("lovasz"), smp.LovaszLoss("binary", True, IGNORE_INDEX), *one)


def test_torch_and_torchvision(size: tuple[int, ...]) -> None:
    regions, sets, _ = sample("overlapping", 4, size, ignored=0.0)
    bce = torch.nn.BCEWithLogitsLoss()
    assert_same(make("bce"), lambda z, m: bce(z, m.float()), regions, sets)

    def focal(logits: Tensor, mask: Tensor, alpha: float) -> Tensor:
        return torchvision.ops.sigmoid_focal_loss(logits, mask.float(), alpha=alpha, gamma=2.0, reduction="mean")

    assert_same(make("focal"), partial(focal, alpha=-1), regions, sets)  # none
    assert_same(make("focal", alpha=0.25), partial(focal, alpha=0.25), regions, sets)
