"""Grad-CAM for segmentation: where a layer speaks for a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segline.interpretation.features import hooked


def grad_cam(network: nn.Module, image: Tensor, layer: str, pixels: Tensor) -> list[Tensor]:
    """Maps of what raises the logits of a class at some pixels; 0 where nothing of the layer does.

        L = relu(sum_k a_k A_k);  a_k = mean over places of dy / dA_k;  y = sum of the class's logits over its pixels

    with `A_k` the layer's maps. A layer that runs several times counts by its last one.

    Args:
        network: In evaluation mode.
        image: `[1, C, *S]`, normalised.
        layer: Dotted name of a module that gives `[1, A, *T]`.
        pixels: Of each class, `[K, *S]`; nothing is said of a class without any.

    Returns:
        Of each class `[*T]`, in the units of the logits.

    Raises:
        ValueError: No logit depends on the layer.

    Reference:
        Vinogradova et al., Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping, AAAI 2020.
        https://arxiv.org/abs/2002.11434. Of one pixel it is Grad-CAM: Selvaraju et al., ICCV 2017. https://arxiv.org/abs/1610.02391
    """
    features: list[Tensor] = []

    def keep(name: str, module: nn.Module, arguments: Any, output: Any) -> Tensor | None:
        if name != layer:
            return None
        features.append(output)
        return output.clone()  # what follows may work in place

    with hooked(network, keep), torch.enable_grad():
        logits = network(image.clone().requires_grad_())[0]
        scores = [(plane * where).sum() for plane, where in zip(logits, pixels, strict=True)]
        slopes = [
            torch.autograd.grad(y, features[-1], retain_graph=True, allow_unused=True)[0]
            if where.any()
            else 0 * features[-1]
            for y, where in zip(scores, pixels, strict=True)
        ]
    if any(slope is None for slope in slopes):
        raise ValueError(f"layer is {layer!r}, which no logit depends on; expected one that leads to the output")
    maps = features[-1].detach()[0].flatten(1)
    size = features[-1].shape[2:]
    weights = [slope[0].flatten(1).mean(1) for slope in slopes]
    return [(weight @ maps).relu().reshape(size) for weight in weights]
