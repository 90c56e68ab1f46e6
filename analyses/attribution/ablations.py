"""Attribution by doing it: every component taken out by itself, exactly, and the metric measured again.

Removing component i changes a matrix's output by `−s_i (x_t·u_i) v_i`; `analyses.attribution.moves` does it for many
at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses.attribution.effects import REMOVAL, Effects
from analyses.attribution.gradients import arithmetic, inputs_kept, logits_of, metric_of
from analyses.attribution.moves import Substitute, one_at_a_time
from analyses.attribution.question import Question, Sites, Target, ask, counterparts
from analyses.metrics import Metric
from analyses.metrics.placement import Mask
from analyses.prompts import Tokens
from hooks import Site
from surgery import Decompositions
from surgery.arguments import seed as whole_seed

Replacement = Literal["zero", "mean", "resample"]
_INTERVENTIONS: dict[Replacement, str] = {
    "zero": REMOVAL,
    "mean": "replacement by the mean",
    "resample": "replacement by another example's",
}


def by_ablation(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    replacement: Replacement = "zero",
    seed: int = 0,
    corrupted: Tokens | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """The exact effect of removing each component by itself (of each unit of a selection together).

    `replacement` says what stands for the component's coordinate `x·u` when it is out: nothing (``"zero"``), its mean
    over all examples and real positions (``"mean"``), or the coordinate of another example at the same position
    (``"resample"``: of its `corrupted` counterpart where given, else of one drawn with `seed`, never itself).

    `batch_size` is the number of sequences that run at a time, an example once for each component. Where hooks of your
    own are active, components run one at a time on the whole batch, so that the hooks see what they were written for.

    Raises:
        ValueError: if there is only one example to resample from, the metric gives the wrong shape or NaN, or as `ask`.
        SiteError: if a pattern names no editable matrix.
    """
    question = ask(
        model, tokens, metric, sites, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress
    )
    substitute = _substitute(question, replacement, whole_seed(seed), corrupted)
    found = one_at_a_time(question, substitute, work="ablation", progress=progress)
    return Effects(
        f"ablation ({replacement})",
        question.measure(found.baseline),
        {target.address: target.units for target in question.targets.values()},
        {str(site): question.pooled(rows[:, 0]) for site, rows in found.effects.items()},
        {target.address: target.components.S.cpu() for target in question.targets.values()},
        question.weight_state,
        found.passes,
        basis=question.basis,
        intervention=_INTERVENTIONS[replacement],
    )


def _substitute(question: Question, replacement: Replacement, seed: int, corrupted: Tokens | None) -> Substitute:
    """How far every coordinate moves when its component goes out: a function of target, input and example indices."""
    match replacement:
        case "zero":
            if corrupted is not None:
                raise ValueError('corrupted examples go with replacement="resample"; zero ablation uses none.')
            return lambda target, x, chosen: -_coordinates(target, x)
        case "mean":
            means = _mean_coordinates(question)
            return lambda target, x, chosen: means[target.place.site] - _coordinates(target, x)
        case "resample":
            if corrupted is None and question.n_examples < 2:
                raise ValueError("one example cannot be resampled from another: give two or more, or corrupted=.")
            if corrupted is None:
                return Resampled(question, question.examples.tokens[_derangement(question.n_examples, seed)])
            return Resampled(question, counterparts(question, corrupted))
        case _:
            raise ValueError(f"replacement={replacement!r}: it is 'zero', 'mean' or 'resample'.")


@dataclass(slots=True)
class Resampled:
    """The coordinates of components on other examples, one for each; `values` is the metric there, batch by batch."""

    question: Question
    other: Int[Tensor, "example pos"]
    values: list[Float[Tensor, " example"]] = field(default_factory=list)
    _batch: Tensor | None = None
    _inputs: dict[Site, Tensor] = field(default_factory=dict)

    def __call__(self, target: Target, x: Tensor, chosen: Tensor) -> Tensor:
        if self._batch is None or not torch.equal(self._batch, chosen):
            self._batch = chosen
            part = self.question.take(chosen)
            with inputs_kept(self.question) as kept:
                others = replace(part, tokens=self.other[chosen.to(self.other.device)])
                self.values.append(metric_of(self.question, others))
            self._inputs = kept()
        return _coordinates(target, self._inputs[target.place.site]) - _coordinates(target, x)


def _coordinates(target: Target, x: Float[Tensor, "example pos d_in"]) -> Float[Tensor, "example pos component"]:
    return x.to(target.components.U.dtype) @ target.components.U


def _mean_coordinates(question: Question) -> dict[Site, Float[Tensor, " component"]]:
    """The mean of `x·u` over all examples and all positions that are not padding."""
    sums: dict[Site, Tensor] = {}
    count = 0.0
    for chosen in question.batches():
        part = question.take(chosen)
        with inputs_kept(question) as kept, arithmetic(False):
            logits_of(question.model, part.tokens, part.attention_mask)
        weights = torch.ones_like(part.tokens) if part.attention_mask is None else part.attention_mask
        count += float(weights.sum())
        for site, x in kept().items():
            real = (x.float() * weights.unsqueeze(-1)).sum((0, 1))
            sums[site] = sums.get(site, torch.zeros_like(real)) + real
    parts = {site: question.targets[site].components for site in sums}
    return {site: (total / count).to(parts[site].U.dtype) @ parts[site].U for site, total in sums.items()}


def _derangement(n: int, seed: int) -> Int[Tensor, " example"]:
    """Another example for each: a random cycle through all of them."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
