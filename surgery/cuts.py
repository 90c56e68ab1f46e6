"""Edits that cut the spectrum in two and keep or remove one side of it."""

from dataclasses import dataclass
from typing import final

from surgery import ranks
from surgery.bases import SVD, Basis
from surgery.decompositions import Decomposition
from surgery.edits import Edit, Gains, dropped, kept


class ByRank(Edit):
    """A cut in the spectrum, placed by exactly one of a count, a fraction of the full rank, an energy or a rule."""

    __slots__ = ()
    rank: int | None
    rho: float | None
    energy: float | None
    rule: str | None

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "rho", "energy", "rule") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{type(self).__name__} was given {' and '.join(given) or 'no rank'}: give exactly one of rank=, rho=, energy= "
                f"or rule= ({', '.join(ranks.RULES)})."
            )
        for name in ("rho", "energy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{type(self).__name__}({name}={value!r}): {name} is a fraction, from 0 to 1.")
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"{type(self).__name__}(rank={self.rank!r}): a rank is 0 or more.")
        if self.rule is not None and self.rule not in ranks.RULES:
            raise ValueError(f"{type(self).__name__}(rule={self.rule!r}): rules are {', '.join(ranks.RULES)}.")

    def count(self, decomposition: Decomposition) -> int:
        """How many components lie above the cut (for the *Bottom* edits: below it)."""
        if self.rho is not None:
            return ranks.rank_from_rho(self.rho, min(decomposition.shape))
        if self.energy is not None:
            return self._count_of_energy(decomposition, self.energy)
        if self.rule is not None:
            return ranks.RULES[self.rule](decomposition.S, *decomposition.shape)
        assert self.rank is not None
        if self.rank > decomposition.rank:
            raise ValueError(
                f"{self!r} asks for more components than '{decomposition.site}' has: "
                f"{decomposition.rank} (it is {decomposition.shape[0]} x {decomposition.shape[1]})."
            )
        return self.rank

    def _count_of_energy(self, decomposition: Decomposition, energy: float) -> int:
        return ranks.rank_from_energy(decomposition.S, energy)


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class KeepTop(ByRank):
    """Keep the strongest components: the low-rank approximation of LASER (arXiv:2312.13558, sec. 3).

    `rank` components; or `rho`, the fraction of the full rank kept, `floor(rho · min(d_in, d_out))` components; or the fewest
    that hold the fraction `energy` of the squared Frobenius norm; or as many as `rule` finds to be signal:
    ``"marchenko-pastur"``, ``"gavish-donoho"`` or ``"effective-rank"``.
    """

    rank: int | None = None
    rho: float | None = None
    energy: float | None = None
    rule: str | None = None
    basis: Basis = SVD()

    def gains(self, decomposition: Decomposition) -> Gains:
        """1 on the strongest, 0 on the others."""
        return kept(decomposition, range(self.count(decomposition)))


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DropTop(ByRank):
    """Remove the components that `KeepTop` with the same arguments keeps: its exact complement."""

    rank: int | None = None
    rho: float | None = None
    energy: float | None = None
    rule: str | None = None
    basis: Basis = SVD()

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on the strongest, 1 on the others."""
        return dropped(decomposition, range(self.count(decomposition)))


class _Bottom(ByRank):
    __slots__ = ()

    def _count_of_energy(self, decomposition: Decomposition, energy: float) -> int:
        return ranks.rank_from_energy(decomposition.S.flip(0), energy)

    def _weakest(self, decomposition: Decomposition) -> range:
        return range(decomposition.rank - min(self.count(decomposition), decomposition.rank), decomposition.rank)


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class KeepBottom(_Bottom):
    """Keep the weakest components only: as many as the same arguments of `KeepTop` would keep of the strongest.

    With `energy`, the fewest of the weakest that hold that fraction of the squared Frobenius norm.
    """

    rank: int | None = None
    rho: float | None = None
    energy: float | None = None
    rule: str | None = None
    basis: Basis = SVD()

    def gains(self, decomposition: Decomposition) -> Gains:
        """1 on the weakest, 0 on the others."""
        return kept(decomposition, self._weakest(decomposition))._replace(rest=1.0)


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DropBottom(_Bottom):
    """Remove the components that `KeepBottom` with the same arguments keeps: its exact complement."""

    rank: int | None = None
    rho: float | None = None
    energy: float | None = None
    rule: str | None = None
    basis: Basis = SVD()

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on the weakest, 1 on the others."""
        return dropped(decomposition, self._weakest(decomposition))._replace(rest=0.0)
