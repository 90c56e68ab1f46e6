"""A spec as plain TransformerLens hooks, for a single call."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hooks import Place, Site
from hooks.compiled import refuse_compiled
from hooks.editor import editor_of
from surgery.decompositions import Decompositions
from surgery.edits import Gains
from surgery.operations import active, changes_in_force, check_on_top, lasting_tensors
from surgery.specs import Change, Spec, added_bias, combine, plan, recompose, spec_in_one

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

    >>> hooks = surgery.fwd_hooks(model, {"blocks.0.mlp.W_out": surgery.Drop([0])})
    >>> [name for name, _ in hooks]  # transformer-lens 3: a HookedTransformer
    ['blocks.0.mlp.hook_post', 'blocks.0.hook_mlp_out']
    >>> logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Drop([0])}):
    ...     torch.allclose(model(tokens), logits, atol=1e-4)
    True

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
    """Two hooks that act together: the first leaves what the second adds to the output."""

    model: nn.Module
    place: Place
    present: list[Change]
    added: list[Change]
    _pending: list[Tensor] = field(default_factory=list)

    def hooks(self) -> list[tuple[str, HookFunction]]:
        advice = "Use surgery.apply(model, spec), which always works."
        return [
            (self.place.hook_name("input", advice=advice), self._read),
            (self.place.hook_name("output", advice=advice), self._write),
        ]

    def _read(self, activation: Tensor, hook: nn.Module) -> None:
        x = self.place.read_input(self.place.input.from_hook(activation))
        self._pending[:] = [self._change(x)]

    def _write(self, activation: Tensor, hook: nn.Module) -> Tensor:
        return self.place.add_to_output(activation, self._pending.pop())

    def _change(self, x: Tensor) -> Tensor:
        """What the output changes by: `x (W_after − W_before)`, and the constants' share of the bias."""
        decomposition = self.added[0].decomposition.to(x.device)
        x, S = x.to(decomposition.S.dtype), decomposition.S
        before = combine(self.present) if self.present else Gains(torch.ones_like(S), 1.0)
        after = combine([*self.present, *self.added])
        if decomposition.basis.complete:
            change = ((x @ decomposition.U) * ((after.values - before.values) * S)) @ decomposition.Vh
        else:  # the components do not sum to the matrix, or take its place
            W = editor_of(self.model).original(self.place).to(S.dtype)
            change = x @ (recompose(W, decomposition, after) - recompose(W, decomposition, before))
        for gains, sign in ((after, 1), (before, -1)):
            bias = added_bias(decomposition, gains)
            change = change if bias is None else change + sign * bias
        return change
