import functools

import numpy as np
import pytest
import torch
from torch import nn

from segline.interpretation.receptive_field import EffectiveField, effective_field


class Still(nn.Module):
    """Uniform 3 x 3 kernels, so many of them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(layers)])
        for module in self.convs:
            nn.init.constant_(module.weight, 1 / 9)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.convs(image)


def test_uniform_kernels_give_their_convolution_of_known_variance() -> None:
    layers = 6
    found = effective_field(Still(layers).eval(), torch.randn(1, 1, 31, 40))
    line = functools.reduce(np.convolve, [np.ones(3) / 3] * layers)
    share = np.zeros((31, 40))
    share[15 - layers : 16 + layers, 20 - layers : 21 + layers] = np.outer(line, line)
    np.testing.assert_allclose(found.share, share, atol=1e-7)
    variance = (found.share.sum(1) * (np.arange(31) - 15) ** 2).sum()
    assert variance == pytest.approx(layers * (3**2 - 1) / 12)  # Luo et al. 2016, of uniform kernels
    # The smallest square with that share, one after the other.
    inside = {r: share[15 - r : 16 + r, 20 - r : 21 + r].sum() for r in range(8)}
    assert found.side == 2 * min(r for r, held in inside.items() if held >= 0.9545) + 1
    assert found.luo_side == pytest.approx((share > 0.0455 * share.max()).sum() ** 0.5)


def test_each_image_counts_the_same_and_signs_do_not_cancel() -> None:
    class Signed(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            beside = image.roll(1, -1) * (1000 if image[0, 0, 0, 0] == 7 else -1)
            return beside.sum(1, keepdim=True) + image[:, :1] - image[:, 1:]

    image = torch.zeros(1, 2, 5, 5)
    image[0, 0, 0, 0] = 7
    share = effective_field(Signed(), image, num_random=1).share
    assert share[2, 1] == pytest.approx((1000 / 1001 + 1 / 2) / 2)
    assert share[2, 2] == pytest.approx((1 / 1001 + 1 / 2) / 2)
    assert share.sum() == pytest.approx(1)


def test_a_cube_is_measured_in_voxels() -> None:
    share = np.zeros((9, 9, 9))
    share[4, 4, 4], share[4, 4, 6] = 0.9, 0.1
    one = EffectiveField(share, (4, 4, 4))
    assert one.side == 5
    assert one.luo_side == pytest.approx(2 ** (1 / 3))


def test_a_pixel_that_depends_on_nothing_has_no_share() -> None:
    class Deaf(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * 0

    assert effective_field(Deaf(), torch.zeros(1, 1, 4, 4)).share.sum() == 0
