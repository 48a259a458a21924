"""Passwords, keys and tokens among settings: a run's folder, its checkpoints and trackers are no place for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

#: What stands before the host of an address: a name and a password, or a token for a name, as servers of code take it. A port is none.
_ADDRESS = re.compile(
    r"(?<=://)[^/\s:@?#]*:(?!\d{1,5}(?:/|$))\S+(?=@)|(?<=://)(?=(?:[^/\s@]*\d){3})[^/\s:@?#]{16,}(?=@)"
)
#: How names of what nobody else may read end.
_NAME = r"(?:passw(?:or)?d|secret|(?:^|(?<=[._\-\s{,+'\"]))(?:(?:api|access|secret)[_-]?key|(?:auth|api|access|bearer)[_-]?token))"
_SETTING = re.compile(rf"{_NAME}$", re.IGNORECASE)
#: Of variables any token is one, where of settings `cls_token` is none; an access key is often a user's name.
_VARIABLE = re.compile(r"(?:passw(?:or)?d|secret|token|(?:api|secret|secret_access)_?key)$", re.IGNORECASE)
#: The same with what follows, as in an override or a typed mapping.
_TYPED = re.compile(rf"({_NAME}['\"]?\s*[=:]\s*)([^,}}]+)", re.IGNORECASE)
#: What servers give out as tokens: long, with digits.
_TOKEN = re.compile(r"(?=(?:.*\d){3})[\w\-.=+/]{16,}$")
#: A reference, which is no secret where it stands.
_REFERENCE = re.compile(r"\$\{[^{}]*\}")
#: Values that tell nobody anything: switches and small numbers.
_HARMLESS = re.compile(r"(?:null|none|true|false|\?\?\?|\d{0,5})$", re.IGNORECASE)
#: Characters from which on a variable's value is looked for within settings; it is no plain word, and no number.
_LEAST = 8
_LIBRARIES = (
    "libraries read theirs from the environment (WANDB_API_KEY, COMET_API_KEY, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD) "
    "or from ~/.netrc"
)


def refuse_secrets(settings: Any, typed: Iterable[str] = ()) -> None:
    """Refuse settings that hold a secret.

    Args:
        settings: Plain data, as lists and dicts; references that are not resolved are no secrets.
        typed: Overrides as they were typed, which are kept, too.

    Raises:
        ValueError: A setting holds one. The message names the setting, and the variable it comes from.
    """
    own = list(_of_environment())
    for key, value in [*_leaves(settings), *(override.partition("=")[::2] for override in typed)]:
        text = _REFERENCE.sub("", str(value)).strip(" '\"")
        variable = next((name for name, pattern in own if pattern.search(text)), None)
        if _ADDRESS.search(text):
            what, remedy = "a password in an address", _LIBRARIES
        elif _is_named(key, text) and "labels.classes" not in key:
            what, remedy = "a password, a key or a token", _LIBRARIES
        elif variable:
            what, remedy = (
                f"the value of {variable}",
                f"if that is no secret, give the variable another name; {_LIBRARIES}",
            )
        else:
            continue
        if key.startswith("hydra.sweeper.storage"):
            remedy = "let it refer to the environment: hydra.sweeper.storage='${oc.env:ADDRESS}'"
        raise ValueError(
            f"{without_secrets(key)} holds {what}, which a run's folder would keep; leave it out: {remedy}"
        )


def without_secrets(text: str) -> str:
    """A text with stars for passwords in addresses, for all that follows telling names, and for secrets of the environment.

    >>> without_secrets("storage=postgresql://me:hidden@host/runs"), without_secrets("logger.comet.api_key=5fa1b2")
    ('storage=postgresql://***@host/runs', 'logger.comet.api_key=***')
    """
    for _, pattern in _of_environment():
        text = pattern.sub("***", text)
    text = _ADDRESS.sub("***", text)
    named = _TYPED.search(text)
    return text if named is None else f"{text[: named.start(2)]}***"


def _is_named(key: str, text: str) -> bool:
    """Whether a value stands under a telling name, or, in a mapping that was typed, after one."""
    if _SETTING.search(key) and not _is_harmless(text):
        return True
    if key.lower().endswith("token") and _TOKEN.match(text):
        return True
    return any(not _is_harmless(named[2]) for named in _TYPED.finditer(text))


def _is_harmless(text: str) -> bool:
    return all(_HARMLESS.match(part.strip(" '\"")) for part in text.strip("[]").split(","))


def _of_environment() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Variables that hold secrets, by their names, with what finds their values where these are no part of a longer word."""
    for name, value in os.environ.items():
        if (
            _VARIABLE.search(name)
            and len(value) >= _LEAST
            and re.search(r"[^\W\d]", value)
            and re.search(r"[\d\W_]", value)
        ):
            yield name, re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")


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
