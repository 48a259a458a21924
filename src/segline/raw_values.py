"""What classes are called in mask files and configs: ids and colours."""

from __future__ import annotations

from collections.abc import Sequence

#: An id, a colour `"#rrggbb"`, or several of them.
RawValues = int | str | Sequence[int | str]


def parse_values(raw: RawValues) -> tuple[int, ...]:
    """Raw mask values as integers: `7`, `"#8429f6"`, or several of them."""
    if isinstance(raw, bool) or not isinstance(raw, (int, str, Sequence)):
        raise ValueError(
            f"a mask value is {raw!r}; expected an id such as 7, a colour such as '#8429f6', or a list of them"
        )
    if isinstance(raw, int):
        return (raw,)
    if isinstance(raw, str):
        if not raw.startswith("#") or len(raw) != 7:
            raise ValueError(f"a mask value is {raw!r}; expected an id such as 7 or a colour such as '#8429f6'")
        return (int(raw[1:], 16),)
    return tuple(value for item in raw for value in parse_values(item))


def plain_values(raw: RawValues) -> int | str | list[int | str]:
    """Raw values as JSON and YAML know them."""
    return raw if isinstance(raw, (int, str)) else list(raw)
