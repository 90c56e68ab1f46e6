"""Oracles: LAPACK in fp64 through numpy, spectra known by construction, and `torch.svd_lowrank`."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery import svd
from surgery.svd import Factors

Route = Callable[[Tensor], Factors]
ROUTES = [svd.exact, svd.by_lapack, svd.by_gram]
SHAPES = [(48, 48), (96, 40), (40, 96), (1, 30), (30, 1), (1, 1), (3, 50, 20), (2, 3, 20, 50), (300, 280)]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_spectrum(spectrum: Tensor, d_in: int, d_out: int, seed: int = 0) -> Tensor:
    """A matrix of this spectrum in fp64, on random directions (numpy's QR)."""
    rng, k = np.random.default_rng(seed), len(spectrum)
    U, V = (np.linalg.qr(rng.standard_normal((d, k)))[0] for d in (d_in, d_out))
    return torch.from_numpy((U * spectrum.double().numpy()) @ V.T)


def product(factors: Factors) -> Tensor:
    U, S, Vh = (np.asarray(x, dtype=np.float64) for x in factors)
    return torch.from_numpy(np.einsum("...ik,...k,...kj->...ij", U, S, Vh))


def off_orthonormal(factors: Factors) -> float:
    """The largest entry of `Uᵀ U − I` and `Vh Vhᵀ − I`."""
    U, Vh = (np.asarray(x, dtype=np.float64) for x in (factors.U, factors.Vh))
    identity = np.eye(U.shape[-1])
    return max(np.abs(gram - identity).max() for gram in (np.swapaxes(U, -1, -2) @ U, Vh @ np.swapaxes(Vh, -1, -2)))


def assert_is_svd(factors: Factors, W: Tensor, atol: float = 1e-5) -> None:
    """The factors are an SVD of W, errors measured against its largest singular value."""
    true = np.linalg.svd(W.double().numpy(), compute_uv=False)
    scale = float(true.max()) or 1.0
    k = min(W.shape[-2:])
    assert factors.U.shape == (*W.shape[:-1], k)
    assert factors.S.shape == (*W.shape[:-2], k)
    assert factors.Vh.shape == (*W.shape[:-2], k, W.shape[-1])
    assert np.abs(factors.S.double().numpy() - true).max() <= atol / 10 * scale
    assert (product(factors) - W).abs().max() <= atol * scale
    assert off_orthonormal(factors) <= atol
    assert bool((factors.S.diff(dim=-1) <= 0).all() and (factors.S >= 0).all())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_route_gives_the_svd_of_any_shape(route: Route, shape: tuple[int, ...]) -> None:
    W = gaussian(*shape)
    assert_is_svd(route(W), W)
    assert_is_svd(route(W.mT), W.mT)  # another memory layout


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", [(120, 60), (60, 120), (80, 80), (300, 290)], ids=str)
@pytest.mark.parametrize("decay", [-2.0, -5.0, -9.0, -30.0])
def test_components_of_any_size_are_orthonormal(route: Route, shape: tuple[int, int], decay: float) -> None:
    W = with_spectrum(3 * torch.logspace(0, decay, min(shape)), *shape).float()
    assert_is_svd(route(W), W)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", [(90, 50), (50, 90), (300, 300)], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 20, 49])
def test_rank_deficient_matrices_have_full_bases(route: Route, shape: tuple[int, int], rank: int) -> None:
    spectrum = torch.cat([torch.linspace(5, 2, rank), torch.zeros(min(shape) - rank)])
    W = with_spectrum(spectrum, *shape).float()
    factors = route(W)
    assert_is_svd(factors, W)
    assert float(factors.S[rank:].max()) <= 1e-5


@pytest.mark.parametrize("route", ROUTES)
def test_one_head_without_a_null_space_is_not_changed_by_one_with(route: Route) -> None:
    W = gaussian(3, 40, 16)
    W[1, :, 5:] = 0
    factors = route(W)
    assert_is_svd(factors, W)
    for i in (0, 2):
        for part, alone in zip(factors, route(W[i]), strict=True):
            torch.testing.assert_close(part[i], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(400, 150), (150, 400)], ids=str)
