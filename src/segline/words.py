"""Words for people."""

import re

#: A name and a password in an address.
_PASSWORD = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def has_password(text: str) -> bool:
    """Whether a text is an address with a password in it.

    >>> has_password("postgresql://me:secret@host/runs"), has_password("https://host:5000/a@b")
    (True, False)
    """
    return bool(_PASSWORD.search(text))


def without_passwords(text: str) -> str:
    """A text whose addresses hold no names and passwords.

    >>> without_passwords("storage=postgresql://me:secret@host/runs")
    'storage=postgresql://***@host/runs'
    """
    return _PASSWORD.sub("***", text)


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
