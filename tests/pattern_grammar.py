"""Patterns drawn from a grammar, and a small matcher of its own that reads them a second time."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache

from hypothesis import strategies as st

from hooks import Host, Place, Site

MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out")
N_LAYERS, N_HEADS, N_KEY_VALUE_HEADS = 12, 4, 2


class Paper(Host):
    """Twelve gated layers of four heads (two of keys and values) that exist by name only."""

    def __init__(self) -> None:
        pass

    @property
    def n_layers(self) -> int:
        return N_LAYERS

    def n_heads(self, matrix: str) -> int:
        return N_KEY_VALUE_HEADS if matrix in ("W_K", "W_V") else N_HEADS

    def why_not(self, site: Site, n_uses: Mapping[int, int] | None = None) -> str | None:
        return None

    def _n_uses(self) -> Counter[int]:
        return Counter()

    def weight_state(self) -> str:
        return "raw"

    def _missing(self, site: Site) -> str | None:
        return None

    def _stored(self, site: Site) -> tuple:
        raise NotImplementedError

    def _joint_place(self, site: Site) -> Place:
        raise NotImplementedError


ALL = [str(site) for site in Paper().joint_sites()]
NUMBERS = re.compile(r"\[(!?)([-0-9:,*]+)\]|(?<=[.{,])-([0-9])")


def written_out(pattern: str) -> str:
    """The pattern with its layers as alternatives: `[3:6]` is `{3,4,5}`."""

    def layers(found: re.Match[str]) -> str:
        every = list(range(N_LAYERS))
        if found[3]:
            return str(every[-int(found[3])])
        chosen: list[int] = []
        for part in found[2].split(","):
            if part == "*":
                chosen += every
            elif ":" in part:
                chosen += eval(f"every[{part}]")
            elif "-" in part[1:]:
                first, last = part.split("-")
                chosen += [i for i in every if int(first) <= i <= int(last)]
            else:
                chosen.append(every[int(part)])
        kept = [i for i in every if (i in chosen) != bool(found[1])]
        return f"{{{','.join(map(str, kept))}}}"

    return NUMBERS.sub(layers, pattern)


def alternatives(pattern: str) -> list[str]:
    """The pattern written out without braces."""
    start = pattern.find("{")
    if start < 0:
        return [pattern]
    depth, parts, last = 0, [], start + 1
    for i, char in enumerate(pattern[start:], start):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0 or (depth == 1 and char == ","):
            parts.append(pattern[last:i])
            last = i + 1
        if depth == 0:
            return [tail for part in parts for tail in alternatives(pattern[:start] + part + pattern[i + 1 :])]
    raise AssertionError(pattern)


def tokens_of(glob: str) -> Iterator[str | tuple[bool, frozenset[str]]]:
    i = 0
    while i < len(glob):
        if glob[i] != "[":
            yield glob[i]
            i += 1
            continue
        end = glob.index("]", i)
        inside = glob[i + 1 : end]
        negated = inside[0] in "!^"
        chars, inside = set(), list(inside[negated:])
        while inside:
            if len(inside) > 2 and inside[1] == "-":
                chars |= {chr(c) for c in range(ord(inside[0]), ord(inside[2]) + 1)}
                del inside[:3]
            else:
                chars.add(inside.pop(0))
        yield negated, frozenset(chars)
        i = end + 1


@cache
def matches(glob: tuple, text: str) -> bool:
    """Character by character, with backtracking."""
    if not glob:
        return not text
    first, rest = glob[0], glob[1:]
    if first == "*":
        return any(matches(rest, text[i:]) for i in range(len(text) + 1))
    if not text:
        return False
    if isinstance(first, tuple):
        negated, chars = first
        return (text[0] in chars) != negated and matches(rest, text[1:])
    return first in ("?", text[0]) and matches(rest, text[1:])


def by_hand(pattern: str) -> list[str]:
    if pattern.startswith(("W_", "attn.", "mlp.")):
        pattern = f"blocks.*.{pattern}"
    globs = [tuple(tokens_of(glob)) for glob in alternatives(written_out(pattern))]
    return [address for address in ALL if any(matches(glob, address) for glob in globs)]


LAYERS = (
    ".[0-3].", ".[9-11].", ".1[0-1].", ".[8:].", ".[:-9].", ".[-2:].", ".[*].", ".[-1].", ".-3.", ".{0,[9-10],-1}.",
    ".[0,4:6,10-11].", ".[!1].", ".[!0-9].", ".{1,[2-3]}{0,1}.", ".1.", ".?.", ".1?.", ".{1,1?}.", ".*.", "*",
)  # fmt: skip
ENDS = ("*", "attn.W_Q", "mlp.W_{in,gate}", "*W_[QK]", "{attn.W_[!QK],mlp.*t}", "????.W_?", "{*,*}{*,}", "mlp.[^.]_*")
pieces = st.sampled_from(
    ["*", "blocks.", "attn.", "mlp.", "W_", "?", ".", "1", "11", "[a-m]", "[QK]", "[!a-z]", "[.]", "W_[!QK]", "in", "Q",
     "{attn,mlp}", "{1,2,1?}", "{in,out}", "{W_{Q,K},W_*t}", "{,x}", "{mlp.W_{in,gate},attn.W_O}", *LAYERS]
)  # fmt: skip
patterns = st.lists(pieces, min_size=1, max_size=6).map("".join)
