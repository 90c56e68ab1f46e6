"""A matrix `W: [d_in, d_out]` written as `U @ diag(S) @ Vh`: the numerical routes, which know no model.

Everything runs in fp32 or better on the weight's own device, outside autograd, autocast and inference mode, so that
what comes back may enter autograd later. `W` may carry leading axes (`[head, d_in, d_out]`), which are decomposed one
by one.

Signs: of the two choices `(u, v)` and `(-u, -v)` the one whose `v` has a positive largest entry is returned. Where
the largest positive and negative entries agree to 0.1 %, `Σ_j (j + 1) v_j > 0` decides, so that rounding cannot. Runs
and routes then agree on every component that stands apart from its neighbours; within a degenerate block no sign rule
can help.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.arguments import whole

__all__ = ["Factors", "all_finite", "degenerate_blocks", "exact"]

_PLAIN_FP32 = 1e-2
"""Down to this fraction of s_1, `A v / s` in fp32 is orthonormal to 1e-6 (its error grows as s_1 / s)."""
GRAM_ORTHOGONAL = 1e-4
"""Down to this fraction, `A v / s` in fp64 is orthonormal to 1e-7 (its error grows as (s_1 / s)²)."""
_ROWS = 4096
"""How many rows are taken to fp64 at a time."""
_GRAM_NULL = 1e-7
"""Below this fraction a direction of the Gram matrix is rounding: any unit vector orthogonal to the others will do."""


class Factors(NamedTuple):
    """`W = U @ diag(S) @ Vh`: `U` has orthonormal columns, `Vh` orthonormal rows, `S` falls."""

    U: Float[Tensor, "*head d_in component"]
    S: Float[Tensor, "*head component"]
    Vh: Float[Tensor, "*head component d_out"]


# The public functions below annotate a matrix as Tensor, without a shape: a wrong one then gets this module's error,
# which says more than a type checker's.


def exact(W: Tensor) -> Factors:
    """The SVD of W, by the faster of the two exact routes.

    fp64 goes to LAPACK; fp32, bf16 and fp16 to the Gram matrix in fp64, which is both faster and closer than LAPACK's
    own fp32 SVD (singular values to 1e-7 of the largest, against 1e-6).

    Raises:
        ValueError: if W is not a matrix of finite floating-point numbers.
    """
    gram = W.dtype != torch.float64 and W.device.type in ("cpu", "cuda")  # other devices have no fp64
    return by_gram(W) if gram else by_lapack(W)


def by_lapack(W: Tensor) -> Factors:
    """The SVD of W by LAPACK's divide and conquer (cuSOLVER's Jacobi on CUDA), handed over tall.

    A wide matrix is transposed first, which takes a half to a third of the time.

    Raises:
        ValueError: if W is not a matrix of finite floating-point numbers.
    """

    def route(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            U, S, Vh = torch.linalg.svd(A, full_matrices=False)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # Divide and conquer in fp32 is known to give up on some matrices with many equal singular values.
            U, S, Vh = (x.to(A.dtype) for x in torch.linalg.svd(A.double(), full_matrices=False))
        return U, S, Vh.mT

    return tall(W, route)


def by_gram(W: Tensor) -> Factors:
    """The SVD of W from the eigenvectors of its smaller Gram matrix in fp64, `AᵀA = V S² Vᵀ` and `U = A V / S`.

    Squaring costs half the digits, of which fp64 has enough: singular values are exact to 3e-8 of the largest or
    better, so for an fp32 matrix better than LAPACK's fp32. The `u` of components under 1e-4 of the largest are made
    orthonormal again. Handed fp64, it returns fp64 numbers of that same absolute accuracy; `by_lapack` is more exact
    there.

    Raises:
        ValueError: if W is not a matrix of finite floating-point numbers.
    """
    return tall(W, gram_route)


def randomised(W: Tensor, rank: int, *, n_iter: int = 2, generator: torch.Generator) -> Factors:
    """The leading `rank` components, approximately: subspace iteration on a random start, repeatable by its generator.

    Halko, Martinsson and Tropp, arXiv:0909.4061. `n_iter=2` is what LASER's authors ran, as
    `torch.svd_lowrank(W, q=rank, niter=2)` without a seed: on trained weights its matrix is far from the true truncated
    SVD and differs from run to run. From equal random numbers this returns what that call would.

    Raises:
        ValueError: if W is not a matrix of finite floating-point numbers, or has fewer than `rank` components.
    """
    full = min(W.shape[-2:]) if W.ndim >= 2 else 0
    rank, n_iter = whole(rank, "rank", most=full), whole(n_iter, "n_iter")

    def route(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if rank == 0:
            return A[..., :0], A[..., 0, :0], A.mT[..., :0]
        # The order of these steps is that of torch.svd_lowrank, so that equal random numbers give equal results.
        random = torch.randn(A.shape[-1], rank, generator=generator, device=generator.device, dtype=A.dtype)
        Q = torch.linalg.qr(A @ random.to(A.device)).Q
        for _ in range(n_iter):
            Q = torch.linalg.qr(A @ torch.linalg.qr(A.mT @ Q).Q).Q
        U, S, Vh = torch.linalg.svd(Q.mT @ A, full_matrices=False)
        return Q @ U, S, Vh.mT

    return tall(W, route)


def row_blocks(W: Tensor, blocks: int) -> Factors:
    """The SVD of each of `blocks` groups of neighbouring rows, pooled and sorted: components that read one group each.

    `W = U @ diag(S) @ Vh` holds; the columns of U are zero outside their block and
    orthonormal, but the rows of Vh are orthonormal within a block only. Where `blocks` does not divide d_in the first
    groups are one row larger. Source: arXiv:2510.20800.

    Raises:
        ValueError: if W is not a matrix of finite floating-point numbers, or `blocks` is not between 1 and d_in.
    """
    A = _checked(W)
    d_in = A.shape[-2]
    blocks = whole(blocks, "blocks", least=1, most=d_in)
    with _plain_arithmetic(A):
        parts, first = [], 0
        for rows in A.tensor_split(blocks, dim=-2):
            U, S, Vh = exact(rows)
            padded = U.new_zeros(*A.shape[:-2], d_in, S.shape[-1])
            padded[..., first : first + rows.shape[-2], :] = U
            parts.append(Factors(padded, S, Vh))
            first += rows.shape[-2]
        S, order = torch.cat([part.S for part in parts], -1).sort(dim=-1, descending=True, stable=True)
        U = torch.cat([part.U for part in parts], -1).take_along_dim(order.unsqueeze(-2), dim=-1)
        return Factors(U, S, torch.cat([part.Vh for part in parts], -2).take_along_dim(order.unsqueeze(-1), dim=-2))


def random_basis(S: Float[Tensor, "*head component"], d_in: int, d_out: int, *, generator: torch.Generator) -> Factors:
    """The given singular values on random directions, `U` and `Vh` uniform (Haar): a control of equal spectrum.

    QR of a Gaussian matrix, with the signs that make it uniform (Mezzadri, arXiv:math-ph/0609050).

    Raises:
        ValueError: if a d_in × d_out matrix has no room for that many components.
    """
    k = S.shape[-1]
    if k > min(d_in, d_out):
        raise ValueError(
            f"{k} singular values for a {d_in} x {d_out} matrix: it has {min(d_in, d_out)} components. "
            "Pass at most that many, or larger d_in and d_out."
        )

    def haar(d: int) -> Tensor:
        shape = (*S.shape[:-1], d, k)
        gaussian = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
        Q, R = torch.linalg.qr(gaussian.to(S.device))
        # LAPACK chooses the signs of R's diagonal; made positive, Q no longer depends on that choice and is uniform.
        return Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)

    with _plain_arithmetic(S):
        dtype = _at_least_fp32(S.dtype)
        return Factors(haar(d_in), S.detach().to(dtype, copy=True), haar(d_out).mT.contiguous())


def degenerate_blocks(S: Float[Tensor, " component"], rtol: float = 1e-5) -> tuple[slice, ...]:
    """Runs of two or more neighbouring singular values no further apart than `rtol · S[0]`; empty if all stand apart.

    Inside a run singular vectors are defined only up to a rotation: report the run as a whole. The yardstick is the
    largest value, since rounding moves W by a fraction of that and a vector turns by about that over the gap (Davis
    and Kahan, 1970). The default suits vectors from fp32. Zeros are a run like any other.
    """
    close = ((S[:-1] - S[1:]) <= rtol * S[:1]).tolist()
    blocks, first = [], 0
    for i, joined in enumerate([*close, False]):
        if not joined:
            if i > first:
                blocks.append(slice(first, i + 1))
            first = i + 1
    return tuple(blocks)


def all_finite(A: Tensor) -> bool:
    """Whether there is no NaN and no infinity, without a copy of what may be large (`isfinite` makes three)."""
    return not A.numel() or all(bool(bound.isfinite()) for bound in torch.aminmax(A))


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


@contextmanager
def _plain_arithmetic(W: Tensor) -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(W.device.type, enabled=False):
        yield


def _checked(W: Tensor) -> Float[Tensor, "*head d_in d_out"]:
    """W in fp32 or fp64, neither an inference tensor nor part of a graph."""
    if W.ndim < 2 or 0 in W.shape or not W.dtype.is_floating_point:
        raise ValueError(
            f"a {W.dtype} tensor of shape {tuple(W.shape)} has no SVD here: real floating-point matrices [..., d_in, "
            "d_out] with at least one row and one column have one. Convert or reshape it."
        )
    with _plain_arithmetic(W):
        A = (W.clone() if W.is_inference() else W.detach()).to(_at_least_fp32(W.dtype))
        if not all_finite(A):
            nan, infinite = int(A.isnan().sum()), int(A.isinf().sum())
            raise ValueError(
                f"{nan + infinite} of the {A.numel()} entries of a matrix of shape {tuple(W.shape)} are not finite "
                f"({nan} NaN, {infinite} infinite): only finite matrices have singular values. Reload the weights, "
                "or leave this one out."
            )
        return A


def tall(W: Tensor, route: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> Factors:
    """`route` (which gives U, S, V) on W or on its transpose, whichever is tall; signs fixed, contiguous."""
    A = _checked(W)
    with _plain_arithmetic(A):
        if A.shape[-2] >= A.shape[-1]:
            U, S, V = route(A)
        else:
            V, S, U = route(A.mT)
        sign = _signs(V.mT)
        # In place: a route's U and V are its own, and may be large.
        U, V = U.mul_(sign.unsqueeze(-2)), V.mul_(sign.unsqueeze(-2))
        return Factors(U.contiguous(), S.contiguous(), V.mT.contiguous())


def _signs(Vh: Float[Tensor, "*head component d_out"]) -> Float[Tensor, "*head component"]:
    """+1 or −1 for each component, by the rule at the top of this module."""
    low, high = torch.aminmax(Vh, dim=-1)
    tied = (high + low).abs() <= 1e-3 * torch.maximum(high, -low)
    ramp = torch.arange(1, Vh.shape[-1] + 1, device=Vh.device, dtype=Vh.dtype)
    return torch.where(torch.where(tied, Vh @ ramp, high + low) < 0, -1.0, 1.0).to(Vh.dtype)


def gram_route(A: Float[Tensor, "*head m n"]) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V of a tall matrix by its Gram matrix, as `by_gram` says."""
    squares, V = torch.linalg.eigh(lower_gram(A))
    S, V = squares.flip(-1).clamp_min(0).sqrt(), V.flip(-1)
    U = left_vectors(A, S, V)
    # The columns of U that belong to weak components are not orthogonal enough: A v loses them in rounding.
    trusted = S > GRAM_ORTHOGONAL * S[..., :1]
    for at in (~trusted.all(-1)).nonzero().tolist():
        i = tuple(at)
        AV = torch.cat([rows.double() @ V[i][:, ~trusted[i]] for rows in A[i].split(_ROWS)])
        U[i] = _repaired(U[i], AV, S[i], int(trusted[i].sum()))
    return U, S.to(A.dtype), V.to(A.dtype)


