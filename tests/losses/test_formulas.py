"""Every loss against an independent form of its formula in float64, which picks out what counts instead of weighing the rest away."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_cases import NUM_CLASSES, OWN_CHOICES, make, sample, value_and_gradient
from torch import Tensor

from segline.labels import IGNORE_INDEX
from segline.losses.combination import DiceCELoss, WeightedSum
from segline.losses.distance import BoundaryLoss, HausdorffLoss
from segline.losses.entropy import BCELoss, CrossEntropyLoss, FocalLoss, MSELoss, TopKLoss
from segline.losses.loss import Loss
from segline.losses.overlap import (
    DiceLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    JaccardLoss,
    LovaszLoss,
    OverlapLoss,
    TverskyLoss,
)
from segline.losses.skeleton import ClDiceLoss

#: Log-odds, 0/1 truth and weight of the pixels of a class that count. Of log-odds no logarithm loses digits, however sure a network is.
Picked = tuple[Tensor, Tensor, Tensor]


def is_exclusive(logits: Tensor, mask: Tensor) -> bool:
    return mask.ndim == logits.ndim - 1


def planes(logits: Tensor, mask: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Of each class: number, log-odds, 0/1 truth and validity, each `[B, *S]`."""
    for k in range(logits.shape[1]):
        if is_exclusive(logits, mask):
            others = [j for j in range(logits.shape[1]) if j != k]
            yield k, logits[:, k] - logits[:, others].logsumexp(1), (mask == k).double(), mask != IGNORE_INDEX
        else:
            yield k, logits[:, k], (mask[:, k] == 1).double(), mask[:, k] != IGNORE_INDEX


def picked(logits: Tensor, mask: Tensor, weight: Tensor) -> list[Picked]:
    return [(odds[valid], t[valid], weight[valid]) for _, odds, t, valid in planes(logits, mask)]


def log_right(odds: Tensor, t: Tensor) -> Tensor:
    """Logarithm of the probability that is given to the truth."""
    return -torch.where(t == 1, -odds, odds).exp().log1p()


def class_weights(loss: Loss) -> list[float]:
    return [1.0] * NUM_CLASSES if loss.class_weights is None else loss.class_weights.tolist()


def mean(parts: list[tuple[float, Tensor]]) -> Tensor:
    """Weighted mean of values, given as (weight, value); 0 where nothing counts."""
    return sum((w * v for w, v in parts), torch.zeros(())) / (sum(w for w, _ in parts) or 1.0)


# Means over pixels


