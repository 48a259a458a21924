"""Every YAML of every group composes, and names the arguments that its class takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from segline.config import CONF_DIR, compose

#: Pieces that files of a group share, and nobody chooses.
PIECES = {"data/domain"}
FILES = {
    (file.parent.relative_to(CONF_DIR).as_posix(), file.stem): file
    for file in sorted(CONF_DIR.rglob("*.yaml"))
    if file.parent != CONF_DIR
}
#: Needs a launcher that is not in this environment; tests/integrations starts it.
ELSEWHERE = {("hydra/launcher", "ray_gpu")}
CHOICES = [choice for choice in FILES if choice[0] not in PIECES and choice not in ELSEWHERE]
#: Groups whose YAML lists every argument, so that any of them is overridden without a `+`.
WHOLE = {"model", "loss", "data"}
#: What Hydra itself reads in a node.
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


@functools.cache
def composed(group: str, choice: str) -> DictConfig:
    """The whole config with one choice made."""
    return compose([f"{group}={choice}"])


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node that names a `_target_`, with where it stands."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from targets(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from targets(child, f"{path}.{index}")


def is_whole(path: str) -> bool:
    """Whether a node lists every argument; of a sum of losses, those inside, too."""
    return path in WHOLE or path.startswith("loss.")


def faults(path: str, node: Mapping[str, Any], whole: bool) -> Iterator[str]:
    """Arguments of a node that its target does not take and, where they are wanted, those that it lacks."""
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    named = {name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    given = set(node) - HYDRA_KEYS
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        yield from (f"{path}.{name} is no argument of {node['_target_']}" for name in sorted(given - named))
    if whole:
        yield from (f"{path} lacks {name} of {node['_target_']}" for name in sorted(named - given))


@pytest.fixture(autouse=True)
def _no_real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs of real data sets name a folder that they don't open."""
    monkeypatch.setenv("SEGLINE_DATA", str(tmp_path))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_it_composes_and_names_what_its_class_takes(group: str, choice: str) -> None:
    config = OmegaConf.to_container(composed(group, choice), resolve=True)
    assert isinstance(config, dict)
    found = targets(config)
    assert [fault for path, node in found for fault in faults(path, node, whole=is_whole(path))] == []


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "data"])
def test_a_data_set_has_the_classes_of_its_own_file_alone(choice: str) -> None:
    written = OmegaConf.load(FILES["data", choice])
    assert composed("data", choice).data.labels.get("classes") == OmegaConf.select(written, "labels.classes")


def test_a_data_module_without_a_config_has_the_defaults_of_the_configs() -> None:
    written = OmegaConf.load(CONF_DIR / "data" / "domain" / "default.yaml")
    for target, node in (("", written), ("labels", written.labels)):
        parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
        plain = {
            p.name: p.default for p in parameters if p.default is not p.empty and p.name not in ("seed", "augment")
        }
        given = OmegaConf.to_container(node, resolve=False)
        assert isinstance(given, dict)
        got = {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}
        assert got == {name: given[name] for name in plain}, target


@pytest.mark.parametrize("name", sorted(file.stem for file in CONF_DIR.glob("*.yaml")))
def test_a_command_composes(name: str) -> None:
    assert compose(name=name)


def test_what_the_command_to_predict_takes_is_in_its_config() -> None:
    from segline.inference.predictor import Settings

    others = {"input", "output", "part", "trainer"}
    assert set(compose(name="predict")) - others == set(inspect.signature(Settings).parameters) - {
        "device",
        "precision",
    }


def test_a_planted_fault_is_found() -> None:
    node = {"_target_": "segline.labels.Labels", "classes": {"cell": 1}, "schema": "overlapping"}
    assert list(faults("labels", node, whole=False)) == ["labels.schema is no argument of segline.labels.Labels"]
    lacking = {fault.split()[2] for fault in faults("labels", node, whole=True) if "lacks" in fault}
    assert lacking == {"scheme", "background", "ignore", "rest", "colors"}
