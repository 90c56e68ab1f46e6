"""A control that removes random directions of a subspace, to tell whether the singular directions in it matter."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses.attribution.selections import Selection
from analyses.controls._draws import members
from hooks import match_sites
from surgery import SVD, Basis, Decompositions, Drop, Edit
from surgery.arguments import counted
from surgery.arguments import seed as whole_seed
from surgery.controls import random_directions
from surgery.operations import components_in_force
from surgery.svd import Factors


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Directions(Basis):
    """Orthonormal directions of a matrix's output: component j is everything that the matrix writes along direction j.

    They leave a rest, unless they span the whole output. Removing all of them projects the output away from their span.
    """

    complete: ClassVar[bool] = False
    directions: Float[Tensor, "component d_out"]

    def decompose(self, W: Float[Tensor, "d_in d_out"]) -> Factors:
        """`W Dᵀ D` as a sum over the directions D, strongest first: s_j u_j = W d_j, the u_j not orthogonal."""
        Vh = self.directions.to(W.device, torch.promote_types(W.dtype, torch.float32))
        written = W.to(Vh.dtype) @ Vh.mT
        order = written.norm(dim=0).argsort(descending=True)
        S = written.norm(dim=0)[order]
        return Factors(written[:, order] / S.clamp_min(torch.finfo(S.dtype).tiny), S, Vh[order])

    def __repr__(self) -> str:
        return f"Directions({len(self.directions)} of {self.directions.shape[1]})"


def rotated(
    model: nn.Module,
    selection: Selection,
    among: Selection,
    *,
    seed: int = 0,
    svds: Decompositions | None = None,
    progress: bool = True,
) -> dict[str, Edit]:
    """A spec that removes, from each matrix, as many random output directions as `selection` has components of it.

    The directions are orthonormal and drawn evenly from the span of the `v_i` of the `among` components. Rotating only
    inside the span of what is removed would remove the same subspace, so `among` holds more: with twice as many, half
    of each component goes on average, and where the metric is linear so does half of their summed effect. Removing the
    components themselves is the case in which the directions happen to be singular vectors.

    Raises:
        ValueError: if `among` holds fewer components of a matrix than `selection`, or they are not singular components.
        SiteError: if this model has no such matrix.

    >>> selection, among = ({"blocks.0.mlp.W_out": list(range(n))} for n in (2, 4))
    >>> controls.rotated(model, attribution.Selection(selection), attribution.Selection(among), progress=False)
    {'blocks.0.mlp.W_out': Drop(components=[0, 1], basis=Directions(2 of 16))}
    """
    for basis in (selection.basis, among.basis):
        if basis != SVD():
            raise ValueError(
                f"directions were asked for among components in the basis {basis!r}, which are not orthogonal: they "
                "are rotated among singular vectors only. Give selections and decompositions in the basis SVD()."
            )
    generator = torch.Generator().manual_seed(whole_seed(seed))
    sites = {address: match_sites(model, address)[0] for address in selection}
    decompositions = components_in_force(model, sites.values(), basis=SVD(), svds=svds, progress=progress)
    spec: dict[str, Edit] = {}
    for address, site in sites.items():
        span = members(among, address) if address in among else []
        count = len(members(selection, address))
        if count > len(span):
            raise ValueError(
                f"{counted(count, 'direction')} of '{address}' were asked for among the span of "
                f"{counted(len(span), 'component')}: a span holds no more directions than components. Choose among "
                "more components."
            )
        directions = random_directions(decompositions[site].Vh[span], count, generator)
        spec[address] = Drop(range(count), basis=Directions(directions))
    return spec
