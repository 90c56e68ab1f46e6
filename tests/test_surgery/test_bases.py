"""Bases: what their components sum to, and what they have in common with torch's own routines."""

import pytest
import torch
from torch import Tensor

from hooks.fingerprints import fingerprint
from surgery import HaarBasis, RandomizedSVD, RowBlocks
from surgery.bases import SVD, Basis, decode_basis
from surgery.json_values import encode

TALL = torch.randn(30, 12, generator=torch.Generator().manual_seed(5))
ALL = [SVD(), RandomizedSVD(4, 0), RandomizedSVD(4, 1, n_iter=0), HaarBasis(2), RowBlocks(5)]


def summed(basis: Basis, W: Tensor) -> Tensor:
    U, S, Vh = basis.decompose(W)
    return sum(float(s) * torch.outer(u, v) for u, s, v in zip(U.T, S, Vh, strict=True))


@pytest.mark.parametrize("basis", [SVD(), RowBlocks(1), RowBlocks(5), RowBlocks(12)])
@pytest.mark.parametrize("W", [TALL, TALL.T, TALL.bfloat16()], ids=["tall", "wide", "bf16"])
def test_components_of_a_complete_basis_sum_to_the_matrix(basis: Basis, W: Tensor) -> None:
    assert basis.complete
    torch.testing.assert_close(summed(basis, W), W.float(), rtol=0, atol=1e-5)
    U, S, Vh = basis.decompose(W)
    assert (U.dtype, S.dtype, Vh.dtype) == (torch.float32,) * 3
    assert (S.diff() <= 0).all()


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_the_randomised_basis_is_that_of_torch_from_the_same_random_numbers(shape: tuple[int, int]) -> None:
    W, basis = TALL.reshape(shape), RandomizedSVD(4, seed=9)
    torch.manual_seed(9 ^ int(fingerprint(W)[:12], 16))
    U, S, V = torch.svd_lowrank(W, q=4, niter=2)
    torch.testing.assert_close(summed(basis, W), (U * S) @ V.T, rtol=0, atol=1e-5)
    best = float(torch.linalg.svdvals(W)[4:].norm())
    assert not basis.complete
    assert float((W - summed(basis, W)).norm()) > 1.0001 * best
    exact = RandomizedSVD(4, seed=9, n_iter=200)
    assert float((W - summed(exact, W)).norm()) == pytest.approx(best, rel=1e-4)


def test_a_seed_and_the_weights_settle_the_draw() -> None:
    for make in (lambda seed: RandomizedSVD(4, seed, n_iter=0), HaarBasis):
        first, again, other = summed(make(0), TALL), summed(make(0), TALL), summed(make(1), TALL)
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-2)
        U, V = make(0).decompose(TALL).U, make(0).decompose(2 * TALL).U
        assert not torch.allclose(U.abs(), V.abs(), atol=1e-2)


def test_the_global_seed_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for basis in ALL:
        basis.decompose(TALL)
    assert torch.equal(torch.rand(3), expected)


def test_a_haar_basis_has_the_same_strengths_on_orthonormal_vectors() -> None:
    U, S, Vh = HaarBasis(0).decompose(TALL)
    torch.testing.assert_close(S, torch.linalg.svdvals(TALL), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(U.T @ U, torch.eye(12), rtol=0, atol=1e-5)
    torch.testing.assert_close(Vh @ Vh.T, torch.eye(12), rtol=0, atol=1e-5)
    assert HaarBasis.replaces
    assert not HaarBasis.complete


def test_row_blocks_read_one_group_of_rows_each() -> None:
    U, S, _ = RowBlocks(5).decompose(TALL)
    rows = U.reshape(5, 6, -1).norm(dim=1) > 1e-6
    assert (rows.sum(0) == 1).all()
    by_hand = torch.cat([torch.linalg.svdvals(block) for block in TALL.reshape(5, 6, 12)])
    torch.testing.assert_close(S, by_hand.sort(descending=True).values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("basis", ALL)
def test_a_basis_is_a_value_and_survives_json(basis: Basis) -> None:
    assert decode_basis(encode(basis)) == basis
    assert hash(decode_basis(encode(basis))) == hash(basis)
    assert len(set(ALL)) == len(ALL)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomizedSVD(-1, 0), "RandomizedSVD was given rank=-1: give a whole number, 0 or more."),
        (
            lambda: RandomizedSVD(1, 2**63),
            f"RandomizedSVD was given seed={2**63}: give a whole number, from 0 to {2**63 - 1}.",
        ),
        (lambda: HaarBasis(-2), f"HaarBasis was given seed=-2: give a whole number, from 0 to {2**63 - 1}."),
        (lambda: RowBlocks(0), "RowBlocks was given blocks=0: give a whole number, 1 or more."),
        (
            lambda: RandomizedSVD(13, 0).decompose(TALL),
            "RandomizedSVD(rank=13, seed=0, n_iter=2) asks for more than the 12 components of a 30 x 12 matrix: "
            "choose a smaller rank.",
        ),
        (
            lambda: RowBlocks(31).decompose(TALL),
            "blocks=31: give a whole number, from 1 to 30.",
        ),
        (
            lambda: decode_basis({"type": "Fourier"}),
            "'Fourier' is no basis: known are SVD, LeadingSVD, RandomizedSVD, HaarBasis, RowBlocks",
        ),
        (lambda: decode_basis({"type": "SVD", "seed": 1}), "SVD takes nothing, not 'seed'"),
        (lambda: decode_basis({"type": "HaarBasis", "sead": 1}), "HaarBasis takes seed, not 'sead'"),
    ],
)
def test_a_basis_that_means_nothing_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
