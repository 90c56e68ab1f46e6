"""The same edits as plain TransformerLens hooks, for one call."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hooks import Place, Site, SiteError
from hooks.editor import editor_of
from hooks.hosts import refuse_compiled
from hooks.wires import Wire
from surgery.decompositions import Decompositions
from surgery.operations import active, changes_in_force, check_on_top, lasting_tensors
from surgery.specs import Change, Gains, Spec, combine, plan, recompose, spec_in_one

HookFunction = Callable[..., Tensor | None]


@spec_in_one
def fwd_hooks(
    model: nn.Module, spec: Spec, *, svds: Decompositions | None = None, progress: bool = True
) -> list[tuple[str, HookFunction]]:
    """The edits of a spec as pairs of hook name and function, for `run_with_hooks(fwd_hooks=...)` or `hooks(...)`.

    For each matrix one hook reads its input x and one adds `((x @ U) * ((γ − 1) s)) @ Vh` to its output, which equals
    `apply` up to rounding (about 1e-5). TransformerLens runs the hooks of one hook point in the order of the list, so
    put these after your hooks on a matrix's input and before your hooks on its output; hooks elsewhere may stand
    anywhere. On top of operations in force, gains multiply.

    Raises:
        SiteError: if the model shows a matrix's input or output at no hook point; `surgery.apply` always works.
        ValueError and TypeError: as `surgery.apply`.
    """
    refuse_compiled(model)
    with lasting_tensors():
        in_force = [change for operation in active(model) for change in operation.changes]
        changes = plan(model, spec, svds=svds, progress=progress, in_force=in_force)
    check_on_top(model, changes)
    by_site: dict[Site, list[Change]] = {}
    for change in changes:
        by_site.setdefault(change.site, []).append(change)
    pairs: list[tuple[str, HookFunction]] = []
    for site, added in by_site.items():
        pairs += _Correction(model, added[0].place, changes_in_force(model, site), added).hooks()
    return pairs


@dataclass(slots=True)
class _Correction:
    """Two hooks that act together: the first leaves what the second adds."""

    model: nn.Module
    place: Place
    present: list[Change]
    added: list[Change]
    _pending: list[Tensor] = field(default_factory=list)

    def hooks(self) -> list[tuple[str, HookFunction]]:
        reads, writes = self.place.input, self.place.output
        return [(self._visible(reads, "input"), self._read), (self._visible(writes, "output"), self._write)]

    def _visible(self, wire: Wire, end: str) -> str:
        if wire.name is None:
            raise SiteError(
                f"the {end} of '{self.place.site}' is at no hook point of this model: {wire.hidden}. "
                "Use surgery.apply(model, spec), which always works."
            )
        return wire.name

    def _read(self, activation: Tensor, hook: nn.Module) -> None:
        x = self.place.read_input(self.place.input.from_hook(activation))
        self._pending[:] = [self._change(x)]

    def _write(self, activation: Tensor, hook: nn.Module) -> Tensor:
        return self.place.add_to_output(activation, self._pending.pop())

    def _change(self, x: Tensor) -> Tensor:
        decomposition, after = self.added[0].decomposition, combine([*self.present, *self.added])
        S = decomposition.S
        before = combine(self.present) if self.present else Gains(torch.ones_like(S), 1.0)
        lost = before.values - after.values
        x = x.to(S.dtype)
        if decomposition.basis.complete:
            change = ((x @ decomposition.U) * (-lost * S)) @ decomposition.Vh
        else:  # the components do not sum to the matrix, or take its place
            change = x @ (self._matrix(after) - self._matrix(before if self.present else None))
        if after.constants is not None:
            change = change + (lost * S * after.constants) @ decomposition.Vh
        return change

    def _matrix(self, gains: Gains | None) -> Tensor:
        decomposition = self.added[0].decomposition
        W = editor_of(self.model).original(self.place).to(decomposition.S.dtype)
        return W if gains is None else recompose(W, decomposition, gains)
