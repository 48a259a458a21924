"""What every file of conf/model promises; a new one is tested without a line here."""

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.export import Dim

from segline.config import CONF_DIR, build
from segline.losses.combination import DeepSupervision
from segline.losses.entropy import CrossEntropyLoss
from segline.precision import memory_format

NUM_CLASSES = 3
EMBEDDING = 24  # width of transformers: a multiple of their usual numbers of heads


def narrow(file: Path, levels: int = 3) -> dict[str, Any]:
    """Widths of a YAML file, as small as they can be: `channels`, `..._channels` of so many levels at most, `embed_dim`."""
    model: Any = OmegaConf.to_container(OmegaConf.load(file))
    # A null stands for as many as there are in the paper.
    lists = {
        key: value
        for key, value in model.items()
        if key.endswith("channels") and (value is None or isinstance(value, list))
    }
    counts = {key: levels if value is None else min(levels, len(value)) for key, value in lists.items()}
    widths: dict[str, Any] = {key: [4 + 2 * k for k in range(count)] for key, count in counts.items()}
    return {**widths, "embed_dim": EMBEDDING} if "embed_dim" in model else widths


#: Networks without a width to shrink are full-sized, or need a slow import.
FILES = [
    pytest.param(file, id=file.stem, marks=[] if narrow(file) else pytest.mark.slow)
    for file in sorted((CONF_DIR / "model").glob("*.yaml"))
]
every_model = pytest.mark.parametrize("file", FILES)
SIZES = {2: [(16, 16), (17, 31), (48, 33)], 3: [(16, 16, 16), (5, 32, 18)]}  # 3D: thick slices, too


def make(file: Path, spatial_dims: int = 2, in_channels: int = 3, seed: int = 0, **arguments: Any) -> nn.Module:
    """The network of a YAML file, as narrow as it can be; the test is skipped where it takes images or volumes only."""
    network = make_as_it_starts(file, spatial_dims, in_channels, seed, **arguments)
    with torch.no_grad():
        for p in network.parameters():
            if not p.any():  # a layer or norm that starts at zero hides what is before it until a step is made
                p.normal_(std=0.1)
    return network


def make_as_it_starts(
    file: Path, spatial_dims: int = 2, in_channels: int = 3, seed: int = 0, **arguments: Any
) -> nn.Module:
    """The same with the weights that training starts from."""
    classes = {f"c{k}": k for k in range(NUM_CLASSES)}
    data = {"in_channels": in_channels, "spatial_dims": spatial_dims, "labels": {"classes": classes}}
    config = OmegaConf.create({"data": data, "model": OmegaConf.load(file)})

    def attempt(levels: int) -> nn.Module:
        torch.manual_seed(seed)
        network = build(config.model, **{**narrow(file, levels), **arguments})
        assert isinstance(network, nn.Module)
        return network

    try:
        return attempt(3)
    except Exception as refusal:
        if spatial_dims in (2, 3) and f"{'volumes' if spatial_dims == 2 else 'images'} only" in str(refusal):
            pytest.skip("takes no others, and says so")
        # Of a fixed depth are some, and say so.
        if not (fixed := re.search(r"channels is .*expected (\d+)?", str(refusal))):
            raise
    return attempt(int(fixed[1] or 99))


def images(size: tuple[int, ...], in_channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, in_channels, *size, generator=torch.Generator().manual_seed(1))


@every_model
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_logits_have_the_size_of_the_image_and_depend_on_no_other(file: Path, spatial_dims: int) -> None:
    network = make(file, spatial_dims).eval()
    for size in SIZES[spatial_dims]:
        image = images(size)
        with torch.inference_mode():
            logits, alone = network(image), network(image[:1])
        assert logits.shape == (2, NUM_CLASSES, *size)
        assert torch.isfinite(logits).all()
        assert logits.flatten(2).std(-1).min() > 0
        torch.testing.assert_close(alone, logits[:1], rtol=1e-3, atol=1e-4)


@every_model
@pytest.mark.parametrize("in_channels", [1, 2, 4, 13])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_images_have_any_number_of_bands(file: Path, spatial_dims: int, in_channels: int) -> None:
    network = make(file, spatial_dims, in_channels).eval()
    image = images((32, 32) if spatial_dims == 2 else (8, 16, 16), in_channels).requires_grad_()
    network(image).square().sum().backward()
    assert image.grad is not None
    assert image.grad.flatten(2).abs().amax(-1).min() > 0  # no band is passed over


@every_model
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradients_reach_every_weight_after_a_step(file: Path, spatial_dims: int) -> None:
    """After one, as layers that start at zero hide what is before them until then: two such layers would do so for ever."""
    network = make_as_it_starts(file, spatial_dims).train()
    image = images((32, 32) if spatial_dims == 2 else (8, 16, 16))
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        outputs = network(image)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        # Normal draws: no symmetry of the loss hides a weight.
        torch.stack([o.mul(torch.randn_like(o)).sum() for o in outputs]).sum().backward()
        idle = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        optimizer.step()
    assert idle == []


@every_model
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_batch_of_one_is_enough(file: Path, spatial_dims: int) -> None:
    network, image = make(file, spatial_dims), images(SIZES[spatial_dims][0], batch=1)
    assert network.eval()(image).shape == (1, NUM_CLASSES, *image.shape[2:])
    try:
        network.train()(image)
    except ValueError as error:  # batch norm of a single position
        if "batch_size" not in str(error):
            raise


