import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segline.costs import count_flops
from segline.models.unet_plus_plus import UNetPlusPlus


def small(**arguments: object) -> UNetPlusPlus:
    torch.manual_seed(0)
    return UNetPlusPlus(1, 2, channels=[4, 6, 8, 10], norm="none", **arguments)  # type: ignore[arg-type]


def test_the_number_of_weights_is_the_papers() -> None:
    with torch.device("meta"):
        network = UNetPlusPlus(3, 1, channels=[32, 64, 128, 256, 512], norm="none")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 9.04  # table 2; 7.76 of the plain U-Net


def test_a_small_one_equals_its_definition() -> None:
    """x[i, j] written out, node by node."""
    network = small().train()
    weights = dict(network.named_parameters())

    def node(i: int, j: int, *inputs: Tensor) -> Tensor:
        x = torch.cat(inputs, 1)
        for conv in (0, 3):
            name = f"nodes.{i}_{j}.{conv}"
            x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).clamp_min(0)
        return x

    def up(i: int, j: int, x: Tensor) -> Tensor:
        name = f"up.{i}_{j}.layer"
        return F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    image = torch.randn(1, 1, 16, 24)
    x00 = node(0, 0, image)
    x10 = node(1, 0, pool(x00))
    x20 = node(2, 0, pool(x10))
    x30 = node(3, 0, pool(x20))
    x01 = node(0, 1, x00, up(0, 1, x10))
    x11 = node(1, 1, x10, up(1, 1, x20))
    x21 = node(2, 1, x20, up(2, 1, x30))
    x02 = node(0, 2, x00, x01, up(0, 2, x11))
    x12 = node(1, 2, x10, x11, up(1, 2, x21))
    x03 = node(0, 3, x00, x01, x02, up(0, 3, x12))
    expected = [
        F.conv2d(x, weights[f"heads.{j}.weight"], weights[f"heads.{j}.bias"]) for j, x in ((3, x03), (2, x02), (1, x01))
    ]
    outputs = network(image)
    assert len(outputs) == 3
    assert network.output_weights == [1 / 3] * 3
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(network.eval()(image), torch.stack(expected).mean(0))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_pruned_one_gives_its_head_and_computes_no_deeper_level(depth: int) -> None:
    network, whole = small(depth=depth), small()
    image = torch.randn(2, 1, 20, 17)
    computed: list[str] = []
    for name, block in network.nodes.items():
        block.register_forward_hook(lambda *_, name=name: computed.append(name))
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(image), whole.train()(image)[-depth])
    wanted = {f"{i}_{j}" for i in range(depth + 1) for j in range(depth + 1 - i)}
    assert len(computed) == len(wanted)
    assert set(computed) == wanted
    assert len(network.train()(image)) == 3  # all are trained all the same


def test_pruning_saves_arithmetic() -> None:
    """As the README says of the default widths: a fifth at depth 1, half at depth 2."""

    def flops(depth: int | None) -> int:
        with torch.device("meta"):
            return count_flops(UNetPlusPlus(3, 3, depth=depth).eval(), torch.zeros(1, 3, 64, 64))

    shares = [flops(depth) / flops(None) for depth in (1, 2, 3)]
    assert shares == pytest.approx([7.0 / 35.0, 17.8 / 35.0, 1.0], abs=0.01)


def test_without_heads_the_deepest_answers() -> None:
    network = small(heads=False).train()
    image = torch.randn(2, 1, 20, 17)
    logits = network(image)
    assert logits.shape == (2, 2, 20, 17)
    torch.testing.assert_close(network.eval()(image), logits)
    assert UNetPlusPlus(1, 2, channels=[4])(torch.zeros(1, 1, 5, 7)).shape == (1, 2, 5, 7)


@pytest.mark.parametrize(
    ("arguments", "said"), [({"depth": 4}, "expected 1 to 3"), ({"depth": 1, "heads": False}, "null")]
)
def test_a_depth_that_is_not_there_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**arguments)
