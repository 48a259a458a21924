"""Where the configs are, how one is composed and built, and what to say when one is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

_HERE = Path(__file__).resolve().parent
#: `<package>/conf` in a wheel, `<repository>/conf` in a checkout.
CONF_DIR = next(folder for folder in (_HERE / "conf", _HERE.parents[1] / "conf") if folder.is_dir())

#: Short names of precisions -> Lightning's.
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
#: The resolved config of a run, in its folder.
CONFIG = "config.yaml"
#: Held by the process that writes into a run's folder.
LOCK = ".lock"

# A name of a folder from overrides: data/augment=none would make two of them, and names end at 255 bytes.
OmegaConf.register_new_resolver("slug", lambda text: text.replace("/", ".")[:200], replace=True)
# Null has no length yet: the classes of data=folder are found when the command runs.
OmegaConf.register_new_resolver("len", lambda value: None if value is None else len(value), replace=True)


def compose(overrides: Sequence[str] = (), name: str = "train") -> DictConfig:
    """The config that a command line with these overrides gives."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra_compose(name, overrides=list(overrides))


def build(config: DictConfig, **arguments: Any) -> Any:
    """The object that a config node describes, with plain dicts and lists as its arguments; more arguments go on top."""
    return instantiate(config, _convert_="all", **arguments)
