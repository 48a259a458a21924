"""Losses of MONAI and SMP: their own values, and what a config can get wrong."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from hydra.errors import InstantiationException
from loss_cases import make, sample, value_and_gradient

from segline.labels import IGNORE_INDEX
from segline.losses.combination import WeightedSum
from segline.losses.foreign import MonaiLoss, SMPLoss

MONAI = ["DiceLoss", "DiceCELoss", "DiceFocalLoss", "FocalLoss", "GeneralizedDiceLoss", "GeneralizedDiceFocalLoss", "TverskyLoss",
         "HausdorffDTLoss", "LogHausdorffDTLoss", "SoftclDiceLoss", "SoftDiceclDiceLoss"]  # fmt: skip
SMP = ["DiceLoss", "JaccardLoss", "TverskyLoss", "FocalLoss", "LovaszLoss"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["exclusive", "overlapping"])
@pytest.mark.parametrize("size", [(9, 8), (4, 5, 6)])
def test_it_is_the_loss_that_the_library_gives(scheme: str, size: tuple[int, ...]) -> None:
    import monai.losses
    import segmentation_models_pytorch.losses as smp

    logits, mask, _ = sample(scheme, 0, size, ignored=0.0)
    if scheme == "exclusive":
        theirs = monai.losses.TverskyLoss(to_onehot_y=True, softmax=True, alpha=0.2)
        one, other = value_and_gradient(theirs, logits, mask[:, None]), "multiclass"
    else:
        theirs = monai.losses.TverskyLoss(sigmoid=True, alpha=0.2)
        one, other = value_and_gradient(theirs, logits, mask.float()), "multilabel"
    torch.testing.assert_close(value_and_gradient(MonaiLoss("TverskyLoss", {"alpha": 0.2}), logits, mask), one)
    logits, mask, _ = sample(scheme, 0, size)
    theirs = smp.TverskyLoss(other, alpha=0.2, ignore_index=IGNORE_INDEX)
    one = value_and_gradient(theirs, logits, mask)
    torch.testing.assert_close(value_and_gradient(SMPLoss("TverskyLoss", {"alpha": 0.2}), logits, mask), one)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "name"), [*((MonaiLoss, name) for name in MONAI), *((SMPLoss, name) for name in SMP)])
@pytest.mark.parametrize("scheme", ["exclusive", "overlapping"])
def test_all_of_them_leave_ignored_pixels_alone(loss: type, name: str, scheme: str) -> None:
    logits, mask, _ = sample(scheme, 1, (9, 8))
    value, gradient = value_and_gradient(loss(name), logits, mask)
    ignored = (mask == IGNORE_INDEX)[:, None].expand_as(logits) if scheme == "exclusive" else mask == IGNORE_INDEX
    assert value > 0
    assert gradient.any()
    assert not gradient[ignored].any()
    assert loss(name)(torch.where(ignored, 7.0, logits), mask) == value


@pytest.mark.slow
def test_losses_of_one_scheme_say_so() -> None:
    assert SMPLoss("SoftBCEWithLogitsLoss").schemes == {"overlapping"}
    assert SMPLoss("SoftCrossEntropyLoss", {"smooth_factor": 0.1}).schemes == {"exclusive"}
    with pytest.raises(ValueError, match="does not take exclusive labels; set loss=dice_ce"):
        SMPLoss("SoftBCEWithLogitsLoss")(*sample("exclusive", 0)[:2])


@pytest.mark.slow
def test_lists_are_tensors_where_torch_wants_them() -> None:
    import monai.losses

    weight = [1, 2, 3]  # whole numbers, as one types them
    logits, mask, _ = sample("exclusive", 0, ignored=0.0)
    theirs = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, weight=torch.tensor(weight, dtype=torch.float32))
    ours = make("monai", name="DiceCELoss", arguments={"weight": weight})
    torch.testing.assert_close(ours(logits, mask), theirs(logits, mask[:, None]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "name", "arguments", "said"),
    [
        (MonaiLoss, "DiceFocusLoss", {}, r"of MONAI there are .*TverskyLoss\. Did you mean DiceFocalLoss"),
        (MonaiLoss, "ContrastiveLoss", {}, "loss.name is 'ContrastiveLoss'; of MONAI there are"),
        (MonaiLoss, "DiceLoss", {"gama": 1}, "does not build DiceLoss with loss.arguments: .*'gama'; it takes include_backg"),
        (SMPLoss, "MCCLoss", {}, "of segmentation-models-pytorch there are DiceLoss, FocalLoss"),
        (SMPLoss, "DiceLoss", {"gama": 1}, "does not build DiceLoss with loss.arguments: .*'gama'; it takes mode"),
    ],
)  # fmt: skip
def test_what_a_library_does_not_know_is_refused(loss: type, name: str, arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loss(name, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["monai", "smp"])
def test_weights_are_refused(name: str) -> None:
    with pytest.raises(InstantiationException, match="take no class_weights from here; set class_weights=false"):
        make(name, class_weights=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="take no class_weights from here"):
        WeightedSum([1.0, 2.0, 3.0], losses={"theirs": make(name)}, weights={"theirs": 1.0})
    with pytest.raises(ValueError, match="take no weight of pixels; set loss=dice_ce"):
        make(name)(*sample("exclusive", 0))


@pytest.mark.parametrize("name", ["monai", "smp"])
def test_a_library_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    loss, package = {"monai": (MonaiLoss, "monai"), "smp": (SMPLoss, "segmentation-models-pytorch")}[name]
    with pytest.raises(ValueError, match=f"is not installed .*; run `pip install {package}`"):
        loss("DiceLoss")
