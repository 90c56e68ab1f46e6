"""A store of decompositions: in memory, within a budget if one is set, or in a folder of files that are mapped."""

from collections.abc import Iterable, Iterator, Mapping
from math import nan
from pathlib import Path
from shutil import disk_usage

import pandas as pd
import torch

from surgery._decomposition_files import Folder, read, write
from surgery.arguments import counted, whole
from surgery.bases import SVD, Basis, check_basis
from surgery.decomposition import Decomposition, damage
from surgery.ranks import effective_rank

__all__ = ["Decompositions", "in_words"]

_NO_COMPONENTS = pd.DataFrame(columns=["site", "component", "strength", "energy", "cumulative_energy"])


class Decompositions(Mapping[str, Decomposition]):
    """A store of decompositions by site address, all in one basis; from `surgery.decompose`.

    `memory` is how many bytes of components it may hold. With a `folder` each decomposition is written there as soon as
    it is made, and what `memory` has no room for (everything, if it is not set) is mapped from there: the system reads
    the pages that are used, and drops them when memory is short. Opened again, the folder gives back what is in it.
    Without a folder, `memory` is a limit that is refused to be passed.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> svds = surgery.Decompositions(folder=folder)
    >>> operation = surgery.apply(model, {"blocks.*.mlp.W_out": surgery.KeepTop(rank=2)}, svds=svds)
    >>> operation.undo()
    >>> svds.nbytes, list(surgery.Decompositions(folder=folder))
    (0, ['blocks.0.mlp.W_out', 'blocks.1.mlp.W_out'])

    Raises:
        ValueError: if `memory` is no number of bytes, or the folder holds something else, or another basis.
        MemoryError: if the entries take more than `memory`, without a folder.
    """

    def __init__(
        self,
        entries: Iterable[Decomposition] = (),
        *,
        basis: Basis | None = None,
        folder: str | Path | None = None,
        memory: int | None = None,
    ) -> None:
        self.basis = SVD() if basis is None else basis
        check_basis(self.basis, "Decompositions was given basis")
        self.memory = whole(memory, "Decompositions was given memory") if memory is not None else None
        self._folder = None if folder is None else Folder(folder, self.basis)
        # None stands for what is in the folder and has not been asked for.
        self._entries: dict[str, Decomposition | None] = dict.fromkeys(self._folder.sites() if self._folder else ())
        self._mapped: set[str] = set(self._entries)
        for entry in entries:
            self.add(entry)

    def __getitem__(self, site: str) -> Decomposition:
        if site not in self._entries:
            raise KeyError(f"{site!r} has not been decomposed: there are {', '.join(self._entries) or 'none'}.")
        entry = self._entries[site]
        if entry is None:
            assert self._folder is not None
            entry = self._entries[site] = self._folder.get(site)
        return entry

    def __contains__(self, site: object) -> bool:
        return site in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        matrices = counted(len(self), "matrix", "matrices")
        there = f", {in_words(self._folder.nbytes())} in '{self._folder.path}'" if self._folder else ""
        return f"Decompositions({matrices}, {self.basis!r}, {self.nbytes / 2**20:.1f} MiB{there})"

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes, without what is mapped from a folder."""
        return sum(entry.nbytes for site, entry in self._entries.items() if entry and site not in self._mapped)

    @property
    def is_bounded(self) -> bool:
        """Whether somebody said what it may hold: a number of bytes, or a folder that takes what is more."""
        return self.memory is not None or self._folder is not None

    def add(self, entry: Decomposition) -> None:
        """Store one more decomposition, in place of an earlier one of the same site.

        Raises:
            ValueError: if it is in another basis, or its U, S and Vh are no decomposition.
            MemoryError: if there is no room for it, and no folder.
        """
        if reason := damage(entry):
            raise ValueError(f"Decomposition({entry.site}) cannot be used: {reason}. Decompose the model again.")
        if entry.basis != self.basis:
            raise ValueError(
                f"{entry!r} is in the basis {entry.basis!r}, this collection is in {self.basis!r}: keep one collection "
                "for each basis."
            )
        if self._folder is None:
            self.check_room({entry.site: entry.nbytes})
            self._entries[entry.site] = entry
            return
        mapped = self._folder.put(entry)
        self._entries[entry.site] = None  # what was held gives way to what is new
        fits = self.memory is not None and self.nbytes + entry.nbytes <= self.memory
        (self._mapped.discard if fits else self._mapped.add)(entry.site)
        self._entries[entry.site] = entry if fits else mapped

    def check_room(self, planned: Mapping[str, int]) -> None:
        """Refuse decompositions of so many bytes each, by their sites, that the store has no room for.

        Raises:
            MemoryError: if they take more than `memory`, and there is no folder.
            OSError: if they take more than the disk with the folder has free.
        """
        taken = sum(planned.values())
        what = f"the components of {counted(len(planned), 'matrix', 'matrices')} take {in_words(taken)}"
        if self._folder is not None:
            free = disk_usage(self._folder.path).free
            if taken > free:
                raise OSError(
                    f"{what}, and the disk with the folder '{self._folder.path}' has {in_words(free)} free: choose a "
                    "folder with more room, fewer matrices, or basis=LeadingSVD(rank)."
                )
            return
        held = self.nbytes - sum(self[site].nbytes for site in planned if site in self)
        if self.memory is not None and held + taken > self.memory:
            raise MemoryError(
                f"{what}, and the store holds {in_words(held)} of the {in_words(self.memory)} that it may: give it a "
                "folder (Decompositions(folder=..., memory=...)), more memory, or basis=LeadingSVD(rank)."
            )

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

        The effective rank is that of the whole spectrum: NaN where the basis holds the leading components only.

        >>> svds = surgery.decompose(model, "blocks.0.mlp.W_*")
        >>> svds.ranks_to_dataframe()[["site", "d_in", "d_out", "n_components"]].values.tolist()
        [['blocks.0.mlp.W_in', 16, 32, 16], ['blocks.0.mlp.W_out', 32, 16, 16]]
        """
        rows = [
            (site, *entry.shape, entry.n_components, _effective_rank(entry), _stable_rank(entry))
            for site, entry in self.items()
        ]
        columns = ["site", "d_in", "d_out", "n_components", "effective_rank", "stable_rank"]
        return pd.DataFrame(rows, columns=columns)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, with fingerprints of the weights that were decomposed.

        Raises:
            ValueError: if the basis is of somebody's own making, which `load` could not make again.
        """
        write(path, self.values(), self.basis)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "Decompositions":
        """The decompositions that `save` wrote. Whether they fit a model is checked when they are used.

        Raises:
            ValueError: if the file is damaged or not one of ours.
        """
        basis, entries = read(path, device=device)
        return cls(entries, basis=basis)


def in_words(nbytes: int) -> str:
    """A number of bytes for people to read."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _effective_rank(entry: Decomposition) -> float:
    return effective_rank(entry.S) if entry.n_components >= min(entry.shape) else nan


def _stable_rank(entry: Decomposition) -> float:
    return 1 / float(entry.energy.max()) if bool(entry.S.any()) else 0.0
