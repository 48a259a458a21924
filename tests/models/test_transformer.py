from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_card, save
from torch import Tensor, nn

from segline.inference.export import export_network
from segline.inference.network import build_network
from segline.models.transformer import SelfAttention, TransformerLayer, VisionTransformer


def vision(spatial_dims: int = 2, **arguments: Any) -> VisionTransformer:
    torch.manual_seed(0)
    few = {"patch_size": 2, "grid_size": 3, "embed_dim": 6, "num_heads": 3, "num_layers": 2, "mlp_ratio": 2}
    return VisionTransformer(spatial_dims, 4, **{**few, "dropout": 0.0, "bias": True, "eps": 1e-6, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_equals_torchs_whatever_bias_its_keys_have(bias: bool) -> None:
    torch.manual_seed(0)
    ours = TransformerLayer(12, num_heads=3, mlp_ratio=2, dropout=0.0, bias=bias, eps=1e-6).double()
    theirs = nn.TransformerEncoderLayer(
        12, 3, 24, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    norm, attention = ours.attention
    assert isinstance(attention, SelfAttention)
    same = [
        (norm, theirs.norm1),
        (attention.out, theirs.self_attn.out_proj),
        (ours.perceptron[0], theirs.norm2),
        (ours.perceptron[1], theirs.linear1),
        (ours.perceptron[4], theirs.linear2),
    ]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
        theirs.self_attn.in_proj_bias.mul_(
            torch.tensor([1.0, 1.0, 1.0] if bias else [0.0, 1.0, 0.0]).repeat_interleave(12)
        )
        for mine, other in same:
            mine.load_state_dict(other.state_dict())
        weights = theirs.self_attn.in_proj_weight.chunk(3)
        biases = theirs.self_attn.in_proj_bias.chunk(3)
        for layer, weight in zip((attention.queries, attention.keys, attention.values), weights, strict=True):
            layer.weight.copy_(weight)
        if bias:
            attention.queries.bias.copy_(biases[0])
            attention.values.bias.copy_(biases[2])

    tokens = torch.randn(2, 5, 12).double()
    draw = torch.randn_like(tokens)
    seen, other_seen = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    output, expected = ours(seen), theirs(other_seen)
    torch.testing.assert_close(output, expected)
    output.mul(draw).sum().backward()
    expected.mul(draw).sum().backward()
    torch.testing.assert_close(seen.grad, other_seen.grad)
    for mine, other in same:
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    gradients = [layer.weight.grad for layer in (attention.queries, attention.keys, attention.values)]
    torch.testing.assert_close(torch.cat(gradients), theirs.self_attn.in_proj_weight.grad)
    assert theirs.self_attn.in_proj_bias.grad[12:24].abs().max() < 1e-12  # of the keys: why ours have none


def test_dropout_stands_in_the_perceptron_and_behind_the_embedding() -> None:
    torch.manual_seed(0)
    layer, tokens = TransformerLayer(6, 3, 2, dropout=1.0, bias=True, eps=1e-6), torch.randn(1, 4, 6)
    assert torch.equal(layer(tokens), tokens + layer.attention(tokens))
    assert not torch.allclose(layer.eval()(tokens), tokens + layer.attention(tokens))
    network = vision(dropout=1.0)
    assert not embedded(network, torch.randn(1, 4, 6, 6)).any()
    assert embedded(network.eval(), torch.randn(1, 4, 6, 6)).all()


def embedded(network: VisionTransformer, image: Tensor) -> Tensor:
    """What the first layer sees, `[B, embed_dim, N]`."""
    seen: list[Tensor] = []
    handle = network.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(image)
    handle.remove()
    return seen[0].transpose(1, 2)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_position_embedding_of_its_own_grid_is_untouched(spatial_dims: int) -> None:
    network = vision(spatial_dims)
    nn.init.zeros_(network.embed.weight), nn.init.zeros_(network.embed.bias)
    tokens = embedded(network, torch.zeros(1, 4, *[6] * spatial_dims))
    assert torch.equal(tokens, network.position.flatten(2))


@pytest.mark.parametrize(("spatial_dims", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
@pytest.mark.parametrize("num_patches", [2, 6, 7])
def test_the_position_embedding_of_another_grid_keeps_the_place_in_the_image(
    spatial_dims: int, axis: int, num_patches: int
) -> None:
    """A ramp stays one: patches are where their centres are, and beyond the outermost ones the ramp is flat."""
    network = vision(spatial_dims)
    nn.init.zeros_(network.embed.weight), nn.init.zeros_(network.embed.bias)
    along = [1, 1, *[3 if a == axis else 1 for a in range(spatial_dims)]]
    network.position.data[:] = torch.arange(3.0).reshape(along)
    grid = [num_patches if a == axis else 4 for a in range(spatial_dims)]
    tokens = embedded(network, torch.zeros(1, 4, *[2 * count for count in grid]))
    centres = (torch.arange(num_patches) + 0.5) * 3 / num_patches - 0.5
    along[2 + axis] = num_patches
    expected = centres.clamp(0, 2).reshape(along).expand(1, 6, *grid).flatten(2)
    torch.testing.assert_close(tokens, expected)


def test_each_layer_gives_a_map_and_the_last_one_is_normalised() -> None:
    network = vision(num_layers=3)
    nn.init.normal_(network.norm.weight)
    image = torch.randn(2, 4, 4, 10)
    outputs = network(image)
    tokens = embedded(network, image).transpose(1, 2)
    for output, layer in zip(outputs, network.layers, strict=True):
        tokens = layer(tokens)
        last = layer is network.layers[-1]
        wanted = network.norm(tokens) if last else tokens
        assert output.shape == (2, 6, 2, 5)
        for row in range(2):
            for column in range(5):
                assert torch.equal(output[:, :, row, column], wanted[:, 5 * row + column])
    patch = network.embed.weight.flatten(1) @ image[0, :, 2:4, 6:8].flatten() + network.embed.bias
    network.position.data.zero_()
    torch.testing.assert_close(embedded(network, image)[0, :, 5 + 3], patch)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"embed_dim": 7}, "multiple of num_heads, 3"),
        ({"grid_size": 0}, "image_size is less"),
        ({"num_layers": 0}, "num_layers is 0; expected 1"),
        ({"num_heads": 0}, "num_heads is 0; expected 1"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0; expected 1"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        vision(**arguments)


SMALL = {"in_channels": 2, "num_classes": 3, "embed_dim": 8, "num_heads": 2, "num_layers": 4, "image_size": 48}
TRANSUNET = {
    "_target_": "segline.models.transunet.TransUNet",
    "channels": [4, 6, 8],
    "decoder_channels": [8, 6, 6, 4, 4],
}
UNETR = {"_target_": "segline.models.unetr.UNETR", "channels": [4, 4, 6, 8]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "network"), [(2, TRANSUNET), (2, UNETR), (3, UNETR)], ids=["transunet", "unetr", "unetr3d"]
)
def test_networks_are_exported_for_any_size(
    dims: int, network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segline.models.transunet._NUM_BLOCKS", (1, 1, 1))  # an export takes seconds for each
    torch.manual_seed(0)
    card = make_card(2, dims, network={**network, **SMALL, "spatial_dims": dims})
    path = save(tmp_path / "tiny.ckpt", card, build_network(card))
    assert export_network(path, str(tmp_path / "tiny.onnx")).exists()  # compares with torch, at seven sizes
