"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.models.blocks import PointwiseConv2d, check_channels, crop, initialize, pad_to_multiple

_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"  # torchvision's VGG16_Weights.IMAGENET1K_V1
_CONVS = (2, 2, 3, 3, 3)  # of VGG16's stages
_SCORED = {32: 1, 16: 2, 8: 3}  # maps that are scored, by prediction stride: fc7, pool4, pool3


class FCN(nn.Module):
    """VGG16 with its fully connected layers as convolutions; class scores of strides 32, 16 and 8 are added and up-sampled to pixels.

    The layers of VGG16 have the names of torchvision's.

    Args:
        channels: Widths of VGG16's five stages, of fc6 and of fc7.
        prediction_stride: 32, 16 or 8 pixels: FCN-32s, FCN-16s or FCN-8s.
        dropout: Share of values dropped behind fc6 and behind fc7.
        encoder_weights: imagenet fetches torchvision's VGG16; else the path of a file of its weights; None starts at random. For other
            than three bands the first layer is changed as segmentation-models-pytorch does: its weights for red, green and blue are
            taken in turns and scaled by 3 / in_channels, or added up for a single band.

    Shape:
        `[B, in_channels, H, W]` -> `[B, num_classes, H, W]`, any size: padded to a multiple of `stride` and cropped inside. Around
        that the authors put 100 zeros, so that of 128 x 128 pixels 326 x 326 are computed.

    Raises:
        ValueError: Volumes, other than seven widths, another prediction stride, or weights that cannot be loaded.

    Reference:
        Long, Shelhamer, Darrell, Fully Convolutional Networks for Semantic Segmentation, CVPR 2015.
        https://arxiv.org/abs/1411.4038. Borders and crops, of which it says nothing, are those of the authors' Caffe models. As it says,
        the up-sampling between scores is learned and the last one fixed; those models fix all. Departures: sizes that 32 does not
        divide are padded; FCN-16s and FCN-8s do not start from the trained coarser one; without `encoder_weights` VGG16 starts as He
        et al. propose.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (64, 128, 256, 512, 512, 4096, 4096),
        prediction_stride: int = 8,
        dropout: float = 0.5,
        encoder_weights: str | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError("FCN takes images only; for volumes set model=unet or model=unet3d")
        check_channels(channels, usual=[64, 128, 256, 512, 512, 4096, 4096])
        if prediction_stride not in _SCORED:
            raise ValueError(f"prediction_stride is {prediction_stride}; expected 32, 16 or 8")
        self.stride, self.prediction_stride = 32, prediction_stride
        *stages, fc6, fc7 = channels
        self.features = convolutions(in_channels, stages)
        self.classifier = nn.Sequential(
            *(nn.Conv2d(stages[-1], fc6, 7), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Conv2d(fc6, fc7, 1), nn.ReLU(inplace=True), nn.Dropout(dropout)),
        )
        scored = [fc7, stages[3], stages[2]][: _SCORED[prediction_stride]]
        self.score = nn.ModuleList(PointwiseConv2d(width, num_classes) for width in scored)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2, bias=False) for _ in scored[1:]
        )
        initialize(self)
        for score in self.score:
            nn.init.zeros_(score.weight)  # type: ignore[arg-type]
        for up in self.up:
            bilinear_(up.weight)  # type: ignore[arg-type]
        if encoder_weights:
            load_vgg16(self, encoder_weights)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        # As many layers as torchvision's VGG16 has up to there.
        pool3 = self.features[:17](pad_to_multiple(image, self.stride))
        pool4 = self.features[17:24](pool3)
        logits: Tensor = self.score[0](self.classifier(self.features[24:](pool4)))
        # What stands before the first of the coarser scores is left out: 5 positions of pool4, 9 of pool3.
        for features, start, score, up in zip((pool4, pool3), (5, 9), self.score[1:], self.up, strict=False):
            logits = up(logits)
            logits = logits + score(crop(features[..., start:, start:], logits.shape[2:]))
        # The paper's last up-sampling is fixed: a transposed convolution, to which what is beyond its map is zero.
        logits = F.interpolate(F.pad(logits, [1] * 4), scale_factor=self.prediction_stride, mode="bilinear")
        # The authors crop 19, 27 or 31 pixels of theirs; with the zeros this one starts half a prediction stride before it.
        return crop(logits[..., 35:, 35:], image.shape[2:])


def convolutions(in_channels: int, channels: Sequence[int]) -> nn.Sequential:
    """VGG16 up to its last pooling, within a border of zeros."""
    layers: list[nn.Module] = []
    for width, convs in zip(channels, _CONVS, strict=True):
        for _ in range(convs):
            # fc6 has no padding: as much as it takes off, and what else the crops need, stands around the image.
            layers += [nn.Conv2d(in_channels, width, 3, padding=1 if layers else 100), nn.ReLU(inplace=True)]
            in_channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # as Caffe does
    return nn.Sequential(*layers)


def bilinear_(weight: Tensor) -> None:
    """Make of `[K, K, 4, 4]` weights of a transposed convolution of stride 2 a bilinear interpolation of each channel."""
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        weight.copy_(torch.eye(len(weight))[..., None, None] * torch.outer(line, line))


def load_vgg16(network: FCN, source: str) -> None:
    """Copy torchvision's VGG16 into a network, but for the last layer of its classifier.

    Args:
        network: Of as wide layers.
        source: imagenet, or the path of a state dict.

    Raises:
        ValueError: They cannot be fetched, read or copied.
    """
    own = {name: w for name, w in network.state_dict().items() if name.startswith(("features.", "classifier."))}
    first = "features.0.weight"
    try:
        if source == "imagenet":
            found = torch.hub.load_state_dict_from_url(_VGG16, map_location="cpu", check_hash=True, weights_only=True)
        else:
            found = torch.load(Path(source).expanduser(), map_location="cpu", weights_only=True)
        found = {**found, first: other_bands(found[first], own[first].shape[1])}
        # A fully connected layer's weights are those of a convolution as large as its map, in this order.
        network.load_state_dict({n: found[n].reshape(-1, *w.shape[1:]) for n, w in own.items()}, strict=False)
    except Exception as error:  # the hub, pickle and files each raise their own kinds
        raise ValueError(
            f"encoder_weights={source} cannot be loaded ({type(error).__name__}: {error}); expected imagenet, the path of a state dict "
            "of torchvision's vgg16 with as many channels, or null, which starts at random"
        ) from error


def other_bands(weight: Tensor, in_channels: int) -> Tensor:
    """Weights `[out, bands, 3, 3]` for other bands: added up for a single one, else repeated in turns and scaled to the same sum."""
    bands = weight.shape[1]
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(in_channels) % bands] * (bands / in_channels)
