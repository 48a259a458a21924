import functools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segline.inference.blend import PROFILES, blend
from segline.tiling import Tile, tiles

RNG = np.random.default_rng(0)


def assemble(shape: tuple[int, ...], pieces: object) -> np.ndarray:
    whole = np.full((2, *shape), np.nan, np.float32)
    for window, values in pieces:  # type: ignore[attr-defined]
        assert np.isnan(whole[(slice(None), *window)]).all()
        whole[(slice(None), *window)] = values
    return whole


def brute(grid: list[Tile], values: list[np.ndarray], shape: tuple[int, ...], profile: str) -> np.ndarray:
    """The weighted mean of all tiles at each pixel, from its definition."""
    total, weight = np.zeros((2, *shape)), np.zeros(shape)
    for tile, array in zip(grid, values, strict=True):
        for place in np.ndindex(*array.shape[1:]):
            pixel = tuple(w.start + p for w, p in zip(tile.window, place, strict=True))
            if all(p < length for p, length in zip(pixel, shape, strict=True)):
                own = np.prod([PROFILES[profile](n)[p] for n, p in zip(array.shape[1:], place, strict=True)])
                total[(slice(None), *pixel)] += own * array[(slice(None), *place)]
                weight[pixel] += own
    return total / weight


@example([(11, 6, 1), (13, 6, 1)], "linear")  # the last windows end with the grid: three lie over one place
@example([(11, 6, 1), (5, 6, 1)], "gaussian")
@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 14), st.integers(3, 7), st.integers(0, 3)), min_size=1, max_size=3),
    st.sampled_from(list(PROFILES)),
)
def test_each_pixel_is_the_weighted_mean_of_all_tiles_over_it(axes: list[tuple[int, int, int]], profile: str) -> None:
    shape, window, margin = zip(*[(n, w, min(m, (w - 1) // 2)) for n, w, m in axes], strict=True)
    grid = tiles(shape, window, margin)
    values = [RNG.normal(size=(2, *window)).astype(np.float32) for _ in grid]
    blended = assemble(shape, blend(grid, values, shape, profile))
    np.testing.assert_allclose(blended, brute(grid, values, shape, profile), atol=1e-5)


@pytest.mark.parametrize(
    "part", [(slice(2, 4), slice(1, 3)), (slice(5, 9), slice(7, 12)), (slice(0, 1), slice(11, 13))]
)
@pytest.mark.parametrize("multiple", [None, (4, 4)])
def test_of_the_tiles_over_a_part_the_part_is_what_all_make_of_it(
    part: tuple[slice, ...], multiple: tuple[int, int] | None
) -> None:
    shape, window = (17, 19), (8, 8)
    grid = tiles(shape, window, (2, 2), multiple)
    values = [RNG.normal(size=(2, *[w.stop - w.start for w in tile.window])).astype(np.float32) for tile in grid]
    over = [all(w.start < p.stop and p.start < w.stop for w, p in zip(t.window, part, strict=True)) for t in grid]
    assert not all(over)
    needed = [[one for one, is_over in zip(every, over, strict=True) if is_over] for every in (grid, values)]
    pieces = list(blend(*needed, shape, "linear"))  # type: ignore[arg-type]
    assert all(array.shape == (2, *[w.stop - w.start for w in place]) for place, array in pieces)
    inside = (slice(None), *part)
    expected = brute(grid, values, shape, "linear")[inside]
    np.testing.assert_allclose(assemble(shape, pieces)[inside], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 64), (16, 28, 40)])
@pytest.mark.parametrize("profile", list(PROFILES))
def test_blending_is_monais_under_the_same_weights(shape: tuple[int, ...], profile: str) -> None:
    from monai.inferers import sliding_window_inference

    window, margin = (16,) * len(shape), (2,) * len(shape)  # windows that fit without a rest: MONAI shifts the last
    image = RNG.normal(size=(1, *shape)).astype(np.float32)

    def network(images: torch.Tensor) -> torch.Tensor:
        place = torch.linspace(0, 1, 16).reshape(-1, *[1] * (len(shape) - 1))
        return torch.cat([images * place, images.flip(-1)], 1)

    weights = torch.from_numpy(functools.reduce(np.multiply.outer, [PROFILES[profile](16)] * len(shape)))
    theirs = sliding_window_inference(
        torch.from_numpy(image)[None], window, 4, network, overlap=0.25, roi_weight_map=weights
    )
    grid = tiles(shape, window, margin)
    values = [network(torch.from_numpy(image[(slice(None), *tile.window)])[None])[0].numpy() for tile in grid]
    np.testing.assert_allclose(assemble(shape, blend(grid, values, shape, profile)), theirs[0].numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_bell_curve_is_monais_but_for_its_floor() -> None:
    from monai.data.utils import compute_importance_map

    theirs = compute_importance_map((24,), "gaussian", 0.125).numpy()  # never less than 0.001
    ours = PROFILES["gaussian"](24)
    np.testing.assert_allclose(np.maximum(ours, 1e-3), theirs, rtol=1e-5)


def test_only_what_tiles_overlap_waits() -> None:
    shape, seen = (400, 400), []

    def values(grid: list[Tile]) -> object:
        for tile in grid:
            seen.append(tile)
            yield np.ones((2, 40, 40), np.float32)

    grid, behind = tiles(shape, (40, 40), (5, 5)), []
    for window, _ in blend(grid, values(grid), shape, "linear"):  # type: ignore[arg-type]
        behind.append(seen[-1].window[0].start - window[0].start)
    assert max(behind) == 0  # a tile's finished part comes before the next tile is asked for


def test_a_seam_is_as_small_as_the_blend_makes_it() -> None:
    # Each tile is off by its own constant: without blending it jumps where tiles meet.
    shape = (90, 90)
    grid = tiles(shape, (30, 30), (10, 10))
    values = [np.full((2, 30, 30), RNG.uniform(-1, 1), np.float32) for _ in grid]
    cores = assemble(shape, ((t.core, v[(slice(None), *t.inner)]) for t, v in zip(grid, values, strict=True)))
    blended = assemble(shape, blend(grid, values, shape, "linear"))
    jump = [np.abs(np.diff(whole, axis=1)).max() for whole in (cores, blended)]
    assert jump[1] < jump[0] / 8


def test_an_unknown_profile_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="blend is 'cubic'; expected one of linear, gaussian"):
        blend([], [], (3,), "cubic")
