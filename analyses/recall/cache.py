"""Snapshots of a training run in a folder, under a hash of everything that they depend on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from surgery.files import whole_file

_VERSION = "1"


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """The trained matrices, their momenta (none before the first step) and the losses so far, in nats."""

    weights: dict[str, Float[Tensor, "row column"]]
    momenta: dict[str, Float[Tensor, "row column"]]
    losses: Float[Tensor, " step"]


def digest(tensors: Mapping[str, Tensor], settings: Mapping[str, object]) -> str:
    """A hash of tensors, bit for bit, and settings."""
    total = sha256(json.dumps([_VERSION, settings], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@final
@dataclass(frozen=True, slots=True)
class SnapshotCache:
    """The files `recall-KEY-step000400.safetensors` of one run; `settings` are written into them, to be read."""

    folder: Path
    key: str
    settings: Mapping[str, object]
    every: ClassVar[int] = 100

    def read(self, wanted: Iterable[int]) -> dict[int, Snapshot]:
        """Every wanted snapshot up to the last step that a run can go on from, and that step's.

        Raises:
            ValueError: if a file is damaged or does not hold what its name says.
        """
        wanted = sorted(wanted)
        stem = self._path(0).name.removesuffix("000000.safetensors")
        names = (
            p.name.removeprefix(stem).removesuffix(".safetensors") for p in self.folder.glob(f"{stem}*.safetensors")
        )
        there = {int(name) for name in names if name.isdecimal()}
        usable = [s for s in there if s <= wanted[-1] and there.issuperset(w for w in wanted if 0 < w <= s)]
        last = max(usable, default=0)
        return {step: self._load(step) for step in sorted(there & {*wanted, last}) if step <= last}

    def write(self, step: int, snapshot: Snapshot) -> None:
        """Store a snapshot; whoever is interrupted meanwhile finds the old file or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight|{name}": t.cpu().contiguous() for name, t in snapshot.weights.items()}
        tensors |= {f"momentum|{name}": t.cpu().contiguous() for name, t in snapshot.momenta.items()}
        tensors["losses"] = snapshot.losses
        about = {
            "run": self.key,
            "step": str(step),
            "digest": digest(tensors, {}),
            "settings": json.dumps(self.settings),
        }
        with whole_file(self._path(step)) as file:
            save_file(tensors, str(file), metadata=about)

    def replace(self, old: int | None, new: int | None) -> int | None:
        """`new`, with the snapshot of step `old`, which nobody asked for, deleted."""
        if old is not None:
            self._path(old).unlink(missing_ok=True)
        return new

    def _path(self, step: int) -> Path:
        return self.folder / f"recall-{self.key[:16]}-step{step:06d}.safetensors"

    def _load(self, step: int) -> Snapshot:
        path = self._path(step)
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"the cached training run {path} is damaged ({error}): delete it to train again."
            ) from error
        expected = {"run": self.key, "step": str(step), "digest": digest(tensors, {})}
        wrong = [name for name, value in expected.items() if about.get(name) != value]
        if wrong:
            raise ValueError(
                f"the cached training run {path} is damaged (its {' and '.join(wrong)} differ from what was "
                f"written): delete it to train again."
            )
        parts = {
            kind: {key.removeprefix(f"{kind}|"): t for key, t in tensors.items() if key.startswith(f"{kind}|")}
            for kind in ("weight", "momentum")
        }
        return Snapshot(parts["weight"], parts["momentum"], tensors["losses"])
