"""Two processes give the loss and the gradient that one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import shared_batches
import torch
from shared_batches import CHOICES, SHARES, Step

Steps = dict[tuple[str, str, str], Step]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize(("file", "scheme"), CHOICES, ids=lambda value: getattr(value, "stem", value)),
    pytest.mark.parametrize("share", SHARES),
]


@pytest.fixture(scope="module")
def one() -> Steps:
    """Of one process with all samples."""
    return shared_batches.steps(slice(None), training=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Steps, Steps]]:
    """Of two processes: in training, and in evaluation, where each is on its own."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(shared_batches.work, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_are_one(one: Steps, two: list[tuple[Steps, Steps]], file: Path, scheme: str, share: str) -> None:
    expected = one[file.stem, scheme, share]
    assert expected[0] > 0
    for trained, _ in two:
        torch.testing.assert_close(trained[file.stem, scheme, share], expected, rtol=1e-4, atol=1e-6)


def test_each_on_its_own_would_differ(
    one: Steps, two: list[tuple[Steps, Steps]], file: Path, scheme: str, share: str
) -> None:
    """Averaged gradients of losses that each process takes for itself: a mean of two means is not the mean of all."""
    gradients, averaged = (
        torch.cat([g.flatten() for g in steps[file.stem, scheme, share][1]]) for steps in (one, two[0][1])
    )
    assert (averaged - gradients).norm() > 0.1 * gradients.norm()
