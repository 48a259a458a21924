"""Every network of segmentation-models-pytorch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from segline.models.blocks import crop, pad_to_multiple
from segline.words import nearest

#: Pixels that an architecture pools away before its encoder's end, and so needs at least.
_LEAST = {"pan": 128}
#: Arguments without which an architecture takes images of one size only.
_ANY_SIZE: dict[str, dict[str, Any]] = {"dpt": {"dynamic_img_size": True}}


class SMP(nn.Module):
    """A network of segmentation-models-pytorch: any of its architectures with any of its encoders, for images of any bands and size.

    Pretrained weights are of three bands. For others both SMP and timm make the first convolution of them by one rule: that of a single
    band is the sum over the three; else band i gets that of band i mod 3, times 3 / in_channels. So equal bands, three or a multiple of
    them, say what a grey image said before.

    Weights that take no part in the logits, such as an encoder's unused last layers, are frozen: data parallel would wait for their
    gradients in vain.

    Args:
        architecture: SMP's name, such as unet, unetplusplus, deeplabv3plus, fpn, segformer.
        encoder_name: SMP's name, such as resnet34, efficientnet-b0, or tu-... for timm's.
        encoder_weights: Pretrained weights of the encoder, such as imagenet; None starts at random.
        encoder_lr: Factor of the learning rate for the encoder; 0 freezes it: its weights stay, its norms and dropout work as in
            evaluation.
        options: Further arguments of SMP's class.

    Shape:
        `[B, in_channels, H, W]` -> `[B, num_classes, H, W]`, any size: padded to a multiple of `stride` and cropped inside; some of
        timm's encoders take one size only, and say which.

    Raises:
        ValueError: A name that SMP does not know, a pair that it refuses (in its words), volumes, weights that cannot be loaded, or a
            negative factor; in training, a batch of one where the network pools it to a single position; an image of another size than the
            encoder's only one.

    Reference:
        Iakubovskii, Segmentation Models Pytorch, 2019. https://github.com/qubvel-org/segmentation_models.pytorch
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        architecture: str = "unet",
        encoder_name: str = "resnet18",
        encoder_weights: str | None = None,
        encoder_lr: float = 1.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError(
                "segmentation-models-pytorch has networks for images only; for volumes set model=unet or model=attention_unet"
            )
        if encoder_lr < 0:
            raise ValueError(f"model.encoder_lr is {encoder_lr}; expected a factor of 0 (frozen) or more, such as 0.1")
        self.network = _make(architecture, encoder_name, encoder_weights, in_channels, num_classes, options or {})
        # Architectures that dilate their encoder still ask for sizes that the undilated stride divides.
        self.stride = 32
        self.least = _LEAST.get(architecture.lower(), self.stride)
        self.frozen = encoder_lr == 0
        self.lr_factors = {} if self.frozen else {"network.encoder": encoder_lr}
        if self.frozen:
            self.network.encoder.requires_grad_(False)
        for parameter in _unreached(self.network, in_channels):
            parameter.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but a frozen encoder."""
        super().train(mode)
        if self.frozen:
            self.network.encoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        # Most have no larger least size, and then no comparison that an export would have to decide for every size.
        small = self.least > self.stride and min(image.shape[2:]) < self.least
        stride = self.least if small else self.stride
        try:
            logits = self.network(pad_to_multiple(image, stride))
        except (ValueError, AssertionError) as error:
            if "more than 1 value per channel" in str(error):
                raise ValueError(
                    "this network pools each image to a single position, and batch norm finds no spread in a batch of one: set "
                    "data.batch_size=2 or more, or another model.architecture such as unet"
                ) from error
            if "doesn't match model" in str(error):  # of timm's
                raise ValueError(
                    f"model.encoder_name takes images of one size only ({error}); set data.window and data.tile to it, its own size by "
                    "model.options={img_size: 256}, or another encoder"
                ) from error
            raise
        return crop(logits, image.shape[2:])


def _make(
    architecture: str, encoder: str, weights: str | None, in_channels: int, num_classes: int, options: Mapping[str, Any]
) -> Any:
    """SMP's network, or its refusal in its words."""
    import segmentation_models_pytorch as smp  # 10 s on a cold disk, so only where it is asked for

    known, name = smp.MODEL_ARCHITECTURES_MAPPING, architecture.lower()
    if name not in known:
        hint = nearest(name, known)
        raise ValueError(
            f"model.architecture is {architecture!r}; segmentation-models-pytorch has {', '.join(sorted(known))}.{hint}"
        )
    taken = [key for key in inspect.signature(known[name]).parameters if key != "kwargs"]
    timm = encoder.startswith("tu-")
    # SMP passes what it does not know on to timm, and drops it where the encoder is not timm's.
    if (unknown := sorted(set(options) - set(taken))) and not timm:
        raise ValueError(f"model.options has {', '.join(unknown)}; {architecture} takes {', '.join(taken)}")
    try:
        options = {**_ANY_SIZE.get(name, {}), **options}
        pretrained = True if timm and weights else weights  # which of them, timm's names say
        network = smp.create_model(name, encoder, pretrained, in_channels=in_channels, classes=num_classes, **options)
    except Exception as error:  # SMP, timm and the hub each raise their own kinds
        what = f" with encoder_weights={weights} (null starts at random)" if weights else ""
        raise ValueError(
            f"segmentation-models-pytorch does not build {architecture} on {encoder}{what}: {error}"
        ) from error
    if weights and timm and in_channels not in (1, 3):
        stem = next(module for module in network.encoder.modules() if isinstance(module, nn.Conv2d))
        if stem.in_channels != in_channels:  # of pixels that are regrouped into channels
            raise ValueError(
                f"timm has no rule by which the first convolution of {encoder}, pretrained on three bands, takes {in_channels}, and "
                "would start it at random; set data.bands to one or three of them, or another model.encoder_name"
            )
    return network


def _unreached(network: nn.Module, in_channels: int) -> list[nn.Parameter]:
    """Weights that take no part in the logits, by the graph of a step without values."""
    meta = {name: p.detach().to("meta").requires_grad_(p.requires_grad) for name, p in network.named_parameters()}
    buffers = {name: b.to("meta") for name, b in network.named_buffers()}
    image = torch.empty(2, in_channels, *_made_for(network), device="meta")
    with torch.enable_grad():  # whoever builds the network
        logits = torch.func.functional_call(network, meta | buffers, image)
    nodes, seen, reached = [logits.grad_fn], set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))  # a leaf's
        nodes += [before for before, _ in node.next_functions]
    return [p for name, p in network.named_parameters() if id(meta[name]) not in reached]


def _made_for(network: nn.Module) -> list[int]:
    """A size of images that the network takes; some encoders of timm's take no other."""
    fixed: list[Any] = [module.img_size for module in network.modules() if getattr(module, "img_size", None)]
    if fixed:
        return list(fixed[0])
    config = getattr(getattr(network.encoder, "model", None), "pretrained_cfg", {})
    return [-(-size // 32) * 32 for size in config.get("input_size", (3, 224, 224))[1:]]
