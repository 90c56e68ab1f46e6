"""Exact ablation of the components that may be the largest, for a share of what ablating all of them takes.

An estimate misses two kinds of component. It says little of those that make up most of what their matrix writes: taking
such a one out is no small change. And where a few examples hold most of the effect, its mean says little of any. So
components enter by their estimate and by how far it may be off, are ablated first on the examples that are expected to
change most, and only those that may still be among the largest are ablated on the other examples.
"""

from dataclasses import dataclass, replace
from time import perf_counter
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.attribution.ablations import removed
from analyses.attribution.effects import Effects
from analyses.attribution.passes import inputs_of
from analyses.attribution.question import Question
from analyses.attribution.single_removals import share_behind
from hooks import Site
from hooks.recording import has_hooks

DOUBT = 3.0
"""How far an estimate may be off: so many times its size, where a component is all that its matrix writes."""
FIRST_EXAMPLES, FIRST_BUDGET = 0.25, 0.35
"""The first round: the part of the examples, and of the budget."""


@final
@dataclass(frozen=True, slots=True)
class Round:
    """Units that were ablated together on some of the examples, and what that took."""

    units: int
    examples: int
    passes: float
    seconds: float


def cost_of_all(question: Question) -> float:
    """What `by_ablation` of the question takes, in passes of the whole model over all examples."""
    return 1.0 + sum(share_behind(question, site) * len(target.units) for site, target in question.targets.items())


def largest(
    question: Question, estimated: Effects, *, passes: float, least: int, progress: bool
) -> tuple[Effects, tuple[Round, ...]]:
    """The exact effects of as many units as `passes` allow, but of no fewer than `least`, and the rounds it took.

    The first round takes a quarter of the examples, those whose estimated effects are largest. Of what a unit does on
    the others the estimate is kept, with the error that it had on these, in proportion to the size of the estimates.
    """
    n, start = question.n_examples, perf_counter()
    R = torch.cat([estimated.examples[str(site)] for site in question.targets], 1).double()
    cost = _per_unit(question, {site: share_behind(question, site) for site in question.targets}) / n
    n_first = _n_first(question, R)
    order = R.abs().sum(1).argsort(descending=True, stable=True) if n_first else torch.arange(n)
    first, rest = order[:n_first], order[n_first:]
    left = passes - 1.0 - len(first) / n  # the recordings, and the inputs of the first
    score = _possible(question, R, first if len(first) else rest)
    chosen, rows, baselines, rounds = torch.arange(len(score)), [], [], []
    for examples, allowed in ((first, FIRST_BUDGET * left), (rest, None)):
        if not len(examples):
            continue
        if rows:
            score = _corrected(R[:, chosen], rows[0], first, rest)
        here = cost[chosen] * len(examples)
        kept = _affordable(score, here, left if allowed is None else allowed, least)
        chosen, rows = chosen[kept], [part[:, kept] for part in rows]
        moved = removed(_asking(question, chosen, examples), progress=progress)
        rows.append(torch.cat([effects[:, 0] for effects in moved.effects.values()], 1))
        baselines.append(moved.baseline)
        left -= float(here[kept].sum())
        took = moved.passes * len(examples) / n + (0.0 if rounds else len(first) / n)
        rounds.append(Round(len(chosen), len(examples), took, perf_counter() - start))
        start = perf_counter()
    back = torch.cat([first, rest]).argsort()
    asked = _asking(question, chosen)
    widths = [len(target.units) for target in asked.targets.values()]
    parts = torch.cat(rows)[back].split(widths, 1)
    found = {site: [part] for site, part in zip(asked.targets, parts, strict=True)}
    total = sum(one.passes for one in rounds)
    return asked.effects("ablation (zero)", [torch.cat(baselines)[back]], found, passes=total), tuple(rounds)


def _n_first(question: Question, R: Float[Tensor, "example unit"]) -> int:
    """How many examples the first round takes: none where all have to go through the model together."""
    together = question.examples.metric.whole_batch or has_hooks(question.model)
    return 0 if together or len(R) != question.n_examples else int(FIRST_EXAMPLES * question.n_examples)


def _possible(
    question: Question, R: Float[Tensor, "example unit"], examples: Int[Tensor, " chosen"]
) -> Float[Tensor, " unit"]:
    """How large each effect may be: its estimate, and its doubt, which grows with the unit's part of the output."""
    inputs = question.examples.take(examples.sort().values).inputs
    real = None if inputs.mask is None else inputs.mask.bool()
    parts = []
    for site, x in inputs_of(question, inputs).items():
        target = question.targets[site]
        written = (x if real is None else x[real.to(x.device)]).to(target.components.U.dtype) @ target.components.U
        energy = (written * target.components.S).square().flatten(0, -2).sum(0)
        share = energy / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
        parts.append(torch.stack([share[list(unit)].sum() for unit in target.units]))
    share = torch.cat(parts).double().cpu()
    return R.mean(0).abs() + DOUBT * R.square().mean(0).sqrt() * share.sqrt()


def _corrected(
    R: Float[Tensor, "example unit"],
    exact: Float[Tensor, "chosen unit"],
    first: Int[Tensor, " chosen"],
    rest: Int[Tensor, " other"],
) -> Float[Tensor, " unit"]:
    """How large each effect may be after the first round: the corrected estimate, and the spread of its errors."""
    size = R.abs().sum(1).clamp_min(torch.finfo(R.dtype).tiny)
    errors = exact.double() - R[first]
    mean = R.mean(0) + errors.sum(0) / len(R) * size.sum() / size[first].sum()
    spread = (errors.square().sum(0) / size[first].square().sum() * size[rest].square().sum()).sqrt() / len(R)
    return mean.abs() + spread


def _affordable(
    score: Float[Tensor, " unit"], cost: Float[Tensor, " unit"], allowed: float, least: int
) -> Int[Tensor, " kept"]:
    """The units with the highest scores that cost no more than allowed, but no fewer than `least`; in their order."""
    order = score.argsort(descending=True, stable=True)
    n = max(least, int((cost[order].cumsum(0) <= allowed).sum()))
    return order[:n].sort().values


def _per_unit(question: Question, by_site: dict[Site, float]) -> Float[Tensor, " unit"]:
    """What is said of each matrix, for each of its units."""
    counts = torch.tensor([len(target.units) for target in question.targets.values()])
    return torch.tensor([by_site[site] for site in question.targets], dtype=torch.float64).repeat_interleave(counts)


def _asking(
    question: Question, chosen: Int[Tensor, " kept"], examples: Int[Tensor, " chosen"] | None = None
) -> Question:
    """The question of some of the units, on some of the examples."""
    first, targets = 0, {}
    for site, target in question.targets.items():
        here = chosen[(chosen >= first) & (chosen < first + len(target.units))] - first
        if len(here):
            targets[site] = replace(target, units=tuple(target.units[i] for i in here.tolist()))
        first += len(target.units)
    part = question.examples if examples is None else question.examples.take(examples)
    return replace(question, targets=targets, examples=part)
