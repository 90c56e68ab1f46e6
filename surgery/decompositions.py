"""The components of a model's matrices: computed once, reused by everything, saved and loaded, never silently stale."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from hooks import Place, Site, host_of, match_each
from hooks.editor import editor_of
from hooks.fingerprints import fingerprint
from hooks.records import record_of
from surgery.arguments import shown
from surgery.bases import SVD, Basis, check_basis, decode_basis
from surgery.errors import StaleDecompositionError
from surgery.files import read_tensors, whole_file
from surgery.json_values import encode
from surgery.progress import progress_bar
from surgery.ranks import effective_rank, stable_rank
from surgery.svd import Factors

__all__ = [
    "Decomposition", "Decompositions", "chosen_basis", "decompose", "decomposed", "forget",
]  # fmt: skip

_FORMAT, _VERSION = "model-surgery decompositions", "2"
_NO_COMPONENTS = pd.DataFrame(columns=["site", "component", "strength", "energy", "cumulative_energy"])


@final
@dataclass(frozen=True, slots=True)
class Decomposition:
    """The components of one matrix: `W = U @ diag(S) @ Vh`, of `y = x @ W`, strongest first.

    `fingerprint` identifies the weights that were decomposed, `weight_state` says whether they were raw or processed.
    """

    site: str
    U: Float[Tensor, "d_in component"]
    S: Float[Tensor, " component"]
    Vh: Float[Tensor, "component d_out"]
    basis: Basis
    fingerprint: str
    weight_state: str

    @property
    def n_components(self) -> int:
        """The number of components, those of strength 0 included."""
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_in, d_out)` of the matrix."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def energy(self) -> Float[Tensor, " component"]:
        """Each component's share of the squared Frobenius norm."""
        squared = self.S.double().square()
        return squared / squared.sum().clamp_min(torch.finfo(torch.float64).tiny)

    def to(self, device: torch.device) -> "Decomposition":
        """The same components on another device."""
        if self.S.device == device:
            return self
        return replace(self, U=self.U.to(device), S=self.S.to(device), Vh=self.Vh.to(device))

    def __repr__(self) -> str:
        d_in, d_out = self.shape
        return f"Decomposition({self.site}: {d_in} x {d_out}, {self.n_components} components, {self.weight_state})"


