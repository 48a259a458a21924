from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segline.models.unetr import UNETR


def test_the_number_of_weights_is_that_of_the_authors_code() -> None:
    with torch.device("meta"):
        network = UNETR(1, 14)
    # MONAI 1.6 has as many besides norms of a cross attention that it does not use.
    assert sum(p.numel() for p in network.parameters()) == 92_784_046


def test_skips_are_the_layers_of_the_paper() -> None:
    torch.manual_seed(0)
    network = UNETR(1, 2, spatial_dims=2, channels=[2, 3, 4, 5], embed_dim=12, num_heads=2, image_size=32).eval()
    made: list[Tensor] = []
    seen: dict[str, Tensor] = {}
    for layer in network.transformer.layers:
        layer.register_forward_hook(lambda _, __, output: made.append(output))
    parts = {"image": network.skips[0], **{f"z{3 * k}": network.skips[k] for k in (1, 2, 3)}, "z12": network.up[3]}
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    image = torch.randn(1, 1, 20, 32)
    network(image)
    assert torch.equal(seen["image"], nn.functional.pad(image, (0, 0, 0, 12)))
    made[11] = network.transformer.norm(made[11])
    for k in (3, 6, 9, 12):  # z0 is the embedding
        assert torch.equal(seen[f"z{k}"].flatten(2), made[k - 1].transpose(1, 2)), k


def alike(ours: UNETR, theirs: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Modules whose parameters are the same, in the same order."""
    pairs = [
        (ours.transformer.embed, theirs.vit.patch_embedding.patch_embeddings),
        (ours.transformer.norm, theirs.vit.norm),
        (ours.head, theirs.out),
    ]
    for layer, block in zip(ours.transformer.layers, theirs.vit.blocks, strict=True):
        pairs += [(layer.attention[0], block.norm1), (layer.attention[1].out, block.attn.out_proj)]
        pairs += [(layer.perceptron[0], block.norm2), (layer.perceptron[1:], block.mlp)]
    for level in range(4):
        decoder = getattr(theirs, f"decoder{level + 2}")
        pairs += [(ours.skips[level], getattr(theirs, f"encoder{level + 1}"))]
        pairs += [(ours.up[level], decoder.transp_conv), (ours.merge[level], decoder.conv_block)]
    return pairs


@pytest.mark.slow  # the import alone takes seconds
@pytest.mark.parametrize(("spatial_dims", "size"), [(2, 48), (3, 32)])
def test_logits_and_gradients_are_those_of_the_authors_code(spatial_dims: int, size: int) -> None:
    from monai.networks.nets import UNETR as Theirs

    torch.manual_seed(0)
    common = {"spatial_dims": spatial_dims, "num_heads": 3}
    theirs = Theirs(2, 3, size, feature_size=4, hidden_size=24, mlp_dim=48, **common).double()
    ours = UNETR(
        2, 3, channels=[4, 8, 16, 32], embed_dim=24, mlp_ratio=2, image_size=size, dropout=0.0, **common
    ).double()
    used = sum(p.numel() for name, p in theirs.named_parameters() if "norm_cross_attn" not in name)
    assert sum(p.numel() for p in ours.parameters()) == used
    # It takes the outputs of the fourth, seventh and tenth layer as z3, z6 and z9.
    theirs.vit.register_forward_hook(lambda _, __, outputs: (outputs[0], [None, *outputs[1]]))
    grid = [size // 16] * spatial_dims
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for mine, other in alike(ours, theirs):
            for p, q in zip(mine.parameters(), other.parameters(), strict=True):
                p.copy_(q)
        ours.transformer.position.copy_(theirs.vit.patch_embedding.position_embeddings.mT.unflatten(2, grid))
        for layer, block in zip(ours.transformer.layers, theirs.vit.blocks, strict=True):
            attention = layer.attention[1]
            weights = block.attn.qkv.weight.chunk(3)
            for linear, weight in zip((attention.queries, attention.keys, attention.values), weights, strict=True):
                linear.weight.copy_(weight)

    image = torch.randn(2, 2, *[size] * spatial_dims).double()
    logits, expected = ours(image), theirs(image)
    torch.testing.assert_close(logits, expected)
    draw = torch.randn_like(logits)
    logits.mul(draw).sum().backward()
    expected.mul(draw).sum().backward()
    for mine, other in alike(ours, theirs):
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(
        ours.transformer.position.grad.flatten(2), theirs.vit.patch_embedding.position_embeddings.grad.mT
    )
    for layer, block in zip(ours.transformer.layers, theirs.vit.blocks, strict=True):
        attention = layer.attention[1]
        gradients = [linear.weight.grad for linear in (attention.queries, attention.keys, attention.values)]
        torch.testing.assert_close(torch.cat(gradients), block.attn.qkv.weight.grad)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"channels": [4, 8]}, "channels is .4, 8.; expected 4 widths"), ({"num_layers": 6}, "multiple of 4")],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UNETR(1, 2, **arguments)
