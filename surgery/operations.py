"""Applying a spec to a model and taking it back: all or nothing, in any order, bit for bit."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import final
from weakref import WeakKeyDictionary, ref

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks import EditedModelError, Site, host_of, place_of
from hooks.editor import editor_of, guard, strip, unguard
from hooks.fingerprints import fingerprint
from hooks.hosts import refuse_compiled, uncompiled
from hooks.temporary import remove_left_behind
from surgery.decompositions import Decomposition, Decompositions, StaleDecompositionError, basis_of, decomposed
from surgery.rendering import Rendering, install, render
from surgery.report import table
from surgery.specs import (
    Change,
    Spec,
    check_compatible,
    combine,
    plan,
    refuse_learned,
    spec_in_one,
    warn_of_repeated,
)

_operations: WeakKeyDictionary[nn.Module, list["Operation"]] = WeakKeyDictionary()


@final
class Operation:
    """An edit that is in force. Leaving the `with` block, or `undo()`, takes it back; printing shows what it does.

    Made by `surgery.apply` (shown instead of the weights) and `surgery.commit` (written into the weights).
    """

    def __init__(self, model: nn.Module, spec: Spec, *, written: bool) -> None:
        # Weak, since operations in force are remembered here: a model that everybody else has dropped is to be freed.
        self._model = ref(model)
        self.spec = spec
        self.changes: tuple[Change, ...] = ()
        self.written = written

    def __enter__(self) -> "Operation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.undo()
        finally:  # an interrupt of the first call leaves the second to finish; otherwise it does nothing
            self.undo()

    @property
    def model(self) -> nn.Module:
        """The edited model.

        Raises:
            ReferenceError: if it is gone; an operation does not keep it alive.
        """
        model = self._model()
        if model is None:
            raise ReferenceError(
                "the model of this operation has been deleted: keep a reference to it, and apply again."
            )
        return model

    @property
    def is_active(self) -> bool:
        """Whether the model is under this edit now."""
        model = self._model()
        return model is not None and self in _operations.get(model, [])

    def undo(self) -> None:
        """Take the edit back. Other edits stay in force, whatever the order; a second call does nothing.

        Interrupted, it finishes before the interrupt goes on.
        """
        try:
            self._take_back()
        finally:
            self._take_back()

    def _take_back(self) -> None:
        model = self._model()
        if model is None:
            return
        with editor_of(model).lock:
            if not self.is_active:
                return
            remaining = [operation for operation in active(model) if operation is not self]
            with lasting_tensors():
                state = _state(model, self, remaining)
            install(model, state)
            if not remaining:
                unguard(model)
            _remember(model, remaining)

    def weight(self, site: str | Site) -> Float[Tensor, "d_in d_out"]:
        """The matrix at `site` as a forward pass of the model reads it now, in the orientation `y = x @ W`."""
        return editor_of(self.model).current(place_of(self.model, site))

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each edited matrix: components kept, energy, relative Frobenius error, parameters, weight state."""
        return table(self.changes, self._original)

    def _original(self, site: Site) -> Float[Tensor, "d_in d_out"]:
        return editor_of(self.model).original(place_of(self.model, site))

    def __repr__(self) -> str:
        sites = len({change.site for change in self.changes})
        matrices = f"{sites} {'matrix' if sites == 1 else 'matrices'}"
        if self._model() is None:
            return f"operation on a model that has been deleted, {matrices}"
        state = ("written into" if self.written else "applied to") if self.is_active else "undone on"
        lines = table(self.changes, self._original, readable=True).to_string(index=False)
        return f"operation {state} {type(self.model).__name__}, {matrices}\n{lines}"


@spec_in_one
def apply(model: nn.Module, spec: Spec, *, svds: Decompositions | None = None, progress: bool = True) -> Operation:
    """The model under the edits of a spec, until the returned operation is undone.

    The edited weights are shown in place of the parameters, which stay as they are. Everything is checked and computed
    before anything is changed. Gains multiply with those of operations already in force.

    Raises:
        SiteError: if a pattern names nothing on this model.
        StaleDecompositionError: if `svds` was made from other weights.
        ValueError: if an edit does not fit its matrix, or cannot be combined with one in force.
        TypeError: if the model is compiled or not a TransformerLens model, or the spec not a mapping of patterns to
            edits.
    """
    return _put_in_force(model, spec, svds=svds, progress=progress, written=False)


@spec_in_one
def commit(model: nn.Module, spec: Spec, *, svds: Decompositions | None = None, progress: bool = True) -> Operation:
    """As `apply`, but written into the parameters: `state_dict` and compiled models see the edit.

    `undo()` puts the original weights back, bit for bit; it keeps a copy of them until then. Whatever has been trained
    into these matrices in between is lost by that. Under `apply` the parameters themselves stay as they are, so nothing
    can be.

    Raises:
        as `apply`.
    """
    return _put_in_force(uncompiled(model), spec, svds=svds, progress=progress, written=True)


def active(model: nn.Module) -> tuple[Operation, ...]:
    """The operations in force on this model, oldest first."""
    return tuple(_operations.get(uncompiled(model), ()))


def undo_all(model: nn.Module) -> None:
    """Undo every operation in force; a deep copy of an edited model is stripped of the edit it carries.

    Takes off, too, what an analysis may have left on the model when it was interrupted: call it after an analysis, not
    from within one.
    """
    model = uncompiled(model)
    with editor_of(model).lock:
        for operation in reversed(active(model)):
            operation.undo()
        remove_left_behind(model)
        strip(model)


