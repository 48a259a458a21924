"""A few scenes of each domain, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from segline.data.synthetic.biomedical import write_biomedical
from segline.data.synthetic.biomedical3d import write_biomedical3d
from segline.data.synthetic.driving import write_driving
from segline.data.synthetic.satellite import write_satellite

WRITERS: dict[str, Callable[..., Path]] = {
    "satellite": write_satellite,
    "biomedical": write_biomedical,
    "biomedical3d": write_biomedical3d,
    "driving": write_driving,
}
COUNTS = {"satellite": 3, "biomedical": 5, "biomedical3d": 8, "driving": 5}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a domain's scenes, `COUNTS` of them."""
    root = tmp_path_factory.mktemp("scenes")
    return lambda domain: WRITERS[domain](root / domain, count=COUNTS[domain])


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """Write scenes of a domain: `write(domain, root, count=, seed=)`."""
    return lambda domain, root, **arguments: WRITERS[domain](root, **arguments)
