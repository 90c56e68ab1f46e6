"""The components of one matrix, and what tells whether they are any."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.bases import SVD, Basis, LeadingSVD
from surgery.svd import all_finite

__all__ = ["Decomposition", "damage"]


@final
@dataclass(frozen=True, slots=True)
class Decomposition:
    """The components of one matrix: `W = U @ diag(S) @ Vh`, of `y = x @ W`, strongest first.

    `fingerprint` identifies the weights that were decomposed, `weight_state` says whether they were raw or processed.
    `rest` is the squared Frobenius norm of what the components leave of the matrix: 0 in a complete basis.
    """

    site: str
    U: Float[Tensor, "d_in component"]
    S: Float[Tensor, " component"]
    Vh: Float[Tensor, "component d_out"]
    basis: Basis
    fingerprint: str
    weight_state: str
    rest: float = 0.0

    @property
    def n_components(self) -> int:
        """The number of components, those of strength 0 included."""
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_in, d_out)` of the matrix."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def nbytes(self) -> int:
        """What U, S and Vh take, in bytes."""
        return self.U.nbytes + self.S.nbytes + self.Vh.nbytes

    @property
    def energy(self) -> Float[Tensor, " component"]:
        """Each component's share of the squared Frobenius norm of the matrix."""
        squared = self.S.double().square()
        return squared / (squared.sum() + self.rest).clamp_min(torch.finfo(torch.float64).tiny)

    def to(self, device: torch.device) -> "Decomposition":
        """The same components on another device."""
        if self.S.device == device:
            return self
        return replace(self, U=self.U.to(device), S=self.S.to(device), Vh=self.Vh.to(device))

    def __repr__(self) -> str:
        d_in, d_out = self.shape
        return f"Decomposition({self.site}: {d_in} x {d_out}, {self.n_components} components, {self.weight_state})"


def damage(entry: Decomposition) -> str | None:
    """What is wrong with U, S or Vh of a decomposition; None if nothing is."""
    U, S, Vh = factors = entry.U, entry.S, entry.Vh
    if (U.ndim, S.ndim, Vh.ndim) != (2, 1, 2) or not U.shape[1] == S.shape[0] == Vh.shape[0]:
        return f"U {tuple(U.shape)}, S {tuple(S.shape)} and Vh {tuple(Vh.shape)} do not fit together"
    if len({factor.dtype for factor in factors}) > 1 or S.dtype not in (torch.float32, torch.float64):
        types = ", ".join(str(factor.dtype).removeprefix("torch.") for factor in factors)
        return f"its parts are of {types}, not all of float32 or all of float64"
    if not all(map(all_finite, factors)):
        return "it holds NaN or infinity"
    if bool((S < 0).any()):
        return "it holds negative strengths"
    if isinstance(entry.basis, SVD | LeadingSVD) and S.numel() and bool((S.diff() > 1e-4 * S[0]).any()):
        return "its strengths do not fall from first to last"
    return None
