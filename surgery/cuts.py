"""Edits that cut the spectrum in two and keep or remove one side of it."""

from dataclasses import dataclass
from typing import final

from surgery import ranks
from surgery.arguments import by_name_only, fraction, one_of, whole
from surgery.bases import SVD, Basis, check_basis
from surgery.decompositions import Decomposition
from surgery.edits import Edit, Gains, dropped, kept

__all__ = ["ByRank", "DropBottom", "DropTop", "KeepBottom", "KeepTop"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ByRank(Edit):
    """A cut in the spectrum, placed by exactly one of a count, a fraction of the full rank, an energy or a rule."""

    rank: int | None = None
    rho: float | None = None
    energy: float | None = None
    rule: str | None = None
    basis: Basis = SVD()

    def __post_init__(self) -> None:
        own = type(self).__name__
        named = [name for name in ("rank", "rho", "energy", "rule") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                f"{own} was given {' and '.join(named) or 'no rank'}: give exactly one of rank=, rho=, energy= or "
                f"rule= ({', '.join(ranks.RULES)})."
            )
        if self.rank is not None:
            object.__setattr__(self, "rank", whole(self.rank, f"{own} was given rank"))
        for name in ("rho", "energy"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, fraction(getattr(self, name), f"{own} was given {name}"))
        check_basis(self.basis, f"{own} was given basis")
        if self.rule is not None:
            one_of(self.rule, f"{own} was given rule", ranks.RULES)

    def count(self, decomposition: Decomposition) -> int:
        """How many components lie above the cut (for the *Bottom* edits: below it).

        Raises:
            ValueError: if the matrix has fewer, or the basis holds too few of them to tell.
        """
        if self.rho is not None:
            return ranks.rank_from_rho(self.rho, min(decomposition.shape))
        if self.rank is not None:
            return self._checked(self.rank, decomposition)
        if decomposition.n_components < min(decomposition.shape):
            raise ValueError(
                f"{self!r} needs the whole spectrum of '{decomposition.site}', of which {decomposition.basis!r} holds "
                f"{decomposition.n_components} of {min(decomposition.shape)} components: give a rank or rho, or use "
                "SVD()."
            )
        if self.energy is not None:
            return self._count_of_energy(decomposition, self.energy)
        return ranks.RULES[str(self.rule)](decomposition.S, *decomposition.shape)

    def _checked(self, rank: int, decomposition: Decomposition) -> int:
        if rank > _total(decomposition):
            raise ValueError(
                f"{self!r} asks for more components than '{decomposition.site}' has: {_total(decomposition)} (it is "
                f"{decomposition.shape[0]} x {decomposition.shape[1]}). Give a smaller rank, or rho, a fraction."
            )
        return rank

    def _count_of_energy(self, decomposition: Decomposition, energy: float) -> int:
        return ranks.rank_from_energy(decomposition.S, energy)

    def _strongest(self, decomposition: Decomposition, count: int) -> range:
        if count > decomposition.n_components:
            raise ValueError(
                f"{self!r} cuts '{decomposition.site}' after component {count}, but {decomposition.basis!r} holds the "
                f"leading {decomposition.n_components} only: choose a basis of a larger rank."
            )
        return range(count)


def _total(decomposition: Decomposition) -> int:
    """How many components sum to the matrix, more than the basis holds where it holds the leading ones only."""
    return max(decomposition.n_components, min(decomposition.shape))


@final
@by_name_only("rank=10")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class KeepTop(ByRank):
    """Keep the strongest components: the low-rank approximation of LASER (arXiv:2312.13558).

    `rank` components; or `rho`, the fraction of the full rank kept, `floor(rho · min(d_in, d_out))` components; or the
    fewest that hold the fraction `energy` of the squared Frobenius norm; or as many as `rule` finds to be signal:
    ``"marchenko-pastur"``, ``"gavish-donoho"`` or ``"effective-rank"``.

    >>> for edit in (surgery.KeepTop(rank=3), surgery.KeepTop(rho=0.5), surgery.KeepTop(energy=1)):
    ...     with surgery.apply(model, {"blocks.0.mlp.W_out": edit}) as operation:
    ...         int(operation.changes[0].gains.values.sum())
    3
    8
    16
    """

    def gains(self, decomposition: Decomposition) -> Gains:
        """1 on the strongest, 0 on the others."""
        return kept(decomposition, self._strongest(decomposition, self.count(decomposition)))


@final
@by_name_only("rank=10")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DropTop(ByRank):
    """Remove the components that `KeepTop` with the same arguments keeps: its exact complement.

    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.DropTop(rank=3)}) as operation:
    ...     operation.changes[0].gains.values[:5].tolist()
    [0.0, 0.0, 0.0, 1.0, 1.0]
    """

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on the strongest, 1 on the others."""
        return dropped(decomposition, self._strongest(decomposition, self.count(decomposition)))


class _Bottom(ByRank):
    __slots__ = ()

    def _count_of_energy(self, decomposition: Decomposition, energy: float) -> int:
        return ranks.rank_from_energy(decomposition.S.flip(0), energy)

    def _others(self, decomposition: Decomposition) -> range:
        """All but the weakest `count` components."""
        return self._strongest(decomposition, _total(decomposition) - self.count(decomposition))


@final
@by_name_only("rank=10")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class KeepBottom(_Bottom):
    """Keep the weakest components only: as many as the same arguments of `KeepTop` would keep of the strongest.

    With `energy`, the fewest of the weakest that hold that fraction of the squared Frobenius norm.

    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.KeepBottom(rank=3)}) as operation:
    ...     operation.changes[0].gains.values[-5:].tolist()
    [0.0, 0.0, 1.0, 1.0, 1.0]
    """

    def gains(self, decomposition: Decomposition) -> Gains:
        """1 on the weakest, 0 on the others."""
        return dropped(decomposition, self._others(decomposition))


@final
@by_name_only("rank=10")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DropBottom(_Bottom):
    """Remove the components that `KeepBottom` with the same arguments keeps: its exact complement.

    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.DropBottom(rank=3)}) as operation:
    ...     operation.changes[0].gains.values[-5:].tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0]
    """

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on the weakest, 1 on the others."""
        return kept(decomposition, self._others(decomposition))
