"""From a spec, a mapping of patterns to edits, to what it means on one model: gains on its matrices' components."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks import Site, SiteError, match_sites
from surgery.arguments import shown
from surgery.bases import Basis
from surgery.decompositions import Decomposition, Decompositions, decomposed
from surgery.edits import Edit, Gains

Spec = Mapping[str, Edit]
"""Patterns to edits. A matrix that several patterns name gets the product of their gains."""


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One edit of one matrix: the gains it chose for that matrix's components."""

    site: Site
    edit: Edit
    decomposition: Decomposition
    gains: Gains


def resolve(model: nn.Module, spec: Spec) -> list[tuple[Site, Edit]]:
    """Every matrix that the spec names, with the edit meant for it, in the order of the spec.

    Raises:
        TypeError: if the spec is not a mapping of strings to edits.
        SiteError: if a pattern names nothing, with its place in the spec.
    """
    if not isinstance(spec, Mapping):
        raise TypeError(
            f"{shown(spec)} is a {type(spec).__name__}: a spec is a mapping of patterns to edits, such as "
            "{'blocks.*.mlp.W_out': KeepTop(rho=0.05)}."
        )
    found: list[tuple[Site, Edit]] = []
    for pattern, edit in spec.items():
        if not isinstance(pattern, str) or not isinstance(edit, Edit):
            raise TypeError(
                f"spec[{pattern!r}] is {shown(edit)}: keys are patterns such as 'blocks.*.mlp.W_out' and values are "
                "edits such as KeepTop(rho=0.05)."
            )
        try:
            found += [(site, edit) for site in match_sites(model, pattern)]
        except SiteError as error:
            raise SiteError(f"spec[{pattern!r}]: {error}") from None
    return found


def plan(model: nn.Module, spec: Spec, *, svds: Decompositions | None, progress: bool) -> list[Change]:
    """The spec worked out for one model; nothing is touched.

    Raises:
        SiteError, StaleDecompositionError, ValueError: if any part of the spec cannot be carried out.
    """
    wanted = resolve(model, spec)
    by_basis: dict[Basis, list[Site]] = {}
    for site, edit in wanted:
        sites = by_basis.setdefault(edit.basis, [])
        if site not in sites:
            sites.append(site)
    check_compatible([(site, edit.basis) for site, edit in wanted])
    parts = {
        (site, basis): decomposition
        for basis, sites in by_basis.items()
        for site, decomposition in decomposed(model, sites, basis=basis, svds=svds, progress=progress).items()
    }
    return [_change(site, edit, parts[site, edit.basis]) for site, edit in wanted]


def _change(site: Site, edit: Edit, decomposition: Decomposition) -> Change:
    gains = edit.gains(decomposition)
    return Change(site, edit, decomposition, gains._replace(rest=0.0) if edit.basis.replaces else gains)


def check_compatible(edited: Sequence[tuple[Site, Basis]]) -> None:
    """Refuse two bases, or the whole and a head, on one matrix.

    Raises:
        ValueError: naming the matrix and what meets on it.
    """
    seen: dict[Site, dict[Site, Basis]] = {}
    for site, basis in edited:
        others = seen.setdefault(site.joint, {})
        clash = next((other for other in others if other != site and None in (other.head, site.head)), None)
        if clash is not None:
            raise ValueError(
                f"'{clash}' and '{site}' overlap: one edits the matrix joint over heads, the other one of its heads, "
                "and their components are not the same. Edit either the whole matrix or its heads, or undo the first "
                "edit."
            )
        if others.get(site, basis) != basis:
            raise ValueError(
                f"'{site}' would be edited in two bases at once, {others[site]!r} and {basis!r}: gains multiply only "
                "on the same components. Use one basis, or undo the first edit."
            )
        others[site] = basis


def combine(changes: Sequence[Change]) -> Gains:
    """The gains of several edits of one matrix in one basis: their product, with the constants they agree on.

    Raises:
        ValueError: if two edits replace a component by different constants.
    """
    values, rest, _ = changes[0].gains
    for change in changes[1:]:
        values, rest = values * change.gains.values, rest * change.gains.rest
    return Gains(values, rest, _agreed(changes))


def _agreed(changes: Sequence[Change]) -> Tensor | None:
    """The constant of every component, from the edits that change it (0 where they give none)."""
    if all(change.gains.constants is None for change in changes):
        return None
    constants = torch.zeros_like(changes[0].gains.values)
    settled = torch.zeros_like(constants, dtype=torch.bool)
    for change in changes:
        given, reduced = change.gains.constants, change.gains.values != 1
        theirs = torch.zeros_like(constants) if given is None else given
        clash = (settled & reduced & (constants != theirs)).nonzero()
        if clash.numel():
            raise ValueError(
                f"two edits replace component {int(clash[0])} of '{change.site}' by different constants: undo the "
                "first, or compensate both alike."
            )
        constants = torch.where(reduced if given is None else reduced | ~settled, theirs, constants)
        settled = settled | reduced
    return constants


def recompose(
    W: Float[Tensor, "d_in d_out"], decomposition: Decomposition, gains: Gains
) -> Float[Tensor, "d_in d_out"]:
    """The matrix with these gains on its components, in the decomposition's dtype.

    Written as `c W + U (γ − c) S Vh` with `c` the gain that most components share, so that a matrix whose gains are all
    1 is itself to the last bit, and one reduced to r components is a product of rank r. A basis that is not complete
    leaves `c` no choice: it is the gain of the rest.
    """
    U, S, Vh = decomposition.U, decomposition.S, decomposition.Vh
    values = gains.values
    if values.requires_grad:
        return gains.rest * W.to(S.dtype) + _summed(U, (values - gains.rest) * S, Vh)
    common = float(values.mode().values) if decomposition.basis.complete and values.numel() else gains.rest
    others = (values != common).nonzero().squeeze(1)
    changed = _summed(U[:, others], ((values - common) * S)[others], Vh[others])
    return changed if common == 0 else common * W.to(S.dtype) + changed


def added_bias(decomposition: Decomposition, gains: Gains) -> Float[Tensor, " d_out"] | None:
    """What the constants add to the output, `Σ_i (1 − γ_i) s_i c_i v_i`; None without constants."""
    if gains.constants is None:
        return None
    weights = (1 - gains.values) * decomposition.S * gains.constants
    return _summed(torch.ones_like(weights)[None], weights, decomposition.Vh)[0]


def _summed(
    U: Float[Tensor, "d_in component"], S: Float[Tensor, " component"], Vh: Float[Tensor, "component d_out"]
) -> Float[Tensor, "d_in d_out"]:
    """`U @ diag(S) @ Vh` in the precision of its parts, even where an edit is made under autocast."""
    with torch.autocast(S.device.type, enabled=False):
        return (U * S) @ Vh
