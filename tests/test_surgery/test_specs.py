"""From a spec to gains: what is named, what goes together, how gains combine and what the matrix becomes."""

from inspect import unwrap

import pytest
import torch
from by_hand import regained
from hypothesis import given
from hypothesis import strategies as st
from models import borrowed, build
from torch import Tensor

from hooks import Site, SiteError, place_of
from surgery import (
    SVD,
    Compensated,
    Drop,
    Edit,
    HaarBasis,
    Keep,
    KeepTop,
    RandomBasis,
    RandomizedSVD,
    RowBlocks,
    Scale,
    Zero,
)
from surgery.bases import Basis
from surgery.decompositions import Decomposition
from surgery.specs import Change, added_bias, check_compatible, check_spec, combine, plan, recompose, resolve

N = 5
W = torch.randn(8, N, generator=torch.Generator().manual_seed(6))
SITE = Site(0, "W_out")
PLACE = place_of(build("bridge gpt2"), SITE)
vectors = st.lists(st.sampled_from([0.0, 1.0, 0.5, 2.0, 0.3, 1.7]), min_size=N, max_size=N)


def decomposition_of(W: Tensor, basis: Basis | None = None) -> Decomposition:
    basis = basis or SVD()
    exact = W if W.dtype == torch.float64 else W.float()
    U, S, Vh = torch.linalg.svd(exact, full_matrices=False) if basis == SVD() else basis.decompose(W)
    return Decomposition(str(SITE), U, S, Vh, basis, "0" * 32, "raw")


def change(edit: Edit, W: Tensor = W) -> Change:
    parts = decomposition_of(W, edit.basis)
    return Change(PLACE, edit, parts, edit.gains(parts))


def test_a_spec_is_worked_out_in_its_own_order() -> None:
    top, zero = KeepTop(rank=1), Zero()
    with borrowed("bridge gpt2") as model:
        found = resolve(model, {"blocks.1.mlp.W_out": top, "*W_out": zero})
        assert [(place.site, edit) for place, edit in found] == [
            (Site(1, "W_out"), top), (Site(0, "W_out"), zero), (Site(1, "W_out"), zero)
        ]  # fmt: skip
        assert found[0][0] is found[2][0]
        assert resolve(model, {}) == []
        changes = plan(model, {"blocks.1.attn.W_O[-1]": top}, svds=None, progress=False)
        assert [(c.site, c.edit, c.decomposition.site) for c in changes] == [
            (Site(1, "W_O", 3), top, "blocks.1.attn.W_O[3]")
        ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"blocks.0.mlp.W_out": 0.05},
            "spec['blocks.0.mlp.W_out'] is 0.05: keys are patterns such as 'blocks.*.mlp.W_out' and values are edits "
            "such "
            "as KeepTop(rho=0.05).",
        ),
        (
            {"blocks.0.mlp.W_out": KeepTop},
            "spec['blocks.0.mlp.W_out'] is <class 'surgery.cuts.KeepTop'>: keys are patterns",
        ),
        ({3: Zero()}, "spec[3] is Zero(): keys are patterns"),
        (
            [("*", Zero())],
            "[('*', Zero())] is a list: a spec is a mapping of patterns to edits, such as {'blocks.*.mlp.W_out': "
            "KeepTop(rho=0.05)}.",
        ),
    ],
)
def test_what_is_no_spec_is_refused(spec: object, message: str) -> None:
    with pytest.raises(TypeError) as error:
        unwrap(check_spec)(spec)  # without the check of its annotations
    assert message in str(error.value)


def test_an_unknown_site_is_refused_with_its_place_in_the_spec() -> None:
    with borrowed("bridge gpt2") as model, pytest.raises(SiteError) as error:
        resolve(model, {"*": Zero(), "blocks.0.mlp.W_ot": Zero()})
    assert str(error.value).startswith("spec['blocks.0.mlp.W_ot']: no matrix is named 'blocks.0.mlp.W_ot'")
    assert "Nearest: blocks.0.mlp.W_out, " in str(error.value)


@pytest.mark.parametrize("order", [1, -1])
def test_the_whole_and_a_head_do_not_go_together(order: int) -> None:
    pair = [(Site(0, "W_Q"), SVD()), (Site(0, "W_Q", 2), SVD())][::order]
    with pytest.raises(ValueError) as error:
        check_compatible(pair)
    assert str(error.value) == (
        f"'{pair[0][0]}' and '{pair[1][0]}' overlap: one edits the matrix joint over heads, the other one of its "
        "heads, and "
        "their components are not the same. Edit either the whole matrix or its heads, or undo the first edit."
    )


