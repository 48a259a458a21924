"""How much settings matter, of made-up scores."""

import numpy as np
import pytest

from segline.comparison.importance import importances


def test_what_matters_is_told_from_what_does_not() -> None:
    rng = np.random.default_rng(0)
    settings = [
        {"lr": 10 ** rng.uniform(-5, -1), "model": str(rng.choice(["a", "b"])), "decay": rng.uniform()}
        for _ in range(60)
    ]
    scores = [-abs(np.log10(one["lr"]) + 3) for one in settings]
    shares = importances(settings, scores)
    assert next(iter(shares)) == "lr"
    assert shares["lr"] > 0.7
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(settings[:20], scores[:20])
    assert importances(settings[:19], scores[:19]) == {}  # of so few, chance says as much
