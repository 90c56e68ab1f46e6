"""Half precision: decomposed in fp32, edited in fp32, and rounded once."""

import pytest
import torch
from by_hand import bias, low_rank, read, regained
from models import borrowed, build, kinds, tokens
from torch import Tensor

import surgery
from surgery import Compensated, Drop, KeepTop, Scale, Zero

HALVES = [torch.bfloat16, torch.float16]
KINDS = kinds("hooked ln", "hooked rms-folded-grouped-rotary", "bridge gpt2", "bridge llama")
SITES = ["blocks.0.attn.W_K", "blocks.1.attn.W_O[1]", "blocks.0.mlp.W_in", "blocks.1.mlp.W_out"]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def steps_apart(a: Tensor, b: Tensor) -> int:
    """How many representable numbers lie between the entries of two tensors, at most."""

    def ordered(x: Tensor) -> Tensor:
        bits = x.contiguous().view(INTEGERS[x.element_size()]).long()
        return torch.where(bits < 0, -(bits & (2 ** (8 * x.element_size() - 1) - 1)), bits)

    assert a.dtype == b.dtype
    return int((ordered(a) - ordered(b)).abs().max())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_edited_weight_is_the_fp32_result_rounded_once(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype=dtype)
    for site in SITES:
        W = read(model, site)
        parts = surgery.decompose(model, site)[site]
        U, S, Vh = parts.U, parts.S, parts.Vh
        assert {t.dtype for t in (U, S, Vh)} == {torch.float32}
        gains = torch.ones(len(S))
        gains[1] = 0.5
        cases = [
            (KeepTop(rank=3), (U[:, :3] * S[:3]) @ Vh[:3], low_rank(W, 3)),
            (Drop([0]), W.float() - S[0] * torch.outer(U[:, 0], Vh[0]), W.double() - low_rank(W, 1)),
            (Scale({1: 0.5}), W.float() - 0.5 * S[1] * torch.outer(U[:, 1], Vh[1]), regained(W, gains)),
        ]
        for edit, in_fp32, in_fp64 in cases:
            with surgery.apply(model, {site: edit}) as operation:
                shown = operation.weight(site).clone()
            assert shown.dtype == dtype
            if isinstance(edit, KeepTop):  # the same product, so the same bits
                assert torch.equal(shown, in_fp32.to(dtype))
            assert (shown != in_fp32.to(dtype)).float().mean() < 0.01  # another order of the same sum
            error = (shown.double() - in_fp64).abs()
            half_a_step = torch.maximum(in_fp64.abs(), W.double().abs().max() / 64) * torch.finfo(dtype).eps / 2
            assert (error <= 1.01 * half_a_step + 1e-6).all()
            assert steps_apart(shown[in_fp64.abs() > 1e-2], in_fp64.to(dtype)[in_fp64.abs() > 1e-2]) <= 1


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_edited_keeps_every_bit(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype=dtype)
    for site in SITES:
        W = read(model, site)
        for edit in (Scale({0: 1.0}), Drop([])):
            with surgery.apply(model, {site: edit}) as operation:
                assert torch.equal(operation.weight(site), W)
    others = [f"blocks.1.attn.W_O[{h}]" for h in (0, 2, 3)]
    before = [read(model, head) for head in others]
    with surgery.apply(model, {"blocks.1.attn.W_O[1]": Zero()}) as operation:
        assert all(torch.equal(operation.weight(head), W) for head, W in zip(others, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_double_precision_stays_double(kind: str) -> None:
    model = build(kind, dtype=torch.float64)
    for site in SITES:
        W = read(model, site)
        with surgery.apply(model, {site: KeepTop(rank=3)}) as operation:
            torch.testing.assert_close(operation.weight(site), low_rank(W, 3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_is_added_to_the_bias_and_rounded_once(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype=dtype)
    for site in ("blocks.0.attn.W_V", "blocks.0.attn.W_V[1]", "blocks.1.mlp.W_out"):
        W, b = read(model, site).double(), bias(model, site).double()
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        mean = torch.randn(W.shape[0], dtype=torch.float64)
        coordinates = (mean @ surgery.decompose(model, site)[site].U.double()).tolist()
        expected = b + mean @ (U[:, :2] * S[:2]) @ Vh[:2]
        place = surgery.operations.place_of(model, site)
        with surgery.apply(model, {site: Compensated(Drop([0, 1]), coordinates)}):
            shown = getattr(place.bias.owner, place.bias.name).detach()
        assert shown.dtype == dtype
        if place.site.head is not None:
            shown = shown.flatten()[place.site.head * place.d_out : (place.site.head + 1) * place.d_out]
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        eps = torch.finfo(dtype).eps / 2
        assert ((shown.flatten().double() - expected).abs() <= tolerance + 1.01 * eps * expected.abs()).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_agree_with_the_edit_within_the_rounding_of_activations(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype=dtype)
    spec = {"blocks.0.mlp.W_out": KeepTop(rank=4), "blocks.1.attn.W_V[1]": Drop([0])}
    with torch.no_grad():
        before = model(tokens()).float()
        with surgery.apply(model, spec):
            edited = model(tokens()).float()
        by_hooks = model.run_with_hooks(tokens(), fwd_hooks=surgery.fwd_hooks(model, spec))
        assert by_hooks.dtype == dtype
    assert (by_hooks.float() - edited).abs().max() < 0.1 * (before - edited).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_made_under_autocast_is_the_same_edit(kind: str) -> None:
    site, results = "blocks.1.attn.W_V", []
    with borrowed(kind) as model:
        spec = {"*W_out": KeepTop(rank=4), site: Compensated(Drop([0]), [0.5] * min(read(model, site).shape))}
        for enabled in (False, True):
            surgery.forget(model)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                operation = surgery.apply(model, spec)
            with torch.no_grad():
                results.append(model(tokens()))
            operation.undo()
        assert torch.equal(*results)


@pytest.mark.parametrize("dtype", HALVES)
def test_edits_of_one_matrix_are_multiplied_before_they_are_rounded(dtype: torch.dtype) -> None:
    model, site = build("bridge gpt2", dtype=dtype), "blocks.0.mlp.W_out"
    W = read(model, site)
    gains = torch.ones(32)
    for i in range(8):
        gains[i] = 1 / 3
    with surgery.apply(model, {site: Scale(gains)}) as operation:
        at_once = operation.weight(site).clone()
    operations = [surgery.apply(model, {site: Scale({i: 1 / 3})}) for i in range(8)]
    assert torch.equal(operations[0].weight(site), at_once)
    for operation in operations[::-1]:
        operation.undo()
    assert torch.equal(read(model, site), W)
