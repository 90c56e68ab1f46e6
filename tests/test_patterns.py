"""The pattern language: against a small matcher of its own, and what it refuses."""

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import borrowed

import surgery
from hooks import Host, Place, Site, SiteError, match_sites
from hooks.patterns import match_on

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

    def why_not(self, site: Site) -> str | None:
        return None

    def weight_state(self) -> str:
        return "raw"

    def _joint_place(self, site: Site) -> Place:
        raise NotImplementedError


ALL = [str(site) for site in Paper().joint_sites()]


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


def tokens_of(glob: str) -> Iterator[str | tuple[bool, set[str]]]:
    i = 0
    while i < len(glob):
        if glob[i] != "[":
            yield glob[i]
            i += 1
            continue
        end = glob.index("]", i + 2)
        inside = glob[i + 1 : end]
        negated = inside[0] in "!^"
        chars, inside = set(), list(inside[negated:])
        while inside:
            if len(inside) > 2 and inside[1] == "-":
                chars |= {chr(c) for c in range(ord(inside[0]), ord(inside[2]) + 1)}
                del inside[:3]
            else:
                chars.add(inside.pop(0))
        yield negated, chars
        i = end + 1


def matches(glob: list, text: str) -> bool:
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
    globs = [list(tokens_of(glob)) for glob in alternatives(pattern)]
    return [address for address in ALL if any(matches(glob, address) for glob in globs)]


pieces = st.sampled_from(
    ["*", "blocks.", "attn.", "mlp.", "W_", "?", ".", "1", "11", "[0-3]", "[!1]", "[^25]", "[QK]", "[-1]", "[.]",
     "W_[!QK]", "{attn,mlp}", "{1,2,1?}", "{in,out}", "{W_{Q,K},W_*t}", "{,x}", "{mlp.W_{in,gate},attn.W_O}", "in", "Q"]
)  # fmt: skip
patterns = st.lists(pieces, min_size=1, max_size=6).map("".join)


@given(patterns)
@example("blocks.*.attn.W_[QK]")
@example("blocks.{0,1?}.mlp.W_{in,out}")
@example("*W_*")
@example("blocks.[!1].*")
@example("*.W_{Q,{K,V}}")
def test_a_pattern_names_what_the_small_matcher_says(pattern: str) -> None:
    expected = by_hand(pattern)
    if expected:
        assert [str(site) for site in match_on(Paper(), pattern)] == expected
    else:
        with pytest.raises(SiteError, match="no matrix is named"):
            match_on(Paper(), pattern)


def test_the_small_matcher_can_tell_right_from_wrong() -> None:
    assert by_hand("blocks.1?.mlp.W_{in,out}") == [f"blocks.1{i}.mlp.W_{m}" for i in (0, 1) for m in ("in", "out")]
    assert by_hand("*.[!a]*.W_[a-z]*") == [f"blocks.{i}.mlp.W_{m}" for i in range(12) for m in ("in", "gate", "out")]


@pytest.mark.parametrize("matrix", ["W_Q", "W_K", "W_V", "W_O"])
@given(index=st.one_of(st.integers(-8, 8), st.tuples(*[st.one_of(st.none(), st.integers(-8, 8))] * 2)))
def test_head_indices_and_slices_are_python_s(matrix: str, index: int | tuple) -> None:
    n = N_KEY_VALUE_HEADS if matrix in ("W_K", "W_V") else N_HEADS
    heads = list(range(n))
    written = str(index) if isinstance(index, int) else ":".join("" if bound is None else str(bound) for bound in index)
    try:
        expected = [heads[index]] if isinstance(index, int) else heads[slice(*index)]
    except IndexError:
        expected = []
    pattern = f"blocks.3.attn.{matrix}[{written}]"
    if expected:
        assert match_on(Paper(), pattern) == [Site(3, matrix, h) for h in expected]
        return
    with pytest.raises(SiteError) as error:
        match_on(Paper(), pattern)
    assert str(error.value) == (
        f"'{pattern}' names no head: blocks.3.attn.{matrix} has {n} heads, 0 to {n - 1}. Name one of these, or [*]."
    )


def test_a_star_is_every_head_and_heads_come_with_their_layer() -> None:
    found = match_on(Paper(), "blocks.{2,0}.attn.W_[QK][*]")
    expected = [Site(i, m, h) for i in (0, 2) for m, n in (("W_Q", 4), ("W_K", 2)) for h in range(n)]
    assert found == expected


def test_without_a_head_index_only_whole_matrices_match() -> None:
    assert all(site.head is None for site in match_on(Paper(), "*"))


def test_a_star_crosses_dots_and_does_not_need_them() -> None:
    assert match_on(Paper(), "blocks.7*out") == [Site(7, "W_out")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "blocks.12.mlp.W_out",
            "no matrix is named 'blocks.12.mlp.W_out': this model has 12 layers, blocks.0 to blocks.11. Nearest: "
            "blocks.2.mlp.W_out, blocks.1.mlp.W_out, blocks.11.mlp.W_out. List all with surgery.sites(model).",
        ),
        ("blocks.3.mlp.W_ot", "Nearest: blocks.3.mlp.W_out, "),
        ("blocks.3.attn.W_q2", "Nearest: blocks.3.attn.W_"),
        (
            "zzz",
            "no matrix is named 'zzz': this model has 12 layers, blocks.0 to blocks.11. "
            "List all with surgery.sites(model).",
        ),
        ("", "an empty pattern names no matrix: this model has 12 layers, blocks.0 to blocks.11. List all with"),
        ("  ", "an empty pattern names no matrix"),
        (
            "blocks.3.mlp.W_in[0]",
            "asks for heads of 'blocks.3.mlp.W_in', which has none: a head index goes with W_Q, W_K, W_V, W_O only.",
        ),
        ("blocks.*[*]", "'blocks.*[*]' asks for heads of 'blocks.0.mlp.W_in', which has none"),
        (
            "blocks.[01.mlp",
            "'blocks.[01.mlp' has a '[' that is never closed: write classes as [QK], heads as a final [3].",
        ),
        ("blocks.{0,1.mlp", "'blocks.{0,1.mlp' has a '{' that is never closed: write alternatives as {in,out}."),
        ("blocks.[3-1].mlp.W_in", "'blocks.[3-1].mlp.W_in' has a class that cannot be read (bad character range 3-1"),
    ],
)
def test_what_names_nothing_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(SiteError) as error:
        match_on(Paper(), pattern)
    assert message in str(error.value)


@given(st.text("blocks.01*?[]{}!^-,&|~\\attnmlpW_QKinout\n", max_size=25))
@example("[\\]")
@example("[a&&b]")
@example("[[]")
@example("*[0]")
def test_any_text_is_answered_or_refused_never_more(pattern: str) -> None:
    try:
        assert match_on(Paper(), pattern)
    except SiteError as error:
        assert str(error)


def test_several_patterns_are_joined_in_the_order_of_the_forward_pass() -> None:
    with borrowed("bridge gpt2") as model:
        several = surgery.sites(model, ["blocks.1.mlp.W_out", "blocks.*.attn.W_Q", "blocks.1.*.W_[Q]"])
        assert several == ["blocks.0.attn.W_Q", "blocks.1.attn.W_Q", "blocks.1.mlp.W_out"]
        assert [str(site) for site in match_sites(model, "blocks.1.attn.W_O[-1]")] == ["blocks.1.attn.W_O[3]"]
        with pytest.raises(SiteError, match="an empty pattern"):
            surgery.sites(model, ["*", ""])
