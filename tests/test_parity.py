import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "parity.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


parity = load()


@pytest.mark.slow  # imports MONAI and segmentation-models-pytorch
@pytest.mark.parametrize("row", parity.ROWS, ids=lambda row: f"{row.package} {row.call}")
def test_another_library_gives_the_value_that_ours_gives_with_the_switch(row: Any) -> None:
    assert parity.ours(row.score, **row.rules) == pytest.approx(row.theirs(*parity.example()), abs=1e-6)


@pytest.mark.parametrize("row", [row for row in parity.ROWS if row.rules], ids=lambda row: f"{row.package} {row.call}")
def test_no_switch_in_the_table_is_idle(row: Any) -> None:
    value = parity.ours(row.score, **row.rules)
    for switch in row.rules:
        others = {key: setting for key, setting in row.rules.items() if key != switch}
        assert parity.ours(row.score, **others) != pytest.approx(value, abs=1e-3)
