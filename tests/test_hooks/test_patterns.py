"""The pattern language: against a small matcher of its own, and what it refuses."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import borrowed
from pattern_grammar import ENDS, LAYERS, N_HEADS, N_KEY_VALUE_HEADS, N_LAYERS, Paper, by_hand, patterns

import surgery
from hooks import Site, SiteError, match_sites
from hooks._globs import Glob
from hooks.patterns import match_on


@pytest.mark.parametrize("layers", LAYERS)
def test_layers_of_every_form_are_what_the_small_matcher_says(layers: str) -> None:
    for end in ENDS:
        expected = by_hand(f"blocks{layers}{end}")
        assert expected
        assert [str(site) for site in match_on(Paper(), f"blocks{layers}{end}")] == expected


@given(patterns)
@example("blocks.*.attn.W_[QK]")
@example("blocks.{0,1?}.mlp.W_{in,out}")
@example("*W_*")
@example("blocks.[!1].*")
@example("blocks.[10-11].mlp.W_out")
@example("blocks.[3:6].mlp.W_out")
@example("blocks.[3,5,7].mlp.W_out")
@example("blocks.-1.attn.*")
@example("W_out")
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
    assert by_hand("blocks.[!1:].mlp.W_out") == by_hand("blocks.[0].mlp.W_out") == ["blocks.0.mlp.W_out"]
    assert (
        by_hand("blocks.[9-11].mlp.W_in")
        == by_hand("blocks.[-3:].mlp.W_in")
        == [f"blocks.{i}.mlp.W_in" for i in (9, 10, 11)]
    )
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
    none = f"head {index}" if isinstance(index, int) else "no head"
    assert str(error.value) == (
        f"'{pattern}' names {none}: blocks.3.attn.{matrix} has {n} heads, 0 to {n - 1}. Name some of these, or [*]."
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
        ("blocks.[3-1].mlp.W_in", "'blocks.[3-1].mlp.W_in' has '[3-1]' where numbers of layers belong: write one such"),
        (
            "blocks.3.mlp.W_[z-a]",
            "has a class that cannot be read (the range z-a runs backwards): write [QK] or",
        ),
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


def layers_of(pattern: str) -> list[int]:
    return [site.layer for site in match_on(Paper(), pattern)]


def test_a_numeric_layer_range_is_not_read_as_characters() -> None:
    assert layers_of("blocks.[9-11].mlp.W_out") == [9, 10, 11]
    assert layers_of("blocks.[3:6].mlp.W_out") == [3, 4, 5]
    assert layers_of("blocks.[10:].mlp.W_out") == layers_of("blocks.[-2:].mlp.W_out") == [10, 11]
    assert layers_of("model.layers.[3,5,7].mlp.down_proj") == [3, 5, 7]
    assert layers_of("blocks.[!1].mlp.W_out") == [0, *range(2, 12)]
    assert layers_of("blocks.-1.mlp.W_out") == layers_of("model.layers.-1.mlp.down_proj") == [11]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.[10-99].mlp.W_out", "names layer 99: this model has 12 layers, 0 to 11. Name some of these, or [*]."),
        ("blocks.{3,99}.mlp.W_out", "names layer 99: this model has 12 layers, 0 to 11."),
        ("blocks.{3,03}.mlp.W_out", "names layer 03: this model has 12 layers, 0 to 11."),
        ("blocks.-13.mlp.W_out", "names layer -13: this model has 12 layers, 0 to 11."),
        ("blocks.[5:5].mlp.W_out", "names no layer: this model has 12 layers, 0 to 11."),
        ("blocks.[!*].mlp.W_out", "names no layer: this model has 12 layers, 0 to 11."),
        ("blocks.0.attn.W_Q[0,9]", "names head 9: blocks.0.attn.W_Q has 4 heads, 0 to 3. Name some of these, or [*]."),
    ],
)
def test_a_number_that_does_not_exist_is_not_left_out(pattern: str, message: str) -> None:
    with pytest.raises(SiteError) as error:
        match_on(Paper(), pattern)
    assert str(error.value).startswith(f"{pattern!r} {message}")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "blocks.[35].mlp.W_out",
            "has '[35]', which could mean 35 or 3, 5: write [3,5] for several layers, and 35 without brackets for one.",
        ),
        ("blocks.[!10].mlp.W_out", "has '[!10]', which could mean 10 or 1, 0: write [1,0] for several layers"),
        ("blocks.1[01].mlp.W_out", "has '[01]', which could mean 01 or 0, 1"),
        ("*[0-3].mlp.W_out", "has '[0-3]' beside a '*', which could be more digits of the same number: put the layer"),
        ("blocks.[0-1]*W_out", "has '[0-1]' beside a '*'"),
        (
            "{blocks.0.attn.W_Q[0],blocks.1.attn.W_Q}",
            "has '[0]' after a name: a head index stands at the end of the whole pattern. Write one pattern for each.",
        ),
    ],
)
def test_brackets_that_could_be_read_in_two_ways_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(SiteError) as error:
        match_on(Paper(), pattern)
    assert str(error.value).startswith(f"{pattern!r} {message}")


@pytest.mark.parametrize("index", ["", "0:4:2", "1.0", "0;1", "٣", "3-1", "--1", "+1", "1_0"])
def test_a_head_index_that_cannot_be_read_says_what_one_may_be(index: str) -> None:
    with pytest.raises(SiteError) as error:
        match_on(Paper(), f"blocks.0.attn.W_Q[{index}]")
    assert str(error.value) == (
        f"'blocks.0.attn.W_Q[{index}]' has '[{index}]' where numbers of heads belong: write one such as [3] or [-1], "
        "all as [*], a slice such as [0:4], a range with both its ends such as [0-3], or several such as [0,2]."
    )


def test_heads_take_the_numbers_that_layers_take() -> None:
    for index, heads in (("0-2", [0, 1, 2]), ("0,3", [0, 3]), ("!1", [0, 2, 3]), (" 1, -1", [1, 3])):
        assert match_on(Paper(), f"blocks.0.attn.W_Q[{index}]") == [Site(0, "W_Q", h) for h in heads]


def test_a_matrix_without_a_layer_is_every_layer_s() -> None:
    assert match_on(Paper(), "W_out") == match_on(Paper(), "mlp.W_out") == match_on(Paper(), "down_proj")
    assert match_on(Paper(), "W_out") == [Site(i, "W_out") for i in range(12)]
    assert match_on(Paper(), "W_Q[1]") == [Site(i, "W_Q", 1) for i in range(12)]
    assert match_on(Paper(), "W_{in,gate}") == match_on(Paper(), "blocks.*.W_{in,gate}")
    with pytest.raises(SiteError, match=r"no matrix is named 'W_ot'.*Nearest: blocks\.\d\.mlp\.W_out"):
        match_on(Paper(), "W_ot")


@pytest.mark.parametrize("name", ["W_E", "embed.W_E", "unembed.W_U", "pos_embed.W_pos", "lm_head.weight", "wte"])
def test_embeddings_are_said_not_to_be_edited(name: str) -> None:
    with pytest.raises(SiteError) as error:
        match_on(Paper(), name)
    assert str(error.value) == (
        f"'{name}' is not edited here: only the matrices of the blocks are, W_Q, W_K, W_V, W_O, W_in, W_gate, W_out. "
        "List them with surgery.sites(model)."
    )


class Counted(str):
    """An address that counts how often a pattern looks at it."""

    looked = 0

    def find(self, *arguments: object) -> int:
        Counted.looked += 1
        return super().find(*arguments)


@pytest.mark.parametrize(
    "pattern",
    ["*" * 999 + "z", "{*,*}" * 190 + "q", "?*" * 400 + "z", "{a,*" * 195 + "}" * 195 + "z", "*W" * 400, "[!a]*" * 200],
)
def test_a_pattern_of_many_stars_is_not_tried_in_every_way(pattern: str) -> None:
    """Tried in every way it would not end; that it ends at all is the test, and that each token is looked at once."""
    Counted.looked = 0
    glob = Glob(pattern, N_LAYERS, pattern=pattern)
    assert not glob.matches(Counted("blocks.10.attn.W_Q"))
    assert Counted.looked <= 3 * len(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{" * 3000, "has 3,000 characters: a pattern has at most 1,000. Give several patterns."),
        ("W_Q[" + "9" * 4301 + "]", "has 4,306 characters"),
        ("W_Q[" + "9" * 900 + "]", "names head 9999999"),
        ("blocks." + "9" * 900 + ".mlp.W_in", "no matrix is named"),
        ("{" * 900, "has a '{' that is never closed"),
    ],
)
def test_a_pattern_of_any_length_is_answered_in_a_sentence(pattern: str, message: str) -> None:
    with pytest.raises(SiteError) as error:
        match_on(Paper(), pattern)
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_several_patterns_are_joined_in_the_order_of_the_forward_pass() -> None:
    with borrowed("bridge gpt2") as model:
        several = surgery.sites(model, ["blocks.1.mlp.W_out", "blocks.*.attn.W_Q", "blocks.1.*.W_[Q]"])
        assert several == ["blocks.0.attn.W_Q", "blocks.1.attn.W_Q", "blocks.1.mlp.W_out"]
        assert [str(site) for site in match_sites(model, "blocks.1.attn.W_O[-1]")] == ["blocks.1.attn.W_O[3]"]
        with pytest.raises(SiteError, match="an empty pattern"):
            surgery.sites(model, ["*", ""])
