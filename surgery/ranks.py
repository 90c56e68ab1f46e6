"""How many components to keep: rules that read nothing but the singular values and the shape of a matrix.

Rules that estimate noise take the matrix for a low-rank signal plus independent entries of one variance. Trained
weights are neither, so their answer is a yardstick that moves with the spectrum, not a count of true components.
"""

from collections.abc import Callable, Mapping
from functools import cache
from math import atan, cos, exp, pi, sin, sqrt, tan
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.arguments import fraction

__all__ = [
    "RULES", "effective_rank", "gavish_donoho_rank", "marchenko_pastur_rank", "noise_edge", "rank_from_rho",
    "stable_rank",
]  # fmt: skip

_HARD_ZERO = 1.2e-7
"""The rounding unit of fp32: an fp32 SVD gives a true zero as up to this times √max(d_in, d_out) · s_1."""
_FEWEST = 8
"""A rank-deficient matrix with fewer nonzero values than this says nothing about noise."""

_TRACY_WIDOM_99 = 2.02
"""The 99 % point of the Tracy–Widom law for real matrices (Johnstone, Annals of Statistics 29, 2001)."""


def rank_from_rho(rho: float | int, d: int) -> int:
    """LASER's rank, `floor(rho · d)`, for the fraction `rho` of the full rank `d = min(d_in, d_out)` that is kept.

    1e-9 is added before rounding down, so that 0.29 · 100 is 29. Source: arXiv:2312.13558.

    >>> from surgery import ranks
    >>> ranks.rank_from_rho(0.29, 100)
    29

    Raises:
        ValueError: if rho is not between 0 and 1.
    """
    return min(int(fraction(rho, "rho") * d + 1e-9), d)


def rank_from_energy(S: Float[Tensor, " component"], energy: float | int) -> int:
    """The fewest leading components, in the order given, that hold the fraction `energy` of the squared Frobenius norm.

    Summed from the small end in fp64, so that `energy=1` keeps everything that is not zero.

    >>> from surgery import ranks
    >>> ranks.rank_from_energy(torch.tensor([3.0, 2.0, 1.0]), 0.9)
    2

    Raises:
        ValueError: if energy is not between 0 and 1, or S holds a negative or a non-finite number.
    """
    squares = _values(S).square()
    left_over = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    allowed = (1 - fraction(energy, "energy")) * left_over[0] * (1 + 1e-12)  # a tie is a hit
    return int((left_over > allowed).sum())


def marchenko_pastur_rank(S: Float[Tensor, " component"], d_in: int, d_out: int) -> int:
    """How many singular values stand above `noise_edge`, the largest that noise alone would have.

    With k clear spikes in noise, k to k + 2; with noise alone, 0 or 1.

    >>> from surgery import ranks
    >>> S = torch.linalg.svdvals(torch.randn(200, 100, generator=torch.Generator().manual_seed(0)))
    >>> ranks.marchenko_pastur_rank(S, 200, 100) <= 1
    True

    Raises:
        ValueError: as `noise_edge`.
    """
    noise = _noisy_values(S, d_in, d_out)
    return int((noise > _deflated_edge(noise, max(d_in, d_out))).sum()) if len(noise) else _nonzero(S, d_in, d_out)


def noise_edge(S: Float[Tensor, " component"], d_in: int, d_out: int) -> float:
    """The largest singular value of noise, `σ(√d_in + √d_out)`, with σ estimated from the spectrum of the noisy matrix.

    σ is `median(s) / √(μ_β · max(d_in, d_out))`, with μ_β the median of the Marchenko–Pastur law. The median is taken
    over the values not clearly above the edge, and both dimensions are lowered by the number that are (what k spikes
    leave behaves as noise k rows and columns smaller), until the edge stands still: many spikes, short of half of all
    components, then do not raise it.

    Values that are zero, or missing where S is shorter than the shape allows, come from dead rows or columns on the
    smaller side or from a factored matrix. They say nothing about noise: the rest is read as a matrix that much
    smaller; where only a handful is left, nothing is called noise and the edge is 0. Dead ones on the larger side leave
    no zeros: leave them out of d_in and d_out yourself.

    Raises:
        ValueError: if S is not a falling, non-negative spectrum that fits the shape.
    """
    noise = _noisy_values(S, d_in, d_out)
    return _deflated_edge(noise, max(d_in, d_out)) if len(noise) else 0.0


def gavish_donoho_rank(S: Float[Tensor, " component"], d_in: int, d_out: int) -> int:
    """How many singular values exceed the optimal hard threshold for unknown noise, `ω(β) · median(s)`.

    ω(β) = λ*(β) / √μ_β, exact rather than by the cubic often used. With k clear spikes it keeps k, of noise alone
    nothing. Zeros are treated as in `noise_edge`. Source: Gavish and Donoho, arXiv:1305.5870.

    Raises:
        ValueError: as `noise_edge`.
    """
    noise = _noisy_values(S, d_in, d_out)
    if not len(noise):
        return _nonzero(S, d_in, d_out)
    beta = len(noise) / max(d_in, d_out)
    optimal = sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + sqrt(beta**2 + 14 * beta + 1)))
    return int((noise > optimal / sqrt(marchenko_pastur_median(beta)) * _median(noise)).sum())


