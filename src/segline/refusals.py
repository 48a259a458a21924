"""Errors that say what came, what was expected and what would work, instead of a traceback."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segline.words import nearest

#: Launchers that are packages of their own.
_LAUNCHERS = ("joblib", "submitit", "ray")


class Stopped(BaseException):
    """A single job that failed, by its `__cause__`: past Hydra, which would print a line of its own before the error is explained.

    Hydra's own callbacks are not told of the job's end then.
    """


@contextmanager
def explained(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Answer a mistake of the user's in a few lines instead of a traceback; HYDRA_FULL_ERROR=1 shows it all."""
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors come here and not to Hydra's own printer
    try:
        yield
    except (Exception, Stopped) as caught:
        error = caught.__cause__ if isinstance(caught, Stopped) else caught
        assert isinstance(error, Exception)
        message = None if full else answer_to(error, command, arguments)
        if message is None:
            traceback.print_exception(error)
        if not full:
            print(f"error: {message or error}", file=sys.stderr)
        sys.exit(1)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if full:
            os.environ["HYDRA_FULL_ERROR"] = full


def answer_to(error: Exception, command: str, arguments: Sequence[str] = ()) -> str | None:
    """What to say instead of a traceback; None for a fault of the program."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("hydra", "omegaconf"):
        return (
            f"{sys.executable} has no {error.name}: `make train` sets up .venv with all that is needed and trains a first network; from "
            f"then on .venv/bin/python src/{command}.py, or python where .venv is activated"
        )
    from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
    from omegaconf.errors import InterpolationResolutionError

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if f"data={(folder := str(error.missing_cfg_file).removeprefix('data/'))}" in arguments and "/" in folder:
            own = f"data=folder data.images={folder}/{{name}}.png data.masks=..."
            return f"data={folder} is none of the data sets in conf/data; files of your own are {own}"
        if group == "hydra/launcher" and (kind := name.partition("_")[0]) in _LAUNCHERS:
            return f"hydra/launcher={name} is one of hydra-{kind}-launcher, which is not installed: pip install hydra-{kind}-launcher"
        return f"{group}={name} does not exist.{nearest(name, error.options or ())}\nChoices of {group}: {', '.join(error.options or ())}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        cause, where = error.__cause__, str(error).partition("full_key: ")[2].strip()
        if isinstance(
            cause, TypeError | ImportError | AttributeError
        ):  # arguments that don't fit, a target that is not there
            return f"{where or 'the config'} cannot be built: {cause}"
        return str(cause) if isinstance(cause, ValueError) else None
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: an override is key=value; a value with = , [ ] {{ }} stands in quotes: \"key='value'\""
        )
    if isinstance(error, HydraException) and (
        several := re.search(r"Ambiguous value for argument '(.*?)'", str(error))
    ):
        return f"{several.group(1)}: to train with each of these values, add -m; a list that is one value stands in brackets, key=[a,b]"
    if isinstance(error, HydraException):
        return _explain_override(str(error), command)
    if isinstance(error, InterpolationResolutionError):
        return _explain_reference(error, command)
    if isinstance(error, ValueError | OSError) and _is_ours(error):
        return str(error)
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) and error.filename:
        from segline.io.cache import cache_dir

        setting = "SEGLINE_CACHE" if Path(error.filename).is_relative_to(cache_dir()) else "hydra.run.dir, or output,"
        return f"{error.filename}: {error.strerror}; if it is to be written, set {setting} to a folder that can be"
    return None


def _explain_override(message: str, command: str) -> str:
    match = re.search(r"Could not (?:override|append|delete)[^']*'([^'=]+)", message)
    if match is None:
        return message
    key = match.group(1)
    where = f"`python src/{command}.py --help` says what there is, `--cfg job` every key."
    known = [name for name in _known(command) if name != key]  # a group of another command's
    return f"there is no {key!r} to override.{nearest(key, known)}\n{where}"


def _explain_reference(error: Any, command: str) -> str:
    """What to say of a reference of OmegaConf's that leads nowhere."""
    where, message = error.full_key or "a setting", str(error.msg or error).partition("\n")[0]
    if variable := re.search(r"Environment variable '(.*?)' not found", message):
        name = variable[1]
        remedy = f"export it, or say what stands for it: ${{oc.env:{name},VALUE}}"
        return f"{where} refers to the environment variable {name}, which there is not; {remedy}"
    if key := re.search(r"Interpolation key '(.*?)' not found", message):
        return f"{where} refers to {key[1]!r}, which there is not.{nearest(key[1], _known(command))}"
    return f"{where}: {message}"


def _known(command: str) -> list[str]:
    """Every group and every key of the command's config."""
    from hydra import compose as hydra_compose
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from segline.config import CONF_DIR, compose

    def keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for key, child in node.items():
            yield f"{prefix}{key}"
            if isinstance(child, dict):
                yield from keys(child, f"{prefix}{key}.")

    groups = [str(folder.relative_to(CONF_DIR)) for folder in CONF_DIR.rglob("*") if folder.is_dir()]
    config = (
        hydra_compose(command) if GlobalHydra().is_initialized() else compose(name=command)
    )  # a point of a sweep asks, too
    return [*groups, *keys(OmegaConf.to_container(config))]  # type: ignore[arg-type]


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by segline itself, where messages are written for users."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parent in Path(frames[-1].filename).parents