def entropy(loss: Loss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    gamma, exclusive = getattr(loss, "gamma", 0.0), is_exclusive(logits, mask)
    total, weights = torch.zeros(()), torch.zeros(())
    for (odds, t, w), of_class in zip(picked(logits, mask, weight), class_weights(loss), strict=True):
        right = log_right(odds, t)
        counts = of_class * w * (t if exclusive else 1)
        total = total + (counts * (1 - right.exp()) ** gamma * -right).sum()
        weights = weights + counts.sum()
    return total / weights


def smoothed_cross_entropy(loss: CrossEntropyLoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    if not loss.label_smoothing:
        return entropy(loss, logits, mask, weight)
    total, weights = torch.zeros(()), 0.0
    for place in (mask != IGNORE_INDEX).nonzero():
        b, *at = place.tolist()
        minus_log = -logits[(b, slice(None), *at)].log_softmax(0)
        for k, of_class in enumerate(class_weights(loss)):
            share = loss.label_smoothing / NUM_CLASSES + (1 - loss.label_smoothing) * (k == mask[(b, *at)])
            total = total + weight[(b, *at)] * share * of_class * minus_log[k]
        weights += float(weight[(b, *at)]) * class_weights(loss)[mask[(b, *at)]]
    return total / weights


def hardest(loss: TopKLoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    samples = []
    for one in zip(logits, mask, weight, strict=True):
        pixels = []
        for (odds, t, w), of_class in zip(picked(*(v[None] for v in one)), class_weights(loss), strict=True):
            entropies = -log_right(odds, t)
            if is_exclusive(logits, mask):
                entropies, w = entropies[t == 1], w[t == 1]
            pixels += [(float(of_class * wi), e) for e, wi in zip(entropies, w, strict=True)]
        pixels.sort(key=lambda pixel: -pixel[1].item())
        kept = math.ceil(loss.fraction * len(pixels))
        samples.append(mean([(w, e) for n, (w, e) in enumerate(pixels) if n < kept or e.item() > loss.bar]))
    return torch.stack(samples).mean()


def squares(loss: Loss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    return weighted_mean(loss, logits, mask, weight, lambda p, t, valid: (p - t) ** 2)


def weighted_mean(
    loss: Loss, logits: Tensor, mask: Tensor, weight: Tensor, of: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Mean over pixels and classes of a function of probability, truth and validity of one sample and class, `[*S]` each."""
    values, weights = [], []
    for k, odds, t, valid in planes(logits, mask):
        p = odds.sigmoid()
        for b in range(len(p)):
            values.append((class_weights(loss)[k] * weight[b] * of(p[b], t[b], valid[b]))[valid[b]].sum())
            weights.append((class_weights(loss)[k] * weight[b])[valid[b]].sum())
    return torch.stack(values).sum() / torch.stack(weights).sum()


# Overlap


def cases(loss: Any, logits: Tensor, mask: Tensor, weight: Tensor) -> list[list[Picked]]:
    """What is picked of each class, of the batch or of each sample."""
    if not loss.per_case:
        return [picked(logits, mask, weight)]
    return [picked(*(v[None] for v in one)) for one in zip(logits, mask, weight, strict=True)]


def overlap(loss: OverlapLoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    parts = []
    for case in cases(loss, logits, mask, weight):
        for (odds, t, w), of_class in zip(case, class_weights(loss), strict=True):
            p = odds.sigmoid()
            hit, false, missed = (w * p * t).sum(), (w * p * (1 - t)).sum(), (w * (1 - p) * t).sum()
            match loss:
                case DiceLoss(squared=True):
                    top, bottom = 2 * hit, (w * p * p).sum() + (w * t * t).sum()
                case DiceLoss():
                    top, bottom = 2 * hit, 2 * hit + false + missed
                case JaccardLoss():
                    top, bottom = hit, hit + false + missed
                case TverskyLoss():
                    top, bottom = hit, hit + loss.alpha * false + loss.beta * missed
            value = 1 - (top + loss.smooth) / (bottom + loss.smooth)
            value = value ** (1 / loss.gamma) if isinstance(loss, FocalTverskyLoss) else value
            parts += [(of_class, value)] if t.any() else []
    return mean(parts)


def generalized_dice(loss: GeneralizedDiceLoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    parts = []
    for case in cases(loss, logits, mask, weight):
        top, bottom = torch.zeros(()), torch.zeros(())
        for (odds, t, w), of_class in zip(case, class_weights(loss), strict=True):
            if t.any():
                p = odds.sigmoid()
                share = of_class / (w * t).sum() ** 2
                top, bottom = top + share * (w * p * t).sum(), bottom + share * (w * (p + t)).sum()
        parts += [(1.0, 1 - 2 * top / bottom)] if bottom else []
    return mean(parts)


def lovasz(loss: LovaszLoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    exclusive, samples = is_exclusive(logits, mask), []
    for one in zip(logits, mask, weight, strict=True):
        parts = []
        for (odds, t, w), of_class in zip(picked(*(v[None] for v in one)), class_weights(loss), strict=True):
            margins = torch.where(t == 1, odds, -odds)
            errors = (t - odds.sigmoid()).abs() if exclusive else (1 - margins).clamp_min(0)
            value, wrong, before = torch.zeros(()), torch.zeros_like(t, dtype=torch.bool), 0.0
            for i in errors.detach().argsort(descending=True).tolist():
                wrong[i] = True
                predicted = (t == 1) ^ wrong  # the decision that errs at these pixels
                union = float(w[(t == 1) | predicted].sum())
                after = 1 - float(w[(t == 1) & predicted].sum()) / union
                value, before = value + errors[i] * (after - before), after
            parts += [(of_class, value)] if t.any() or not exclusive else []
        samples.append(mean(parts))
    return torch.stack(samples).mean()


# Distances: to every pixel of the other side, and the least of them


def to_boundary(inside: Tensor) -> Tensor:
    """Distance of each pixel to the nearest of the other side; 0 without one."""
    distances = torch.zeros(inside.shape, dtype=torch.double)
    for side in (inside, ~inside):
        if side.any() and not side.all():
            distances[side] = torch.cdist(side.nonzero().double(), (~side).nonzero().double()).amin(1)
    return distances


def boundary(loss: BoundaryLoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    def of(p: Tensor, t: Tensor, valid: Tensor) -> Tensor:
        inside = (t == 1) & valid
        signed = torch.where(inside, 1 - to_boundary(inside), to_boundary(inside))
        return signed * (p - t) if inside.any() and not inside.all() else 0 * p

    return weighted_mean(loss, logits, mask, weight, of)


def hausdorff(loss: HausdorffLoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    def of(p: Tensor, t: Tensor, valid: Tensor) -> Tensor:
        distances = [to_boundary(inside & valid) ** loss.alpha for inside in (p > 0.5, t == 1)]
        return (p - t) ** 2 * (distances[0] + distances[1])

    return weighted_mean(loss, logits, mask, weight, of)


# Skeletons: the least and the largest of neighbours, each shifted into place


def neighbours(values: Tensor, steps: list[tuple[int, ...]], beyond: float) -> Tensor:
    """Of each pixel of `[*S]`, its neighbours at some steps, `[len(steps), *S]`."""
    padded = torch.nn.functional.pad(values, [1, 1] * values.ndim, value=beyond)
    return torch.stack(
        [padded[tuple(slice(1 + d, 1 + d + s) for d, s in zip(step, values.shape, strict=True))] for step in steps]
    )


def skeleton(values: Tensor, iterations: int) -> Tensor:
    around = list(product((-1, 0, 1), repeat=values.ndim))
    faces = [step for step in around if sum(map(abs, step)) <= 1]
    found = torch.zeros_like(values)
    for _ in range(iterations + 1):
        eroded = neighbours(values, faces, math.inf).amin(0)
        rest = (values - neighbours(eroded, around, -math.inf).amax(0)).relu()
        found, values = found + (1 - found) * rest, eroded
    return found


def cldice(loss: ClDiceLoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    parts = []
    for k, odds, t, valid in planes(logits, mask):
        p, t = odds.sigmoid() * valid, t * valid
        bones = [torch.stack([skeleton(one, loss.iterations) for one in v])[valid] for v in (p, t)]
        p, t, w = p[valid], t[valid], weight[valid]
        precision = ((w * bones[0] * t).sum() + loss.smooth) / ((w * bones[0]).sum() + loss.smooth)
        sensitivity = ((w * bones[1] * p).sum() + loss.smooth) / ((w * bones[1]).sum() + loss.smooth)
        parts += [(class_weights(loss)[k], 1 - 2 / (1 / precision + 1 / sensitivity))] if t.any() else []
    return mean(parts)


# Sums


def dice_and_entropy(loss: DiceCELoss, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    return entropy(loss, logits, mask, weight) + loss.dice_weight * overlap(loss.dice, logits, mask, weight)


def weighted_sum(loss: WeightedSum, logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    parts = [
        loss.weights[name] * FORMULAS[type(part)](part, logits, mask, weight) for name, part in loss.losses.items()
    ]
    return torch.stack(parts).sum()


FORMULAS: dict[type[Loss], Callable[..., Tensor]] = {
    CrossEntropyLoss: smoothed_cross_entropy,
    BCELoss: entropy,
    FocalLoss: entropy,
    TopKLoss: hardest,
    MSELoss: squares,
    DiceLoss: overlap,
    JaccardLoss: overlap,
    TverskyLoss: overlap,
    FocalTverskyLoss: overlap,
    GeneralizedDiceLoss: generalized_dice,
    LovaszLoss: lovasz,
    BoundaryLoss: boundary,
    HausdorffLoss: hausdorff,
    ClDiceLoss: cldice,
    DiceCELoss: dice_and_entropy,
    WeightedSum: weighted_sum,
}
#: More arguments to try, by the name of a loss.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ce": [{"label_smoothing": 0.3}],
    "topk": [{"fraction": 0.4}, {"fraction": 1.0}, {"threshold": 1.0}],
    "ohem": [{"fraction": 0.25, "threshold": 0.4}],
    "dice": [{"per_case": True}, {"squared": True, "smooth": 0.5}, {"squared": True, "per_case": True}],
    "generalized_dice": [{"per_case": True}],
    "jaccard": [{"per_case": True, "smooth": 0.0}],
    "tversky": [{"per_case": True, "alpha": 0.9, "beta": 0.2}],
    "focal_tversky": [{"per_case": True, "gamma": 2.0}],
    "hausdorff": [{"alpha": 1.0}],
    "cldice": [{"iterations": 0}, {"iterations": 1, "smooth": 0.1}],
    "dice_ce": [{"dice_weight": 0.3}],
}
CASES = [
    pytest.param(file, scheme, more, id="-".join([file.stem, scheme, *map(str, more)]))
    for file, scheme in OWN_CHOICES
    for more in [{}, *VARIANTS.get(file.stem, [])]
]


@pytest.mark.parametrize(("file", "scheme", "more"), CASES)
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]], ids=["plain", "weighed"])
@pytest.mark.parametrize("size", [(5, 6), (3, 2, 4)], ids=["2d", "3d"])
def test_value_and_gradient_equal_the_formula_in_float64(
    file: Path, scheme: str, more: dict[str, Any], weights: list[float] | None, size: tuple[int, ...]
) -> None:
    logits, mask, weight = sample(scheme, 0, size)
    assert_is_its_formula(make(file, class_weights=weights, **more), logits, mask, weight)


@pytest.mark.parametrize("absent", [0, 2])
@pytest.mark.parametrize(("file", "scheme", "more"), CASES)
def test_so_they_do_where_a_class_is_absent(file: Path, scheme: str, more: dict[str, Any], absent: int) -> None:
    logits, mask, weight = sample(scheme, 1, (4, 5))
    if scheme == "exclusive":
        mask[0][mask[0] == absent] = (absent + 1) % NUM_CLASSES
        mask[1][mask[1] != IGNORE_INDEX] = (absent + 2) % NUM_CLASSES
    else:
        mask[:, absent] *= mask[:, absent] == IGNORE_INDEX
        mask[0, (absent + 1) % NUM_CLASSES] = 1
    assert_is_its_formula(make(file, **more), logits, mask, weight)


@pytest.mark.parametrize("sure", [False, True])
@pytest.mark.parametrize(("file", "scheme", "more"), CASES)
def test_so_they_do_of_empty_masks(file: Path, scheme: str, more: dict[str, Any], sure: bool) -> None:
    logits, mask, weight = sample(scheme, 2, (4, 5))
    mask[mask != IGNORE_INDEX] = 0
    assert_is_its_formula(make(file, **more), surely(logits, 0.5) if sure else logits, mask, weight)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize(("file", "scheme", "more"), CASES)
def test_so_they_do_where_the_network_is_sure_and_often_wrong(
    file: Path, scheme: str, more: dict[str, Any], share: float
) -> None:
    # More is wrong than any keeps as the hardest: what is surely right is equally easy in float32.
    logits, mask, weight = sample(scheme, 5, (4, 5))
    assert_is_its_formula(make(file, **more), surely(logits, share), mask, weight)


def surely(logits: Tensor, share: float) -> Tensor:
    """Logits of which a share of the pixels has about 100 or -100: not quite, as of what is equally hard any may be kept."""
    chosen = torch.rand(len(logits), 1, *logits.shape[2:], generator=torch.Generator().manual_seed(0)) < share
    return torch.where(chosen, logits + 100 * logits.sign(), logits)


def assert_is_its_formula(loss: Loss, logits: Tensor, mask: Tensor, weight: Tensor) -> None:
    """Value and gradient."""
    precise = logits.double().requires_grad_()
    expected = FORMULAS[type(loss)](loss, precise, mask, weight.double()) + 0 * precise.sum()
    expected.backward()
    assert precise.grad is not None
    value, gradient = value_and_gradient(loss, logits, mask, weight)
    torch.testing.assert_close(value, expected.detach().float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, precise.grad.float(), rtol=1e-4, atol=1e-6)
