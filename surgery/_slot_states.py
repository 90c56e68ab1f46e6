"""Compute the tensor that each slot of a model must hold under a set of changes, and install it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks import Place, Site
from hooks.compiled import refresh_compiled
from hooks.editor import Editor, editor_of
from hooks.shadows import Slot
from surgery.specs import Change, added_bias, combine, recompose


@dataclass(frozen=True, slots=True)
class SlotState:
    """The tensor that a slot has to show, and the one to be written into its parameter; None for the original."""

    slot: Slot
    shown: Tensor | None
    written: Tensor | None


def render(
    model: nn.Module, places: Iterable[Place], *, shown: Sequence[Change], written: Sequence[Change]
) -> list[SlotState]:
    """The state of every slot of these whole matrices under all `shown` changes, the `written` ones in the parameters.

    Raises:
        ValueError: if a change adds a constant where this host has no bias to add it to.
    """
    editor = editor_of(model)
    states = []
    for place in places:
        all_changes, permanent = _on_matrix(shown, place.site), _on_matrix(written, place.site)
        shadowed = len(permanent) < len(all_changes)  # what is written in full needs no shadow
        shown_weight = _weight(editor, place, all_changes) if shadowed else None
        shown_bias = _bias(editor, place, all_changes) if shadowed else None
        written_weight, written_bias = _weight(editor, place, permanent), _bias(editor, place, permanent)
        states += [SlotState(slot, shown_weight, written_weight) for slot in place.slots]
        if place.bias is not None:
            states.append(SlotState(place.bias, shown_bias, written_bias))
    return states


def install(model: nn.Module, states: Iterable[SlotState]) -> None:
    """Put every slot into its state."""
    editor, states = editor_of(model), list(states)
    # Originals first, then what is written, then what is shown: a tensor is laid over parameters that are final.
    for state in states:
        if state.written is None:
            editor.restore(state.slot)
    editor.write((state.slot, state.written) for state in states if state.written is not None)
    for state in states:
        if state.shown is None:
            editor.hide(state.slot)
        else:
            editor.show(state.slot, state.shown)
    refresh_compiled()


def _on_matrix(changes: Sequence[Change], joint: Site) -> list[Change]:
    return sorted((change for change in changes if change.site.joint == joint), key=lambda change: change.site)


def _weight(editor: Editor, place: Place, changes: list[Change]) -> Tensor | None:
    """The whole matrix under these changes, as the model stores it."""
    if not changes:
        return None
    W = editor.original(place)
    if changes[0].site.head is None:
        return place.stored(_edited(W, changes))
    # Heads are edited in the decomposition's dtype, and the whole matrix is rounded once, by `place.stored`.
    joint = W.to(changes[0].decomposition.S.dtype, copy=True)
    for site, heads in groupby(changes, key=lambda change: change.site):
        part = place.at_head(site.head).part_of  # type: ignore[arg-type]
        part(joint).copy_(_edited(part(W), list(heads)))
    return place.stored(joint)


def _edited(W: Float[Tensor, "d_in d_out"], changes: list[Change]) -> Float[Tensor, "d_in d_out"]:
    return recompose(W, changes[0].decomposition.to(W.device), combine(changes))


def _bias(editor: Editor, place: Place, changes: list[Change]) -> Tensor | None:
    """The bias with what the constants of these changes add to it; None if they add nothing."""
    added: dict[Site, Tensor] = {}
    for site, group in groupby(changes, key=lambda change: change.site):
        parts = list(group)
        if (addition := added_bias(parts[0].decomposition, combine(parts))) is not None:
            added[site] = addition
    if not added:
        return None
    if place.bias is None:
        raise ValueError(
            f"'{place.site}' cannot be compensated on this host: nothing is added to its output that could carry the "
            "constant. Use the plain edit, or another matrix."
        )
    original = editor.original_bias(place.bias)
    held = editor.original(place)
    start = held.new_zeros(place.d_out) if original is None else original.flatten().clone()
    bias = start.to(torch.promote_types(start.dtype, torch.float32))
    for site, addition in added.items():
        # The heads of W_Q, W_K and W_V have their own part of the bias; those of W_O share all of it.
        at = slice(None) if site.head is None or site.matrix == "W_O" else place.at_head(site.head).head_slice
        bias[at] += addition.to(bias)
    return bias.to(held.dtype) if original is None else bias.to(original.dtype).view(original.shape)