def test_two_bases_do_not_go_together() -> None:
    with pytest.raises(ValueError) as error:
        check_compatible([(SITE, SVD()), (SITE, HaarBasis(1))])
    assert str(error.value) == (
        "'blocks.0.mlp.W_out' would be edited in two bases at once, SVD() and HaarBasis(seed=1): gains multiply only "
        "on the "
        "same components. Use one basis, or undo the first edit."
    )
    check_compatible([(SITE, SVD()), (Site(1, "W_out"), HaarBasis(1)), (SITE, SVD())])
    check_compatible([(Site(0, "W_Q", 1), SVD()), (Site(0, "W_Q", 2), HaarBasis(1)), (Site(0, "W_Q", 1), SVD())])


@given(st.lists(vectors, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_gains_multiply_in_any_order(several: list[list[float]], random: object) -> None:
    product = torch.tensor(several, dtype=torch.float64).prod(dim=0)
    changes = [change(Scale(gains), W.double()) for gains in several]
    random.shuffle(changes)
    combined = combine(changes)
    torch.testing.assert_close(combined.values, product, rtol=1e-14, atol=0)
    new = recompose(W.double(), changes[0].decomposition, combined)
    torch.testing.assert_close(new, regained(W, product), rtol=0, atol=1e-12)


def test_what_becomes_of_the_rest_multiplies_too() -> None:
    basis = RandomizedSVD(2, 0, n_iter=20)
    both = combine([change(Drop([0], basis=basis)), change(Keep([0, 1], basis=basis))])
    assert (both.values.tolist(), both.rest) == ([0, 1], 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("basis", [SVD(), RandomizedSVD(2, 0), RowBlocks(3)])
def test_a_gain_of_one_leaves_every_bit(dtype: torch.dtype, basis: Basis) -> None:
    stored = W.to(dtype)
    for edit in (Scale({}, basis=basis), Drop([], basis=basis), Scale({0: 1.0}, basis=basis)):
        made = change(edit, stored)
        assert torch.equal(recompose(stored, made.decomposition, made.gains).to(dtype), stored)


@given(vectors)
def test_components_at_one_are_not_rebuilt(gains: list[float]) -> None:
    """Components at 1 are not rebuilt from U, S and Vh: what is left of W − W' lies in the span of the changed ones."""
    made = change(Scale(gains), W.double())
    difference = W.double() - recompose(W.double(), made.decomposition, made.gains)
    changed = sum(gain != 1 for gain in gains)
    assert int((torch.linalg.svdvals(difference) > 1e-12).sum()) <= changed


def test_zero_is_zero_to_the_last_bit() -> None:
    for basis in (SVD(), RandomizedSVD(2, 0), RowBlocks(3)):
        made = change(Zero(basis=basis))
        assert torch.equal(recompose(W, made.decomposition, made.gains), torch.zeros_like(W))


@given(vectors)
def test_gains_that_are_learned_give_the_same_matrix_and_the_right_gradient(gains: list[float]) -> None:
    values = torch.tensor(gains, dtype=torch.float64)
    plain = change(Scale(values), W.double())
    learned = change(Scale(values.clone().requires_grad_()), W.double())
    expected = recompose(W.double(), plain.decomposition, plain.gains)
    made = recompose(W.double(), learned.decomposition, learned.gains)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    weights = torch.randn(8, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad((made * weights).sum(), learned.edit.gain)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    by_hand = [float(S[i] * (torch.outer(U[:, i], Vh[i]) * weights).sum()) for i in range(N)]
    torch.testing.assert_close(grad, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_parts_of_a_basis_that_replaces_the_matrix_have_no_rest() -> None:
    with borrowed("bridge gpt2") as model:
        spec = {"blocks.0.mlp.W_out": RandomBasis(1), "blocks.1.mlp.W_out": Drop([0], basis=HaarBasis(1))}
        assert [made.gains.rest for made in plan(model, spec, svds=None, progress=False)] == [0, 0]


@given(vectors, st.lists(st.floats(-3, 3), min_size=N, max_size=N))
def test_what_a_constant_adds_to_the_output(gains: list[float], constants: list[float]) -> None:
    made = change(Compensated(Scale(gains), constants), W.double())
    _, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    by_hand = sum((1 - gains[i]) * S[i] * constants[i] * Vh[i] for i in range(N))
    torch.testing.assert_close(added_bias(made.decomposition, made.gains), by_hand, rtol=0, atol=1e-10)
    assert added_bias(made.decomposition, change(Scale(gains)).gains) is None


def test_constants_have_to_agree_where_both_change_a_component() -> None:
    first = change(Compensated(Drop([0]), [1.0, 9.0, 9.0, 9.0, 9.0]))
    for agreeing in (
        Compensated(Drop([0, 1]), [1.0, 2.0, 7.0, 7.0, 7.0]),
        Drop([2]),
        Compensated(Drop([3]), [5.0] * N),
    ):
        combined = combine([first, change(agreeing)])
        assert combined.constants[0] == 1
        for i, gain in enumerate(combined.values.tolist()):
            if i > 0 and gain != 1:
                assert combined.constants[i] == (agreeing.constants[i] if isinstance(agreeing, Compensated) else 0)
    for other in (Compensated(Drop([0]), [2.0] * N), Drop([0]), Zero()):
        for pair in ([first, change(other)], [change(other), first]):
            with pytest.raises(ValueError) as error:
                combine(pair)
            assert str(error.value) == (
                "two edits replace component 0 of 'blocks.0.mlp.W_out' by different constants: undo the first, or "
                "compensate both alike."
            )


def test_constants_have_to_agree_even_where_the_gains_cancel() -> None:
    doubled, halved = (change(Compensated(Scale({0: gain}), [1.0] * N)) for gain in (2.0, 0.5))
    with pytest.raises(ValueError, match="by different constants"):
        combine([doubled, halved, change(Compensated(Drop([0]), [5.0] * N))])


@pytest.mark.parametrize(
    ("dtype", "edit", "largest"),
    [
        (torch.float16, Scale([1e6] * N), "6.55e+04, the largest number of float16"),
        (torch.float32, Scale([1e308] * N), "3.4e+38, the largest number of float32"),
        (torch.float32, Scale({0: 1e308}), "3.4e+38, the largest number of float32"),
        (torch.float32, Scale(torch.full((N,), 1e38, requires_grad=True)), "3.4e+38, the largest number of float32"),
    ],
)
def test_a_matrix_with_infinities_is_not_made(dtype: torch.dtype, edit: Edit, largest: str) -> None:
    stored = (W * 100).to(dtype)
    made = change(edit, stored)
    with pytest.raises(ValueError) as error:
        recompose(stored, made.decomposition, combine([made]))
    assert str(error.value) == (
        f"'{SITE}' cannot hold this edit: an entry would be infinite or beyond {largest}. Use smaller gains."
    )


def test_strengths_that_sum_to_infinity_do_not_keep_their_nuclear_norm() -> None:
    stored = torch.eye(N) * 1e38
    made = change(Scale({0: 0.5}, keep_nuclear_norm=True), stored)
    with pytest.raises(ValueError, match="cannot hold this edit"):
        recompose(stored, made.decomposition, made.gains)


def test_constants_that_add_infinities_are_refused() -> None:
    made = change(Compensated(Drop([0]), [1e308] * N))
    with pytest.raises(ValueError) as error:
        added_bias(made.decomposition, made.gains)
    assert str(error.value) == (
        f"the constants of '{SITE}' would add numbers that are not finite to its output: use smaller ones."
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_largest_numbers_of_a_type_are_not_refused(dtype: torch.dtype) -> None:
    stored = torch.diag(torch.full((N,), torch.finfo(dtype).max, dtype=dtype))
    made = change(Drop([0]), stored)
    assert recompose(stored, made.decomposition, made.gains).to(dtype).isfinite().all()


def test_a_constant_counts_for_the_gradient_even_at_a_gain_of_one() -> None:
    gain = torch.ones(N, dtype=torch.float64, requires_grad=True)
    learned = change(Compensated(Scale(gain), [float(i) for i in range(N)]), W.double())
    combined = combine([learned, change(Drop([]), W.double())])
    added_bias(learned.decomposition, combined).sum().backward()
    _, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    by_hand = torch.stack([-S[i] * i * Vh[i].sum() for i in range(N)])
    torch.testing.assert_close(gain.grad, by_hand, rtol=0, atol=1e-10)
