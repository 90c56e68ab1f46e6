"""Scores that an attribution found, in the place of the paper's: what it takes for them to be a score here."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses import metrics
from analyses.attribution.effects import Effects, Measure
from analyses.attribution.passes import inputs_of
from analyses.attribution.question import Question, Target, ask, check_same_weights
from analyses.eigenpruning._reducers import Reduce, reduced
from analyses.eigenpruning.examples import Per, Rows
from surgery import Basis, Decompositions
from surgery.arguments import shown

Score: TypeAlias = Callable[..., Effects] | Effects
"""What components are scored by: an attribution such as `attribution.by_ablation`, called as
`score(model, tokens, metric, sites, attention_mask=, basis=, svds=, batch_size=, progress=)` on the items that are
scored and the loss of their answers; or effects that were found before."""


class MeanInput:
    """The mean of what a matrix multiplies, over the tokens seen so far."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.total = torch.zeros(target.place.d_in, dtype=torch.float64)
        self.count = 0

    def update(self, x: Float[Tensor, "token d_in"]) -> None:
        """Take in more tokens."""
        self.total += x.double().sum(0).cpu()
        self.count += len(x)

    def constants(self) -> Float[Tensor, " component"]:
        """The mean input of every component, `mean(x)·u_i`."""
        U = self.target.components.U
        return ((self.total / self.count).to(U) @ U).float().cpu()


def effects_by(
    score: Score,
    model: nn.Module,
    rows: Rows,
    sites: Sequence[str],
    *,
    per: Per,
    basis: Basis | None,
    svds: Decompositions | None,
    batch_size: int | None,
    progress: bool,
) -> tuple[Question, Effects]:
    """The question that was scored, and the effect of every component on something that should be low.

    Raises:
        TypeError: if the score is neither effects nor a function that gives them.
        ValueError: if the effects are of other matrices, of some components only, of other weights, or on a metric
            without direction.
    """
    loss, found = metrics.loss(rows.labels), score
    if not isinstance(found, Effects):
        if not callable(score):
            raise TypeError(f"score={shown(score)}: give an attribution, such as attribution.by_ablation, or effects.")
        found = score(
            model, rows.tokens, loss, list(sites), attention_mask=rows.mask, basis=basis, svds=svds,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        if not isinstance(found, Effects):
            raise TypeError(f"score gave {shown(found)}: it gives Effects, as attribution.by_ablation does.")
    _check_sites(found, sites)
    question = ask(
        model, rows.tokens, loss, list(sites), basis=found.basis if basis is None else basis, svds=svds,
        attention_mask=rows.mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    if question.basis != found.basis:
        raise ValueError(
            f"the effects are of components in {found.basis!r}, but basis={basis!r} was asked for: leave basis= out."
        )
    check_same_weights(question, found)
    weights = torch.ones(1) if found is score else rows.weights(per)
    return question, _lower_is_better(found, weights)


def reduced_effects(effects: Effects, reduce: Reduce) -> tuple[Effects, dict[str, Float[Tensor, " component"]]]:
    """The effects with one row for all examples; and the reduced effects of opposite sign, a control."""
    rows = {site: _by_component(effects, site) for site in effects.sites}
    one_row = Effects(
        method=effects.method,
        measure=effects.measure,
        units={site: tuple((i,) for i in range(len(S))) for site, S in effects.strengths.items()},
        examples={site: reduced(reduce, found)[None] for site, found in rows.items()},
        strengths=effects.strengths,
        weight_state=effects.weight_state,
        passes=effects.passes,
        basis=effects.basis,
        intervention=f"{effects.intervention} ({reduce} over examples)",
    )
    return one_row, {site: reduced(reduce, -found) for site, found in rows.items()}


def mean_inputs(question: Question, rows: Rows) -> dict[str, Float[Tensor, " component"]]:
    """The mean input of every component over all positions with a token, from one forward pass."""
    means = {site: MeanInput(target) for site, target in question.targets.items()}
    for batch in question.batches():
        inputs = question.examples.take(batch).inputs
        kept, has_token = inputs_of(question, inputs), rows.mask[batch].bool().to(inputs.tokens.device)
        for site, mean in means.items():
            mean.update(kept[site][has_token])
    return {str(site): mean.constants() for site, mean in means.items()}


def _check_sites(found: Effects, sites: Sequence[str]) -> None:
    """Refuse effects that are not of every component of exactly these matrices, or that have no better side."""
    apart = sorted({*sites} ^ {*found.sites})
    if apart:
        raise ValueError(
            f"the effects are of {_some(found.sites)}, and {_some(sites)} are to be pruned: '{apart[0]}' is on one "
            "side only. Give sites=effects.sites, or attribute the matrices that are to be pruned."
        )
    partial = next((site for site in sites if bool(found[site].isnan().any())), None)
    if partial is not None:
        raise ValueError(
            f"the effects are of some components of '{partial}' only, and all of them compete to be removed: attribute "
            "the whole matrix."
        )
    if found.measure.higher_is_better is None:
        raise ValueError(
            f"the effects are on {found.measure.name!r}, which has no direction, so that no component is the least "
            "needed: attribute a loss, or a metric with higher_is_better=True or False."
        )


def _lower_is_better(found: Effects, weights: Float[Tensor, " example"]) -> Effects:
    """The effects times the weights of the examples, on the metric's negative where it should be high."""
    measure, sign = found.measure, -1.0 if found.measure.higher_is_better else 1.0
    if sign < 0:
        measure = Measure(f"-{measure.name}", measure.unit, False, -measure.baseline)
    examples = {site: sign * weights[:, None] * rows for site, rows in found.examples.items()}
    return Effects(
        method=found.method, measure=measure, units=found.units, examples=examples, strengths=found.strengths,
        weight_state=found.weight_state, passes=found.passes, basis=found.basis, intervention=found.intervention,
    )  # fmt: skip


def _by_component(effects: Effects, site: str) -> Float[Tensor, "example component"]:
    """The effects with a column for each component; those of one unit all have the unit's."""
    rows = effects.examples[site]
    columns = torch.empty(len(rows), len(effects.strengths[site]), dtype=rows.dtype)
    for unit, column in zip(effects.units[site], rows.unbind(1), strict=True):
        columns[:, list(unit)] = column[:, None]
    return columns


def _some(sites: Sequence[str]) -> str:
    return f"'{sites[0]}'" if len(sites) == 1 else f"{len(sites)} matrices such as '{sites[0]}'"
