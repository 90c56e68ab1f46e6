"""Random controls: edits that remove as much as another one does, but nothing in particular.

Every result about chosen components is held against components that chance names. There are four kinds of chance:

| equal | drawn at random | by | as an edit |
|---|---|---|---|
| the number of components | which of them | the first of a `random_order` | `RandomComponents(count=)` |
| their energy `Σ s_i²` | which of them | `nearest_energy` along a `random_order` | `RandomComponents(energy=)` |
| the whole spectrum | the singular vectors | `surgery.HaarBasis` | `RandomBasis` |
| a subspace that holds them | directions in it | `random_directions` | `analyses.controls.rotated` |

The draws are defined here once; `matched` makes the edit that controls another edit of one matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.arguments import by_name_only, fraction, one_of, seed, whole
from surgery.bases import SVD, Basis, HaarBasis, check_basis
from surgery.decompositions import Decomposition
from surgery.edits import Edit, Gains, dropped

__all__ = ["Match", "RandomBasis", "RandomComponents", "matched", "nearest_energy", "random_directions", "random_order"]

Match = Literal["count", "energy", "spectrum"]
"""What a control has in common with the edit that it controls."""


def random_order(n: int, generator: torch.Generator) -> list[int]:
    """The numbers 0 to n − 1 in random order, each order as likely as any other.

    >>> sorted(surgery.controls.random_order(4, torch.Generator().manual_seed(0)))
    [0, 1, 2, 3]
    """
    return torch.randperm(n, generator=generator).tolist()


def nearest_energy(order: Sequence[int], energies: Float[Tensor, " component"], target: float) -> list[int]:
    """The components that chance in the form of `order` takes to reach an energy, in that order.

    One after the other, component i is taken if it brings the sum E of the energies taken so far nearer to the target:

        |E + energies[i] − target| < |E − target|

    So everything is taken until a component would overshoot the target by more than is missing. That one is passed
    over, and weaker ones fill the gap. Cutting the order at the sum nearest to the target, the simpler rule, ends there
    with the gap: the two agree where nothing is passed over, and elsewhere this one is nearer to the target. It matters
    for matrices with a few strong components, where the cut often removes far too little for a fair control.

    >>> surgery.controls.nearest_energy([1, 0, 2, 3], torch.tensor([0.8, 0.1, 0.05, 0.05]), 0.2)
    [1, 2, 3]
    """
    taken, total = [], 0.0
    for i, energy in zip(order, energies[list(order)].tolist(), strict=True):
        if abs(total + energy - target) < abs(total - target):
            taken.append(i)
            total += energy
    return taken


def random_directions(
    span: Float[Tensor, "among d"], count: int, generator: torch.Generator
) -> Float[Tensor, "count d"]:
    """Orthonormal directions inside the subspace that the orthonormal rows of `span` span.

    `Qᵀ span`, Q from the QR factorisation of a Gaussian matrix `[among, count]`. The subspace that the directions span
    is uniform (Haar) among those of its dimension.

    >>> directions = surgery.controls.random_directions(torch.eye(4)[:3], 2, torch.Generator().manual_seed(0))
    >>> torch.allclose(directions @ directions.mT, torch.eye(2), atol=1e-6), directions[:, 3].tolist()
    (True, [0.0, 0.0])
    """
    # QR leaves the signs of Q's columns biased, which moves no subspace.
    Q = torch.linalg.qr(torch.randn(len(span), count, dtype=torch.float64, generator=generator)).Q
    return (Q.mT.to(span) @ span).contiguous()


def matched(gains: Gains, decomposition: Decomposition, *, by: Match, seed: int = 0) -> Edit:
    """A random edit of a matrix that removes as much of it as other gains γ do.

    "count": `Σ (1 − γ_i)` components, rounded. "energy": the share `Σ (1 − γ_i²) s_i² / Σ s_i²` of the squared
    Frobenius norm. "spectrum": the same singular values on random vectors, whatever the gains.

    Raises:
        ValueError: if `by` is something else.

    >>> W_out = surgery.decompose(model, "blocks.0.mlp.W_out", progress=False)["blocks.0.mlp.W_out"]
    >>> surgery.controls.matched(surgery.DropTop(rank=3).gains(W_out), W_out, by="count", seed=1)
    RandomComponents(seed=1, count=3)
    """
    values = gains.values.detach().double()
    one_of(by, "by", get_args(Match))
    if by == "spectrum":
        return RandomBasis(seed)
    if by == "count":
        return RandomComponents(seed=seed, count=round(float((1 - values).clamp_min(0).sum())))
    removed = float((decomposition.energy * (1 - values.square()).clamp_min(0)).sum())
    return RandomComponents(seed=seed, energy=min(1.0, removed))


@final
@by_name_only("seed=0, count=10")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RandomComponents(Edit):
    """A control: remove components drawn at random, `count` of them or as many as hold the fraction `energy`.

    `energy` is a fraction of the squared Frobenius norm; which components make it up is defined by `nearest_energy`. To
    control an edit, remove as many components as it does, or as much energy.

    >>> site = "blocks.0.mlp.W_out"
    >>> with surgery.apply(model, {site: surgery.RandomComponents(count=3, seed=0)}, progress=False) as operation:
    ...     int(torch.linalg.matrix_rank(operation.weight(site)))
    13
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
        """0 on the components drawn; the draw depends on the seed and on the weights."""
        # Two matrices of one shape get two draws from one seed.
        generator = torch.Generator().manual_seed(self.seed ^ int(decomposition.fingerprint[:12], 16))
        order = random_order(decomposition.n_components, generator)
        if self.energy is not None:
            return dropped(decomposition, nearest_energy(order, decomposition.energy.cpu(), self.energy))
        assert self.count is not None
        if self.count > decomposition.n_components:
            raise ValueError(
                f"{self!r} asks for more components than '{decomposition.site}' has: {decomposition.n_components}. "
                "Give a smaller count."
            )
        return dropped(decomposition, order[: self.count])


@final
@dataclass(frozen=True, slots=True, repr=False)
class RandomBasis(Edit):
    """A control: a random matrix with the same singular values, on random orthonormal vectors.

    >>> site = "blocks.0.mlp.W_out"
    >>> before = surgery.decompose(model, site, progress=False)[site].S
    >>> with surgery.apply(model, {site: surgery.RandomBasis(0)}, progress=False) as operation:
    ...     torch.allclose(torch.linalg.svdvals(operation.weight(site)), before, rtol=1e-4)
    True
    """

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