def changes_in_force(model: nn.Module, site: Site) -> list[Change]:
    """The active changes of exactly this site, oldest first."""
    return [change for operation in active(model) for change in operation.changes if change.site == site]


def components_in_force(
    model: nn.Module, sites: Iterable[Site], *, svds: Decompositions | None = None, progress: bool = True
) -> dict[Site, Decomposition]:
    """The components that make up each matrix now: its singular components, their strengths times the gains in force.

    Raises:
        ValueError: if an operation in force edits a matrix in another basis, or its heads where the whole is asked for.
    """
    found = decomposed(model, sites, basis=basis_of(svds), svds=svds, progress=progress)
    in_force = [(change.site, change.edit.basis) for change in _changes(active(model))]
    for site, entry in found.items():
        check_compatible([*in_force, (site, entry.basis)])
    return {
        site: replace(entry, S=entry.S * combine(changes).values.detach())
        if (changes := changes_in_force(model, site))
        else entry
        for site, entry in found.items()
    }


def _put_in_force(
    model: nn.Module, spec: Spec, *, svds: Decompositions | None, progress: bool, written: bool
) -> Operation:
    host_of(model)  # refuses what cannot be operated on before any work is done
    if not written:
        refuse_compiled(model)
    operation = Operation(model, spec, written=written)
    try:
        with editor_of(model).lock, lasting_tensors():
            operation.changes = tuple(plan(model, spec, svds=svds, progress=progress))
            operation.spec = dict(spec)
            check_in_force(model, operation.changes)
            warn_of_repeated(operation.changes, _changes(active(model)))
            if written:
                refuse_learned(operation.changes)
                check_writable(model, operation.changes)
            after = [*active(model), operation]
            edited = _state(model, operation, after)
            _remember(model, after)  # before anything is changed: what is remembered can be undone
            guard(model)
            install(model, edited)
        return operation
    except BaseException:
        operation.undo()
        raise


def _remember(model: nn.Module, operations: list[Operation]) -> None:
    if operations:
        _operations[model] = operations
    else:
        _operations.pop(model, None)


def check_in_force(model: nn.Module, new: Sequence[Change]) -> None:
    """Refuse new changes that do not go with those in force on the same matrices.

    Raises:
        ValueError: if they overlap or are in another basis.
        StaleDecompositionError: if a weight was changed under an edit in force, so that gains no longer multiply.
        EditedModelError: if the model is a deep copy of an edited one, whose gains nobody knows.
    """
    check_compatible([(change.site, change.edit.basis) for change in (*_changes(active(model)), *new)])
    touched = dict.fromkeys(change.site.joint for change in new)
    editor = editor_of(model)
    for site in touched:
        slots = place_of(model, site).slots
        if any(editor.is_another_models(slot) for slot in slots):
            raise EditedModelError(
                f"'{site}' lies in a module that another model shares and that is edited there, and another edit "
                "cannot be combined with it: undo the other model's edit first, or give this model a copy of the "
                "module."
            )
        if any(editor.is_strangers(slot) for slot in slots):
            raise EditedModelError(
                f"'{site}' carries an edit that was copied along with the model, and another one cannot be combined "
                "with it: take it off first (surgery.undo_all(model))."
            )
    for operation in active(model):
        for change in operation.changes:
            if change.site.joint in touched and not _still_holds(model, change, written=operation.written):
                raise StaleDecompositionError(
                    f"'{change.site}' was given other weights while {change.edit!r} was in force on it, so that "
                    "another edit cannot be combined with it: undo that edit first (surgery.undo_all(model))."
                )


def check_writable(model: nn.Module, new: Sequence[Change]) -> None:
    """Refuse parameters that cannot be written to, or that another matrix of the model shares and would change along.

    Raises:
        ValueError: naming the matrices.
    """
    host = host_of(model)
    touched = {change.site.joint for change in new}
    slots = [(site, slot) for site in host.joint_sites() for slot in host.place(site).slots]
    sharing: dict[int | None, list[Site]] = {}
    for site, slot in slots:
        sharing.setdefault(slot.memory, []).append(site)
    for site, slot in slots:
        if site not in touched:
            continue
        held = slot.registered()
        if held is not None and held.is_inference():
            raise ValueError(
                f"the parameter of '{site}' was made in inference mode, and cannot be written to: use surgery.apply, "
                "or load the model outside torch.inference_mode()."
            )
        for other in sharing[slot.memory]:
            if other != site and slot.memory is not None:
                raise ValueError(
                    f"'{site}' and '{other}' share one parameter, so that writing an edit into '{site}' would change "
                    f"'{other}' too: use surgery.apply, which edits '{site}' alone, or give it a parameter of its own."
                )


def _still_holds(model: nn.Module, change: Change, *, written: bool) -> bool:
    editor, place = editor_of(model), place_of(model, change.site)
    in_place = written or all(editor.is_shown(slot) for slot in place.slots)
    return in_place and fingerprint(editor.original(place)) == change.decomposition.fingerprint


def lasting_tensors() -> AbstractContextManager:
    """Tensors made within can take part in autograd later, even if an edit is made in inference mode."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _state(model: nn.Module, touched: Operation, operations: Sequence[Operation]) -> list[Rendering]:
    """What the matrices that `touched` edits look like under these operations."""
    sites = dict.fromkeys(change.site.joint for change in touched.changes)
    written = [operation for operation in operations if operation.written]
    return render(model, sites, shown=_changes(operations), written=_changes(written))


def _changes(operations: Sequence[Operation]) -> list[Change]:
    return [change for operation in operations for change in operation.changes]
