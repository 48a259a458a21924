"""Losses of MONAI and of segmentation-models-pytorch (SMP), as they are."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segline.labels import IGNORE_INDEX
from segline.losses.loss import EXCLUSIVE, OVERLAPPING, Loss, processes
from segline.words import nearest

#: A logit that leaves no doubt.
_SURE = 100.0


class ForeignLoss(Loss):
    """What these losses share: the library's class for each label scheme, and pixels that it must not see.

    A library that has no word for ignored pixels gets them as background (class 0 of exclusive labels, no class of overlapping ones)
    that is predicted without a doubt: no gradient goes there, but a mean over pixels counts them as right ones. In training on several
    processes, each computes the loss of their joint batch, from logits that all of them send around: slower than ours.

    Raises:
        ValueError: A library that is not installed, a name or an argument that it does not know, or weights of pixels or classes.
    """

    origin: str
    weighs_pixels = False

    def __init__(self, name: str, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(class_weights)
        self.name, self.theirs = name, nn.ModuleDict()

    def weigh(self, class_weights: Sequence[float]) -> None:
        """Refuse: each library has its own weights."""
        raise ValueError(
            f"losses of {self.origin} take no class_weights from here; set class_weights=false, and theirs in loss.arguments"
        )

    def compute(self, logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of float32 logits."""
        if weight is not None:
            raise ValueError(f"losses of {self.origin} take no weight of pixels; set loss=dice_ce, which does")
        logits, mask = self._gather(logits), self._gather(mask)
        exclusive, valid = mask.ndim == logits.ndim - 1, mask != IGNORE_INDEX
        background = torch.full_like(logits, -_SURE)
        if exclusive:
            background[:, 0] = _SURE
        logits = torch.where(valid[:, None] if exclusive else valid, logits, background)
        if not valid.any():
            return 0 * logits.sum()
        theirs = self.theirs["exclusive" if exclusive else "overlapping"]
        if getattr(theirs, "ignore_index", None) != IGNORE_INDEX:
            mask = mask.where(valid, 0)
        loss: Tensor = theirs(logits, self.target(mask, exclusive))
        return loss

    def target(self, mask: Tensor, exclusive: bool) -> Tensor:
        """The mask in the form that the library takes."""
        return mask if exclusive else mask.float()

    def build(self, known: Mapping[str, type[nn.Module]], scheme: str, arguments: Mapping[str, Any]) -> None:
        """Make the library's loss for a label scheme; arguments that its class does not take are an error."""
        if self.name not in known:
            hint = nearest(self.name, known)
            raise ValueError(
                f"loss.name is {self.name!r}; of {self.origin} there are {', '.join(sorted(known))}.{hint}"
            )
        # A YAML has lists, where torch takes tensors.
        given = {
            k: torch.tensor(v, dtype=torch.float32) if k.endswith("weight") and isinstance(v, list) else v
            for k, v in arguments.items()
        }
        try:
            self.theirs[scheme] = known[self.name](**given)
        except Exception as error:  # each class refuses in its own way
            takes = ", ".join(inspect.signature(known[self.name]).parameters)
            raise ValueError(
                f"{self.origin} does not build {self.name} with loss.arguments: {error}; it takes {takes}"
            ) from error

    def _gather(self, tensor: Tensor) -> Tensor:
        """The batches of all processes, one behind the other; of the same size each."""
        if not self.training or processes() == 1:
            return tensor
        slots = tensor.new_zeros(processes(), *tensor.shape)
        slots[dist.get_rank()] = tensor
        return self.total(slots).flatten(0, 1)


class MonaiLoss(ForeignLoss):
    """A loss of MONAI: softmax and one-hot masks for exclusive labels, sigmoids for overlapping ones, everything else as MONAI has it.

    Args:
        name: A class of `monai.losses`, such as DiceFocalLoss, GeneralizedDiceFocalLoss or TverskyLoss.
        arguments: Of that class.
        class_weights: Refused; MONAI's own go into `arguments`.

    Reference:
        Cardoso et al., MONAI, 2022. https://arxiv.org/abs/2211.02701
    """

    origin = "MONAI"

    def __init__(
        self, name: str, arguments: Mapping[str, Any] | None = None, class_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(name, class_weights)
        known = _losses("monai.losses", "MONAI", "monai")
        switches = {"softmax", "use_softmax"}  # others tell the two kinds of labels apart in no way that all share
        known = {key: loss for key, loss in known.items() if switches & set(inspect.signature(loss).parameters)}
        for scheme in sorted(self.schemes):
            exclusive = scheme == "exclusive"
            ours = {"softmax": exclusive, "use_softmax": exclusive, "sigmoid": not exclusive, "to_onehot_y": exclusive}
            self.build(known, scheme, {**_taken(ours, known.get(name)), **(arguments or {})})

    def target(self, mask: Tensor, exclusive: bool) -> Tensor:
        """The mask in the form that MONAI takes."""
        return mask[:, None] if exclusive else mask.float()


class SMPLoss(ForeignLoss):
    """A loss of segmentation-models-pytorch: in its mode multiclass for exclusive labels, multilabel for overlapping ones.

    Its own ignore_index leaves ignored pixels out, where its class has one. (FocalLoss has none that works for overlapping labels.)

    Args:
        name: A class of `segmentation_models_pytorch.losses`, such as DiceLoss, LovaszLoss or SoftCrossEntropyLoss.
        arguments: Of that class.
        class_weights: Refused; SMP's own go into `arguments`.

    Reference:
        Iakubovskii, Segmentation Models Pytorch, 2019. https://github.com/qubvel-org/segmentation_models.pytorch
    """

    origin = "segmentation-models-pytorch"

    def __init__(
        self, name: str, arguments: Mapping[str, Any] | None = None, class_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(name, class_weights)
        known = _losses("segmentation_models_pytorch.losses", self.origin, self.origin)
        known.pop("MCCLoss", None)  # of probabilities; MONAI has it of logits
        self.schemes = {"SoftBCEWithLogitsLoss": OVERLAPPING, "SoftCrossEntropyLoss": EXCLUSIVE}.get(name, self.schemes)
        for scheme in sorted(self.schemes):
            exclusive = scheme == "exclusive"
            ours: dict[str, Any] = {"mode": "multiclass" if exclusive else "multilabel", "ignore_index": IGNORE_INDEX}
            if name == "FocalLoss" and not exclusive:
                del ours["ignore_index"]
            self.build(known, scheme, {**_taken(ours, known.get(name)), **(arguments or {})})


def _losses(module: str, library: str, package: str) -> dict[str, type[nn.Module]]:
    """Every loss class of a module, by name."""
    try:
        content = vars(importlib.import_module(module))  # slow to import, so only where it is asked for
    except ModuleNotFoundError as error:
        raise ValueError(f"{library} is not installed ({error}); run `pip install {package}`") from error
    return {key: v for key, v in content.items() if key.endswith("Loss") and issubclass(v, nn.Module)}


def _taken(arguments: Mapping[str, Any], loss: type[nn.Module] | None) -> dict[str, Any]:
    """Those of the arguments that a class takes."""
    parameters = inspect.signature(loss).parameters if loss else {}
    return {key: value for key, value in arguments.items() if key in parameters}
