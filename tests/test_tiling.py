import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segline.tiling import tiles

AXES = st.integers(1, 24).flatmap(
    lambda window: st.tuples(st.integers(1, 60), st.just(window), st.integers(0, (window - 1) // 2))
)


@given(st.lists(AXES, min_size=1, max_size=2))
def test_every_pixel_lies_in_one_core_and_windows_are_of_one_size(axes: list[tuple[int, int, int]]) -> None:
    shape, window, margin = zip(*axes, strict=True)
    cores = np.zeros(shape, int)
    for tile in tiles(shape, window, margin):
        cores[tile.core] += 1
        for w, c, inner, size, width, context in zip(
            tile.window, tile.core, tile.inner, shape, window, margin, strict=True
        ):
            assert w.stop - w.start == width
            assert 0 <= w.start <= c.start < c.stop <= w.stop
            assert w.stop <= size or w.start == 0  # within the grid: its border is the window's, as in training
            assert (inner.start, inner.stop) == (c.start - w.start, c.stop - w.start)
            # Context at every border of a core but those of the grid.
            assert c.start == 0 or c.start - w.start >= context
            assert c.stop == size or w.stop - c.stop >= context
    assert (cores == 1).all()


@given(AXES, st.integers(1, 4))
def test_with_a_multiple_windows_lie_on_its_grid_and_end_where_it_pads_to(axis: tuple[int, int, int], by: int) -> None:
    size, window, margin = (n * by for n in axis)
    padded = -(-(size - 1) // by) * by
    for tile in tiles([size - 1], [window], [margin], multiple=[by]):
        assert tile.window[0].start % by == 0
        assert tile.window[0].stop <= padded


@given(AXES)
def test_there_are_no_more_tiles_than_needed(axis: tuple[int, int, int]) -> None:
    size, window, margin = axis
    count, reached = 1, window
    while reached < size:
        count, reached = count + 1, reached + window - 2 * margin
    assert len(tiles([size], [window], [margin])) == count


def test_a_grid_that_fits_into_a_window_is_one_tile_without_a_margin() -> None:
    (tile,) = tiles([5, 8, 6], [8, 8, 8], [3, 3, 3])
    assert tile.window == (slice(0, 8),) * 3
    assert tile.core == (slice(0, 5), slice(0, 8), slice(0, 6))


@pytest.mark.parametrize("margin", [-1, 4, 9])
def test_margins_that_leave_nothing_are_refused(margin: int) -> None:
    with pytest.raises(ValueError, match=r"margin of \[0, -?\d\] leaves nothing of a window of \[8, 8\].*half"):
        tiles([10, 10], [8, 8], [0, margin])
