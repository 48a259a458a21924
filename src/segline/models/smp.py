"""Every network of segmentation-models-pytorch."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from segline.models.blocks import crop, pad_to_multiple

#: Pixels that an architecture pools away before its encoder's end, and so needs at least.
_LEAST = {"pan": 128}
#: Arguments without which an architecture takes images of one size only.
_ANY_SIZE: dict[str, dict[str, Any]] = {"dpt": {"dynamic_img_size": True}}


class SMP(nn.Module):
    """A network of segmentation-models-pytorch: any of its architectures with any of its encoders, for images of any bands and size.

    Args:
        architecture: SMP's name, such as unet, unetplusplus, deeplabv3plus, fpn, segformer.
        encoder_name: SMP's name, such as resnet34, efficientnet-b0, or tu-... for timm's.
        encoder_weights: Pretrained weights of the encoder, such as imagenet; None starts at random.
        options: Further arguments of SMP's class.

    Shape:
        `[B, in_channels, H, W]` -> `[B, num_classes, H, W]`, any size: padded to a multiple of `stride` and cropped inside.

    Raises:
        ValueError: A name that SMP does not know, a pair that it refuses (in its words), volumes, or weights that cannot be loaded.

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
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError(
                "segmentation-models-pytorch has networks for images only; for volumes set model=unet or model=attention_unet"
            )
        import segmentation_models_pytorch as smp  # 10 s on a cold disk, so only where it is asked for

        known, name = smp.MODEL_ARCHITECTURES_MAPPING, architecture.lower()
        if name not in known:
            close = difflib.get_close_matches(name, known)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(
                f"model.architecture is {architecture!r}; segmentation-models-pytorch has {', '.join(sorted(known))}.{hint}"
            )
        options = options or {}
        taken = [key for key in inspect.signature(known[name]).parameters if key != "kwargs"]
        # SMP passes what it does not know on to timm, and drops it where the encoder is not timm's.
        if (unknown := sorted(set(options) - set(taken))) and not encoder_name.startswith("tu-"):
            raise ValueError(f"model.options has {', '.join(unknown)}; {architecture} takes {', '.join(taken)}")
        try:
            self.network = smp.create_model(
                name,
                encoder_name,
                encoder_weights,
                in_channels=in_channels,
                classes=num_classes,
                **{**_ANY_SIZE.get(name, {}), **options},
            )
        except Exception as error:  # SMP, timm and the hub each raise their own kinds
            what = f" with encoder_weights={encoder_weights} (null starts at random)" if encoder_weights else ""
            raise ValueError(
                f"segmentation-models-pytorch does not build {architecture} on {encoder_name}{what}: {error}"
            ) from error
        # Architectures that dilate their encoder still ask for sizes that the undilated stride divides.
        self.stride = 32
        self.least = _LEAST.get(name, self.stride)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        # Most have no larger least size, and then no comparison that an export would have to decide for every size.
        small = self.least > self.stride and min(image.shape[2:]) < self.least
        stride = self.least if small else self.stride
        return crop(self.network(pad_to_multiple(image, stride)), image.shape[2:])
