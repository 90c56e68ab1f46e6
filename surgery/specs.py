"""From a spec, a mapping of patterns to edits, to what it means on one model: gains on its matrices' components."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks import Place, Site, SiteError, host_of
from hooks.patterns import match_on
from surgery.arguments import shown
from surgery.bases import Basis
from surgery.decompositions import Decomposition, Decompositions, check_store, components_of
from surgery.edits import Edit, Gains

__all__ = ["Change", "Spec", "check_compatible", "combine", "plan", "recompose"]

P = ParamSpec("P")
R = TypeVar("R")
Spec = Mapping[str, Edit]
"""Patterns to edits. A matrix that several patterns name gets the product of their gains."""


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One edit of one matrix of one model: where the matrix is, and the gains the edit chose for its components."""

    place: Place
    edit: Edit
    decomposition: Decomposition
    gains: Gains

    @property
    def site(self) -> Site:
        """The address of the matrix."""
        return self.place.site

    @property
    def basis(self) -> Basis:
        """The basis whose components have the gains."""
        return self.edit.basis


def resolve(model: nn.Module, spec: Spec) -> list[tuple[Place, Edit]]:
    """The place of every matrix that the spec names, with the edit meant for it, in the order of the spec.

    Raises:
        TypeError: if the spec is not a mapping of strings to edits.
        SiteError: if a pattern names nothing; the text quotes the entry of the spec.
    """
    check_spec(spec)
    host = host_of(model)
    joint_sites = host.joint_sites()
    wanted: list[tuple[Site, Edit]] = []
    for pattern, edit in spec.items():
        try:
            wanted += [(site, edit) for site in match_on(host, pattern, joint_sites)]
        except SiteError as error:
            raise SiteError(f"spec[{shown(pattern)}]: {error}") from None
    places = host.places(dict.fromkeys(site for site, _ in wanted))
    return [(places[site], edit) for site, edit in wanted]


def check_spec(spec: Spec) -> None:
    """Refuse what is not a mapping of patterns to edits.

    Raises:
        TypeError: saying what it is.
    """
    if not isinstance(spec, Mapping):
        raise TypeError(
            f"{shown(spec)} is a {type(spec).__name__}: a spec is a mapping of patterns to edits, such as "
            "{'blocks.*.mlp.W_out': KeepTop(rho=0.05)}."
        )
    for pattern, edit in spec.items():
        if not isinstance(pattern, str) or not isinstance(edit, Edit):
            raise TypeError(
                f"spec[{shown(pattern)}] is {shown(edit)}: keys are patterns such as 'blocks.*.mlp.W_out' and values "
                "are edits such as KeepTop(rho=0.05)."
            )


