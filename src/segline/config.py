"""Where the configs are, how one is composed and built, and what to say when one is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from segline.checkpoints import locate

_HERE = Path(__file__).resolve().parent
#: `<package>/conf` in a wheel, `<repository>/conf` in a checkout.
CONF_DIR = next(folder for folder in (_HERE / "conf", _HERE.parents[1] / "conf") if folder.is_dir())

#: Short names of precisions -> Lightning's.
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
#: The resolved config of a run, in its folder.
CONFIG = "config.yaml"
#: `data=` of an evaluation: what the network was trained on.
OWN = "own"
#: Held by the process that writes into a run's folder.
LOCK = ".lock"

# A name of a folder from overrides: data/augment=none would make two of them, and names end at 255 bytes.
OmegaConf.register_new_resolver("slug", lambda text: text.replace("/", ".")[:200], replace=True)
# Null has no length yet: the classes of data=folder are found when the command runs.
OmegaConf.register_new_resolver("len", lambda value: None if value is None else len(value), replace=True)


def compose(overrides: Sequence[str] = (), name: str = "train") -> DictConfig:
    """The config that a command line with these overrides gives."""
    offer_own_data()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra_compose(name, overrides=list(overrides))


def own_data(checkpoint: str | None) -> dict[str, Any]:
    """The data config of the run that a checkpoint lies in; empty where there is none.

    Raises:
        ValueError: The config names code that is not segline's own, or something outside of itself.
    """
    import yaml

    path = locate(checkpoint).parent / CONFIG if checkpoint else None
    if path is None or not path.is_file():
        return {}
    node = (yaml.safe_load(path.read_text()) or {}).get("data") or {}
    node["augment"] = None
    _check_safe(node, path)
    return dict(node)


def _check_safe(node: Any, path: Path) -> None:
    """A run folder may be a stranger's: its config is data, not code."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_" and not str(value).startswith(("segline.data.", "segline.labels.")):
                raise ValueError(
                    f"{path}: the data of this run names {value}, which is not segline's own; set data= yourself"
                )
            _check_safe(value, path)
    elif isinstance(node, list):
        for value in node:
            _check_safe(value, path)
    elif isinstance(node, str) and "${" in node:
        raise ValueError(
            f"{path}: the data of this run refers to {node}; a run's config is resolved: set data= yourself"
        )


def offer_own_data(checkpoint: str | None = None) -> None:
    """Let `data=own` stand for the data of the run that a checkpoint lies in."""
    ConfigStore.instance().store(group="data", name=OWN, node=own_data(checkpoint))


def build(config: DictConfig, **arguments: Any) -> Any:
    """The object that a config node describes, with plain dicts and lists as its arguments; more arguments go on top."""
    return instantiate(config, _convert_="all", **arguments)
