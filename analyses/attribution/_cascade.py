"""The whole cascade: estimate everything cheaply, do the promising exactly, and certify the chosen together."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from time import perf_counter
from typing import final

import pandas as pd
import torch
from torch import Tensor, nn

from analyses.attribution._curvature import by_curvature
from analyses.attribution._gradients import by_gradient
from analyses.attribution._paths import by_path
from analyses.attribution._readout import by_readout, draws_of, passes_of
from analyses.attribution._rounds import Round, cost_of_all, largest
from analyses.attribution.ablations import by_ablation
from analyses.attribution.effects import Effects, Shares
from analyses.attribution.question import Question, ask, prompts_for
from analyses.attribution.selections import Sites
from analyses.metrics import Metric, as_metric
from analyses.metrics.positions import Mask
from analyses.prompts import Tokens
from surgery import Basis, Decompositions, Edit
from surgery.arguments import counted, fraction, whole

CANDIDATES = 200
"""So many components are ablated exactly, where nobody says how many."""
ESTIMATE = 0.25
"""The part of a budget that the estimate may take, unless it takes more with a quarter of its usual draws."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Screening:
    """What each stage of a screening found and cost: effects of all, of the best, and shares of the chosen.

    `spec` removes the chosen: the most harmful components, or for a metric without direction the largest.
    """

    estimated: Effects
    exact: Effects
    certified: Shares | None
    spec: dict[str, Edit]
    seconds: tuple[float, ...]
    rounds: tuple[Round, ...] = ()
    """With a budget, the rounds of exact ablation."""

    def costs(self) -> pd.DataFrame:
        """A row for each stage and round: method, components, forward passes over all examples, seconds."""
        rows = [_row(self.estimated, self.seconds[0])]
        rows += [
            (f"{self.exact.method}, {counted(one.examples, 'example')}", one.units, one.passes, one.seconds)
            for one in self.rounds
        ] or [_row(self.exact, self.seconds[1])]
        rows += [] if self.certified is None else [_row(self.certified, self.seconds[2])]
        return pd.DataFrame(rows, columns=["method", "components", "passes", "seconds"])

    def __repr__(self) -> str:
        lines = ["screening", self.costs().to_string(index=False), "", repr(self.exact)]
        lines += ["", "nothing was chosen" if self.certified is None else repr(self.certified)]
        return "\n".join(lines)


def _row(stage: Effects, seconds: float) -> tuple[str, int, float, float]:
    return stage.method, sum(len(units) for units in stage.units.values()), stage.passes, seconds


def screen(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    candidates: int | None = None,
    budget: float | None = None,
    choose: int = 10,
    draws: int | None = None,
    seed: int = 0,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Screening:
    """Find the components that matter: an estimate for all, exact ablation of the best, a path for the chosen.

    The estimate is by the readout; with `draws`, by curvature with so many probes, and by gradient where `draws` is 0,
    and for a plain function, which the readout cannot follow. The `choose` most harmful of the exact effects (the
    largest, if the metric has no direction) are attributed together along a path, whose shares sum to their joint
    effect.

    Exactly ablated are the `candidates` with the largest estimates (None: 200). With a `budget` instead, such as 0.05,
    estimate and ablation together take this part of the passes of ablating everything, in two rounds and with an eye
    to where the estimate may be far off (docs/readout.md). It is exceeded where `choose` components need more.

    Raises:
        ValueError: if both `candidates` and `budget` are given, the metric is not differentiable, or as the stages
            (`by_curvature`, `by_ablation`, `by_path`).
        SiteError: if a pattern names no editable matrix.

    >>> screening = attribution.screen(model, tokens, metrics.logit_difference(3, 5), choose=2, progress=False)
    >>> screening.costs()["method"].tolist()
    ['readout (4 draws)', 'ablation (zero)', 'path (8 steps)']
    """
    metric, limit = as_metric(metric), _limit(candidates, budget)
    choose, draws = whole(choose, "choose"), None if draws is None else whole(draws, "draws")
    prompts = prompts_for(model, tokens, metric, attention_mask)
    given = partial(dict, basis=basis, svds=svds, batch_size=batch_size, progress=progress)
    start = perf_counter()
    question = ask(model, prompts, metric, sites, **given()) if isinstance(limit, float) else None
    allowed = inf if question is None else limit * cost_of_all(question)
    method = _estimate(metric, draws, seed, None if question is None else _draws(question, allowed))
    estimated = method(model, prompts, metric, sites, **given())
    times = [perf_counter()]
    if question is None:
        exact, rounds = by_ablation(model, prompts, metric, estimated.top(int(limit)), **given()), ()
    else:
        passes = allowed - estimated.passes
        exact, rounds = largest(question, estimated, passes=passes, least=max(1, choose), progress=progress)
    times.append(perf_counter())
    spec = exact.drop(choose) if metric.higher_is_better is None else exact.drop_most_harmful(choose)
    on_path = partial(by_path, model, prompts, metric, spec)
    certified = on_path(svds=svds, batch_size=batch_size, progress=progress) if spec else None
    times.append(perf_counter())
    spent = torch.tensor([start, *times], dtype=torch.float64).diff().tolist()
    return Screening(estimated, exact, certified, spec, tuple(spent), rounds)


def _limit(candidates: int | None, budget: float | None) -> int | float:
    """How many components to ablate, or, as a float, the part of the cost of all of them."""
    if budget is None:
        return CANDIDATES if candidates is None else whole(candidates, "candidates", least=1)
    if candidates is not None:
        raise ValueError(
            f"candidates={candidates!r} and budget={budget!r}: both say how much is ablated exactly. Give one of them."
        )
    return fraction(budget, "budget")


def _estimate(metric: Metric, draws: int | None, seed: int, of_readout: int | None) -> Callable[..., Effects]:
    """The method for the first stage; `of_readout` are the draws of the readout."""
    if draws is None and not metric.whole_batch:
        return partial(by_readout, seed=seed, draws=of_readout)
    return partial(by_curvature, draws=draws, seed=seed) if draws else by_gradient


def _draws(question: Question, allowed: float) -> int:
    """As many draws of the readout as usual, or half of them, or a quarter, so as to leave most to the ablation."""
    draws = draws_of(question.examples)
    while draws > 2 and passes_of(question.examples, draws) > ESTIMATE * allowed:
        draws //= 2
    return draws
