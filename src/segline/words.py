"""Words for people."""


def count_of(number: int, what: str) -> str:
    """A number of things.

    >>> count_of(1, "mask"), count_of(2, "mask"), count_of(0, "class")
    ('1 mask', '2 masks', '0 classes')
    """
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"
