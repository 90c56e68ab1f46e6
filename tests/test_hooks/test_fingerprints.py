"""Fingerprints: the same for the same bits, another for any changed entry, whatever the memory layout or the host."""

import pytest
import torch
from by_hand import addresses
from hypothesis import given
from hypothesis import strategies as st
from models import borrowed, hooked, hugging_face

from hooks import place_of
from hooks.fingerprints import fingerprint

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
W = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES)
@given(i=st.integers(0, 6), j=st.integers(0, 4), bit=st.integers(0, 15))
def test_a_single_changed_bit_changes_it(dtype: torch.dtype, i: int, j: int, bit: int) -> None:
    matrix = W.to(dtype)
    changed = matrix.clone()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[matrix.element_size()]
    changed.view(integers)[i, j] ^= 1 << bit if bit < 15 else -1
    assert fingerprint(changed) != fingerprint(matrix)
    changed.view(integers)[i, j] ^= 1 << bit if bit < 15 else -1
    assert fingerprint(changed) == fingerprint(matrix)


@given(st.permutations(range(7)), st.permutations(range(5)))
def test_moved_rows_and_columns_change_it(rows: list[int], columns: list[int]) -> None:
    moved = W[rows][:, columns]
    assert (fingerprint(moved) == fingerprint(W)) == torch.equal(moved, W)


def test_matrices_of_equal_row_and_column_sums_are_told_apart() -> None:
    """Permutations and swapped rows: what circuits built by hand are made of."""
    for dtype in DTYPES:
        permutations = [torch.eye(70, dtype=dtype).roll(shift, 0) for shift in range(70)]
        assert len({fingerprint(matrix) for matrix in permutations}) == 70
        swapped = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=dtype)
        assert fingerprint(swapped) != fingerprint(swapped.flip(0))


def test_wide_matrices_are_hashed_to_their_last_column() -> None:
    wide = torch.randn(3, 200)
    for column in range(200):
        changed = wide.clone()
        changed[2, column] += 1
        assert fingerprint(changed) != fingerprint(wide)


def test_memory_layout_does_not_matter() -> None:
    for same in (W.T.contiguous().T, torch.cat([W, W])[7:], torch.stack([W, W], dim=-1)[..., 0], torch.nn.Parameter(W)):
        assert fingerprint(same) == fingerprint(W)


def test_shape_dtype_and_sign_of_zero_matter() -> None:
    zeros = torch.zeros(4, 6)
    others = [zeros.T, zeros.double(), zeros.bfloat16(), zeros.half(), -zeros, torch.zeros(3, 8)]
    marks = [fingerprint(matrix) for matrix in (zeros, *others)]
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 32 and set(mark) <= set("0123456789abcdef") for mark in marks)


def test_it_is_the_same_in_every_process() -> None:
    """A value written down: files that carry fingerprints outlive a release."""
    assert fingerprint(torch.arange(6.0).reshape(2, 3)) == "72b0519340caf5e7be740b844cffd031"


def test_nan_and_infinity_have_fingerprints() -> None:
    odd = torch.tensor([[float("nan"), float("inf")], [-float("inf"), 0.0]])
    assert fingerprint(odd) == fingerprint(odd.clone())


def test_the_same_weights_have_one_fingerprint_on_both_hosts(hooked_transformer: type) -> None:
    model = hooked("no-norm", n_layers=2)
    original = hugging_face("gpt2")
    with borrowed("bridge gpt2") as bridge, torch.no_grad():
        for layer, block in enumerate(model.blocks):
            source = original.transformer.h[layer]
            fused = source.attn.c_attn.weight
            for i, name in enumerate("QKV"):
                columns = fused[:, 32 * i : 32 * (i + 1)]
                block.attn._parameters[f"W_{name}"].copy_(torch.stack(columns.split(8, dim=1)))
            block.attn.W_O.copy_(torch.stack(source.attn.c_proj.weight.split(8, dim=0)))
            block.mlp.W_in.copy_(source.mlp.c_fc.weight)
            block.mlp.W_out.copy_(source.mlp.c_proj.weight)
        for address in (*addresses("bridge gpt2"), "blocks.0.attn.W_Q[2]", "blocks.1.attn.W_O[3]"):
            assert fingerprint(place_of(model, address).matrix()) == fingerprint(place_of(bridge, address).matrix())
