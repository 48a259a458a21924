"""Words for people."""

import os
import re

#: What stands before the host of an address: a name and a password, or, where servers ask for no name alone, a token.
_ADDRESS = re.compile(r"(?<=://)[^/\s:@]*:[^/\s]+(?=@)|(?<=https://)[^/\s@]+(?=@)|(?<=http://)[^/\s@]+(?=@)")
#: Ends of the names of what nobody else may read.
_SECRET = r"(?:(?:api|access|secret)[_-]?key|password|secret|token)"
#: A value under such a name, by key=value or key: value. Null and references are none, nor are words that follow `pos_token`.
_NAMED = re.compile(
    rf"""({_SECRET} ["']? \s* [=:]) (?! \s* (?: null\b | \?\?\? | ["']?\$\{{ | ["']{{0,2}}[\]}},]*$ ))
    (?: (?<!token[=:]) | \s* (?=[^\s,}}]*\d) (?=[^\s,}}]{{12}}) ) .+""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
#: Characters from which on the value of a variable is a secret: HF_HUB_DISABLE_IMPLICIT_TOKEN=1 is none; and is looked for within texts.
_SHORT, _LONG = 6, 9


def has_password(text: str) -> bool:
    """Whether a text holds a password, a key or a token: in an address, by its name, or as the environment's.

    >>> has_password("postgresql://me:secret@host/runs"), has_password("https://host:5000/a@b")
    (True, False)
    >>> has_password("logger.comet.api_key=5fa1b2"), has_password("model.num_tokens=16"), has_password("model.pos_token=learned")
    (True, False, False)
    """
    return without_passwords(text) != text


def without_passwords(text: str) -> str:
    """A text with stars for names and passwords in addresses, for named secrets, and for those of the environment.

    >>> without_passwords("storage=postgresql://me:secret@host/runs"), without_passwords("api_key=5fa1b2")
    ('storage=postgresql://***@host/runs', 'api_key=***')
    """
    for name, value in os.environ.items():
        is_meant = len(value) >= _LONG or (len(value) >= _SHORT and value == text)
        if is_meant and re.search(f"{_SECRET}$", name, re.IGNORECASE):
            text = text.replace(value, "***")
    return _NAMED.sub(r"\1***", _ADDRESS.sub("***", text))


def in_quotes(text: str) -> str:
    r"""A text as the value of an override, which Hydra reads as this very text, whatever its signs are.

    >>> print(in_quotes("it's a,b"), in_quotes("=${x}"), in_quotes("a\\"))
    'it\'s a,b' '=${x}' 'a\\'
    """
    # Of backslashes only those before a quote mean something.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (r"\'" if found[2] else ""), text) + "'"


def less_is_better(name: str) -> bool:
    """Whether a logged value is a loss, of which less is better; all others are scores.

    >>> less_is_better("val/loss"), less_is_better("val/iou")
    (True, False)
    """
    return name.endswith("loss")


def count_of(number: int, what: str) -> str:
    """A number of things.

    >>> count_of(1, "mask"), count_of(2, "mask"), count_of(0, "class")
    ('1 mask', '2 masks', '0 classes')
    """
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"
