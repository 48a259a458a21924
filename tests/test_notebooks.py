"""Notebooks as they lie here: they can be read without being run."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
#: Bytes, pictures and all.
MOST = 1_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_what_it_prints_and_draws_and_is_small(path: Path) -> None:
    assert path.stat().st_size < MOST
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        source, kinds = "".join(cell["source"]), [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds, source
        assert not [output for output in cell["outputs"] if output.get("name") == "stderr"], source
        if isinstance(ast.parse(source).body[-1], ast.Expr):  # printed or drawn
            assert kinds, source
            # Of a figure its name alone says that it was not drawn.
            assert not [o for o in cell["outputs"] if o.get("data", {}).keys() == {"text/plain"}], source


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 5
