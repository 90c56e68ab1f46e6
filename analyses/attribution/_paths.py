"""Shares of an edit's effect by integrating gradients along the way from the unedited to the edited model."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses.attribution._joint_edits import JointEdit, joint_edit
from analyses.attribution.effects import Shares, residual
from analyses.attribution.passes import backward, check_differentiable, units_of
from analyses.metrics import Metric
from analyses.metrics.positions import Mask
from analyses.prompts import Tokens
from hooks import Site
from surgery import Compensated, Decompositions, Edit, Scale, Spec, apply
from surgery.arguments import finite, whole
from surgery.progress import progress_bar


def by_path(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    spec: Spec,
    *,
    steps: int = 8,
    tolerance: float = 0.01,
    max_steps: int = 128,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Shares:
    """Shares of the change that a spec makes, which sum to it: integrated gradients over the gains (arXiv:1703.01365).

    All gains move together from 1 to the spec's, `a_i = (γ_i − 1) ∫₀¹ ∂m/∂γ_i dτ`, by Gauss–Legendre quadrature. If
    the shares miss the change by more than `tolerance` of it, the number of steps is doubled, up to `max_steps`. The
    result prints the certificate: the change, the sum, and the relative residual, also as `effects.residual`.

    Raises:
        ValueError: if the metric is not differentiable, the numbers of steps or the tolerance make no sense, or as
            `joint_edit`.
        SiteError: if a pattern names no editable matrix.

    >>> spec = {"blocks.1.mlp.W_out": surgery.KeepTop(rank=4)}
    >>> shares = attribution.by_path(model, tokens, metrics.logit(3), spec, progress=False)
    >>> shares.residual < 0.01
    True
    """
    max_steps = whole(max_steps, "max_steps", least=1)
    steps, tolerance = whole(steps, "steps", least=1, most=max_steps), finite(tolerance, "tolerance")
    if tolerance <= 0:
        raise ValueError(f"tolerance={tolerance!r}: give a positive number.")
    edit = joint_edit(
        model, tokens, metric, spec,
        svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    check_differentiable(edit.question)
    ends = edit.ends()
    change, used, passes = ends[1] - ends[0], steps, 2.0
    while True:
        shares = _integrated(edit, used, progress)
        passes += 2.0 * used
        missed = residual(shares, change)
        if missed <= tolerance or 2 * used > max_steps:
            break
        used *= 2
    total, summed = float(change.mean()), float(shares.sum(1).mean())
    notes = [
        f"certificate: the change is {total:.5g}, the shares sum to {summed:.5g}, residual {missed:.2%} at {used} steps"
    ]
    if missed > tolerance:
        notes.append(f"NOT within the tolerance of {tolerance:.2%}: raise max_steps, or attribute a smaller edit.")
    return edit.shares(f"path ({used} steps)", shares, ends, passes=passes, notes=notes)


def _integrated(edit: JointEdit, steps: int, progress: bool) -> Float[Tensor, "example player"]:
    """The shares with `steps` nodes of Gauss–Legendre quadrature."""
    question = edit.question
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total: dict[Site, Tensor] = {}
    for node, weight in progress_bar("path", list(zip(nodes, weights, strict=True)), progress=progress, unit="step"):
        with apply(question.model, _along(edit, (node + 1) / 2), svds=edit.svds, progress=False):
            parts = [question.examples.take(chosen) for chosen in question.batches()]
            passes = [backward(question, part, direct=True) for part in parts]
        for site, target in question.targets.items():
            away, constants = 1 - edit.gains[site].values.detach(), edit.gains[site].constants
            slopes = [
                part.summed(found.score(target, constants=constants).sum(1))
                for part, found in zip(parts, passes, strict=True)
            ]
            step = (weight / 2) * units_of(target, away * torch.cat(slopes)).float().cpu()
            total[site] = total.get(site, torch.zeros(())) + step
    return torch.cat([total[site] for site in question.targets], dim=1)


def _along(edit: JointEdit, t: float) -> dict[str, Edit]:
    """The edit a part `t` of the way."""
    spec: dict[str, Edit] = {}
    for site in edit.question.targets:
        gains = edit.gains[site]
        scale = Scale(1 + t * (gains.values.detach() - 1), basis=edit.question.basis)
        spec[str(site)] = scale if gains.constants is None else Compensated(scale, gains.constants)
    return spec
