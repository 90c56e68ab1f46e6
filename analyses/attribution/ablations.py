"""Attribution by doing it: every component taken out by itself, exactly, and the metric measured again.

Removing component i changes a matrix's output by `−s_i (x_t·u_i) v_i`; `analyses.attribution.single_removals` does it
for many at a time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses.attribution.effects import REMOVAL, Effects
from analyses.attribution.passes import inputs_kept, inputs_of, metric_of
from analyses.attribution.question import Asked, Question, Target, ask, counterparts, prompts_for
from analyses.attribution.selections import Sites
from analyses.attribution.single_removals import Measured, Moved, Piece, Removals, Substitute, measure_each
from analyses.engines import Work, Workers
from analyses.metrics import Metric, as_metric
from analyses.metrics.positions import Mask
from analyses.prompts import Prompts, Tokens, read
from hooks import Site, host_of
from hooks.inputs import Inputs
from surgery import Basis, Decompositions
from surgery.arguments import one_of
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
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    executor: Workers | None = None,
    progress: bool = True,
) -> Effects:
    """The exact effect of removing each component by itself (of each unit of a selection together).

    `replacement` says what stands for the component's coordinate `x·u` when it is out: nothing (``"zero"``), its mean
    over all examples and real positions (``"mean"``), or the coordinate of another example at the same position
    (``"resample"``: of its `corrupted` counterpart where given, else of one drawn with `seed`, never itself).

    `batch_size` is the number of sequences that run at a time, an example once for each component. Where hooks of your
    own are active, components run one at a time on the whole batch, so that the hooks see what they were written for.

    With `executor`, `analyses.engines.Workers`, matrices are worked on elsewhere, with the same results. Workers
    decompose by themselves, so that `svds` is left out.

    Raises:
        WorkerError: if workers do not hold this model, or fail.
        ValueError: if there is only one example to resample from, the metric gives the wrong shape or NaN, or as `ask`.
        SiteError: if a pattern names no editable matrix.

    >>> metric = metrics.logit_difference(3, 5)
    >>> promising = attribution.by_gradient(model, tokens, metric, progress=False).top(5)
    >>> exact = attribution.by_ablation(model, tokens, metric, promising, progress=False)
    >>> exact.method, exact.top(5).keys() == promising.keys()
    ('ablation (zero)', True)
    """
    one_of(replacement, "replacement", get_args(Replacement))
    if executor is not None and svds is not None:
        raise ValueError("svds= stays in this process, and workers decompose by themselves: leave out one of both.")
    prompts = prompts_for(model, tokens, as_metric(metric), attention_mask)
    question = ask(model, prompts, metric, sites, basis=basis, svds=svds, batch_size=batch_size, progress=progress)
    other = None if corrupted is None else read(model, corrupted)
    substitute = _substitute(question, replacement, whole_seed(seed), other)
    asking = Ablating(Asked.of(question, prompts, metric), replacement, seed, other and other.to("cpu"))
    removals = measure_each(question, substitute, work="ablation", progress=progress, asking=asking, executor=executor)
    return question.effects(
        f"ablation ({replacement})",
        [removals.baseline],
        {site: [rows[:, 0]] for site, rows in removals.effects.items()},
        passes=removals.passes,
        intervention=_INTERVENTIONS[replacement],
    )


def removed(question: Question, *, progress: bool) -> Moved:
    """What removing each unit by itself changes, `[example 1 unit]`."""
    return measure_each(question, _substitute(question, "zero", 0, None), work="ablation", progress=progress)


@final
@dataclass(frozen=True, slots=True)
class Ablating(Work[Piece, Measured]):
    """The question of an ablation as workers are told of it."""

    asked: Asked
    replacement: Replacement
    seed: int
    corrupted: Prompts | None

    def on(self, model: nn.Module) -> Callable[[Piece], Iterable[Measured]]:
        """As `Work.on`."""
        question, device = self.asked.of_model(model), host_of(model).device
        other = None if self.corrupted is None else self.corrupted.to(device)
        return Removals(question, _substitute(question, self.replacement, self.seed, other)).measured

    def turn(self, piece: Piece) -> tuple[float, ...]:
        """Batch by batch, since each is recorded once; of a batch, the matrices first of which most blocks run."""
        (batch, site), units = piece, self.asked.units
        last = max(Site.parse(other).layer for other in units)
        return float(batch), -len(units[str(site)]) * (1.0 + last - site.layer)


def _substitute(question: Question, replacement: Replacement, seed: int, corrupted: Prompts | None) -> Substitute:
    """How far every coordinate moves when its component goes out: a function of target, input and example indices."""
    match replacement:
        case "zero":
            if corrupted is not None:
                raise ValueError('corrupted examples go with replacement="resample"; zero ablation uses none.')
            return lambda target, x, chosen: -_coordinates(target, x)
        case "mean":
            means = cache(partial(_mean_coordinates, question))  # not before they are asked for, by workers perhaps
            return lambda target, x, chosen: means()[target.place.site] - _coordinates(target, x)
        case _ if corrupted is not None:
            return Resampled(question, counterparts(question, corrupted))
        case _:
            if question.n_examples < 2:
                raise ValueError("one example cannot be resampled from another: give two or more, or corrupted=.")
            if question.examples.owner is not None:
                raise ValueError(
                    "examples of several rows each have no positions in common with one another: give corrupted=, or "
                    "take replacement='zero' or 'mean'."
                )
            return Resampled(question, question.examples.inputs.tokens[_derangement(question.n_examples, seed)])


@dataclass(slots=True)
class Resampled:
    """The coordinates of components on other rows, one for each; `values` is the metric there, batch by batch."""

    question: Question
    other: Int[Tensor, "row pos"]
    values: list[Float[Tensor, " example"]] = field(default_factory=list)
    _batch: Tensor | None = None
    _inputs: dict[Site, Tensor] = field(default_factory=dict)

    def __call__(self, target: Target, x: Tensor, chosen: Tensor) -> Tensor:
        if self._batch is None or not torch.equal(self._batch, chosen):
            self._batch = chosen
            examples = self.question.examples
            part = examples.take(chosen)
            rows = self.other[examples.rows_of(chosen).to(self.other.device)]
            with inputs_kept(self.question) as kept:
                self.values.append(metric_of(self.question, replace(part, inputs=Inputs(rows, part.inputs.mask))))
            self._inputs = kept()
        return _coordinates(target, self._inputs[target.place.site]) - _coordinates(target, x)


def _coordinates(target: Target, x: Float[Tensor, "example pos d_in"]) -> Float[Tensor, "example pos component"]:
    return x.to(target.components.U.dtype) @ target.components.U


def _mean_coordinates(question: Question) -> dict[Site, Float[Tensor, " component"]]:
    """The mean of `x·u` over all examples and all positions that are not padding."""
    sums: dict[Site, Tensor] = {}
    count = 0.0
    for chosen in question.batches():
        inputs = question.examples.take(chosen).inputs
        weights = torch.ones_like(inputs.tokens) if inputs.mask is None else inputs.mask
        count += float(weights.sum())
        for site, x in inputs_of(question, inputs).items():
            real = (x.float() * weights.unsqueeze(-1)).sum((0, 1))
            sums[site] = sums.get(site, torch.zeros_like(real)) + real
    U = {site: question.targets[site].components.U for site in sums}
    return {site: (total / count).to(U[site].dtype) @ U[site] for site, total in sums.items()}


def _derangement(n: int, seed: int) -> Int[Tensor, " example"]:
    """Another example for each: a random cycle through all of them."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
