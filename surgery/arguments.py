"""What an edit or a basis may be given: whole numbers, fractions and seeds, checked and made plain Python numbers.

They come from people, from numpy and torch, and from files, so a type is not taken for granted.
"""

from collections.abc import Callable
from functools import wraps
from operator import index
from typing import TypeVar

T = TypeVar("T", bound=type)
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
    if number is None or is_bool(value) or number < least or (most is not None and number > most):
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
        if not isinstance(value, str | bytes) and not is_bool(value):
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


def by_name_only(example: str) -> Callable[[T], T]:
    """A decorator for a dataclass that takes nothing by position, and says so with an example."""

    def decorated(cls: T) -> T:
        init = cls.__init__

        @wraps(init)
        def named(self: object, *given: object, **arguments: object) -> None:
            if given:
                raise TypeError(
                    f"{cls.__name__}({', '.join(map(shown, given))}) does not say what {shown(given[0])} is: give it "
                    f"by name, such as {cls.__name__}({example})."
                )
            init(self, **arguments)

        cls.__init__ = named
        return cls

    return decorated


def is_bool(value: object) -> bool:
    """Whether it is True or False, in Python's make, numpy's or torch's, which is no number here."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def shown(value: object) -> str:
    """The value as it is repeated in a message: cut short, since it may come from anybody's file."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number of things in words: "1 example", "2 examples"."""
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"
