"""Numbers, seeds and choices as arguments: checked, and made plain Python numbers.

Arguments come from people, from numpy and torch, and from files, so no type is taken for granted.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from math import inf, isfinite
from operator import index
from typing import TypeVar

__all__ = [
    "by_name_only", "counted", "even", "finite", "fraction", "is_bool", "number", "one_of", "positive", "seed",
    "several", "shown", "whole",
]  # fmt: skip

C = TypeVar("C", bound=type)
T = TypeVar("T")
LARGEST_SEED = 2**63 - 1


def whole(value: object, name: str, *, least: int = 0, most: int | None = None) -> int:
    """The value as an int; `name` is how the message calls it.

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


def even(value: object, name: str) -> int:
    """The value as an even number, 2 or more, for what comes in pairs.

    Raises:
        ValueError: if it is something else.
    """
    checked = whole(value, name, least=2)
    if checked % 2:
        raise ValueError(f"{name}={checked}: these come in pairs. Give an even number.")
    return checked


def several(values: object, name: str, *, least: int = 0, most: int | None = None) -> list[int]:
    """The values as ints, of which there has to be one or more.

    Raises:
        ValueError: if they are no list of whole numbers, or one is out of bounds.
    """
    try:
        numbers = [] if isinstance(values, str) else list(values)  # type: ignore[call-overload]
    except TypeError:
        numbers = []
    if not numbers:
        raise ValueError(f"{name}={shown(values)}: give one or more whole numbers in a list.")
    return [whole(number, f"{name}[{at}]", least=least, most=most) for at, number in enumerate(numbers)]


def seed(value: object, name: str = "seed") -> int:
    """The value as a seed that every generator takes.

    Raises:
        ValueError: if it is not a whole number, 0 to 2⁶³ − 1.
    """
    return whole(value, name, most=LARGEST_SEED)


def positive(value: object, name: str) -> float:
    """The value as a float above 0.

    Raises:
        ValueError: if it is not a number, or not above 0 and finite.
    """
    size = number(value, name)
    if not 0 < size < inf:
        raise ValueError(f"{name}={shown(value)}: give a number above 0.")
    return size


def number(value: object, name: str, *, least: float | int | None = None) -> float:
    """The value as a float; with `least`, finite and no smaller.

    Raises:
        ValueError: if it is not a number, or out of bounds.
    """
    try:
        if not isinstance(value, str | bytes) and not is_bool(value):
            size = float(value)  # type: ignore[arg-type]
            if least is None or least <= size < inf:
                return size
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name}={shown(value)}: give a number{'' if least is None else f', {least:g} or more'}.")


def finite(value: object, name: str, *, least: int | None = None) -> float:
    """The value as a float that is neither infinite nor NaN.

    Raises:
        ValueError: if it is not a finite number, or below `least`.
    """
    checked = number(value, name)
    if not isfinite(checked) or (least is not None and checked < least):
        raise ValueError(f"{name}={shown(value)}: give a finite number{'' if least is None else f', {least} or more'}.")
    return checked


def fraction(value: object, name: str) -> float:
    """The value as a float from 0 to 1.

    Raises:
        ValueError: if it is not a number, or not from 0 to 1.
    """
    share = number(value, name)
    if not 0 <= share <= 1:
        raise ValueError(f"{name}={shown(value)}: give a fraction, from 0 to 1.")
    return share


def one_of(value: T, name: str, allowed: Iterable[object]) -> T:
    """The value, if it is among those that are allowed.

    Raises:
        ValueError: naming these.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}={shown(value)}: it is one of {', '.join(map(repr, allowed))}. Choose one.")
    return value


def by_name_only(example: str) -> Callable[[C], C]:
    """A decorator for a dataclass whose arguments have to be named; its refusal shows `example`."""

    def decorated(cls: C) -> C:
        init = cls.__init__

        @wraps(init)
        def named(self: object, *unnamed: object, **arguments: object) -> None:
            if unnamed:
                raise TypeError(
                    f"{cls.__name__}({', '.join(map(shown, unnamed))}) does not say what {shown(unnamed[0])} is: give "
                    f"it by name, such as {cls.__name__}({example})."
                )
            init(self, **arguments)

        cls.__init__ = named
        return cls

    return decorated


def is_bool(value: object) -> bool:
    """Whether the value is a boolean of Python, numpy or torch, which does not count as a number here."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def shown(value: object) -> str:
    """The value's repr for a message, cut to 80 characters, since the value may come from anybody's file."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number of things in words.

    >>> from surgery.arguments import counted
    >>> counted(1, "example"), counted(2, "matrix", "matrices")
    ('1 example', '2 matrices')
    """
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"
