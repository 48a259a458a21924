"""Patch classifiers: the papers' networks, and the dense form gives what a sliding window of the same weights gives."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Array, make_card, save
from torch import Tensor
from torchvision.models.vgg import make_layers

from segline import checkpoints
from segline.inference.ensemble import Ensemble, Member
from segline.inference.export import export_network
from segline.inference.plan import choose_tiling
from segline.inference.tiled import predict_tiles
from segline.models.patch_classifier import PatchClassifier, ResponseNorm

WINDOWS = {"ciresan": 95, "lenet5": 32, "alexnet": 355, "vgg16": 404}
NARROW: dict[str, list[int] | None] = {
    "ciresan": [2, 3, 4, 3, 5],
    "lenet5": None,  # small as it is
    "alexnet": [4, 6, 4, 6, 4, 8, 6],
    "vgg16": [3, 4, 3, *[4] * 10, 8, 6],
}
every_architecture = pytest.mark.parametrize(
    "architecture",
    ["ciresan", "lenet5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("alexnet", "vgg16"))],
)


def make(architecture: str, in_channels: int = 2) -> PatchClassifier:
    torch.manual_seed(0)
    network = PatchClassifier(in_channels, 3, architecture=architecture, channels=NARROW[architecture])
    with torch.no_grad():
        for parameter in network.parameters():  # those that start equal differ now, and no ReLU is dead
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter)).add_(
                0.1 * torch.rand_like(parameter) * (parameter.ndim == 1)
            )
    return network.eval()


def cut(image: Tensor, window: int) -> Tensor:
    """The window around each pixel, which is its pixel w // 2, row by row: `[H * W, C, w, w]` of one image."""
    pads = [(0, 0), (0, 0), *[(window // 2, window - 1 - window // 2)] * 2]
    wide = torch.from_numpy(np.pad(image, pads, mode="reflect"))
    height, width = image.shape[2:]
    return torch.cat([wide[..., y : y + window, x : x + window] for y in range(height) for x in range(width)])


@every_architecture
def test_the_dense_form_gives_what_a_sliding_window_gives(architecture: str) -> None:
    network, image = make(architecture), torch.randn(1, 2, 5, 7)
    with torch.inference_mode():
        dense = network(image)
        slid = torch.cat([network.patches(part) for part in cut(image, network.window).split(5)])
    expected = slid.T.reshape(1, 3, 5, 7)
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-5)
    assert expected.flatten(2).std(-1).min() > 1e-3


@pytest.mark.parametrize("architecture", ["lenet5", "ciresan"])
def test_gradients_are_those_of_the_sliding_window(architecture: str) -> None:
    network, image = make(architecture).double(), torch.randn(1, 2, 6, 5, dtype=torch.float64)
    other, share = copy.deepcopy(network), torch.randn(1, 3, 6, 5, dtype=torch.float64)
    (network(image) * share).sum().backward()
    (other.patches(cut(image, network.window)) * share.flatten(2)[0].T).sum().backward()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@every_architecture
def test_a_pixel_sees_the_window_around_it_and_nothing_else(architecture: str) -> None:
    network, window = make(architecture, in_channels=1), WINDOWS[architecture]
    for axis in (2, 3):
        place = window  # far from mirror images
        image = torch.zeros([1, 1, *([2 * window, 3] if axis == 2 else [3, 2 * window])])
        image.narrow(axis, place, 1).fill_(torch.nan)
        with torch.inference_mode():
            seen = network(image).isnan().any(1)[0].any(3 - axis).nonzero().flatten().tolist()
        # Pixel p is in the windows that begin from p - w + 1 to p, and their centres are w // 2 further.
        assert seen == list(range(place - window + 1 + window // 2, place + window // 2 + 1))
    assert network.window == window


def test_the_numbers_of_weights_are_the_papers() -> None:
    def count(architecture: str, in_channels: int, num_classes: int) -> int:
        with torch.device("meta"):
            network = PatchClassifier(in_channels, num_classes, architecture=architecture)
        return sum(parameter.numel() for parameter in network.parameters())

    # N4 by its table: maps of 4 x 4, 5 x 5, 4 x 4 and 4 x 4, then 200 neurons over maps of 3 x 3.
    hidden = 48 * (16 + 1) + 48 * (48 * 25 + 1) + 2 * 48 * (48 * 16 + 1) + 200 * (48 * 9 + 1)
    assert count("ciresan", 1, 2) == hidden + 2 * 201
    # The paper's 60,000 before its output, and what its table leaves out: 36 of 96 pairs of maps.
    assert count("lenet5", 1, 10) == 60_000 + 36 * 25 + 10 * 85
    assert count("alexnet", 3, 1000) == 60_965_224
    assert count("vgg16", 3, 1000) == 138_357_544


def test_lenet5_has_60_000_weights_that_learn() -> None:
    network = PatchClassifier(1, 10, architecture="lenet5").double()
    network.patches(torch.randn(64, 1, 32, 32, dtype=torch.float64)).square().sum().backward()
    moved = {name: int(p.grad.count_nonzero()) for name, p in network.named_parameters() if p.grad is not None}
    by_layer = [moved[f"layers.{k}.weight"] + moved[f"layers.{k}.bias"] for k in (0, 2, 4, 6, 8, 10)]
    assert by_layer == [156, 12, 1516, 32, 48_120, 10_164]  # C1, S2, C3, S4, C5, F6, each as the paper says
    assert sum(by_layer) == 60_000


def squash(x: Tensor) -> Tensor:
    return 1.7159 * torch.tanh(2 * x / 3)


def test_lenet5_equals_its_definition() -> None:
    network, windows = make("lenet5", in_channels=1), torch.randn(4, 1, 32, 32)
    w = dict(network.named_parameters())

    def convolved(x: Tensor, layer: int) -> Tensor:
        return F.conv2d(x, w[f"layers.{layer}.weight"], w[f"layers.{layer}.bias"])

    def subsampled(x: Tensor, layer: int) -> Tensor:
        total = x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
        return squash(total * w[f"layers.{layer}.weight"][:, 0] + w[f"layers.{layer}.bias"][:, None, None])

    def third(x: Tensor) -> Tensor:
        """Contiguous subsets of three maps, then of four, both around the corner; three others of four; all."""
        seen = [{(k + i) % 6 for i in range(3)} for k in range(6)] + [{(k + i) % 6 for i in range(4)} for k in range(6)]
        seen += [{0, 1, 3, 4}, {1, 2, 4, 5}, {0, 2, 3, 5}, set(range(6))]
        maps = []
        for k, chosen in enumerate(seen):
            order = sorted(chosen)
            kernel = w["layers.4.weight"][k : k + 1, order]
            maps.append(F.conv2d(x[:, order], kernel, w["layers.4.bias"][k : k + 1]))
        return torch.cat(maps, 1)

    features = subsampled(squash(convolved(windows, 0)), 2)
    features = squash(convolved(subsampled(squash(third(features)), 6), 8)).flatten(1)
    for layer in (10, 12):
        features = F.linear(features, w[f"layers.{layer}.weight"][..., 0, 0], w[f"layers.{layer}.bias"])
        features = squash(features) if layer == 10 else features
    torch.testing.assert_close(network.patches(windows), features)


def test_ciresan_equals_its_definition_with_the_sizes_of_the_papers_table() -> None:
    network, features = make("ciresan"), torch.randn(2, 2, 95, 95)
    expected = network.patches(features)
    w, sizes = dict(network.named_parameters()), []
    for layer in (0, 3, 6, 9):
        features = squash(F.conv2d(features, w[f"layers.{layer}.weight"], w[f"layers.{layer}.bias"]))
        sizes.append(features.shape[-1])
        features = features.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        sizes.append(features.shape[-1])
    hidden = squash(F.linear(features.flatten(1), w["layers.12.weight"].flatten(1), w["layers.12.bias"]))
    logits = F.linear(hidden, w["layers.14.weight"].flatten(1), w["layers.14.bias"])
    torch.testing.assert_close(expected, logits)
    assert sizes == [92, 46, 42, 21, 18, 9, 6, 3]


def test_response_norm_of_large_values_is_finite_in_float16() -> None:
    features = 300 * torch.rand(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.local_response_norm(features, 5, alpha=5e-4, beta=0.75, k=2)
    normed = ResponseNorm(5, alpha=5e-4, beta=0.75, k=2)(features.half())
    assert normed.dtype == torch.float16
    torch.testing.assert_close(normed.float(), expected, rtol=2e-3, atol=0)


def test_alexnet_has_two_towers_and_the_papers_normalisation() -> None:
    network, features = make("alexnet"), torch.randn(1, 2, 355, 355)
    expected = network.patches(features)
    w = dict(network.named_parameters())

    def convolved(x: Tensor, layer: int, towers: int, stride: int = 1) -> Tensor:
        weights, biases = w[f"layers.{layer}.weight"].chunk(towers), w[f"layers.{layer}.bias"].chunk(towers)
        return torch.cat(
            [
                F.conv2d(part, weight, bias, stride).clamp_min(0)
                for part, weight, bias in zip(x.chunk(towers, 1), weights, biases, strict=True)
            ],
            1,
        )

    def normalised(x: Tensor) -> Tensor:
        """Each map by the sum of the squares of its neighbours: k = 2, n = 5, alpha = 1e-4, beta = 0.75."""
        sums = [x[:, max(k - 2, 0) : k + 3].square().sum(1) for k in range(x.shape[1])]
        return x / (2 + 1e-4 * torch.stack(sums, 1)) ** 0.75

    features = 100 * features  # so that the norm is far from its constant
    expected = network.patches(features)
    features = F.max_pool2d(normalised(convolved(features, 0, 1, 4)), 3, 2)
    features = F.max_pool2d(normalised(convolved(features, 4, 2)), 3, 2)
    features = convolved(convolved(convolved(features, 8, 1), 10, 2), 12, 2)
    features = F.max_pool2d(features, 3, 2)
    assert features.shape[2:] == (6, 6)  # as in the paper
    features = features.flatten(1)
    for layer in (15, 18, 21):
        features = F.linear(features, w[f"layers.{layer}.weight"].flatten(1), w[f"layers.{layer}.bias"])
        features = features.clamp_min(0) if layer < 21 else features
    torch.testing.assert_close(expected, features)


def test_vgg16_is_torchvisions_without_padding() -> None:
    network, windows = make("vgg16"), torch.randn(1, 2, 404, 404)
    widths: list[Any] = [3, 4, "M", 3, 4, "M", *3 * [4, 4, 4, "M"]]
    theirs = make_layers(widths)  # type: ignore[arg-type]
    theirs[0] = torch.nn.Conv2d(2, 3, 3)
    own = [layer for layer in network.layers if isinstance(layer, torch.nn.Conv2d)]
    for layer, ours in zip([m for m in theirs if isinstance(m, torch.nn.Conv2d)], own, strict=False):
        layer.padding = (0, 0)
        layer.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        features = theirs(windows)
        assert features.shape[2:] == (7, 7)  # as in the paper
        features = features.flatten(1)
        for layer in own[-3:]:
            features = F.linear(features, layer.weight.flatten(1), layer.bias)
            features = features.clamp_min(0) if layer is not own[-1] else features
        torch.testing.assert_close(network.patches(windows), features)


@pytest.mark.parametrize("architecture", ["lenet5", "ciresan"])
def test_values_neither_vanish_nor_grow_where_training_starts(architecture: str) -> None:
    torch.manual_seed(0)
    network = PatchClassifier(1, 4, architecture=architecture)
    with torch.inference_mode():
        logits = network.patches(torch.randn(32, 1, network.window, network.window))
    assert 0.2 < logits.std() < 2


def test_dropout_stands_behind_the_hidden_fully_connected_layers_of_the_newer_two() -> None:
    for architecture, places in {"ciresan": [], "lenet5": [], "alexnet": [17, 20], "vgg16": [33, 36]}.items():
        layers = make(architecture).layers
        assert [k for k, layer in enumerate(layers) if isinstance(layer, torch.nn.Dropout)] == places
        assert all(isinstance(layers[k - 1], torch.nn.ReLU) for k in places)


def test_tiles_give_what_the_whole_image_gives() -> None:
    """Its total stride is 1, so that tiles lie on its grid anywhere, and borders of the image are mirrored in them, too."""
    network, source = make("lenet5"), Array(np.random.default_rng(0).normal(size=(2, 50, 71)).astype(np.float32))

    @torch.inference_mode()
    def call(images: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(images)).numpy()

    tiling = choose_tiling(Ensemble([Member(make_card(2, window=[8, 8]), call, network.stride)]), "exact", None, None)
    assert tiling.margin == [16, 16]
    whole = np.full((3, 50, 71), np.nan, np.float32)
    pieces = predict_tiles(call, source, lambda image: image, tiling.window, tiling.margin, multiple=tiling.multiple)
    for place, values in pieces:
        whole[(slice(None), *place)] = values
    np.testing.assert_allclose(whole, call(source.values[None])[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ciresan", "lenet5", "alexnet"])
def test_it_is_exported_for_any_size(architecture: str, tmp_path: Path) -> None:
    target = f"{PatchClassifier.__module__}.PatchClassifier"
    widths = {"architecture": architecture, "channels": NARROW[architecture]}
    card = make_card(2, network={"_target_": target, "in_channels": 2, "num_classes": 3, **widths})
    run = save(tmp_path / "run" / checkpoints.BEST, card, make(architecture))
    assert export_network(run, str(tmp_path / "network.onnx")).exists()  # it compares seven sizes


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["lenet5", "alexnet"])
def test_it_compiles_and_runs_in_bfloat16(architecture: str) -> None:
    network = make(architecture)
    images = [torch.randn(1, 2, *size).to(memory_format=torch.channels_last) for size in ((20, 31), (17, 40))]
    compiled = torch.compile(network.to(memory_format=torch.channels_last), dynamic=True)
    with torch.inference_mode():
        for image in images:
            torch.testing.assert_close(compiled(image), network(image), rtol=1e-4, atol=1e-4)
            with torch.autocast("cpu", torch.bfloat16):
                low = network(image)
            torch.testing.assert_close(low.float(), network(image), rtol=0.1, atol=0.1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"architecture is 'nonsense'; expected one of ciresan, lenet5, alexnet, vgg16"
    ):
        PatchClassifier(1, 2, architecture="nonsense")
    with pytest.raises(ValueError, match=r"images only; for volumes set model=unet"):
        PatchClassifier(1, 2, spatial_dims=3)
    for architecture, wrong, said in [
        ("ciresan", [4, 6, 8], "expected 5 widths for ciresan, such as the paper's"),
        ("lenet5", [6, 16, 0, 84], "expected 4 widths"),
        ("lenet5", [], "expected 4 widths"),
        ("alexnet", [2, 4, 3, 4, 2, 6, 4], "expected 7 even widths"),
        ("vgg16", [2] * 16, "expected 15 widths"),
    ]:
        with pytest.raises(ValueError, match=rf"channels is {re.escape(str(wrong))}; {said}"):
            PatchClassifier(1, 2, architecture=architecture, channels=wrong)
    with pytest.raises(ValueError, match="windows are 32 x 33; expected 32 x 32"):
        make("lenet5").patches(torch.zeros(1, 2, 32, 33))