@every_model
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_saved_and_loaded_weights_give_the_same_bits(file: Path, spatial_dims: int, tmp_path: Path) -> None:
    network, other = make(file, spatial_dims, seed=0), make(file, spatial_dims, seed=1)
    image = images(SIZES[spatial_dims][0])
    network.train()(image)  # so that running statistics are not what they start from
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    network.eval(), other.eval()
    with torch.inference_mode():
        assert not torch.equal(network(image), other(image))
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(network(image), other(image))


@every_model
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_channels_last_changes_no_decision(file: Path, spatial_dims: int) -> None:
    network = make(file, spatial_dims).eval()
    layout = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    image = images(SIZES[spatial_dims][-1])
    with torch.inference_mode():
        logits = network(image)
        last = copy.deepcopy(network).to(memory_format=layout)(image.to(memory_format=layout))
    torch.testing.assert_close(last, logits, rtol=1e-3, atol=1e-4)


@every_model
def test_a_network_takes_the_dimensions_that_it_says_and_names_others_for_the_rest(file: Path) -> None:
    """Its docstring's shape says which it takes: `*S` both, `D, H, W` volumes only and `H, W` images only."""
    target = get_class(OmegaConf.load(file)["_target_"])
    (shape,) = re.findall(r"Shape:\s+`\[B, in_channels, (.+?)\]` -> `\[B, num_classes, \1\]`", target.__doc__ or "")
    taken = {"*S": {2, 3}, "H, W": {2}, "D, H, W": {3}}[shape]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest, "skip", pytest.fail)  # what `make` does with one that refuses
        for spatial_dims in taken:
            make(file, spatial_dims)
        for spatial_dims in {2, 3} - taken:
            with pytest.raises(pytest.fail.Exception) as failed:
                make(file, spatial_dims)
            named = re.findall(r"model=(\w+)", str(failed.value.__cause__ or failed.value.__context__))
            assert named
            for name in named:
                make(file.with_stem(name), spatial_dims)


@every_model
def test_options_are_refused_by_name(file: Path) -> None:
    options = {"norm", "activation", "upsampling", "architecture"} & set(OmegaConf.load(file))
    for option in sorted(options):
        with pytest.raises(Exception, match=f"{option} is 'nonsense'"):
            make(file, **{option: "nonsense"})
    with pytest.raises(Exception, match=r"2 for images|images only|volumes only"):
        make(file, spatial_dims=4)


@pytest.fixture(scope="module")
def trained() -> Callable[[Path, int], nn.Module]:
    """Narrow networks after 50 steps on regions of other brightness, in float32; each is trained once."""

    @functools.cache
    def train(file: Path, spatial_dims: int) -> nn.Module:
        network = make(file, spatial_dims).train()
        loss = DeepSupervision(CrossEntropyLoss(), getattr(network, "output_weights", None))
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=5e-3)
        for step in range(50):
            image, mask = scene(spatial_dims, seed=step)
            optimizer.zero_grad()
            loss(network(image), mask).backward()
            optimizer.step()
        return network.eval()

    return train


def scene(spatial_dims: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two images of slabs along a random axis, each class of a brightness of its own, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    size = (64, 64) if spatial_dims == 2 else (16, 32, 32)
    place = torch.linspace(0, 2.999, size[-1]).long().expand(2, *size)
    if torch.rand(1, generator=generator) < 0.5:
        place = place.transpose(-1, -2)
    image = (place[:, None] - 1.0) + 0.3 * torch.randn(2, 3, *size, generator=generator)
    return image, place.contiguous()


@every_model
@pytest.mark.slow
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_after_50_steps_bfloat16_and_channels_last_decide_alike(
    file: Path, spatial_dims: int, trained: Callable[[Path, int], nn.Module]
) -> None:
    network = trained(file, spatial_dims)
    image, mask = scene(spatial_dims, seed=50)
    layout = memory_format(image.ndim)
    with torch.inference_mode():
        decided = network(image).argmax(1)
        last = copy.deepcopy(network).to(memory_format=layout)(image.to(memory_format=layout)).argmax(1)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(image).argmax(1)
    # One that has learnt nothing but the commonest class would decide alike, too.
    assert (decided == mask).sum() > 1.5 * mask.flatten().bincount().max()
    assert (last == decided).all()
    assert (low == decided).float().mean() >= 0.99


@every_model
@pytest.mark.slow
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_graph_is_captured_whole(file: Path, spatial_dims: int) -> None:
    """By torch.compile in training and evaluation, and by torch.export for any batch and size."""
    network = make(file, spatial_dims)
    image = images((48, 64) if spatial_dims == 2 else (16, 48, 32))
    for mode in (network.train(), network.eval()):
        torch.compiler.reset()
        torch.compile(mode, backend="eager", fullgraph=True)(image)
    image = images((49, 66) if spatial_dims == 2 else (17, 50, 35))
    free = {0: Dim("batch"), **{axis: Dim(f"size{axis}") for axis in range(2, image.ndim)}}
    # For all sizes and not for those like the example: also where nothing is padded, or a level is one pixel wide.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            network, (image,), dynamic_shapes=(free,), prefer_deferred_runtime_asserts_over_guards=True
        ).module()
    for size in SIZES[spatial_dims]:
        other = images(size, batch=3)
        with torch.inference_mode():
            torch.testing.assert_close(program(other), network(other), rtol=1e-3, atol=1e-4)


@pytest.mark.slow  # by the C++ compiler of the machine
def test_one_network_is_compiled_fully() -> None:
    file = CONF_DIR / "model" / "unet.yaml"
    network, image = make(file).eval(), images((32, 48))
    torch.compiler.reset()
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(network)(image), network(image), rtol=1e-3, atol=1e-4)
