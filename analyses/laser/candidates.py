"""What a search may try: every edit of every matrix, as candidates in the order of the forward pass."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, final

import torch
from torch import nn

from hooks import Place, Site, host_of
from surgery import Basis, Decompositions, Edit, KeepTop, RandomizedSVD
from surgery import sites as sites_of
from surgery.arguments import fraction, shown
from surgery.bases import SVD
from surgery.cuts import ByRank
from surgery.decompositions import decomposed
from surgery.edits import Gains
from surgery.json_values import encode
from surgery.ranks import rank_from_rho

PAPER_RHOS = (0.9, 0.8, 0.6, 0.2, 0.1, 0.05, 0.01)
"""The fractions of the full rank that LASER's search keeps (arXiv:2312.13558)."""


class Family(ABC):
    """One edit for every fraction ρ."""

    @abstractmethod
    def edit(self, rho: float, shape: tuple[int, int]) -> Edit:
        """The edit for ρ of a matrix of this shape `(d_in, d_out)`."""


@final
@dataclass(frozen=True, slots=True)
class ByRho(Family):
    """The edits `cut(rho=ρ, basis=basis)`; `cut` is KeepTop, KeepBottom, DropTop or DropBottom."""

    cut: type[ByRank]
    basis: Basis = SVD()

    def edit(self, rho: float, shape: tuple[int, int]) -> Edit:
        """The cut at ρ."""
        return self.cut(rho=rho, basis=self.basis)  # type: ignore[call-arg]


@final
@dataclass(frozen=True, slots=True)
class Published(Family):
    """LASER as its authors' code computes it, but with a seed: a randomised SVD of exactly the rank that is kept.

    The code ran it unseeded with `n_iter=2`; its matrix is not the best one of its rank (`published_distance`).
    """

    seed: int
    n_iter: int = 2

    def edit(self, rho: float, shape: tuple[int, int]) -> Edit:
        """Keep everything that a randomised SVD of rank `floor(ρ · min(shape))` finds."""
        rank = rank_from_rho(rho, min(shape))
        return KeepTop(rank=rank, basis=RandomizedSVD(rank, self.seed, self.n_iter))


Edits: TypeAlias = Iterable[type[ByRank] | Family | Edit]
"""What to try: a cut such as `KeepTop`, or a family, at every ρ; an edit as it is, once."""


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """One edit of one matrix; `rho` and `family` are None for an edit that was given as it is."""

    site: Site
    edit: Edit
    rho: float | None
    family: Family | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """What tells it from every other candidate, in writing."""
        return json.dumps([str(self.site), encode(self.edit)], sort_keys=True)

    @property
    def spec(self) -> dict[str, Edit]:
        """The candidate as `surgery.apply` takes it."""
        return {str(self.site): self.edit}

    def __str__(self) -> str:
        return f"{self.site} {self.edit!r}"


def candidates(
    model: nn.Module, sites: str | Iterable[str], rhos: Sequence[float], edits: Edits
) -> tuple[Candidate, ...]:
    """Every edit of every matrix, each once: sites in the order of the forward pass, edits and ρ as they are given.

    Raises:
        SiteError: if a pattern names no editable matrix.
        TypeError: if something given as an edit is none.
        ValueError: if there is nothing to try, or a ρ is not between 0 and 1.
    """
    if isinstance(edits, Edit | Family | type | str | Mapping):
        raise TypeError(f"edits={edits!r}: give a list of what to try, such as [KeepTop].")
    families = [_family(edit) for edit in edits]
    rhos = fractions(rhos)
    host, found = host_of(model), {}
    for site in map(Site.parse, sites_of(model, sites)):
        for family in families:
            for one in _of_site(host.place(site), family, rhos):
                found.setdefault(one.key, one)
    if not found:
        raise ValueError(
            f"sites={sites!r}, rhos={tuple(rhos)!r}, edits={tuple(families)!r} give no candidate: a search needs one "
            "or more. Give at least one site and one edit, and for edits by ρ at least one ρ."
        )
    return tuple(found.values())


def fractions(rhos: object) -> tuple[float, ...]:
    """The ρ of a search, each from 0 to 1.

    Raises:
        ValueError: if they are not several numbers, or one is out of range.
    """
    if isinstance(rhos, str | bytes | Mapping) or not hasattr(rhos, "__len__"):
        raise ValueError(f"rhos={shown(rhos)}: give a list of fractions of the full rank, such as (0.5, 0.1).")
    return tuple(fraction(rho, "rho") for rho in rhos)  # type: ignore[attr-defined]


def gains_of(
    model: nn.Module, wanted: Sequence[Candidate], *, svds: Decompositions | None, progress: bool
) -> dict[Candidate, Gains]:
    """The gains that each candidate chooses; every matrix is decomposed once in each basis."""
    by_basis: dict[Basis, list[Site]] = {}
    for one in wanted:
        by_basis.setdefault(one.edit.basis, []).append(one.site)
    found = {}
    for basis, sites in by_basis.items():
        parts = decomposed(model, dict.fromkeys(sites), basis=basis, svds=svds, progress=progress)
        found |= {one: one.edit.gains(parts[one.site]) for one in wanted if one.edit.basis == basis}
    return {one: found[one] for one in wanted}


def check_possible(
    model: nn.Module, wanted: Sequence[Candidate], *, svds: Decompositions | None, progress: bool
) -> None:
    """Edits that are impossible on a matrix, of more components than it has say, are told of before anything is run.

    Raises:
        ValueError: if there is such an edit.
    """
    gains_of(model, [one for one in wanted if one.rho is None], svds=svds, progress=progress)


def is_identity(gains: Gains) -> bool:
    """Whether the edit leaves its matrix as it is, to the last bit."""
    return gains.rest == 1 and gains.constants is None and bool((gains.values == 1).all())


def same_matrix(one: Candidate, its: Gains, other: Candidate, others: Gains) -> bool:
    """Whether two candidates leave the same matrix behind: two ρ often mean the same rank on a small one."""
    if (one.site, one.edit.basis, its.rest) != (other.site, other.edit.basis, others.rest):
        return False
    if its.constants is not None or others.constants is not None:
        return False
    return torch.equal(its.values, others.values)


def distinct(wanted: Sequence[Candidate], gains: dict[Candidate, Gains]) -> dict[Candidate, Candidate | None]:
    """For each candidate the first one that leaves the same matrix behind; None where that is the unedited one."""
    first: dict[Candidate, Candidate | None] = {}
    seen: dict[Site, list[Candidate]] = {}
    for one in wanted:
        if is_identity(gains[one]):
            first[one] = None
            continue
        alike = [other for other in seen.get(one.site, []) if same_matrix(one, gains[one], other, gains[other])]
        first[one] = alike[0] if alike else one
        if not alike:
            seen.setdefault(one.site, []).append(one)
    return first


def _family(edit: object) -> Family | Edit:
    if isinstance(edit, Family | Edit):
        return edit
    if isinstance(edit, type) and issubclass(edit, ByRank):
        return ByRho(edit)
    raise TypeError(
        f"{edit!r} is no edit: give cuts such as KeepTop or DropTop, which are tried at every ρ, laser.ByRho or "
        "laser.Published, or single edits such as DropTop(rank=1)."
    )


def _of_site(place: Place, family: Family | Edit, rhos: Sequence[float]) -> list[Candidate]:
    if isinstance(family, Edit):
        rho = getattr(family, "rho", None)
        return [Candidate(place.site, family, rho)]
    shape = place.d_in, place.d_out
    return [Candidate(place.site, family.edit(rho, shape), float(rho), family) for rho in rhos]
