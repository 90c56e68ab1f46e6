"""The leading singular components of a large matrix, without the others, and a bound on what is wrong with them.

With A tall and `G = AᵀA` in fp64, block Lanczos (Golub and Underwood, 1977) grows an orthonormal basis K of a Krylov
space until the leading eigenpairs of `KᵀGK` are eigenpairs (θ_i, v_i) of G as well. Then it is proved, not assumed,
that they are the leading ones and how far they are off:

- residuals `r_i = G v_i − θ_i v_i` are computed from G itself;
- a Cholesky factorisation of `σ² − (G − Σ_i θ_i v_i v_iᵀ)` exists only if no eigenvalue of G beyond these lies above σ²
  (Weyl), with σ² halfway between θ_k and the next one: nothing was missed;
- so the space of the first j vectors is off by at most `‖(r_1 … r_j)‖_F / gap_j` (Davis and Kahan, 1970), and
  `A v_1 v_1ᵀ + … + A v_j v_jᵀ`, the matrix cut after component j, by at most √2 s_1 times that.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from surgery import svd
from surgery.svd import Factors

__all__ = ["TOLERANCE", "leading"]

TOLERANCE = 1e-6
"""What a matrix cut after any of the leading components may differ from the exact one, as a fraction of s_1."""
_TIED = 1e-5
"""Values no further apart than this fraction of s_1 are one block (`svd.degenerate_blocks`): no cut lies within it."""
_ROUNDING = 1e-13
"""What rounding in G and in the residuals adds to these, as a fraction of s_1²; seen were some 1e-15."""
_BLOCK = 8
_SMALLEST, _LARGEST_SHARE = 256, 10
"""Smaller matrices, and ranks over a tenth of all, are decomposed as a whole, which takes no longer."""
_GIVE_UP = 2
"""A Krylov space of more than half of all dimensions takes about as long as the whole decomposition."""


def leading(W: Tensor, rank: int) -> Factors:
    """The leading `rank` components of W, or all where it has fewer, each as `svd.exact` has it.

    Matrices in fp64 are decomposed as a whole, and so are those on devices without it.

    Raises:
        ValueError: if W is not a matrix of finite floating-point numbers.

    Warns:
        UserWarning: where the bound does not hold, so that the whole decomposition was computed after all.
    """
    n = min(W.shape[-2:]) if W.ndim >= 2 else 0
    iterated = W.ndim == 2 and W.dtype != torch.float64 and W.device.type in ("cpu", "cuda")
    if not iterated or n < _SMALLEST or rank * _LARGEST_SHARE > n:
        U, S, Vh = svd.exact(W)
        return Factors(U[..., :rank].contiguous(), S[..., :rank], Vh[..., :rank, :].contiguous())

    def route(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        G = svd.lower_gram(A)
        found = _leading_pairs(G.tril_().add_(G.tril(-1).mT), rank)
        if found is None:
            warnings.warn(
                f"the leading {rank} components of a {W.shape[0]} x {W.shape[1]} matrix lie too close to those after "
                "them to be found by themselves within the stated bound: all were computed, which takes longer. "
                "Another rank may not need that.",
                stacklevel=2,
            )
            U, S, V = svd.gram_route(A)
            return U[:, :rank].contiguous(), S[:rank], V[:, :rank].contiguous()
        S, V = found
        return svd.left_vectors(A, S, V), S.to(A.dtype), V.to(A.dtype)

    return svd.tall(W, route)


def _leading_pairs(G: Float[Tensor, "n n"], k: int) -> tuple[Tensor, Tensor] | None:
    """The k largest singular values and their vectors, proved to be so; None where that cannot be proved."""
    for values, vectors, estimates in _ritz_pairs(G, k + 1):
        if not bool(_bounds(values, estimates).le(TOLERANCE).all()):
            continue
        values, V = values[: k + 1], vectors()[:, :k]
        if not float(values[k - 1]) > (svd.GRAM_ORTHOGONAL**2) * float(values[0]):
            return None
        residuals = (G @ V - V * values[:k]).norm(dim=0)
        if bool(_bounds(values, residuals).le(TOLERANCE).all()) and _is_all(G, values, V):
            return values[:k].sqrt(), V
    return None


def _ritz_pairs(
    G: Float[Tensor, "n n"], k: int
) -> Iterator[tuple[Float[Tensor, " k"], Callable[[], Float[Tensor, "n k"]], Float[Tensor, " k_less_1"]]]:
    """The k largest eigenvalues in a Krylov space that grows, their vectors, and estimates of k − 1 residuals.

    Every vector is made orthogonal to all before, so that `KᵀGK` is computed, not assumed to be banded.
    """
    n = len(G)
    limit, due = n // _GIVE_UP, 2 * k
    K, T = G.new_empty(n, limit), G.new_zeros(limit, limit)
    start = torch.randn(n, _BLOCK, generator=torch.Generator().manual_seed(0), dtype=G.dtype)
    block = torch.linalg.qr(start.to(G.device)).Q
    for size in range(_BLOCK, limit + 1, _BLOCK):
        new, basis = slice(size - _BLOCK, size), K[:, :size]
        K[:, new] = block
        X = G @ block
        T[:size, new] = basis.mT @ X
        T[new, :size] = T[:size, new].mT
        X = X - basis @ T[:size, new]
        block, R = torch.linalg.qr(X - basis @ (basis.mT @ X))
        block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q  # for the columns that had nothing left
        if size < due and size + _BLOCK <= limit:
            continue
        due = int(1.3 * size)
        values, Y = (part.flip(-1)[..., :k] for part in torch.linalg.eigh(T[:size, :size]))
        yield values, partial(torch.matmul, basis, Y), (R @ Y[new, :-1]).norm(dim=0)


def _bounds(values: Float[Tensor, " k_and_1"], residuals: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """What the matrix cut after each component is off by at most, as a fraction of s_1; 0 for cuts within a block.

    The gap after the last component is halved, since that is what `_is_all` proves of it.
    """
    first = values[0]
    gaps = values[:-1] - values[1:]
    S = values.clamp_min(0).sqrt()
    within = (S[:-1] - S[1:]) <= _TIED * S[0]
    within[-1], gaps[-1] = False, gaps[-1] / 2
    error = residuals.square().cumsum(0).sqrt() + _ROUNDING * first
    # The next eigenvalue itself may lie above the value found for it, by the residuals of all at most.
    return torch.where(within, 0.0, sqrt(2) * error / (gaps - error[-1]).clamp_min(torch.finfo(gaps.dtype).tiny))


def _is_all(G: Float[Tensor, "n n"], values: Float[Tensor, " k_and_1"], V: Float[Tensor, "n k"]) -> bool:
    """Whether no other eigenvalue of G lies above the middle between the k-th value and the one after it."""
    k = V.shape[1]
    shifted = torch.addmm(G, V * values[:k], V.mT, alpha=1, beta=-1)
    shifted.diagonal().add_((values[k - 1] + values[k]) / 2)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0