def spec_in_one(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator for `function(model, spec, *, ...)` that refuses a pattern and an edit given as two arguments."""

    @wraps(function)
    def checked(*given: P.args, **named: P.kwargs) -> R:
        if len(given) > 2:
            pieces, name = ", ".join(map(shown, given[1:])), function.__name__
            raise TypeError(
                f"{name} was given {pieces} after the model: give one mapping, {name}(model, {{pattern: edit}})."
            )
        return function(*given, **named)

    return checked


def refuse_learned(changes: Sequence[Change]) -> None:
    """Refuse gains that require grad where they would be cut from their graph.

    Raises:
        ValueError: naming the matrix.
    """
    for change in changes:
        if change.gains.values.requires_grad:
            raise ValueError(
                f"{change.edit!r} of '{change.site}' has gains that require grad, and what is written into a parameter "
                "has no gradient: commit Scale(gain.detach()), or learn them under surgery.apply."
            )


def warn_of_repeated(new: Sequence[Change], in_force: Sequence[Change]) -> None:
    """Warn, once, of edits that are in force already on the same matrix: an `apply` was probably run twice."""
    earlier: dict[Site, list[Edit]] = {}
    for change in in_force:
        earlier.setdefault(change.site, []).append(change.edit)
    repeated = [change for change in new if change.edit in earlier.get(change.site, ())]
    if repeated:
        more = f" (and {len(repeated) - 1} more of this spec)" if len(repeated) > 1 else ""
        warnings.warn(
            f"{shown(repeated[0].edit)} is in force on '{repeated[0].site}' already{more}, from an earlier operation: "
            "gains multiply, and each operation has to be undone. If this was not meant, take all of them off with "
            "surgery.undo_all(model).",
            stacklevel=5,
        )


def plan(
    model: nn.Module,
    spec: Spec,
    *,
    svds: Decompositions | None,
    progress: bool,
    in_force: Sequence[Change] = (),
) -> list[Change]:
    """The spec worked out for one model, on top of the changes `in_force`; nothing is touched.

    Raises:
        SiteError, StaleDecompositionError, ValueError: if any part of the spec cannot be carried out.
    """
    wanted = resolve(model, spec)
    _check_store_is_used(spec, svds)
    check_compatible(
        [(change.site, change.basis) for change in in_force] + [(place.site, edit.basis) for place, edit in wanted]
    )
    by_basis: dict[Basis, dict[Site, Place]] = {}
    for place, edit in wanted:
        by_basis.setdefault(edit.basis, {})[place.site] = place
    components = {
        basis: components_of(model, places.values(), basis=basis, svds=svds, progress=progress)
        for basis, places in by_basis.items()
    }
    return [_change(place, edit, components[edit.basis][place.site]) for place, edit in wanted]


def _change(place: Place, edit: Edit, decomposition: Decomposition) -> Change:
    values, rest, constants = edit.gains(decomposition)
    # The components may stay elsewhere: a store on the CPU gives them to the matrix's device one matrix at a time.
    constants = None if constants is None else constants.to(place.device)
    rest = 0.0 if edit.basis.replaces else rest
    return Change(place, edit, decomposition, Gains(values.to(place.device), rest, constants))


def _check_store_is_used(spec: Spec, svds: Decompositions | None) -> None:
    """Refuse a store in a basis that no edit names: it would be left aside."""
    check_store(svds)
    bases = list(dict.fromkeys(edit.basis for edit in spec.values()))
    if bases and svds is not None and svds.basis not in bases:
        raise ValueError(
            f"svds is in the basis {svds.basis!r}, but the edits are in {', '.join(map(repr, bases))}: give a store in "
            f"the edits' basis, or edits with basis={svds.basis!r}."
        )


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
    """The constant of every component: that of the edits which reduce it (0 where they name none)."""
    if all(change.gains.constants is None for change in changes):
        return None
    constants = torch.zeros_like(changes[0].gains.values)
    settled = torch.zeros_like(constants, dtype=torch.bool)
    for change in changes:
        own, reduced = change.gains.constants, change.gains.values != 1
        proposed = torch.zeros_like(constants) if own is None else own
        clash = (settled & reduced & (constants != proposed)).nonzero()
        if clash.numel():
            raise ValueError(
                f"two edits replace component {int(clash[0])} of '{change.site}' by different constants: undo the "
                "first, or compensate both alike."
            )
        # A constant has no effect at gain 1: it gives way to that of an edit which does reduce the component.
        constants = torch.where(reduced if own is None else reduced | ~settled, proposed, constants)
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
    if values.requires_grad:  # every component stays in the graph, whatever its gain is now
        return _checked(gains.rest * W.to(S.dtype) + _summed(U, (values - gains.rest) * S, Vh), W, decomposition)
    # W = U S Vh in a complete basis, so any c gives the same matrix: the commonest gain leaves the fewest terms to add.
    common = float(values.mode().values) if decomposition.basis.complete and values.numel() else gains.rest
    others = (values != common).nonzero().squeeze(1)
    changed = _summed(U[:, others], ((values - common) * S)[others], Vh[others])
    # In place and without a copy of W in fp32: of a large matrix there is one at a time.
    return _checked(changed if common == 0 else changed.add_(W, alpha=common), W, decomposition)


def _checked(edited: Tensor, W: Tensor, decomposition: Decomposition) -> Tensor:
    """The edited matrix, after checking that the weights' own dtype can hold it."""
    largest = torch.finfo(W.dtype).max
    low, high = torch.aminmax(edited.detach())
    if not (bool(low >= -largest) and bool(high <= largest)):  # not so for NaN either
        raise ValueError(
            f"'{decomposition.site}' cannot hold this edit: an entry would be infinite or beyond {largest:.3g}, the "
            f"largest number of {str(W.dtype).removeprefix('torch.')}. Use smaller gains."
        )
    return edited


def added_bias(decomposition: Decomposition, gains: Gains) -> Float[Tensor, " d_out"] | None:
    """What the constants add to the output, `Σ_i (1 − γ_i) s_i c_i v_i`; None without constants."""
    if gains.constants is None:
        return None
    decomposition = decomposition.to(gains.values.device)
    weights = (1 - gains.values) * decomposition.S * gains.constants
    added = _summed(torch.ones_like(weights)[None], weights, decomposition.Vh)[0]
    if not bool(added.isfinite().all()):
        raise ValueError(
            f"the constants of '{decomposition.site}' would add numbers that are not finite to its output: use smaller "
            "ones."
        )
    return added


def _summed(
    U: Float[Tensor, "d_in component"], S: Float[Tensor, " component"], Vh: Float[Tensor, "component d_out"]
) -> Float[Tensor, "d_in d_out"]:
    """`U @ diag(S) @ Vh` in the factors' own precision, even where an edit is made under autocast."""
    with torch.autocast(S.device.type, enabled=False):
        return (U * S) @ Vh
