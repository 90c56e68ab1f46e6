"""Edits that remove as much as another one does, but nothing in particular: what every result is held against."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from surgery.arguments import by_name_only, fraction, seed, whole
from surgery.bases import SVD, Basis, HaarBasis, check_basis
from surgery.decompositions import Decomposition
from surgery.edits import Edit, Gains, dropped

__all__ = ["RandomBasis", "RandomComponents"]


@final
@by_name_only("seed=0, count=10")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RandomComponents(Edit):
    """A control: remove components drawn at random, `count` of them or until they hold the fraction `energy`.

    `energy` is the fraction of the squared Frobenius norm removed: components are drawn until it is reached, the last
    one only if that comes nearer to it. To control an edit, remove as many components as it does, or as much energy.
    """

    seed: int
    count: int | None = None
    energy: float | None = None
    basis: Basis = SVD()

    def __post_init__(self) -> None:
        if (self.count is None) == (self.energy is None):
            raise ValueError(
                f"RandomComponents was given count={self.count!r} and energy={self.energy!r}: give exactly one of them."
            )
        object.__setattr__(self, "seed", seed(self.seed, "RandomComponents was given seed"))
        check_basis(self.basis, "RandomComponents was given basis")
        if self.count is not None:
            object.__setattr__(self, "count", whole(self.count, "RandomComponents was given count"))
        if self.energy is not None:
            object.__setattr__(self, "energy", fraction(self.energy, "RandomComponents was given energy"))

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on the drawn components; the draw depends on the seed and on the weights."""
        drawn = self._order(decomposition)
        if self.count is not None:
            if self.count > decomposition.n_components:
                raise ValueError(
                    f"{self!r} asks for more components than '{decomposition.site}' has: {decomposition.n_components}. "
                    "Give a smaller count."
                )
            return dropped(decomposition, drawn[: self.count].tolist())
        removed = decomposition.energy.cpu()[drawn].cumsum(0)
        removed = torch.cat([removed.new_zeros(1), removed])
        return dropped(decomposition, drawn[: int((removed - self.energy).abs().argmin())].tolist())  # type: ignore[operator]

    def _order(self, decomposition: Decomposition) -> Int[Tensor, " component"]:
        start = self.seed ^ int(decomposition.fingerprint[:12], 16)
        return torch.randperm(decomposition.n_components, generator=torch.Generator().manual_seed(start))


@final
@dataclass(frozen=True, slots=True, repr=False)
class RandomBasis(Edit):
    """A control: a random matrix with the same singular values, on random orthonormal vectors."""

    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", seed(self.seed, "RandomBasis was given seed"))

    @property
    def basis(self) -> Basis:  # type: ignore[override]
        """The random vectors."""
        return HaarBasis(self.seed)

    def gains(self, decomposition: Decomposition) -> Gains:
        """1 on the random components, which take the place of the matrix."""
        return Gains(torch.ones_like(decomposition.S), 0.0)
