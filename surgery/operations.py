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

from hooks import Site, host_of, place_of
from hooks.compiled import refuse_compiled, uncompiled
from hooks.editor import editor_of, guard, strip, unguard
from hooks.fingerprints import fingerprint
from hooks.records import record_of
from hooks.temporary import remove_left_behind
from surgery._report import table
from surgery._slot_states import SlotState, install, render
from surgery.arguments import counted
from surgery.bases import Basis
from surgery.decompositions import Decomposition, Decompositions, chosen_basis, components_of
from surgery.errors import EditedModelError, StaleDecompositionError
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

__all__ = ["Operation", "active", "apply", "commit", "components_in_force", "undo_all", "weight"]


@final
class Operation:
    """The edits of one spec in force on a model: from `surgery.apply`, or from `surgery.commit` (`written`).

    Leaving the `with` block, or `undo()`, takes them back. Printing an operation shows a table of what it does.
    """

    def __init__(self, model: nn.Module, spec: Spec, *, written: bool) -> None:
        # Weak, since the model's record holds operations in force: a model that everybody else has dropped is freed.
        self._model = ref(model)
        self._n_matrices = 0
        self.spec = spec
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
    def changes(self) -> tuple[Change, ...]:
        """What the spec means on the model: a change for each edit of each matrix; none once the model is gone."""
        model = self._model()
        return () if model is None else _operations_of(model).changes.get(self, ())

    @property
    def is_active(self) -> bool:
        """Whether the model is under this edit now."""
        model = self._model()
        return model is not None and self in active(model)

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
        with record_of(model).lock:
            if not self.is_active:
                return
            remaining = tuple(operation for operation in active(model) if operation is not self)
            with lasting_tensors():
                state = _state(model, self.changes, remaining)
            install(model, state)
            if not remaining:
                unguard(model)
            _operations_of(model).in_force = remaining

    def weight(self, site: str | Site) -> Float[Tensor, "d_in d_out"]:
        """The matrix at `site` as a forward pass of the model reads it now, in the orientation `y = x @ W`."""
        return weight(self.model, site)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each edited matrix: components kept, energy, relative Frobenius error, parameters, weight state."""
        return table(self.changes, editor_of(self.model).original)

    def __repr__(self) -> str:
        matrices = counted(self._n_matrices, "matrix", "matrices")
        model = self._model()
        if model is None:
            return f"operation on a model that has been deleted, {matrices}"
        state = ("written into" if self.written else "applied to") if self.is_active else "undone on"
        lines = table(self.changes, editor_of(model).original, readable=True).to_string(index=False)
        return f"operation {state} {type(model).__name__}, {matrices}\n{lines}"


@final
class Operations:
    """What is remembered about the operations on one model.

    `in_force` holds the active ones, oldest first. `changes` holds what each operation changed: its places are parts of
    the model, which an operation that somebody keeps must not keep alive.
    """

    def __init__(self) -> None:
        self.in_force: tuple[Operation, ...] = ()
        self.changes: WeakKeyDictionary[Operation, tuple[Change, ...]] = WeakKeyDictionary()


def _operations_of(model: nn.Module) -> Operations:
    return record_of(model).of(Operations)


@spec_in_one
def apply(model: nn.Module, spec: Spec, *, svds: Decompositions | None = None, progress: bool = True) -> Operation:
    """Put the edits of a spec in force on a model, until the returned operation is undone.

    The edited weights are shown in place of the parameters, which stay as they are. Everything is checked and computed
    before anything is changed. Gains multiply with those of operations already in force. `svds` stores decompositions
    made before, in the basis of the edits; new ones are added.

    >>> before = model(tokens)
    >>> with surgery.apply(model, {"blocks.*.mlp.W_out": surgery.KeepTop(rho=0.25)}):
    ...     torch.equal(model(tokens), before)
    False
    >>> torch.equal(model(tokens), before)
    True

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

    `undo()` puts back a copy of the original weights, bit for bit, and so discards whatever was trained into these
    matrices in between. (Under `apply` the parameters stay as they are, and training them goes on beneath the edit.)

    >>> operation = surgery.commit(model, {"blocks.0.mlp.W_out": surgery.Zero()})
    >>> int(model.blocks[0].mlp.W_out.count_nonzero())
    0
    >>> operation.undo()

    Raises:
        as `apply`, and ValueError if gains require grad or a parameter cannot be written to.
    """
    return _put_in_force(uncompiled(model), spec, svds=svds, progress=progress, written=True)


def active(model: nn.Module) -> tuple[Operation, ...]:
    """The operations in force on this model, oldest first.

    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Zero()}) as operation:
    ...     surgery.active(model) == (operation,)
    True
    >>> surgery.active(model)
    ()
    """
    return _operations_of(uncompiled(model)).in_force


def undo_all(model: nn.Module) -> None:
    """Undo every operation in force; a deep copy of an edited model is stripped of the edit it carries.

    Hooks that an interrupted analysis left on the model come off too: call this after an analysis, not within one.

    >>> operation = surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Zero()})
    >>> surgery.undo_all(model)
    >>> operation.is_active
    False
    """
    model = uncompiled(model)
    with record_of(model).lock:
        for operation in reversed(active(model)):
            operation.undo()
        remove_left_behind(model)
        strip(model)


def weight(model: nn.Module, site: str | Site) -> Float[Tensor, "d_in d_out"]:
    """The matrix at `site` as a forward pass of the model reads it now, edits included, in the orientation `y = x @ W`.

    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Zero()}):
    ...     surgery.weight(model, "blocks.0.mlp.W_out").count_nonzero().item()
    0

    Raises:
        SiteError: if this model has no such matrix.
    """
    return editor_of(model).current(place_of(model, site))


def changes_in_force(model: nn.Module, site: Site) -> list[Change]:
    """The active changes of exactly this site, oldest first."""
    return [change for change in _changes(active(model)) if change.site == site]


def components_in_force(
    model: nn.Module,
    sites: Iterable[Site],
    *,
    basis: Basis,
    svds: Decompositions | None = None,
    progress: bool = True,
) -> dict[Site, Decomposition]:
    """The components of each matrix as it is now: those of the original weights, strengths times the gains in force.

    Raises:
        ValueError: if an operation in force edits a matrix in another basis, or its heads where the whole is asked for,
            or `svds` is in another basis.
    """
    chosen_basis(basis, svds)
    places = host_of(model).places(sites)
    found = components_of(model, places.values(), basis=basis, svds=svds, progress=progress)
    in_force = _changes(active(model))
    for site in found:
        found[site] = found[site].to(places[site].device)
    for site in found if in_force else ():
        check_compatible([*((change.site, change.basis) for change in in_force), (site, basis)])
        if changes := [change for change in in_force if change.site == site]:
            found[site] = replace(found[site], S=found[site].S * combine(changes).values.detach())
    return found


def _put_in_force(
    model: nn.Module, spec: Spec, *, svds: Decompositions | None, progress: bool, written: bool
) -> Operation:
    host_of(model)  # refuses what cannot be operated on before any work is done
    if not written:
        refuse_compiled(model)
    operation = Operation(model, spec, written=written)
    try:
        with record_of(model).lock, lasting_tensors():
            operations = _operations_of(model)
            earlier = _changes(operations.in_force)
            changes = plan(model, spec, svds=svds, progress=progress, in_force=earlier)
            check_on_top(model, changes)
            warn_of_repeated(changes, earlier)
            if written:
                refuse_learned(changes)
                check_writable(model, changes)
            after = (*operations.in_force, operation)
            operation.spec, operation._n_matrices = dict(spec), len({change.site for change in changes})
            operations.changes[operation] = tuple(changes)
            edited = _state(model, changes, after)
            operations.in_force = after  # before anything is changed: what is remembered can be undone
            guard(model)
            install(model, edited)
        return operation
    except BaseException:
        operation.undo()
        raise


def check_on_top(model: nn.Module, new: Sequence[Change]) -> None:
    """Refuse new changes of matrices that no longer hold what the edits in force on them were made for.

    Raises:
        StaleDecompositionError: if a weight was changed under an edit in force, so that gains no longer multiply.
        EditedModelError: if the model is a deep copy of an edited one, whose gains nobody knows.
    """
    editor = editor_of(model)
    touched = {change.site.joint: change.place for change in new}
    for site, place in touched.items():
        if any(editor.is_another_models(slot) for slot in place.slots):
            raise EditedModelError(
                f"'{site}' lies in a module that another model shares and that is edited there, and another edit "
                "cannot be combined with it: undo the other model's edit first, or give this model a copy of the "
                "module."
            )
        if any(editor.is_strangers(slot) for slot in place.slots):
            raise EditedModelError(
                f"'{site}' carries an edit that was copied along with the model, and another one cannot be combined "
                "with it: take it off first (surgery.undo_all(model))."
            )
    marks = {change.site: change.decomposition.fingerprint for change in new}
    for operation in active(model):
        for change in operation.changes:
            place = touched.get(change.site.joint)
            if place is None:
                continue
            # Assigning a parameter throws a shadow out; replacing a module leaves it on the old one.
            in_place = operation.written or all(editor.is_shown(slot) for slot in place.slots)
            if place.slots == change.place.slots and in_place:
                mark = marks.get(change.site) or fingerprint(editor.original(change.place))
                if mark == change.decomposition.fingerprint:
                    continue
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
    slots = [(site, slot) for site, place in host.places(host.joint_sites()).items() for slot in place.slots]
    sharing: dict[int | None, list[Site]] = {}
    for site, slot in slots:
        sharing.setdefault(slot.memory, []).append(site)
    for site, slot in slots:
        if site not in touched:
            continue
        parameter = slot.registered()
        if parameter is not None and parameter.is_inference():
            raise ValueError(
                f"the parameter of '{site}' was made in inference mode, and cannot be written to: use surgery.apply, "
                "or load the model outside torch.inference_mode()."
            )
        other = next((other for other in sharing[slot.memory] if other != site), None)
        if other is not None and slot.memory is not None:
            raise ValueError(
                f"'{site}' and '{other}' share one parameter, so that writing an edit into '{site}' would change "
                f"'{other}' too: use surgery.apply, which edits '{site}' alone, or give it a parameter of its own."
            )


def lasting_tensors() -> AbstractContextManager:
    """Tensors made within can take part in autograd later, even if an edit is made in inference mode."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _state(model: nn.Module, touched: Sequence[Change], operations: Sequence[Operation]) -> list[SlotState]:
    """What the matrices that `touched` edits look like under these operations."""
    places = {change.site.joint: change.place.joint for change in touched}
    written = [operation for operation in operations if operation.written]
    return render(model, places.values(), shown=_changes(operations), written=_changes(written))


def _changes(operations: Sequence[Operation]) -> list[Change]:
    return [change for operation in operations for change in operation.changes]