def effective_rank(S: Float[Tensor, " component"]) -> float:
    """`exp(−Σ p ln p)`, `p = s / Σ s`: the number of equal singular values with the same entropy; 0 for a zero matrix.

    >>> from surgery import ranks
    >>> round(ranks.effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])), 5)
    3.0

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.

    Raises:
        ValueError: if S holds a negative or a non-finite number.
    """
    values = _values(S)
    if not bool(values.any()):
        return 0.0
    shares = values / values.sum()
    return exp(-float(torch.special.xlogy(shares, shares).sum()))


def stable_rank(S: Float[Tensor, " component"]) -> float:
    """`‖W‖_F² / ‖W‖₂² = Σ s² / s_1²`, which tiny singular values do not move; 0 for a zero matrix.

    >>> from surgery import ranks
    >>> ranks.stable_rank(torch.tensor([2.0, 1.0, 1.0]))
    1.5

    Raises:
        ValueError: if S holds a negative or a non-finite number.
    """
    values = _values(S)
    return float((values / values.max()).square().sum()) if bool(values.any()) else 0.0


def rank_from_entropy(S: Float[Tensor, " component"], d_in: int, d_out: int) -> int:
    """`effective_rank`, rounded to the nearest whole number.

    Raises:
        ValueError: if S is not a falling, non-negative spectrum that fits the shape.
    """
    return round(effective_rank(_spectrum(S, d_in, d_out)))


RULES: Mapping[str, Callable[[Tensor, int, int], int]] = MappingProxyType(
    {
        "marchenko-pastur": marchenko_pastur_rank,
        "gavish-donoho": gavish_donoho_rank,
        "effective-rank": rank_from_entropy,
    }
)
"""The rules that need no parameter, by name, each a function of `(S, d_in, d_out)`."""


@cache
def marchenko_pastur_median(beta: float) -> float:
    """The median of the Marchenko–Pastur law of ratio `beta = d_small / d_large` and variance 1.

    Half of the eigenvalues of `X Xᵀ / d_large` lie below it, for X with independent entries of variance 1. By
    bisection of the distribution function, which has a closed form in θ with `x = 1 + β + 2√β cos θ`.

    Raises:
        ValueError: if beta is not above 0 and at most 1.
    """
    if not 0 < beta <= 1:
        raise ValueError(
            f"beta={beta!r}: the ratio of the smaller to the larger dimension is above 0 and at most 1. Turn it over."
        )
    low, high = 0.0, pi
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_above(middle, beta) < 0.5 else (low, middle)
    return 1 + beta + 2 * sqrt(beta) * cos(low)


def _share_above(theta: float, beta: float) -> float:
    """The integral of the law from θ to the upper edge at θ = 0, `∫ (2/π) sin²t / (1 + β + 2√β cos t) dt`."""
    root = sqrt(beta)
    turn = atan((1 - root) / (1 + root) * tan(theta / 2))
    return (2 / pi) * ((1 + beta) * theta / (4 * beta) - sin(theta) / (2 * root) - (1 - beta) / (2 * beta) * turn)


def _deflated_edge(values: Float[Tensor, " component"], larger: int) -> float:
    """`noise_edge` of a falling spectrum without zeros.

    Only values that noise would reach once in a hundred matrices are set aside: setting aside the largest noise
    value, which passes the edge once in six, would lower the edge to the next one, and so on.
    """
    signal = 0
    while True:
        m, n = len(values) - signal, larger - signal
        sigma = _median(values[signal:]) / sqrt(marchenko_pastur_median(m / n) * n)
        edge = sqrt(m) + sqrt(n)
        clear = sqrt(edge**2 + _TRACY_WIDOM_99 * edge * (1 / sqrt(m) + 1 / sqrt(n)) ** (1 / 3))
        above = int((values > sigma * clear).sum())
        if above <= signal:
            return sigma * edge
        signal = above


def _noisy_values(S: Tensor, d_in: int, d_out: int) -> Float[Tensor, " component"]:
    """The nonzero values; none of them if there were zeros and too few values remain to tell noise from signal."""
    values = _spectrum(S, d_in, d_out)
    nonzero = values[: _nonzero(S, d_in, d_out)]
    return nonzero if len(nonzero) == min(d_in, d_out) or len(nonzero) >= _FEWEST else nonzero[:0]


def _nonzero(S: Tensor, d_in: int, d_out: int) -> int:
    values = _spectrum(S, d_in, d_out)
    return int((values > _HARD_ZERO * sqrt(max(d_in, d_out)) * values[0]).sum())


def _median(values: Float[Tensor, " component"]) -> float:
    """The mean of the two middle values of an even number of them, which `Tensor.median` does not give."""
    return float(values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def _spectrum(S: Float[Tensor, " component"], d_in: int, d_out: int) -> Float[Tensor, " component"]:
    values = _values(S)
    if not 1 <= len(values) <= min(d_in, d_out):
        raise ValueError(
            f"{len(values)} singular values for a {d_in} x {d_out} matrix, which has from 1 to {min(d_in, d_out)}: "
            "pass those of its SVD (a basis with more components than that has no noise level)."
        )
    if bool((values.diff() > 0).any()):
        raise ValueError(
            "the singular values do not fall from first to last: a rank means the leading ones. Sort them first."
        )
    return values


def _values(S: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
    """S in fp64 on the CPU, refused unless finite and non-negative."""
    values = S.detach().double().cpu()
    if not bool((values >= 0).all() & values.isfinite().all()):
        bad = int((~((values >= 0) & values.isfinite())).sum())
        raise ValueError(
            f"{bad} of {len(values)} singular values are negative, NaN or infinite: they are finite and 0 or more. "
            "Pass S as an SVD returns it."
        )
    return values
