"""What a search may try: the edits of every matrix, as candidates in the order of the forward pass."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TypeAlias, final

import pandas as pd
import torch
from torch import nn

from hooks import Place, Site, host_of, match_each
from surgery import Basis, Decompositions, Edit, Gains, KeepTop, RandomizedSVD
from surgery.arguments import fraction, shown
from surgery.bases import SVD
from surgery.cuts import ByRank
from surgery.decompositions import decomposed
from surgery.json_values import encode
from surgery.ranks import rank_from_rho

PAPER_RHOS = (0.9, 0.8, 0.6, 0.2, 0.1, 0.05, 0.01)
"""The fractions of the full rank that LASER's search keeps (arXiv:2312.13558)."""
MLP = "blocks.*.mlp.W_{in,out}"
"""The matrices that LASER's search reduces."""
UNEDITED = "unedited"
"""What tables call the model as it was given."""


class Family(ABC):
    """One kind of edit, with an edit for every fraction ρ of the rank."""

    @abstractmethod
    def edit(self, rho: float, shape: tuple[int, int]) -> Edit:
        """The edit for ρ of a matrix of this shape `(d_in, d_out)`."""


@final
@dataclass(frozen=True, slots=True)
class ByRho(Family):
    """The edits `cut(rho=ρ, basis=basis)`; `cut` is KeepTop, KeepBottom, DropTop or DropBottom.

    >>> laser.ByRho(surgery.KeepTop, surgery.RowBlocks(2)).edit(0.5, (16, 32))
    KeepTop(rho=0.5, basis=RowBlocks(blocks=2))
    """

    cut: type[ByRank]
    basis: Basis = SVD()

    def edit(self, rho: float, shape: tuple[int, int]) -> Edit:
        """The cut at ρ."""
        return self.cut(rho=rho, basis=self.basis)  # type: ignore[call-arg]


@final
@dataclass(frozen=True, slots=True)
class Published(Family):
    """LASER as its authors' code computes it, but with a seed: a randomised SVD of exactly the rank that is kept.

    That code runs `torch.svd_lowrank` unseeded with `niter=2`, whose result is not the best matrix of its rank:
    `published_distance` measures by how much.

    >>> laser.Published(seed=0).edit(0.5, (16, 32)).rank
    8
    """

    seed: int
    n_iter: int = 2

    def edit(self, rho: float, shape: tuple[int, int]) -> Edit:
        """Keep everything that a randomised SVD of rank `floor(ρ · min(shape))` computes."""
        rank = rank_from_rho(rho, min(shape))
        return KeepTop(rank=rank, basis=RandomizedSVD(rank, self.seed, self.n_iter))


Edits: TypeAlias = Iterable[type[ByRank] | Family | Edit]
"""What to try: a cut such as `KeepTop`, or a family, at every ρ; a single edit once."""


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """One edit of one matrix. `family` is None for a single edit, and `rho` too where such an edit has none."""

    site: Site
    edit: Edit
    rho: float | None
    family: Family | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """A text that no other candidate has."""
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
    """Every edit of every matrix, each once: sites in the order of the forward pass, edits and ρ in the order given.

    Raises:
        SiteError: if a pattern names no editable matrix.
        TypeError: if `edits` holds something else.
        ValueError: if there is nothing to try, or a ρ is not from 0 to 1.
    """
    if isinstance(edits, Edit | Family | type | str | Mapping):
        raise TypeError(f"edits={edits!r}: give a list of what to try, such as [KeepTop].")
    families = [_family(edit) for edit in edits]
    rhos = fractions(rhos)
    host, by_key = host_of(model), {}
    for site in match_each(model, sites):
        place = host.place(site)
        for family in families:
            # Two ρ may give one edit, and a user may name one edit twice.
            for candidate in _of_site(place, family, rhos):
                by_key.setdefault(candidate.key, candidate)
    if not by_key:
        raise ValueError(
            f"sites={sites!r}, rhos={tuple(rhos)!r}, edits={tuple(families)!r} give no candidate: a search needs one "
            "or more. Give at least one site and one edit, and for edits by ρ at least one ρ."
        )
    return tuple(by_key.values())


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
    """The gains of each candidate. Every matrix is decomposed once in each basis.

    Raises:
        ValueError: if an edit is impossible on its matrix, such as one of more components than there are.
    """
    by_basis: dict[Basis, list[Candidate]] = {}
    for candidate in wanted:
        by_basis.setdefault(candidate.edit.basis, []).append(candidate)
    gains = {}
    for basis, alike in by_basis.items():
        sites = dict.fromkeys(candidate.site for candidate in alike)
        decompositions = decomposed(model, sites, basis=basis, svds=svds, progress=progress)
        gains |= {candidate: candidate.edit.gains(decompositions[candidate.site]) for candidate in alike}
    return {candidate: gains[candidate] for candidate in wanted}


def first_alike(gains: Mapping[Candidate, Gains]) -> dict[Candidate, Candidate | None]:
    """For each candidate the first one that leaves the same matrix behind; None where that is the unedited matrix.

    On a small matrix two ρ often mean the same rank.
    """
    first: dict[Candidate, Candidate | None] = {}
    for candidate, its in gains.items():
        if its.rest == 1 and its.constants is None and bool((its.values == 1).all()):
            first[candidate] = None
            continue
        earlier = [other for other, same in first.items() if same is other and other.site == candidate.site]
        alike = (other for other in earlier if _same_matrix(candidate, its, other, gains[other]))
        first[candidate] = next(alike, candidate)
    return first


def row_of(candidate: Candidate | None) -> dict[str, object]:
    """The columns of a table that say what was edited; None stands for the unedited model."""
    if candidate is None:
        return {
            "candidate": UNEDITED, "site": "", "layer": pd.NA, "matrix": "", "edit": UNEDITED, "basis": "", "rho": 1.0,
        }  # fmt: skip
    edit, rho = candidate.edit, candidate.rho
    return {
        "candidate": str(candidate),
        "site": str(candidate.site),
        "layer": candidate.site.layer,
        "matrix": candidate.site.matrix,
        "edit": type(edit).__name__ if rho is not None and edit.basis == SVD() else repr(edit),
        "basis": repr(edit.basis),
        "rho": nan if rho is None else rho,
    }


def _same_matrix(candidate: Candidate, its: Gains, other: Candidate, others: Gains) -> bool:
    if (candidate.edit.basis, its.rest) != (other.edit.basis, others.rest):
        return False
    if its.constants is not None or others.constants is not None:
        return False
    return torch.equal(its.values, others.values)


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
        return [Candidate(place.site, family, getattr(family, "rho", None))]
    shape = place.d_in, place.d_out
    return [Candidate(place.site, family.edit(rho, shape), float(rho), family) for rho in rhos]
