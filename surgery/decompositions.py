"""The components of a model's matrices: computed once, reused by everything, never silently stale."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import final

import torch
from torch import Tensor, nn

from hooks import Place, Site, host_of, match_each
from hooks.editor import editor_of
from hooks.fingerprints import fingerprint
from hooks.records import record_of
from hooks.sizes import free_memory
from surgery.arguments import counted, shown
from surgery.bases import SVD, Basis, check_basis
from surgery.decomposition import Decomposition
from surgery.errors import StaleDecompositionError
from surgery.progress import progress_bar
from surgery.stores import Decompositions, in_words
from surgery.svd import Factors, all_finite

__all__ = [
    "Decomposition", "Decompositions", "chosen_basis", "decompose", "decomposed", "forget",
]  # fmt: skip


def decompose(
    model: nn.Module,
    sites: str | Iterable[str] = "*",
    *,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    progress: bool = True,
) -> Decompositions:
    """The components of every matrix that `sites` (a pattern, or several) names, in `basis`: SVD() unless given.

    Matrices decomposed before are looked up: in `svds` if given (new ones are added to it, and it is returned), else in
    a memory that lives as long as the model does (`surgery.forget(model)` empties it). Under an active edit the
    original weights are decomposed, not the edited ones. An interrupted call keeps what it has finished.

    >>> svds = surgery.decompose(model, "blocks.0.mlp.*")
    >>> list(svds)
    ['blocks.0.mlp.W_in', 'blocks.0.mlp.W_out']
    >>> svds["blocks.0.mlp.W_out"].U.shape
    torch.Size([32, 16])

    Raises:
        TypeError: if a pattern is not a string, `basis` not a basis, or `svds` not what this function returns.
        SiteError: if a pattern names no editable matrix.
        StaleDecompositionError: if `svds` holds a matrix whose weights have changed since.
        ValueError: if a weight is not finite, or `svds` is in another basis.
        MemoryError: if there is no room for the components, said before any is computed; OSError: if a disk has none.
    """
    chosen = chosen_basis(basis, svds)
    matched = match_each(model, sites)
    places = host_of(model).places(matched).values()
    found = components_of(model, places, basis=chosen, svds=svds, progress=progress)
    return Decompositions(found.values(), basis=chosen) if svds is None else svds


def chosen_basis(basis: Basis | None, svds: Decompositions | None) -> Basis:
    """The basis to work in: `basis`, or SVD() where it is None. The store only stores, and has to be in that basis.

    Raises:
        TypeError: if `basis` is not a basis, or `svds` not a store.
        ValueError: if the store is in another basis.
    """
    check_store(svds)
    if basis is not None:
        check_basis(basis, "basis")
    chosen = SVD() if basis is None else basis
    if svds is not None and svds.basis != chosen:
        asked = "no basis= was given, which means SVD()" if basis is None else f"basis={basis!r} was asked for"
        raise ValueError(
            f"svds is in the basis {svds.basis!r}, but {asked}: give basis={svds.basis!r}, or a store in {chosen!r}."
        )
    return chosen


def decomposed(
    model: nn.Module, sites: Iterable[Site], *, basis: Basis, svds: Decompositions | None, progress: bool = True
) -> dict[Site, Decomposition]:
    """A decomposition in `basis` of each matrix, fitting its unedited weights: looked up, or computed and remembered.

    On the matrix's own device. A store in another basis is left aside.
    """
    places = host_of(model).places(sites)
    found = components_of(model, places.values(), basis=basis, svds=svds, progress=progress)
    return {site: entry.to(places[site].device) for site, entry in found.items()}


def components_of(
    model: nn.Module, places: Iterable[Place], *, basis: Basis, svds: Decompositions | None, progress: bool
) -> dict[Site, Decomposition]:
    """As `decomposed`, of matrices whose places are known, where the store holds them: on whichever device."""
    check_store(svds)
    own_store = svds if svds is not None and svds.basis == basis else None
    store = record_of(model).of(Remembered).in_basis(basis) if own_store is None else own_store
    editor, state = editor_of(model), host_of(model).weight_state()
    matrices = {place.site: editor.original(place) for place in places}
    marks = {site: fingerprint(W) for site, W in matrices.items()}
    missing: list[Site] = []
    for site, W in matrices.items():
        entry = store.get(str(site))
        if entry is None or entry.fingerprint != marks[site] or entry.shape != tuple(W.shape):
            if entry is not None and own_store is not None:
                raise _stale(entry, state)
            missing.append(site)
    check_room(store, {site: matrices[site] for site in missing}, basis)
    # Heads of one matrix are decomposed together, in one batch.
    groups = [list(group) for _, group in groupby(missing, key=lambda site: (site.joint, site.head is None))]
    # Even a disabled bar takes a lock of the whole process, which an interrupt can leave taken.
    is_shown = bool(groups) and progress
    for heads in progress_bar("decomposing", groups, progress=True, unit="matrix") if is_shown else groups:
        for site, factors in zip(heads, _components(heads, matrices, basis), strict=True):
            rest = _rest(matrices[site], factors, basis)
            store.add(Decomposition(str(site), *factors, basis, marks[site], state, rest))
    return {site: store[str(site)] for site in matrices}


def check_room(store: Decompositions, matrices: Mapping[Site, Tensor], basis: Basis) -> None:
    """Refuse to decompose matrices whose components there is no room for, before any is decomposed.

    Raises:
        MemoryError: if they take more than the store may hold, or than a device has free.
        OSError: if they take more than the disk with the store's folder has free.
    """
    if not matrices:
        return
    planned = {str(site): _planned(W, basis) for site, W in matrices.items()}
    store.check_room(planned)
    if store.is_bounded:
        return
    for device in {W.device for W in matrices.values()}:
        here = [planned[str(site)] for site, W in matrices.items() if W.device == device]
        free = free_memory(device)
        if free is not None and sum(here) > free:
            raise MemoryError(
                f"the components of {counted(len(here), 'matrix', 'matrices')} take {in_words(sum(here))}, and "
                f"{device} has {in_words(free)} of memory free: give svds=Decompositions(folder=...), which keeps them "
                "on disk, or basis=LeadingSVD(rank), or name fewer matrices."
            )


def _planned(W: Tensor, basis: Basis) -> int:
    """The bytes that the components of a matrix take."""
    d_in, d_out = W.shape
    return basis.n_components(d_in, d_out) * (d_in + 1 + d_out) * max(W.element_size(), 4)


def _rest(W: Tensor, factors: Factors, basis: Basis) -> float:
    """The squared Frobenius norm of what the components leave; where they replace the matrix there is no such thing."""
    if basis.complete or basis.replaces:
        return 0.0
    norm = float(torch.linalg.vector_norm(W, dtype=torch.float64).square())
    return max(0.0, norm - float(factors.S.double().square().sum()))


def check_store(svds: object) -> None:
    """Refuse what is no store of decompositions.

    Raises:
        TypeError: saying where one comes from.
    """
    if svds is not None and not isinstance(svds, Decompositions):
        raise TypeError(
            f"svds={shown(svds)} is a {type(svds).__name__}: give what surgery.decompose(model, ...) returned, or "
            "Decompositions()."
        )


@final
class Remembered(dict[Basis, Decompositions]):
    """The decompositions remembered for one model: a store for each basis."""

    def in_basis(self, basis: Basis) -> Decompositions:
        """The store for a basis, empty at first."""
        return self.setdefault(basis, Decompositions(basis=basis))


def forget(model: nn.Module) -> None:
    """Free the decompositions remembered for this model; they are computed anew when next needed."""
    record_of(model).of(Remembered).clear()


def _components(heads: list[Site], matrices: dict[Site, Tensor], basis: Basis) -> list[Factors]:
    """The components of one matrix, or of several heads of one in a single batch."""
    # A matrix by itself is not copied: it may be large.
    stack = torch.stack([matrices[site] for site in heads]) if len(heads) > 1 else matrices[heads[0]]
    if not all_finite(stack):
        bad = next(site for site in heads if not all_finite(matrices[site]))
        count = int((~torch.isfinite(matrices[bad])).sum())
        raise ValueError(
            f"'{bad}' holds {count} entries that are not finite (NaN or infinity), so it has no singular values: "
            "reload the model, or leave this matrix out."
        )
    if len(heads) == 1 or not basis.batched:
        return [basis.decompose(matrices[site]) for site in heads]
    batched = basis.decompose(stack)
    return [Factors(*(part[i] for part in batched)) for i in range(len(heads))]


def _stale(entry: Decomposition, state: str) -> StaleDecompositionError:
    if entry.weight_state != state:
        return StaleDecompositionError(
            f"the decomposition of '{entry.site}' was made from weights that were {entry.weight_state!r}; this model's "
            f"are {state!r}, which is another matrix. Decompose this model: surgery.decompose(model, ...)."
        )
    return StaleDecompositionError(
        f"the decomposition of '{entry.site}' was made from other weights than the model holds now "
        "(trained since, loaded anew, or another model). Decompose again: surgery.decompose(model, ...)."
    )
