"""Finished pieces of work in a folder, a file each, under a hash of everything that the work depends on.

    store = Store.of(".surgery-cache", "recall", settings={"lr": 0.03}, tensors=initial_weights)
    if store.read("step000400") is None:
        store.write("step000400", trained_weights)

A file is written whole or not at all, and what is read is what was written: a file that is damaged, or that somebody
renamed, is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from surgery.files import whole_file

_FORMAT = 2
_DIGEST_VERSION = "1"
"""Part of every digest. The seeds of recall's training steps are digests too: another version trains other models."""


def digest(tensors: Mapping[str, Tensor], settings: Mapping[str, object]) -> str:
    """A hash of tensors, bit for bit, and of settings that JSON can hold."""
    total = sha256(json.dumps([_DIGEST_VERSION, settings], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@final
@dataclass(frozen=True, slots=True)
class Store:
    """The files `KIND-KEY-PIECE.safetensors` of one work; `settings` are written into each, for people to read."""

    folder: Path
    kind: str
    key: str
    settings: str

    @classmethod
    def of(
        cls, folder: str | Path, kind: str, *, settings: Mapping[str, object], tensors: Mapping[str, Tensor]
    ) -> "Store":
        """The store of the work that depends on these settings and tensors, and on nothing else."""
        key = digest(tensors, {"format": _FORMAT, **settings})
        return cls(Path(folder), kind, key, json.dumps(settings))

    def path(self, piece: str) -> Path:
        """Where the piece of this name is, or would be."""
        return self.folder / f"{self.kind}-{self.key[:16]}-{piece}.safetensors"

    def pieces(self) -> set[str]:
        """The names of the pieces that are finished."""
        start, end = self.path("*").name.split("*")
        return {path.name.removeprefix(start).removesuffix(end) for path in self.folder.glob(f"{start}*{end}")}

    def write(self, piece: str, tensors: Mapping[str, Tensor]) -> None:
        """Store a piece; an interrupt leaves the old file or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with whole_file(self.path(piece)) as file:
            save_file(tensors, str(file), metadata={**self._about(piece, tensors), "settings": self.settings})

    def read(self, piece: str) -> dict[str, Tensor] | None:
        """The tensors of a piece, or None if it is not finished.

        Raises:
            ValueError: if the file is damaged or does not hold what its name says.
        """
        path = self.path(piece)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error
        wrong = [name for name, value in self._about(piece, tensors).items() if about.get(name) != value]
        if wrong:
            raise _damaged(path, f"its {' and '.join(wrong)} differ from what was written")
        return tensors

    def remove(self, piece: str) -> None:
        """Delete a piece, if it is there."""
        self.path(piece).unlink(missing_ok=True)

    def _about(self, piece: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        return {"key": self.key, "piece": piece, "digest": digest(tensors, {})}


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"the stored work {path} is damaged ({reason}): delete it, and it is done again.")
