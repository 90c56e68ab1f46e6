"""What workers import in tests: models to load, and edits and metrics that fail or kill where they are worked with."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import models
from torch import Tensor, nn

import surgery
from surgery import SVD, Basis, Decomposition, Edit, Gains, KeepTop


@dataclass(frozen=True, repr=False)
class Fragile(Edit):
    """KeepTop at ρ. While the folder holds files, each use on this layer takes one away, and fails or kills."""

    rho: float
    folder: str
    layer: int
    kills: bool = False
    basis: Basis = SVD()  # noqa: RUF009 - frozen

    def gains(self, decomposition: Decomposition) -> Gains:
        if f"blocks.{self.layer}." in decomposition.site:
            for file in Path(self.folder).iterdir():
                file.unlink()
                if self.kills:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError(f"no luck with {decomposition.site}")
        return KeepTop(rho=self.rho).gains(decomposition)


def fragile(folder: Path, times: int, *, layer: int = 1, kills: bool = False) -> list[Edit]:
    """Edits at three ρ of which so many uses go wrong."""
    folder.mkdir()
    for number in range(times):
        (folder / str(number)).touch()
    return [Fragile(rho, str(folder), layer, kills) for rho in (0.8, 0.3, 0.1)]


def edited(kind: str) -> nn.Module:
    """A model with an edit in force."""
    model = models.build(kind)
    surgery.apply(model, {"blocks.0.mlp.W_in": KeepTop(rho=0.5)}, progress=False)
    return model


def none() -> None:
    """No model."""


def twice_as_much(logits: Tensor) -> Tensor:
    """A metric of a function that can be imported."""
    return 2 * logits[:, -1, 3]
