"""Decompositions in safetensors files: one file of several, or a folder with a file for each matrix.

On a CPU, tensors that are read are mapped: the system reads the pages that are used, and drops them when memory is
short.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import final

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from hooks import Site
from surgery.bases import Basis, decode_basis
from surgery.decomposition import Decomposition, damage
from surgery.files import read_header, read_tensors, whole_file
from surgery.json_values import encode
from surgery.svd import Factors

_HEADER = ("model-surgery decompositions", "3")
_WHAT = "decompositions"


def write(path: str | Path, entries: Iterable[Decomposition], basis: Basis) -> None:
    """Write decompositions in one basis to one file, with fingerprints of the weights that were decomposed.

    Raises:
        ValueError: if the basis is of somebody's own making, which `read` could not make again.
    """
    entries = list(entries)
    tensors = {
        f"{entry.site}|{name}": part.contiguous()
        for entry in entries
        for name, part in zip(Factors._fields, (entry.U, entry.S, entry.Vh), strict=True)
    }
    sites = {
        entry.site: {"fingerprint": entry.fingerprint, "weight_state": entry.weight_state, "rest": entry.rest}
        for entry in entries
    }
    texts = {"basis": json.dumps(written_basis(basis)), "sites": json.dumps(sites)}
    about = {"format": _HEADER[0], "version": _HEADER[1], **texts, "checksum": checksum(texts, tensors)}
    with whole_file(path) as file:
        save_file(tensors, str(file), metadata=about)


def read(path: str | Path, *, device: str | torch.device = "cpu") -> tuple[Basis, list[Decomposition]]:
    """The basis and the decompositions that `write` wrote, all of them read once and found to be what was written.

    Raises:
        ValueError: if the file is damaged or not one of ours.
    """
    with read_tensors(path, _HEADER, _WHAT, device=device) as (metadata, tensors):
        texts = {name: metadata[name] for name in ("basis", "sites")}
        if metadata.get("checksum") != checksum(texts, tensors):
            raise ValueError("its contents are not what was written")
        basis = decode_basis(json.loads(texts["basis"]))
        entries = []
        for site, about in json.loads(texts["sites"]).items():
            U, S, Vh = (tensors[f"{site}|{name}"] for name in Factors._fields)
            mark, state, rest = str(about["fingerprint"]), str(about["weight_state"]), float(about["rest"])
            entry = Decomposition(site, U, S, Vh, basis, mark, state, rest)
            if reason := damage(entry):
                raise ValueError(f"{site}: {reason}")
            entries.append(entry)
        return basis, entries


@final
class Folder:
    """A folder with a file for each decomposed matrix, all in one basis.

    Raises:
        ValueError: if files of another basis are there, or a damaged one, or the basis cannot be written to a file.
        NotADirectoryError: if the path is a file.
    """

    def __init__(self, path: str | Path, basis: Basis) -> None:
        written_basis(basis)
        self.path, self._basis = Path(path), basis
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"folder='{path}' is a file: give the name of a folder.")
        self.path.mkdir(parents=True, exist_ok=True)

    def sites(self) -> list[str]:
        """The matrices that are there, in the order of the forward pass; their components are not read yet."""
        found = []
        for file in self.path.glob("*.safetensors"):
            with read_header(file, _HEADER, _WHAT) as metadata:
                basis, sites = decode_basis(json.loads(metadata["basis"])), list(json.loads(metadata["sites"]))
                if [file] != [self._file(site) for site in sites]:
                    raise ValueError("not a file that a store wrote into its folder")
            if basis != self._basis:
                raise ValueError(
                    f"the folder '{self.path}' holds decompositions in {basis!r}, this store is in {self._basis!r}: "
                    f"give basis={basis!r}, or another folder."
                )
            found += sites
        return sorted(found, key=Site.parse)

    def get(self, site: str) -> Decomposition:
        """The decomposition of a matrix, mapped.

        Raises:
            ValueError: if the file is damaged.
        """
        return read(self._file(site))[1][0]

    def put(self, entry: Decomposition) -> Decomposition:
        """Write a decomposition, in place of an earlier one of the same matrix, and give it back mapped.

        Raises:
            OSError: if the disk has no room for it.
        """
        write(self._file(entry.site), [entry], self._basis)
        return self.get(entry.site)

    def nbytes(self) -> int:
        """What the files take, in bytes."""
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))

    def _file(self, site: str) -> Path:
        return self.path / f"{site}.safetensors"


def written_basis(basis: Basis) -> dict[str, object]:
    """The basis as a JSON object.

    Raises:
        ValueError: if it is of somebody's own making, which could not be made again from a file.
    """
    try:
        document = encode(basis)
        decode_basis(document)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"decompositions in {basis!r} cannot be saved ({error}): a file holds bases of this package only. "
            "Decompose the model anew where you need them."
        ) from None
    return document


def checksum(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """A hash of texts and of tensors, bit for bit; it guards against mistakes, not against forgery."""
    digest = xxhash.xxh3_128(repr(sorted(texts.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
