"""Where the configs are, how one is composed and built, and what to say when one is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from segline.checkpoints import locate

_HERE = Path(__file__).resolve().parent
#: `<package>/conf` in a wheel, `<repository>/conf` in a checkout.
CONF_DIR = next(folder for folder in (_HERE / "conf", _HERE.parents[1] / "conf") if folder.is_dir())

#: Classes that data configs name.
_TARGET = re.compile(r"(?m)^\s*_target_: (segline\.(?:data|labels)\.\S+)$")
#: The resolved config of a run, in its folder.
CONFIG = "config.yaml"
#: `data=` of an evaluation: what the network was trained on.
OWN = "own"
#: Held by the process that writes into a run's folder.
LOCK = ".lock"

# Null has no length yet: the classes of data=folder are found when the command runs.
OmegaConf.register_new_resolver("len", lambda value: None if value is None else len(value), replace=True)


def compose(overrides: Sequence[str] = (), name: str = "train", checkpoint: str | None = None) -> DictConfig:
    """The config that a command line with these overrides gives; `data=own` are those of the checkpoint."""
    offer_own_data(checkpoint)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra_compose(name, overrides=list(overrides))


def as_list(value: Any) -> Any:
    """Plain values of a key that may hold several; one that stands alone is a list of one."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return plain if plain is None or isinstance(plain, list) else [plain]


def own_data(checkpoint: str | None) -> dict[str, Any]:
    """The data config of the run that a checkpoint lies in; empty where there is none.

    Raises:
        ValueError: The config names code that no data config of segline's own does, or refers to something outside of itself: a run
            folder may be a stranger's, and its config is data.
    """
    import yaml

    from segline.inference.members import ensemble_folder, locate_all

    if checkpoint and ensemble_folder(checkpoint):
        checkpoint = str(locate_all(checkpoint)[0])
    path = locate(checkpoint).parent / CONFIG if checkpoint else None
    if path is None or not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text())
    node = content.get("data") if isinstance(content, dict) else None
    if not isinstance(node, dict):
        raise ValueError(f"{path} describes no data; set data=NAME, or data=folder data.images=...")
    node |= {"augment": None, "weight_map": None}  # of training alone
    known = {match for file in (CONF_DIR / "data").rglob("*.yaml") for match in _TARGET.findall(file.read_text())}
    for place, value in _leaves(node):
        key = place[-1]
        ours = place in (("_target_",), ("labels", "_target_")) and value in known
        if (str(key).startswith("_") and not ours) or (isinstance(value, str) and "${" in value):
            raise ValueError(
                f"{path}: data.{'.'.join(map(str, place))} is {value!r}, which no data set of segline's has; set data= yourself"
            )
    return node


def _leaves(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in nested plain data, with the keys that lead to it; keys with an underscore first count as values, too."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        yield place, node
        return
    if place and str(place[-1]).startswith("_"):
        yield place, node
    for key, child in children:
        yield from _leaves(child, (*place, key))


def offer_own_data(checkpoint: str | None = None, several: bool = False) -> None:
    """Let `data=own` stand for the data of the run that a checkpoint lies in; for several, each known once its job begins, for any data."""
    node = OmegaConf.create({}, flags={"struct": False}) if several else own_data(checkpoint)
    ConfigStore.instance().store(group="data", name=OWN, node=node)


def with_own_data(config: DictConfig, name: str) -> DictConfig:
    """The config of a running command; in a sweep over checkpoints, which may be of different data, with `data=own` of this one."""
    here = HydraConfig.get()
    if here.mode is not RunMode.MULTIRUN or here.runtime.choices["data"] != OWN:
        return config
    offer_own_data(as_list(config.checkpoint)[0])
    try:
        return hydra_compose(name, overrides=list(here.overrides.task))
    finally:
        offer_own_data(several=True)  # to the next job of this process


def build(config: DictConfig, **arguments: Any) -> Any:
    """The object that a config node describes, with plain dicts and lists as its arguments; more arguments go on top."""
    return instantiate(config, _convert_="all", **arguments)


def networks(said: Sequence[str], **arguments: Any) -> dict[str, Callable[[], Any]]:
    """What builds each network, by its name; within a running command, whose folder of a user's own configs counts.

    A call raises a ValueError where a network refuses.

    Args:
        said: Overrides of all: `model=a,b` names the networks, else there are all of the group; `model.channels=[8,16]` changes each.
        arguments: What data say, such as `in_channels`; of them a network gets what its config names.
    """
    choices = [override.removeprefix("model=") for override in said if override.startswith("model=")]
    options = GlobalHydra.instance().config_loader().get_group_options("model")
    names = choices[-1].strip("[]").split(",") if choices else options
    others = [override for override in said if not override.startswith("model=")]
    for name in set(names) - set(options):
        hydra_compose("train", overrides=[f"model={name}"])  # raises: one misspelt is said before any is built
    return {name: partial(_build_network, [f"model={name}", *others], arguments) for name in names}


def _build_network(overrides: list[str], arguments: dict[str, Any]) -> Any:
    try:
        node = hydra_compose("train", overrides=overrides).model
        return build(node, **{key: value for key, value in arguments.items() if key in node})
    except (ConfigCompositionException, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        raise ValueError(str(cause or error)) from error