def lower_gram(A: Float[Tensor, "*head m n"]) -> Float[Tensor, "*head n n"]:
    """`Aᵀ A` in fp64, its lower triangle, which is all that `eigh` reads: in strips, a third less work.

    Rows are taken to fp64 some thousands at a time, so that a large matrix is never held in fp64 as a whole.
    """
    n = A.shape[-1]
    strips = 4 if n >= 256 else 1
    G = A.new_zeros(*A.shape[:-2], n, n, dtype=torch.float64)
    edges = [n * i // strips for i in range(strips + 1)]
    for rows in A.split(_ROWS, dim=-2):
        D = rows.double()
        for a, b in pairwise(edges):
            G[..., a:, a:b] += D[..., a:].mT @ D[..., a:b]
    return G


def left_vectors(A: Tensor, S: Tensor, V: Tensor) -> Float[Tensor, "*head m component"]:
    """`A V / S`, in fp32 where that is exact enough; the columns of tiny values are inexact until `_repaired`."""
    divisor = S.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(-2)
    head = int((S > _PLAIN_FP32 * S[..., :1]).sum(-1).min()) if _working_dtype(A) == torch.float32 else 0
    U = A.new_empty(*A.shape[:-1], S.shape[-1])
    U[..., :head] = (A @ V[..., :head].to(A.dtype)).div_(divisor[..., :head].to(A.dtype))
    if head < S.shape[-1]:
        for rows, part in zip(A.split(_ROWS, dim=-2), U.split(_ROWS, dim=-2), strict=True):
            part[..., head:] = (rows.double() @ V[..., head:]).div_(divisor[..., head:])
    return U


def _repaired(
    U: Float[Tensor, "m n"], AV: Float[Tensor, "m tail"], S: Float[Tensor, " n"], head: int
) -> Float[Tensor, "m n"]:
    """U with the columns from `head` on made orthonormal, strongest first; those of null components are random."""
    dtype = _working_dtype(U)
    noise = torch.randn(AV.shape, generator=torch.Generator().manual_seed(0), dtype=AV.dtype).to(AV.device)
    tail = torch.where(S[head:] <= _GRAM_NULL * S[0], noise, AV)
    tail, kept = (tail / tail.norm(dim=0)).to(dtype), U[:, :head].to(dtype)
    for _ in range(2):  # once leaves rounding behind, twice is enough (Kahan; Parlett 1980)
        Q, R = torch.linalg.qr(tail - kept @ (kept.mT @ tail))
        tail = Q * torch.where(R.diagonal() < 0, -1.0, 1.0)
    U[:, head:] = tail
    return U


def _working_dtype(A: Tensor) -> torch.dtype:
    """The dtype of A on the CPU; fp64 on CUDA, where a user may have allowed TF32 products, which are too inexact."""
    return A.dtype if A.device.type == "cpu" else torch.float64
