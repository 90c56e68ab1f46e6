"""Where the checkpoints of a training are: revisions on the hub, or folders side by side."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import final, get_args

import torch
from torch import nn

from hooks.loading import HostName, load
from surgery.arguments import one_of, several, shown

PYTHIA_STEPS = (0, *(2**n for n in range(10)), *range(1000, 143_001, 1000))
"""The steps at which every model of the Pythia family is on the hub."""


@final
@dataclass(frozen=True, slots=True)
class Revisions:
    """A model's checkpoints: a name on the hub with its revisions, or a folder that holds a folder for each step.

    Args:
        source: such as "EleutherAI/pythia-70m", or a path.
        revision: how a step is written, on the hub and as the name of a folder.
        host: a "bridge" (TransformerBridge), or "hooked" for a HookedTransformer on transformer-lens 3.9.
        dtype: of the weights.
        device: where a model goes; TransformerLens's choice by default.

    Raises:
        ValueError: if the revision does not name {step}, or there is no such host.
    """

    source: str | Path
    revision: str = "step{step}"
    host: HostName = "bridge"
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        one_of(self.host, "host", get_args(HostName))
        if self.revision.count("{step}") != 1:
            raise ValueError(f"revision={self.revision!r}: it says where the number stands, as in 'step{{step}}'.")

    @classmethod
    def of(cls, source: "str | Path | Revisions") -> "Revisions":
        """The checkpoints of a name or a folder, as they are called by default."""
        return source if isinstance(source, Revisions) else cls(source)

    @property
    def in_folder(self) -> bool:
        """Whether they are on this machine, and not on the hub."""
        return Path(self.source).is_dir()

    def steps(self, wanted: Sequence[int] | None) -> tuple[int, ...]:
        """The steps that are wanted, or all of a folder, the earliest first.

        Raises:
            ValueError: if one cannot be there, there are none, or the hub is not told which.
        """
        name = str(self.source)
        if not self.in_folder and (isinstance(self.source, Path) or name.startswith((".", "/", "~"))):
            raise ValueError(f"there is no folder {name!r}: give one that exists, or a name on the hub.")
        known = self._in_folder() if self.in_folder else _on_hub(name) if self.revision == "step{step}" else None
        if wanted is None:
            if not self.in_folder:
                raise ValueError(
                    f"steps=None: {name!r} is no folder, and the hub has more steps than one wants. Name some, such as "
                    " steps=(0, 512, 4000, 143000); truncation.PYTHIA_STEPS are all of Pythia."
                )
            return tuple(known or ())
        chosen = sorted(set(several(wanted, "steps")))
        missing = next((step for step in chosen if known is not None and step not in known), None)
        if missing is not None:
            near = sorted(known or (), key=lambda step: abs(step - missing))[:4]
            raise ValueError(
                f"{name!r} has no {self.revision.format(step=missing)!r}: the nearest steps are "
                f"{', '.join(map(str, sorted(near)))}. Choose among its steps."
            )
        return tuple(chosen)

    def load(self, step: int) -> nn.Module:
        """The model as it was at this step.

        Raises:
            OSError: if it cannot be loaded.
        """
        source, revision = str(self.source), self.revision.format(step=step)
        if self.in_folder:
            source, revision = str(Path(self.source) / revision), None
        return load(source, revision, host=self.host, dtype=self.dtype, device=self.device)

    def identity(self, step: int) -> dict[str, str]:
        """What tells this checkpoint from any other: the name of a revision, or a hash of the files of a folder."""
        kind = {"host": self.host, "dtype": str(self.dtype)}
        name = self.revision.format(step=step)
        if not self.in_folder:
            return {**kind, "source": str(self.source), "revision": name}
        return {**kind, "files": _hash_of(Path(self.source) / name)}

    def _in_folder(self) -> list[int]:
        """The steps of the folders that are named as revisions and hold a model."""
        folder, (start, end) = Path(self.source), self.revision.split("{step}")
        name = re.compile(f"{re.escape(start)}([0-9]+){re.escape(end)}")
        found = [(entry, name.fullmatch(entry.name)) for entry in folder.iterdir()]
        steps = [int(match[1]) for entry, match in found if match and (entry / "config.json").is_file()]
        # As it is written: step007 is not what the step 7 is called.
        steps = sorted(step for step in steps if (folder / self.revision.format(step=step)).is_dir())
        if not steps:
            there = sorted(entry.name for entry in folder.iterdir())
            raise ValueError(
                f"the folder {str(folder)!r} holds no checkpoint: each is a Hugging Face folder of the name "
                f"{self.revision!r}, such as {self.revision.format(step=1000)!r}, with config.json in it. There is "
                f"{shown(', '.join(there)) if there else 'nothing'}."
            )
        return steps


def _on_hub(name: str) -> Sequence[int] | None:
    """The steps that are known to be there; None where one has to ask the hub."""
    return PYTHIA_STEPS if name.startswith("EleutherAI/pythia-") and not name.endswith("-v0") else None


def _hash_of(folder: Path) -> str:
    """A hash of the names and contents of all files."""
    total = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                total.update(f"{path.relative_to(folder)} {file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
