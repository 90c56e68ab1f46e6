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
from surgery import svd
from surgery.arguments import seed, shown, whole
from surgery.json_values import build
from surgery.svd import Factors


class Basis(ABC):
    """How a matrix becomes components.

    `complete` bases sum to the matrix; others leave a rest, or take the place of the matrix where they `replace` it.
    `batched` ones take a stack of heads at once.
    """

    complete: ClassVar[bool] = True
    replaces: ClassVar[bool] = False
    batched: ClassVar[bool] = False

    @abstractmethod
    def decompose(self, W: Float[Tensor, "*head d_in d_out"]) -> Factors:
        """The components of a matrix."""


@final
@dataclass(frozen=True, slots=True)
class SVD(Basis):
    """The exact singular value decomposition, in fp32 or better."""

    batched: ClassVar[bool] = True

    def decompose(self, W: Float[Tensor, "*head d_in d_out"]) -> Factors:
        """Singular vectors and values, by the fastest route that is exact enough for the size."""
        return svd.exact(W)


@final
@dataclass(frozen=True, slots=True)
class RandomizedSVD(Basis):
    """The leading components, by seeded randomised subspace iteration.

    Source: Halko, Martinsson and Tropp, arXiv:0909.4061. LASER's authors ran
    `torch.svd_lowrank(W, q=rank, niter=2)` without a seed; its result differs from the true truncated SVD and from run
    to run. This reproduces that estimator, repeatably.
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


@final
@dataclass(frozen=True, slots=True)
class HaarBasis(Basis):
    """The matrix's own singular values on random orthonormal vectors: a control with the same spectrum."""

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

    Source: arXiv:2510.20800.
    """

    blocks: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", whole(self.blocks, "RowBlocks was given blocks", least=1))

    def decompose(self, W: Float[Tensor, "d_in d_out"]) -> Factors:
        """The components of all blocks, strongest first; each reads from the rows of its block only."""
        return svd.row_blocks(W, self.blocks)


def check_basis(value: object, name: str) -> None:
    """Refuse what is no basis, its name or its class for instance.

    Raises:
        TypeError: saying how one is written.
    """
    if not isinstance(value, Basis):
        raise TypeError(
            f"{name}={shown(value)}: give a basis, one of SVD(), RandomizedSVD(rank, seed), HaarBasis(seed) or "
            "RowBlocks(blocks)."
        )


def decode_basis(document: Mapping[str, object]) -> Basis:
    """The basis that `codec.encode` wrote.

    Raises:
        ValueError: if the document names no basis, or gives it what it does not take.
    """
    return build(document, _KNOWN, "basis")


_KNOWN: dict[str, type[Basis]] = {cls.__name__: cls for cls in (SVD, RandomizedSVD, HaarBasis, RowBlocks)}


def _generator(W: Tensor, start: int) -> torch.Generator:
    """Its stream depends on the seed and on the weights, so that two matrices of one shape get different draws.

    It runs on the CPU wherever the weights are, since every device has a stream of its own.
    """
    return torch.Generator().manual_seed(start ^ int(fingerprint(W)[:12], 16))
