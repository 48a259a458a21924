"""Imports go down only, and each heavy library has its place."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"

#: From the top down: a module imports its own layer and those below.
LAYERS = (
    {"cli", "run", "job", "scoring", "refusals", "comparison", "sweep"},
    {"config"},
    {
        "module",
        "budget",
        "callbacks",
        "averaging",
        "tracking",
        "tables",
        "examples",
        "report",
        "evaluation",
        "costs",
        "interpretation",
        "robustness",
    },
    {"data", "inference"},
    {
        "models",
        "losses",
        "metrics",
        "schedules",
        "optim",
        "augment",
        "weight_map",
        "tiling",
        "pictures",
        "overlay",
        "io",
        "card",
        "checkpoints",
        "precision",
        "machine",
    },
    {"labels", "colors", "raw_values", "commit", "words", "secrets", "processes", "locks"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

#: Library -> the parts of segline that may know of it.
KNOWN_BY = {
    "hydra": {"config", "refusals", "run", "sweep"},
    "wandb": {"tracking"},
    "pytorch_lightning": {"averaging", "budget", "job", "module", "callbacks", "tracking", "report", "data", "sweep"},
}


def imported(code: str) -> set[str]:
    """Dotted names that a file imports anywhere, `from a import b` as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(module: str) -> str:
    """`segline.io.image` -> `io`."""
    return module.split(".")[1]


def faults(modules: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the imports of modules, given as dotted name -> code."""
    graph: dict[str, set[str]] = {}
    for module, code in modules.items():
        names = imported(code)
        for name in sorted(names):
            library = name.split(".")[0]
            if part(module) not in KNOWN_BY.get(library, {part(module)}):
                yield f"{module} imports {library}"
            elif library == "segline" and "." in name and LEVEL[part(name)] < LEVEL[part(module)]:
                yield f"{module} imports {name}, which lies above it"
        # `segline.io.source.Window` is a name in a module, `segline.io.source` the module itself.
        graph[module] = {m for name in names for m in (name, name.rpartition(".")[0]) if m in modules}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"in a circle: {' <- '.join(error.args[1])}"


def package() -> dict[str, str]:
    """Dotted name -> code of every module of segline."""
    files = [file for file in (SRC / "segline").rglob("*.py") if file.name != "__init__.py"]
    return {".".join(file.relative_to(SRC).with_suffix("").parts): file.read_text() for file in files}


def test_every_module_has_a_layer() -> None:
    assert {part(module) for module in package()} <= set(LEVEL)


def test_imports_go_down_only() -> None:
    assert list(faults(package())) == []


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        (
            "models.unet",
            "from segline.data.cases import Case",
            "segline.models.unet imports segline.data.cases.Case, which lies",
        ),
        ("models.unet", "def f():\n    import segline.run", "segline.models.unet imports segline.run, which lies"),
        ("labels", "from segline import card", "segline.labels imports segline.card, which lies"),
        ("losses", "import pytorch_lightning as pl", "segline.losses imports pytorch_lightning"),
        ("data.cases", "from hydra.utils import instantiate", "segline.data.cases imports hydra"),
        ("job", "import wandb", "segline.job imports wandb"),
        ("io.image", "from segline.io.masks import open_mask", "in a circle: "),
    ],
)
def test_a_planted_fault_is_found(module: str, line: str, fault: str) -> None:
    modules = {
        "segline.io.masks": "from segline.io import image\nfrom segline.labels import Labels",
        "segline.job": "import pytorch_lightning\nfrom segline.models.unet import UNet",
    }
    assert list(faults(modules | {"segline.io.image": ""})) == []
    found = list(faults({"segline.io.image": "", **modules, f"segline.{module}": line}))
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_init_files_import_nothing() -> None:
    for file in SRC.rglob("__init__.py"):
        assert imported(file.read_text()) == set(), file


def test_scripts_import_only_the_command_line() -> None:
    for file in SRC.glob("*.py"):
        ours = {name for name in imported(file.read_text()) if name.startswith("segline")}
        assert ours <= {"segline.cli.main"}, file


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    project = tomllib.loads((SRC.parent / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", line)[0] for line in project["dependencies"]}
    names = {name for file in SRC.rglob("*.py") for name in imported(file.read_text())}
    for file in (SRC.parent / "conf").rglob("*.yaml"):
        names |= set(re.findall(r"_target_: (\w+)\.", file.read_text()))
    libraries = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"segline", "hydra_plugins"}
    made_by = packages_distributions()
    used_by_others = {"onnxscript", "cmaes"}  # torch's export to ONNX, and Optuna's CMA-ES
    found = {made_by[library][0].lower().replace("_", "-") for library in libraries}
    assert found | used_by_others == declared
