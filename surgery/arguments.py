"""What an edit or a basis may be given: whole numbers, fractions and seeds, checked and made plain Python numbers.

They come from people, from numpy and torch, and from files, so a type is not taken for granted.
"""

from operator import index

LARGEST_SEED = 2**63 - 1


def whole(value: object, name: str, *, least: int = 0, most: int | None = None) -> int:
    """The value as an int, where `name` is what it is called in the edit's own words.

    Raises:
        ValueError: if it is not a whole number (numpy's and torch's are), or out of bounds.
    """
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least or (most is not None and number > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={shown(value)}: give a whole number, {bounds}.")
    return number


def seed(value: object, name: str = "seed") -> int:
    """The value as a seed that every generator takes.

    Raises:
        ValueError: if it is not a whole number, 0 to 2⁶³ − 1.
    """
    return whole(value, name, most=LARGEST_SEED)


def number(value: object, name: str) -> float:
    """The value as a float.

    Raises:
        ValueError: if it is not a number.
    """
    try:
        if not isinstance(value, bool | str | bytes):
            return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name}={shown(value)}: give a number.")


def fraction(value: object, name: str) -> float:
    """The value as a float from 0 to 1.

    Raises:
        ValueError: if it is not a number, or not from 0 to 1.
    """
    given = number(value, name)
    if not 0 <= given <= 1:
        raise ValueError(f"{name}={shown(value)}: give a fraction, from 0 to 1.")
    return given


def shown(value: object) -> str:
    """The value as it is repeated in a message: cut short, since it may come from anybody's file."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number of things in words: "1 example", "2 examples"."""
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"
