"""Words for people."""

import difflib
import re
from collections.abc import Iterable


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


def natural(name: str) -> list[tuple[int, str]]:
    """A key that puts 10 behind 9.

    >>> sorted(["run 10", "run 9"], key=natural)
    ['run 9', 'run 10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the names that are most like a word, by the whole name or by its last part."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if not close:
        last = {name: name.rsplit(".", 1)[-1] for name in known}
        ends = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(last.values()), n=3, cutoff=0.7)
        close = [name for name, end in last.items() if end in ends][:3]
    return f" Did you mean {' or '.join(close)}?" if close else ""
