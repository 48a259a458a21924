"""Passwords, keys and tokens among settings: a run's folder, its checkpoints and trackers are no place for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

#: What stands before the host of an address: a name and a password, or a token for a name, as servers of code take it.
_ADDRESS = re.compile(r"(?<=://)[^/\s:@?#]*:[^/\s@?#]+(?=@)|(?<=://)[^/\s:@?#]{16,}(?=@)")
#: Names of what nobody else may read, at the end of a setting's or a variable's.
_NAME = (
    r"(?:^|(?<=[._\-\s{,+'\"]))(?:(?:api|access|secret)[_-]?key|password|secret|(?:auth|api|access|bearer)[_-]?token)"
)
#: Of variables any token is one: of settings `cls_token` and `pad_token` are none.
_VARIABLE = re.compile(rf"(?:{_NAME}|token)$", re.IGNORECASE)
_SETTING = re.compile(rf"{_NAME}$", re.IGNORECASE)
_TYPED = re.compile(rf"({_NAME}['\"]?\s*[=:]\s*)[^\s,}}$]+", re.IGNORECASE)
#: What servers give out as tokens: long, with digits.
_TOKEN = re.compile(r"(?=(?:.*\d){3})[\w\-]{16,}$")
#: Values that tell nobody anything: switches, small numbers, and references.
_HARMLESS = re.compile(r"(?:|null|none|true|false|\?\?\?|\d{1,5}|\$\{.*)$", re.IGNORECASE | re.DOTALL)
#: Characters from which on a variable's value is looked for within settings, if it has digits and letters.
_LEAST = 8


def refuse_secrets(settings: Any, typed: Iterable[str] = ()) -> None:
    """Refuse settings that hold a secret.

    Args:
        settings: Plain data, as lists and dicts; references that are not resolved are no secrets.
        typed: Overrides as they were typed, which are kept, too.

    Raises:
        ValueError: A setting holds one. The message names the setting, and the variable it comes from.
    """
    for key, value in [*_leaves(settings), *(override.partition("=")[::2] for override in typed)]:
        if what := _secret(key, str(value)):
            raise ValueError(
                f"{without_secrets(key)} holds {what}, which a run's folder would keep; leave it out, for libraries read theirs from the "
                "environment (WANDB_API_KEY, COMET_API_KEY, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD) or from ~/.netrc; "
                "the address of a study may be hydra.sweeper.storage='${oc.env:ADDRESS}'"
            )


def without_secrets(text: str) -> str:
    """A text with stars for passwords in addresses, for what follows telling names, and for secrets of the environment.

    >>> without_secrets("storage=postgresql://me:hidden@host/runs"), without_secrets("logger.comet.api_key=5fa1b2")
    ('storage=postgresql://***@host/runs', 'logger.comet.api_key=***')
    """
    for _, value in _of_environment():
        text = re.sub(_alone(value), "***", text)
    return _TYPED.sub(r"\1***", _ADDRESS.sub("***", text))


def _secret(key: str, value: str) -> str | None:
    """What kind of secret a setting holds; None if it holds none."""
    if _ADDRESS.search(value):
        return "a password in an address"
    is_named = _SETTING.search(key) or (key.lower().endswith("token") and _TOKEN.match(value))
    if is_named and "labels.classes" not in key and not _HARMLESS.match(value):
        return "a password, a key or a token"
    return next((f"the value of {name}" for name, own in _of_environment() if re.search(_alone(own), value)), None)


def _of_environment() -> Iterator[tuple[str, str]]:
    """Variables that hold secrets, by their names, with values that are no plain word and no number."""
    for name, value in os.environ.items():
        if _VARIABLE.search(name) and len(value) >= _LEAST and re.search(r"\d", value) and re.search(r"[^\W\d]", value):
            yield name, value


def _alone(value: str) -> str:
    """Matches a text that is no part of a longer word."""
    return rf"(?<!\w){re.escape(value)}(?!\w)"


def _leaves(settings: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its key; those of a list with the list's."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from _leaves(value, f"{key}.{name}".strip("."))
    elif isinstance(settings, list):
        for value in settings:
            yield from _leaves(value, key)
    elif settings is not None:
        yield key, settings
