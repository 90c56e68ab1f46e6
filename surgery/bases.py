"""Ways to write a matrix as a sum of rank-one components, `W = Σ_i s_i u_i v_iᵀ`.

Every edit chooses gains on the components of one basis. Two edits combine on a matrix only if they share it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from hooks.fingerprints import fingerprint
from surgery import leading_svd, svd
from surgery.arguments import seed, shown, whole
from surgery.json_values import build
from surgery.svd import Factors

__all__ = ["SVD", "Basis", "Factors", "HaarBasis", "LeadingSVD", "RandomizedSVD", "RowBlocks", "decode_basis"]


class Basis(ABC):
    """A way to write a matrix as components.

    `complete`: the components sum to the matrix; otherwise they leave a rest. `leading`: they are the first ones of a
    complete basis, so that each can be removed by itself and the rest is orthogonal to them. `replaces`: an edit puts
    the components in place of the matrix, without that rest. `batched`: `decompose` takes a stack of heads at once.

    A basis of your own is a frozen dataclass with one method, which gives strengths of 0 or more:

    >>> from dataclasses import dataclass
    >>> from surgery.bases import Basis, Factors
    >>> @dataclass(frozen=True)
    ... class Columns(Basis):  # every output dimension by itself, the longest column of the matrix first
    ...     def decompose(self, W):
    ...         S, order = W.float().norm(dim=0).sort(descending=True)
    ...         U = W[:, order] / S.clamp_min(1e-30)  # a column of zeros is a component of strength 0
    ...         return Factors(U, S, torch.eye(len(S), device=W.device)[order])
    >>> svds = surgery.decompose(model, "blocks.0.mlp.W_out", basis=Columns())
    >>> U, S, Vh = (getattr(svds["blocks.0.mlp.W_out"], name) for name in Factors._fields)
    >>> torch.allclose((U * S) @ Vh, surgery.weight(model, "blocks.0.mlp.W_out"), atol=1e-6)
    True
    """

    complete: ClassVar[bool] = True
    leading: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    batched: ClassVar[bool] = False

    @abstractmethod
    def decompose(self, W: Float[Tensor, "*head d_in d_out"]) -> Factors:
        """The components of a matrix, `W = U @ diag(S) @ Vh` where the basis is complete."""

    def n_components(self, d_in: int, d_out: int) -> int:
        """How many components a matrix of this shape has, from which the memory they take is planned."""
        return min(d_in, d_out)


@final
@dataclass(frozen=True, slots=True)
class SVD(Basis):
    """The exact singular value decomposition, in fp32 or better.

    >>> from surgery import SVD
    >>> SVD().decompose(torch.diag(torch.tensor([1.0, 3.0, 2.0]))).S
    tensor([3., 2., 1.])
    """

    batched: ClassVar[bool] = True

    def decompose(self, W: Float[Tensor, "*head d_in d_out"]) -> Factors:
        """Singular vectors and values, by the fastest route that is exact enough for the size."""
        return svd.exact(W)


@final
@dataclass(frozen=True, slots=True)
class LeadingSVD(Basis):
    """The leading `rank` components of the exact decomposition, or all of a matrix that has fewer.

    For large matrices, of which they take a fraction of the time and of the memory. They are found by iteration, and
    handed out only where a bound that is computed afterwards says that `KeepTop` of them is what it is in `SVD()`, to
    1e-6 of the largest singular value; elsewhere (`rank` cuts between equal values, say) all components are computed
    and the leading ones kept, with a warning.

    >>> from surgery.bases import LeadingSVD
    >>> edit = surgery.KeepTop(rank=2, basis=LeadingSVD(rank=4))
    >>> with surgery.apply(model, {"blocks.*.mlp.W_out": edit}) as operation:
    ...     operation.changes[0].decomposition.Vh.shape
    torch.Size([4, 16])
    """

    complete: ClassVar[bool] = False
    leading: ClassVar[bool] = True
    rank: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", whole(self.rank, "LeadingSVD was given rank", least=1))

    def decompose(self, W: Float[Tensor, "d_in d_out"]) -> Factors:
        """The leading components, by the faster of two routes that agree."""
        return leading_svd.leading(W, self.rank)

    def n_components(self, d_in: int, d_out: int) -> int:
        """`rank`, or as many as there are."""
        return min(self.rank, d_in, d_out)


@final
@dataclass(frozen=True, slots=True)
class RandomizedSVD(Basis):
    """The leading components, approximately, by seeded randomised subspace iteration.

    LASER's authors ran `torch.svd_lowrank(W, q=rank, niter=2)` without a seed, whose result differs from the true
    truncated SVD and from run to run: this is that estimator, made repeatable.

    >>> from surgery.bases import RandomizedSVD
    >>> RandomizedSVD(rank=2, seed=0).decompose(torch.randn(6, 4)).S.shape
    torch.Size([2])

    Source: Halko, Martinsson and Tropp, arXiv:0909.4061.
    """

    complete: ClassVar[bool] = False
    rank: int
    seed: int
    n_iter: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", seed(self.seed, "RandomizedSVD was given seed"))
        for name in ("rank", "n_iter"):
            object.__setattr__(self, name, whole(getattr(self, name), f"RandomizedSVD was given {name}"))

    def decompose(self, W: Float[Tensor, "d_in d_out"]) -> Factors:
        """The leading `rank` components, approximately."""
        d_in, d_out = W.shape
        if self.rank > min(d_in, d_out):
            raise ValueError(
                f"{self!r} asks for more than the {min(d_in, d_out)} components of a {d_in} x {d_out} matrix: "
                "choose a smaller rank."
            )
        return svd.randomised(W, self.rank, n_iter=self.n_iter, generator=_generator(W, self.seed))

    def n_components(self, d_in: int, d_out: int) -> int:
        """`rank`, or as many as there are."""
        return min(self.rank, d_in, d_out)


@final
@dataclass(frozen=True, slots=True)
class HaarBasis(Basis):
    """The matrix's own singular values on random orthonormal vectors: a control with the same spectrum.

    >>> from surgery.bases import SVD, HaarBasis
    >>> W = torch.randn(6, 4)
    >>> torch.equal(HaarBasis(seed=0).decompose(W).S, SVD().decompose(W).S)
    True
    """

    complete: ClassVar[bool] = False
    replaces: ClassVar[bool] = True
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", seed(self.seed, "HaarBasis was given seed"))

    def decompose(self, W: Float[Tensor, "d_in d_out"]) -> Factors:
        """The same strengths, other directions."""
        S = svd.exact(W).S
        return svd.random_basis(S, *W.shape, generator=_generator(W, self.seed))


@final
@dataclass(frozen=True, slots=True)
class RowBlocks(Basis):
    """An SVD of each of `blocks` groups of neighbouring rows (input dimensions), pooled.

    >>> from surgery import RowBlocks
    >>> RowBlocks(3).decompose(torch.randn(6, 4)).S.shape
    torch.Size([6])

    Source: arXiv:2510.20800.
    """

    blocks: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", whole(self.blocks, "RowBlocks was given blocks", least=1))

    def decompose(self, W: Float[Tensor, "d_in d_out"]) -> Factors:
        """The components of all blocks, strongest first; each reads from the rows of its block only."""
        return svd.row_blocks(W, self.blocks)

    def n_components(self, d_in: int, d_out: int) -> int:
        """Those of all blocks together, which may be more than an SVD has."""
        larger = d_in % self.blocks
        rows = d_in // self.blocks
        return larger * min(rows + 1, d_out) + (self.blocks - larger) * min(rows, d_out)


def check_basis(value: object, name: str) -> None:
    """Refuse what is no basis, such as the name or the class of one.

    Raises:
        TypeError: saying how one is written.
    """
    if not isinstance(value, Basis):
        raise TypeError(
            f"{name}={shown(value)}: give a basis, one of SVD(), LeadingSVD(rank), RandomizedSVD(rank, seed), "
            "HaarBasis(seed) or RowBlocks(blocks)."
        )


def decode_basis(document: Mapping[str, object]) -> Basis:
    """The basis that `json_values.encode` wrote.

    Raises:
        ValueError: if the document names no basis, or gives it what it does not take.
    """
    return build(document, _KNOWN, "basis")


_KNOWN: dict[str, type[Basis]] = {cls.__name__: cls for cls in (SVD, LeadingSVD, RandomizedSVD, HaarBasis, RowBlocks)}


def _generator(W: Tensor, start: int) -> torch.Generator:
    """A generator that depends on the seed and on the weights: two matrices of one shape get different draws.

    It runs on the CPU wherever the weights are, since every device draws other numbers from the same seed.
    """
    return torch.Generator().manual_seed(start ^ int(fingerprint(W)[:12], 16))
