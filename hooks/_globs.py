"""Patterns over addresses: what one means on a model of so many layers, and whether it matches an address.

A bracket with a letter in it, or with dots and no digit, is a class of characters. Every other bracket holds numbers:
`[3]`, `[-1]`, `[*]`, `[3:6]` as in Python, `[3-6]` with both ends, several with commas, all others with a leading `!`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import final

from hooks.sites import SiteError

LONGEST = 1000
"""Characters of a pattern; a longer one was not written by a person."""

_TOKEN = re.compile(r"\[(?P<inside>[^\]]*)\]|(?P<from_end>(?<![^.{,])-[0-9]+)|.", re.DOTALL)
_FINAL = re.compile(r"(?P<joint>.*)\[(?P<inside>[^\[\]]*)\]", re.DOTALL)
_LAYER = re.compile(r"(?<![^.{,])[0-9]+(?![^.,}])")
_NUMBERS = re.compile(
    r"(?P<all>\*)|(?P<one>-?[0-9]+)|(?P<first>[0-9]+)-(?P<last>[0-9]+)|(?P<start>-?[0-9]+)?:(?P<stop>-?[0-9]+)?"
)
_ASCII = tuple(map(chr, range(128)))  # addresses consist of these


def split_index(pattern: str) -> tuple[str, str | None]:
    """A pattern without its final bracket, and the inside of that bracket if it holds numbers, the indices of heads."""
    final = _FINAL.fullmatch(pattern)
    if final is None or _is_class(final["inside"]):
        return pattern, None
    return final["joint"], final["inside"]


@final
@dataclass(frozen=True, slots=True)
class Numbered:
    """The `n` layers of a model, or heads of a matrix (`kind`, of `owner`), of which `pattern` names some."""

    n: int
    kind: str
    owner: str
    pattern: str

    def chosen(self, inside: str) -> list[int]:
        """The numbers that the inside of a bracket names, rising.

        Raises:
            SiteError: if it cannot be read, names none, or one that does not exist.
        """
        negated = inside.startswith(("!", "^"))
        named = {number for part in inside[negated:].split(",") for number in self._part(part.strip())}
        if negated:
            named = set(range(self.n)) - named
        if not named:
            raise self.no_such(f"no {self.kind}")
        return sorted(named)

    def no_such(self, what: str) -> SiteError:
        """The error for a number that does not exist, or for none at all."""
        return SiteError(
            f"{self.pattern!r} names {what[:30]}: {self.owner} has {self.n} {self.kind}s, 0 to {self.n - 1}. Name some "
            "of these, or [*]."
        )

    def _part(self, part: str) -> range:
        numbers = _NUMBERS.fullmatch(part)
        if numbers is None or (numbers["first"] and int(numbers["first"]) > int(numbers["last"])):
            raise SiteError(
                f"{self.pattern!r} has '[{part[:30]}]' where numbers of {self.kind}s belong: write one such as [3] or "
                "[-1], all as [*], a slice such as [0:4], a range with both its ends such as [0-3], or several such as "
                "[0,2]."
            )
        if numbers["all"]:
            return range(self.n)
        if numbers["one"] or numbers["first"]:
            first, last = int(numbers["first"] or numbers["one"]), int(numbers["last"] or numbers["one"])
            for number in (first, last):
                if not -self.n <= number < self.n:
                    raise self.no_such(f"{self.kind} {number}")
            return range(first % self.n, last % self.n + 1)
        return range(self.n)[slice(*(int(bound) if bound else None for bound in numbers.group("start", "stop")))]


class _Text(str):
    """These characters."""


class _One(frozenset[str]):
    """One character out of these."""


class _Number(frozenset[str]):
    """A number out of these, in writing."""


_Token = _Text | _One | _Number | str
"""A string is one of `*`, `{`, `,` and `}` in their special meaning."""


@final
class Glob:
    """A pattern without its head index, read for a model of `n_layers` layers.

    Raises:
        SiteError: if a bracket or brace is never closed, or a bracket cannot be read.
    """

    def __init__(self, glob: str, n_layers: int, *, pattern: str) -> None:
        self._glob, self._pattern = glob, pattern
        self._layers = Numbered(n_layers, "layer", "this model", pattern)
        self._tokens = self._read()

    def matches(self, address: str) -> bool:
        """Whether the pattern names this address.

        Token by token, `here` holds the positions in the address that the pattern can have come to, as the bits of a
        number. Nothing is tried twice, so that no pattern takes long.
        """
        of_char, digit_runs = _characters(address)
        anywhere = (1 << len(address) + 1) - 1
        here, groups = 1, []
        for token in self._tokens:
            match token:
                case _Text() as text:
                    here = (here & _starts(text, address)) << len(text)
                case _One() as of:
                    here = (here & reduce(or_, (at for char, at in of_char.items() if char in of), 0)) << 1
                case "*":
                    here = anywhere & -(here & -here)  # from the first position on: the lowest bit, and all above it
                case "{":
                    groups.append((here, 0))
                case ",":
                    start, ends = groups.pop()
                    groups.append((start, ends | here))
                    here = start
                case "}":
                    here |= groups.pop()[1]
                case _Number() as of:
                    ends = (end for start, end, digits in digit_runs if here >> start & 1 and digits in of)
                    here = reduce(or_, (1 << end for end in ends), 0)
            if not here and not groups:
                return False
        return bool(here >> len(address) & 1)

    def check_layers(self) -> None:
        """Refuse a layer written out, alone or among alternatives, that the model does not have.

        Raises:
            SiteError: naming it.
        """
        for layer in _LAYER.findall(re.sub(r"\[[^\]]*\]", "[]", self._glob)):
            if layer != str(int(layer)) or int(layer) >= self._layers.n:
                raise self._layers.no_such(f"layer {layer}")

    def _read(self) -> list[_Token]:
        tokens, depth = list[_Token](), 0
        for found in _TOKEN.finditer(self._glob):
            char = found[0]
            if found["inside"] is not None:
                tokens.append(self._bracket(found["inside"], *self._beside(found)))
            elif found["from_end"]:
                tokens.append(self._number(char))
            elif char == "[":
                raise SiteError(
                    f"{self._pattern!r} has a '[' that is never closed: write classes as [QK], heads as a final [3]."
                )
            elif char == "?":
                tokens.append(_One(_ASCII))
            elif char == "*" and tokens[-1:] == ["*"]:
                continue
            elif char in "*{" or (char in ",}" and depth):
                tokens.append(char)
                depth += {"{": 1, "}": -1}.get(char, 0)
            else:
                last = tokens[-1] if tokens else None
                if isinstance(last, _Text):
                    tokens[-1] = _Text(last + char)
                else:
                    tokens.append(_Text(char))
        if depth:
            raise SiteError(f"{self._pattern!r} has a '{{' that is never closed: write alternatives as {{in,out}}.")
        return tokens

    def _bracket(self, inside: str, before: str, after: str) -> _Token:
        if _is_class(inside):
            return self._chars(inside)
        if "*" in (before, after):
            raise SiteError(
                f"{self._pattern!r} has '[{inside}]' beside a '*', which could be more digits of the same number: put "
                f"the layer between dots, 'blocks.[{inside}].*'."
            )
        if before.isalpha() or before == "_":
            raise SiteError(
                f"{self._pattern!r} has '[{inside}]' after a name: a head index stands at the end of the whole "
                "pattern. Write one pattern for each."
            )
        digits = inside.removeprefix("!").removeprefix("^")
        if re.fullmatch("[0-9]{2,}", digits):
            raise SiteError(
                f"{self._pattern!r} has '[{inside}]', which could mean {digits} or {', '.join(digits)}: write "
                f"[{','.join(digits)}] for several layers, and {digits} without brackets for one."
            )
        return self._number(inside)

    def _number(self, inside: str) -> _Number:
        return _Number(map(str, self._layers.chosen(inside)))

    def _beside(self, found: re.Match[str]) -> tuple[str, str]:
        """The characters before and after a bracket."""
        return self._glob[: found.start()][-1:], self._glob[found.end() :][:1]

    def _chars(self, inside: str) -> _One:
        negated = inside.startswith(("!", "^"))
        ranges = re.findall(r"(.)-(.)|(.)", inside[negated:], re.DOTALL)
        if backwards := next((f"{low}-{high}" for low, high, _ in ranges if low > high), None):
            raise SiteError(
                f"{self._pattern!r} has a class that cannot be read (the range {backwards} runs backwards): write [QK] "
                "or [a-z]."
            )
        listed = {c for low, high, one in ranges for c in _ASCII if c == one or (low and low <= c <= high)}
        return _One(set(_ASCII) - listed if negated else listed)


def _is_class(inside: str) -> bool:
    return any(map(str.isalpha, inside)) or (any(map(inside.count, "._")) and not re.search("[0-9]", inside))


def _starts(text: str, address: str) -> int:
    """The positions where the text begins in the address, as bits."""
    starts, i = 0, address.find(text)
    while i >= 0:
        starts, i = starts | 1 << i, address.find(text, i + 1)
    return starts


@cache
def _characters(address: str) -> tuple[Mapping[str, int], tuple[tuple[int, int, str], ...]]:
    """The positions of each character in an address, as bits; and its runs of digits, each with its two ends."""
    of_char: dict[str, int] = {}
    for i, char in enumerate(address):
        of_char[char] = of_char.get(char, 0) | 1 << i
    runs = [run.span() for run in re.finditer("[0-9]+", address)]
    parts = ((i, j) for start, end in runs for i in range(start, end) for j in range(i + 1, end + 1))
    return of_char, tuple((i, j, address[i:j]) for i, j in parts)
