"""How processes that this one starts find the package."""

from __future__ import annotations

import os
from pathlib import Path


def search_path() -> str:
    """PYTHONPATH by which another process imports what this one does, before what stands in it already."""
    own = str(Path(__file__).parents[1])
    others = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place not in ("", own)]
    return os.pathsep.join([own, *others])
