import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import make_card
from torch import Tensor, nn

from segline.inference.network import build_network
from segline.models.fcn import FCN, other_bands

WIDTHS = [3, 4, 5, 6, 7, 8, 9]
STRIDES = pytest.mark.parametrize("stride", [32, 16, 8])


def random_network(stride: int, **arguments: Any) -> FCN:
    """A narrow network none of whose weights is what it starts from."""
    torch.manual_seed(0)
    network = FCN(2, 3, channels=WIDTHS, prediction_stride=stride, **arguments).eval()
    for p in [*network.score.parameters(), *network.up.parameters()]:
        nn.init.normal_(p, std=0.5)
    return network


def narrow_vgg() -> Any:
    """torchvision's VGG16, narrow."""
    from torchvision.models import vgg

    torch.manual_seed(1)
    a, b, c, d, e, f, g = WIDTHS
    convs = vgg.make_layers([a, a, "M", b, b, "M", c, c, c, "M", d, d, d, "M", e, e, e, "M"])
    network = vgg.VGG(convs, init_weights=False)
    network.classifier[0], network.classifier[3] = nn.Linear(e * 49, f), nn.Linear(f, g)
    return network.eval()


@pytest.fixture
def vgg_file(tmp_path: Path) -> Path:
    torch.save(narrow_vgg().state_dict(), tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


@pytest.mark.parametrize(("stride", "skips", "ups"), [(32, [], 0), (16, [512], 1), (8, [512, 256], 2)])
def test_the_number_of_weights_is_the_papers(stride: int, skips: list[int], ups: int) -> None:
    from torchvision.models import VGG16_Weights

    with torch.device("meta"):
        count = sum(p.numel() for p in FCN(3, 21, prediction_stride=stride).parameters())
    assert round(count / 1e6) == 134  # Long et al., table 1
    convolutional = VGG16_Weights.IMAGENET1K_V1.meta["num_params"] - 1000 * (4096 + 1)
    assert count == convolutional + sum(21 * (width + 1) for width in [4096, *skips]) + ups * 21 * 21 * 4 * 4
    if stride == 8:  # as pytorch-fcn's, whose last up-sampling counts, too
        assert count + 21 * 21 * 16 * 16 == 134_489_759


def test_layers_are_those_of_torchvisions_vgg16() -> None:
    from torchvision.models import vgg16

    with torch.device("meta"):
        ours, theirs = FCN(3, 21), vgg16()
    last = {"classifier.6.weight", "classifier.6.bias"}
    sizes = {name: w.numel() for name, w in theirs.state_dict().items() if name not in last}
    assert {n: w.numel() for n, w in ours.state_dict().items() if not n.startswith(("score", "up"))} == sizes


def test_fc7_is_what_the_classifier_computes_of_one_window(vgg_file: Path) -> None:
    vgg, network = narrow_vgg(), FCN(3, 2, channels=WIDTHS, encoder_weights=str(vgg_file)).eval()
    network.features[0].padding = (1, 1)  # without the border one position is left
    image = torch.randn(2, 3, 224, 224)
    theirs = vgg.classifier[:6](vgg.features(image).flatten(1))
    ours = network.classifier(network.features(image))
    assert theirs.std() > 0
    torch.testing.assert_close(ours[..., 0, 0], theirs)
    towards = torch.randn_like(theirs)
    (ours[..., 0, 0] * towards).sum().backward()
    (theirs * towards).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    for name, p in vgg.named_parameters():
        if not name.startswith("classifier.6"):
            assert p.grad.any()
            torch.testing.assert_close(gradients[name].reshape(p.shape), p.grad)


def published(weights: dict[str, Tensor], image: Tensor, stride: int) -> Tensor:
    """The authors' network, written out: crops stand where their Caffe models have them."""

    def conv(x: Tensor, name: str, padding: int = 0) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    x, pools, layer = image, [], 0
    for convs in (2, 2, 3, 3, 3):
        for _ in range(convs):
            x = conv(x, f"features.{layer}", 1 if layer else 100).relu()
            layer += 2
        x = F.max_pool2d(x, 2, ceil_mode=True)
        layer += 1
        pools.append(x)
    x = conv(conv(x, "classifier.0").relu(), "classifier.3").relu()
    x = conv(x, "score.0")
    for k, (pool, offset) in enumerate([(pools[3], 5), (pools[2], 9)][: {32: 0, 16: 1, 8: 2}[stride]]):
        x = F.conv_transpose2d(x, weights[f"up.{k}.weight"], stride=2)
        score = conv(pool, f"score.{k + 1}")
        x = x + score[..., offset : offset + x.shape[2], offset : offset + x.shape[3]]
    line = 1 - (torch.arange(2 * stride) - (stride - 0.5)).abs() / stride
    kernel = torch.zeros(3, 3, 2 * stride, 2 * stride)
    kernel[range(3), range(3)] = line[:, None] * line
    x, offset = F.conv_transpose2d(x, kernel, stride=stride), {32: 19, 16: 27, 8: 31}[stride]
    return x[..., offset : offset + image.shape[2], offset : offset + image.shape[3]]


@STRIDES
def test_a_narrow_one_equals_the_authors_network(stride: int) -> None:
    network = random_network(stride)
    weights = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    image = torch.randn(2, 2, 32, 96)
    ours, theirs = network(image), published(weights, image, stride)
    assert theirs.shape == (2, 3, 32, 96)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    towards = torch.randn_like(ours)
    (ours * towards).sum().backward()
    (theirs * towards).sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None
        assert p.grad.any(), name
        torch.testing.assert_close(p.grad, weights[name].grad, rtol=1e-3, atol=1e-3)


@STRIDES
def test_sizes_between_are_padded_with_zeros_at_the_far_ends(stride: int) -> None:
    network, image = random_network(stride), torch.randn(1, 2, 40, 17)
    weights = dict(network.named_parameters())
    expected = published(weights, F.pad(image, (0, 15, 0, 24)), stride)[..., :40, :17]
    torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)