class Decompositions(Mapping[str, Decomposition]):
    """A store of decompositions by site address, all in one basis; from `surgery.decompose`."""

    def __init__(self, entries: Iterable[Decomposition] = (), *, basis: Basis | None = None) -> None:
        self.basis = SVD() if basis is None else basis
        check_basis(self.basis, "Decompositions was given basis")
        self._entries: dict[str, Decomposition] = {}
        for entry in entries:
            self.add(entry)

    def __getitem__(self, site: str) -> Decomposition:
        if site in self._entries:
            return self._entries[site]
        raise KeyError(f"{site!r} has not been decomposed: there are {', '.join(self._entries) or 'none'}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        matrices = f"{len(self)} {'matrix' if len(self) == 1 else 'matrices'}"
        return f"Decompositions({matrices}, {self.basis!r}, {self.nbytes / 2**20:.1f} MiB)"

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.nbytes for entry in self._entries.values() for t in (entry.U, entry.S, entry.Vh))

    def add(self, entry: Decomposition) -> None:
        """Store one more decomposition, in place of an earlier one of the same site.

        Raises:
            ValueError: if it is in another basis, or its U, S and Vh are no decomposition.
        """
        if reason := _damage(entry):
            raise ValueError(f"Decomposition({entry.site}) cannot be used: {reason}. Decompose the model again.")
        if entry.basis != self.basis:
            raise ValueError(
                f"{entry!r} is in the basis {entry.basis!r}, this collection is in {self.basis!r}: keep one collection "
                "for each basis."
            )
        self._entries[entry.site] = entry

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each component: its site, index, strength, and share of the squared Frobenius norm (`energy`).

        `cumulative_energy` is the share of this component and all stronger ones of its matrix.

        >>> svds = surgery.decompose(model, "blocks.0.mlp.W_*")
        >>> svds.to_dataframe().columns.tolist()
        ['site', 'component', 'strength', 'energy', 'cumulative_energy']
        """
        tables = [
            pd.DataFrame(
                {
                    "site": site,
                    "component": range(entry.n_components),
                    "strength": entry.S.cpu().numpy(),
                    "energy": (energy := entry.energy.cpu()).numpy(),
                    "cumulative_energy": energy.cumsum(0).numpy(),
                }
            )
            for site, entry in self.items()
        ]
        return pd.concat(tables or [_NO_COMPONENTS], ignore_index=True)

    def ranks_to_dataframe(self) -> pd.DataFrame:
        """A row for each matrix: its shape, its number of components, and its effective and stable rank.

        >>> svds = surgery.decompose(model, "blocks.0.mlp.W_*")
        >>> svds.ranks_to_dataframe()[["site", "d_in", "d_out", "n_components"]].values.tolist()
        [['blocks.0.mlp.W_in', 16, 32, 16], ['blocks.0.mlp.W_out', 32, 16, 16]]
        """
        rows = [
            (site, *entry.shape, entry.n_components, effective_rank(entry.S), stable_rank(entry.S))
            for site, entry in self.items()
        ]
        columns = ["site", "d_in", "d_out", "n_components", "effective_rank", "stable_rank"]
        return pd.DataFrame(rows, columns=columns)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, with fingerprints of the weights that were decomposed.

        Raises:
            ValueError: if the basis is of somebody's own making, which `load` could not make again.
        """
        try:
            document = encode(self.basis)
            decode_basis(document)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self!r} cannot be saved ({error}): a file holds bases of this package only. Decompose the "
                "model anew where you need them."
            ) from None
        parts = {site: (entry.U, entry.S, entry.Vh) for site, entry in self.items()}
        names = Factors._fields
        tensors = {f"{s}|{name}": t.contiguous() for s, uv in parts.items() for name, t in zip(names, uv, strict=True)}
        sites = {site: {"fingerprint": d.fingerprint, "weight_state": d.weight_state} for site, d in self.items()}
        texts = {"basis": json.dumps(document), "sites": json.dumps(sites)}
        about = {"format": _FORMAT, "version": _VERSION, **texts, "checksum": _checksum(texts, tensors)}
        with whole_file(path) as file:
            save_file(tensors, str(file), metadata=about)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "Decompositions":
        """The decompositions that `save` wrote. Whether they fit a model is checked when they are used.

        Raises:
            ValueError: if the file is damaged or not one of ours.
        """
        with read_tensors(path, (_FORMAT, _VERSION), "decompositions", device=device) as (metadata, tensors):
            return cls._read(metadata, tensors)

    @classmethod
    def _read(cls, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> "Decompositions":
        texts = {name: metadata[name] for name in ("basis", "sites")}
        if metadata.get("checksum") != _checksum(texts, tensors):
            raise ValueError("its contents are not what was written")
        basis = decode_basis(json.loads(texts["basis"]))
        entries = []
        for site, about in json.loads(texts["sites"]).items():
            U, S, Vh = (tensors[f"{site}|{name}"] for name in Factors._fields)
            entry = Decomposition(site, U, S, Vh, basis, str(about["fingerprint"]), str(about["weight_state"]))
            if reason := _damage(entry):
                raise ValueError(f"{site}: {reason}")
            entries.append(entry)
        return cls(entries, basis=basis)


def _checksum(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(repr(sorted(texts.items())).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damage(entry: Decomposition) -> str | None:
    """What is wrong with U, S or Vh of a decomposition; None if nothing is."""
    U, S, Vh = factors = entry.U, entry.S, entry.Vh
    if (U.ndim, S.ndim, Vh.ndim) != (2, 1, 2) or not U.shape[1] == S.shape[0] == Vh.shape[0]:
        return f"U {tuple(U.shape)}, S {tuple(S.shape)} and Vh {tuple(Vh.shape)} do not fit together"
    if len({factor.dtype for factor in factors}) > 1 or S.dtype not in (torch.float32, torch.float64):
        types = ", ".join(str(factor.dtype).removeprefix("torch.") for factor in factors)
        return f"its parts are of {types}, not all of float32 or all of float64"
    if not all(bool(factor.isfinite().all()) for factor in factors):
        return "it holds NaN or infinity"
    if bool((S < 0).any()):
        return "it holds negative strengths"
    if entry.basis == SVD() and S.numel() and bool((S.diff() > 1e-4 * S[0]).any()):
        return "its strengths do not fall from first to last"
    return None


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
    """
    chosen = chosen_basis(basis, svds)
    found = decomposed(model, match_each(model, sites), basis=chosen, svds=svds, progress=progress)
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

    A store in another basis is left aside.
    """
    return components_of(model, host_of(model).places(sites).values(), basis=basis, svds=svds, progress=progress)


def components_of(
    model: nn.Module, places: Iterable[Place], *, basis: Basis, svds: Decompositions | None, progress: bool
) -> dict[Site, Decomposition]:
    """As `decomposed`, of matrices whose places are known."""
    check_store(svds)
    own_store = svds if svds is not None and svds.basis == basis else None
    store = record_of(model).of(Remembered).in_basis(basis) if own_store is None else own_store
    editor, state = editor_of(model), host_of(model).weight_state()
    matrices = {place.site: editor.original(place) for place in places}
    marks = {site: fingerprint(W) for site, W in matrices.items()}
    fitting: dict[Site, Decomposition] = {}
    for site, W in matrices.items():
        entry = store.get(str(site))
        if entry is not None and entry.fingerprint == marks[site] and entry.shape == tuple(W.shape):
            fitting[site] = entry.to(W.device)
        elif entry is not None and own_store is not None:
            raise _stale(entry, state)
    missing = [site for site in matrices if site not in fitting]
    # Heads of one matrix are decomposed together, in one batch.
    groups = [list(group) for _, group in groupby(missing, key=lambda site: (site.joint, site.head is None))]
    # Even a disabled bar takes a lock of the whole process, which an interrupt can leave taken.
    for heads in (
        progress_bar("decomposing", groups, progress=progress, unit="matrix") if groups and progress else groups
    ):
        for site, factors in zip(heads, _components(heads, matrices, basis), strict=True):
            fitting[site] = Decomposition(str(site), *factors, basis, marks[site], state)
            store.add(fitting[site])
    return {site: fitting[site] for site in matrices}


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
    stack = torch.stack([matrices[site] for site in heads])
    if not bool(torch.isfinite(stack).all()):
        bad = next(site for site in heads if not bool(torch.isfinite(matrices[site]).all()))
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