@pytest.mark.parametrize("decay", [-0.5, -3.0, -8.0])
def test_the_gram_route_is_no_worse_than_lapack_in_fp32(shape: tuple[int, int], decay: float) -> None:
    W = with_spectrum(torch.logspace(0, decay, 150), *shape).float()
    true = torch.from_numpy(np.linalg.svd(W.double().numpy(), compute_uv=False))

    def worst(route: Route) -> float:
        return float((route(W).S - true).abs().max())

    assert worst(svd.by_gram) <= max(worst(svd.by_lapack), 1e-7)


@pytest.mark.parametrize("shape", [(64, 40), (40, 64), (50, 50)], ids=str)
def test_routes_and_runs_agree_in_sign_and_value(shape: tuple[int, int]) -> None:
    W = with_spectrum(torch.linspace(4, 1, min(shape)), *shape).float()
    lapack, gram = svd.by_lapack(W), svd.by_gram(W)
    for a, b in zip(lapack, gram, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    for a, b in zip(gram, svd.by_gram(W.clone()), strict=True):
        assert torch.equal(a, b)


@given(st.integers(0, 2**31), st.sampled_from([(12, 7), (7, 12), (9, 9)]), st.sampled_from([1.0, -1.0]))
def test_the_largest_entry_of_v_is_positive(seed: int, shape: tuple[int, int], sign: float) -> None:
    Vh = svd.exact(sign * gaussian(*shape, seed=seed)).Vh
    largest, opposite = Vh.amax(-1), -Vh.amin(-1)
    assert bool((largest >= 0.999 * opposite).all())


def test_a_tie_between_entries_does_not_leave_the_sign_to_rounding() -> None:
    v = torch.tensor([1.0, 0.0, -1.0, 0.0]) / 2**0.5
    for nudge in (0.0, 1e-6, -1e-6):
        for sign in (1, -1):
            W = sign * torch.outer(torch.tensor([1.0, 2.0, 3.0]), v * torch.tensor([1 + nudge, 1, 1, 1]))
            for route in ROUTES:
                assert float(route(W).Vh[0, 2]) > 0.7  # Σ (j + 1) v_j > 0: the later entry is the positive one


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_comes_back_is_fp32_or_better_and_as_exact(dtype: torch.dtype) -> None:
    W = gaussian(40, 24).to(dtype)
    factors = svd.exact(W)
    assert {x.dtype for x in factors} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert_is_svd(factors, W.double(), atol=1e-13 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(scale: float) -> None:
    W = gaussian(30, 20)
    torch.testing.assert_close(svd.by_gram(W * scale).S / scale, svd.by_gram(W).S)


@pytest.mark.parametrize("route", [*ROUTES, lambda W: svd.row_blocks(W, 2), lambda W: low_rank(W, 3)])
def test_results_enter_autograd_wherever_they_were_made(route: Route) -> None:
    with torch.inference_mode():
        made_there = gaussian(6, 4)
        inside = route(made_there)
    trained = gaussian(6, 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = route(trained)
    for factors in (inside, route(made_there), cast):
        assert not any(x.is_inference() or x.requires_grad for x in factors)
        gains = torch.ones_like(factors.S, requires_grad=True)
        loss = ((factors.U * (gains * factors.S)) @ factors.Vh).square().sum()
        (gradient,) = torch.autograd.grad(loss, gains)
        torch.testing.assert_close(gradient, 2 * factors.S.square(), rtol=1e-4, atol=1e-4)
    assert cast.S.dtype == torch.float32
    plain = route(trained.detach())
    assert all(torch.equal(a, b) for a, b in zip(cast, plain, strict=True))


def test_results_are_contiguous_and_share_nothing_with_the_weight() -> None:
    W = torch.eye(5)[:3]
    kept = W.clone()
    for route in ROUTES:
        factors = route(W)
        assert all(x.is_contiguous() for x in factors)
        for x in factors:
            x.zero_()
        assert torch.equal(W, kept)


def test_lapack_giving_up_is_met_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    lapack, asked = torch.linalg.svd, []

    def stubborn(A: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
        asked.append(A.dtype)
        if A.dtype == torch.float32:
            raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")
        return lapack(A, **options)

    monkeypatch.setattr(torch.linalg, "svd", stubborn)
    W = gaussian(20, 12)
    factors = svd.by_lapack(W)
    assert asked == [torch.float32, torch.float64]
    assert factors.S.dtype == torch.float32
    assert_is_svd(factors, W)


@pytest.mark.parametrize("route", [*ROUTES, lambda W: svd.row_blocks(W, 2), lambda W: low_rank(W, 2)])
def test_what_has_no_svd_is_refused(route: Route) -> None:
    W = gaussian(6, 5)
    W[0, 0], W[1, 1], W[2, 2] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(ValueError) as error:
        route(W)
    assert str(error.value) == (
        "3 of the 30 entries of a matrix of shape (6, 5) are not finite (1 NaN, 2 infinite): only finite matrices have "
        "singular values. Reload the weights, or leave this one out."
    )
    for bad in (torch.ones(6, 5, dtype=torch.int64), torch.ones(6, 5, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=rf"a {bad.dtype} tensor of shape \(6, 5\) has no SVD here.*Convert"):
            route(bad)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (5, 0)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    for route in ROUTES:
        with pytest.raises(ValueError, match=r"has no SVD here: real floating-point matrices .* at least one row"):
            route(torch.ones(shape))


def low_rank(W: Tensor, rank: int, seed: int = 5, **options: int) -> Factors:
    return svd.randomised(W, rank, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("shape", [(60, 30), (30, 60), (2, 60, 30)], ids=str)
@pytest.mark.parametrize("n_iter", [0, 2])
def test_randomised_is_what_svd_lowrank_gives_from_the_same_numbers(shape: tuple[int, ...], n_iter: int) -> None:
    W = gaussian(*shape)
    torch.manual_seed(5)
    U, S, V = torch.svd_lowrank(W, q=4, niter=n_iter)
    ours = low_rank(W, 4, n_iter=n_iter)
    torch.testing.assert_close(ours.S, S, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(ours).float(), (U * S.unsqueeze(-2)) @ V.mT, rtol=0, atol=1e-4)


def test_randomised_finds_a_truly_low_rank_matrix_and_only_approaches_others() -> None:
    exact_rank = with_spectrum(torch.tensor([3.0, 2.0, 1.0]), 50, 70).float()
    assert_is_svd(low_rank(exact_rank, 50), exact_rank)
    torch.testing.assert_close(low_rank(exact_rank, 3).S, torch.tensor([3.0, 2.0, 1.0]), rtol=1e-5, atol=1e-5)
    W = gaussian(80, 80)
    true = np.linalg.svd(W.double().numpy(), compute_uv=False)
    best = np.sqrt((true[5:] ** 2).sum())  # Eckart and Young
    assert best * 1.0001 < float((product(low_rank(W, 5)) - W).norm())


def test_randomised_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    W, before = gaussian(30, 20), torch.get_rng_state()
    first, again, other = low_rank(W, 3), low_rank(W, 3), low_rank(W, 3, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.U, other.U)
    assert torch.equal(torch.get_rng_state(), before)
    assert [x.shape for x in low_rank(W, 0)] == [(30, 0), (0,), (0, 20)]


@pytest.mark.parametrize("options", [{"rank": 21}, {"rank": -1}, {"rank": 2, "n_iter": -1}])
def test_randomised_refuses_numbers_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"(rank=.*from 0 to 20|n_iter=-1: give a whole number, 0 or more)"):
        svd.randomised(gaussian(30, 20), **options, generator=torch.Generator())


@pytest.mark.parametrize(("shape", "blocks"), [((12, 5), 3), ((12, 40), 3), ((13, 6), 4), ((8, 8), 1), ((6, 4), 6)])
def test_row_blocks_are_the_svds_of_the_blocks(shape: tuple[int, int], blocks: int) -> None:
    W = gaussian(*shape)
    factors = svd.row_blocks(W, blocks)
    parts = np.array_split(W.double().numpy(), blocks)
    owner = torch.tensor([number for number, part in enumerate(parts) for _ in part])
    which = owner[factors.U.abs().argmax(0)]
    torch.testing.assert_close(product(factors).float(), W, rtol=0, atol=1e-5)
    assert bool((factors.S.diff() <= 0).all())
    first = 0
    for number, part in enumerate(parts):
        own = which == number
        torch.testing.assert_close(
            factors.S[own].double(), torch.from_numpy(np.linalg.svd(part, compute_uv=False)), rtol=0, atol=1e-5
        )
        rows = slice(first, first + len(part))
        assert float(factors.U[rows][:, ~own].abs().sum()) == 0
        torch.testing.assert_close(
            ((factors.U * factors.S)[:, own] @ factors.Vh[own])[rows], W[rows], rtol=0, atol=1e-5
        )
        first += len(part)
    assert len(which) == sum(min(part.shape) for part in parts)


def test_row_blocks_of_a_stack_are_those_of_each_matrix() -> None:
    W = gaussian(3, 10, 4)
    stacked = svd.row_blocks(W, 4)
    for i in range(3):
        for part, alone in zip(stacked, svd.row_blocks(W[i], 4), strict=True):
            torch.testing.assert_close(part[i], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("blocks", [0, 11])
def test_row_blocks_refuses_more_blocks_than_rows(blocks: int) -> None:
    with pytest.raises(ValueError, match=rf"blocks={blocks}: give a whole number, from 1 to 10"):
        svd.row_blocks(gaussian(10, 4), blocks)


def test_a_random_basis_has_the_spectrum_and_uniform_directions() -> None:
    S, generator = torch.tensor([3.0, 2.0, 1.0]), torch.Generator().manual_seed(1)
    factors = svd.random_basis(S, 7, 4, generator=generator)
    spectrum = np.linalg.svd(product(factors).numpy(), compute_uv=False)
    np.testing.assert_allclose(spectrum, [3, 2, 1, 0], atol=1e-6)
    many = svd.random_basis(S.expand(20_000, 3), 7, 4, generator=generator)
    assert off_orthonormal(many) < 1e-5
    # Uniform: entries have mean 0 and variance 1/d in any rotated frame, and U and Vh are independent.
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))[0]).float()
    for U in (many.U, turn @ many.U):
        torch.testing.assert_close(U.mean(0), torch.zeros(7, 3), rtol=0, atol=0.015)
        torch.testing.assert_close(U.square().mean(0), torch.full((7, 3), 1 / 7), rtol=0, atol=0.01)
    torch.testing.assert_close(many.Vh.square().mean(0), torch.full((3, 4), 1 / 4), rtol=0, atol=0.01)
    together = torch.einsum("nik,nlj->iklj", many.U, many.Vh) / len(many.U)
    assert float(together.abs().max()) < 0.015


def test_a_random_basis_is_repeatable_and_needs_room() -> None:
    S = torch.tensor([2.0, 1.0], dtype=torch.float64)
    a, b = (svd.random_basis(S, 5, 4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(x, y) and x.dtype == torch.float64 for x, y in zip(a, b, strict=True))
    with pytest.raises(
        ValueError, match=r"2 singular values for a 5 x 1 matrix: it has 1 components. Pass at most that"
    ):
        svd.random_basis(S, 5, 1, generator=torch.Generator())


@pytest.mark.parametrize(
    ("S", "runs"),
    [
        ([3, 2, 1], ()),
        ([3, 3, 1], (slice(0, 2),)),
        ([3, 3 - 1e-5, 3 - 2e-5, 1, 0, 0], (slice(0, 3), slice(4, 6))),
        ([3, 2, 1e-6, 0], (slice(2, 4),)),
        ([0, 0], (slice(0, 2),)),
        ([1], ()),
        ([], ()),
    ],
)
def test_degenerate_blocks(S: list[float], runs: tuple[slice, ...]) -> None:
    assert svd.degenerate_blocks(torch.tensor(S, dtype=torch.float64)) == runs


def test_outside_degenerate_blocks_components_do_not_depend_on_rounding() -> None:
    W = with_spectrum(torch.tensor([5.0, 3.0, 3.0, 3.0, 1.0]), 30, 20).float()
    S = svd.exact(W).S
    (run,) = svd.degenerate_blocks(S[:5])
    assert run == slice(1, 4)
    parts = [
        [(f.U[:, at] * f.S[at]) @ f.Vh[at] for at in (slice(0, 1), run, slice(4, 5), slice(1, 2))]
        for f in (svd.by_gram(W), svd.by_lapack(W))
    ]
    apart = [float((a - b).abs().max()) for a, b in zip(*parts, strict=True)]
    assert max(apart[:3]) < 1e-5 < apart[3]