def linear_network(stride: int) -> FCN:
    """All weights are positive and pools take means, so that gradients show what is seen and how much."""
    network = FCN(1, 1, channels=[1] * 7, prediction_stride=stride).double().eval()
    for conv in [m for m in network.modules() if isinstance(m, nn.Conv2d)]:
        nn.init.constant_(conv.weight, 1 / conv.weight[0].numel())
    for k in (4, 9, 16, 23, 30):
        network.features[k] = nn.AvgPool2d(2, ceil_mode=True)
    return network


def test_a_unit_of_fc7_sees_what_the_paper_says() -> None:
    network = linear_network(32)
    image = torch.ones(1, 1, 640, 32, dtype=torch.float64, requires_grad=True)
    units = network.classifier(network.features(image))
    units[0, 0, 10].sum().backward()
    assert image.grad is not None
    assert image.grad.sum((0, 1, 3)).count_nonzero() == 404  # table 1


@STRIDES
def test_every_pixel_sees_its_own_surroundings(stride: int) -> None:
    network = linear_network(stride)
    image = torch.ones(1, 1, 640, 32, dtype=torch.float64, requires_grad=True)
    logits = network(image)
    for pixel in (300, 319, 320, 333):
        (seen,) = torch.autograd.grad(logits[0, 0, pixel].sum(), image, retain_graph=True)
        weight = seen.sum((0, 1, 3))
        assert not weight[:32].any()
        assert not weight[-32:].any()
        center = (weight * torch.arange(640)).sum() / weight.sum()
        assert center.item() == pytest.approx(pixel, abs=1e-6)


@STRIDES
def test_it_starts_from_scores_of_zero_and_bilinear_up_sampling(stride: int) -> None:
    network = FCN(2, 3, channels=WIDTHS, prediction_stride=stride).eval()
    assert not network(torch.randn(1, 2, 32, 32)).any()
    assert len(network.up) == {32: 0, 16: 1, 8: 2}[stride]
    for up in network.up:
        scores = torch.randn(2, 3, 6, 9)
        expected = F.interpolate(scores, scale_factor=2, mode="bilinear")
        assert up.weight.requires_grad
        # One position more at each side; at the very borders an interpolation repeats what is there.
        torch.testing.assert_close(up(scores)[..., 2:-2, 2:-2], expected[..., 1:-1, 1:-1])


def test_dropout_stands_behind_the_layers_that_were_fully_connected() -> None:
    network = FCN(1, 2, channels=WIDTHS, dropout=0.3)
    places = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert places == {"classifier.2": 0.3, "classifier.5": 0.3}


@pytest.mark.parametrize(
    ("in_channels", "expected"),
    [(1, [111]), (2, [1.5, 15]), (3, [1, 10, 100]), (4, [0.75, 7.5, 75, 0.75]), (5, [0.6, 6, 60, 0.6, 6])],
)
def test_weights_of_three_bands_serve_others(in_channels: int, expected: list[float]) -> None:
    weight = torch.tensor([1.0, 10, 100])[None, :, None, None].expand(4, 3, 3, 3)
    for filters in other_bands(weight, in_channels):
        torch.testing.assert_close(filters[:, 1, 1], torch.tensor(expected, dtype=torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 13])
def test_other_bands_are_those_of_segmentation_models_pytorch(in_channels: int, vgg_file: Path) -> None:
    from segmentation_models_pytorch.encoders._utils import patch_first_conv

    theirs = narrow_vgg()
    patch_first_conv(theirs, in_channels)
    ours = FCN(in_channels, 2, channels=WIDTHS, encoder_weights=str(vgg_file))
    torch.testing.assert_close(ours.features[0].weight, theirs.features[0].weight)


def test_weights_of_imagenet_are_torchvisions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision.models import VGG16_Weights

    vgg, place = narrow_vgg(), tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    # Of the same form as torchvision's file, which is of 2017.
    file = place / os.path.basename(VGG16_Weights.IMAGENET1K_V1.url)
    torch.save(vgg.state_dict(), file, _use_new_zipfile_serialization=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = FCN(3, 2, channels=WIDTHS, encoder_weights="imagenet")
    assert torch.equal(network.features[28].weight, vgg.features[28].weight)
    assert torch.equal(network.classifier[3].weight[..., 0, 0], vgg.classifier[3].weight)
    assert not network.score[0].weight.any()


def test_weights_that_cannot_be_fetched_are_an_error_and_no_random_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"encoder_weights=imagenet cannot be loaded \(URLError.* or null, which starts"
    ):
        FCN(3, 2, channels=WIDTHS, encoder_weights="imagenet")


class Command:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made_by_a_file_of_weights",)


def test_files_that_hold_no_such_weights_are_refused(
    vgg_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def load(file: Path, channels: list[int] = WIDTHS) -> None:
        FCN(3, 2, channels=channels, encoder_weights=str(file))

    with pytest.raises(ValueError, match=r"nowhere.pth cannot be loaded \(FileNotFoundError"):
        load(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"vgg.pth cannot be loaded \(RuntimeError.*with as many channels"):
        load(vgg_file, [*WIDTHS[:4], 14, *WIDTHS[5:]])
    weights = torch.load(vgg_file, weights_only=True)
    torch.save({name: w for name, w in weights.items() if name != "classifier.3.bias"}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"KeyError: 'classifier.3.bias'"):
        load(tmp_path / "part.pth")
    torch.save({**weights, "more": Command()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"cannot be loaded \(UnpicklingError"):
        load(tmp_path / "code.pth")
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    (tmp_path / "code.pth").rename(place / "vgg16-397923af.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"imagenet cannot be loaded \(UnpicklingError"):
        load(Path("imagenet"))
    assert not Path("made_by_a_file_of_weights").exists()


def test_a_checkpoint_fetches_no_weights() -> None:
    arguments = {"in_channels": 3, "num_classes": 2, "channels": WIDTHS, "encoder_weights": "nowhere.pth"}
    assert isinstance(build_network(make_card(3, network={"_target_": "segline.models.fcn.FCN", **arguments})), FCN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 3}, "images only; for volumes set model=unet"),
        ({"channels": []}, "channels is empty"),
        ({"channels": [4, 6, 8]}, r"channels is \[4, 6, 8\]; expected 7 widths, such as"),
        ({"prediction_stride": 4}, "prediction_stride is 4; expected 32, 16 or 8"),
    ],
)
def test_what_is_no_such_network_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCN(3, 2, **arguments)
