"""The whole cascade: estimate everything cheaply, do the promising exactly, and certify the chosen together."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import final

import pandas as pd
import torch
from torch import Tensor, nn

from analyses.attribution._curvature import by_curvature
from analyses.attribution._gradients import by_gradient
from analyses.attribution._paths import by_path
from analyses.attribution._readout import by_readout
from analyses.attribution.ablations import by_ablation
from analyses.attribution.effects import Effects, Shares
from analyses.attribution.question import prompts_for
from analyses.attribution.selections import Sites
from analyses.metrics import Metric, as_metric
from analyses.metrics.positions import Mask
from analyses.prompts import Tokens
from surgery import Basis, Decompositions, Edit
from surgery.arguments import whole


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

    def costs(self) -> pd.DataFrame:
        """A row for each stage: method, components, forward passes, seconds."""
        stages = [stage for stage in (self.estimated, self.exact, self.certified) if stage is not None]
        return pd.DataFrame({
            "method": [stage.method for stage in stages],
            "components": [sum(len(units) for units in stage.units.values()) for stage in stages],
            "passes": [stage.passes for stage in stages],
            "seconds": self.seconds[: len(stages)],
        })  # fmt: skip

    def __repr__(self) -> str:
        lines = ["screening", self.costs().to_string(index=False), "", repr(self.exact)]
        lines += ["", "nothing was chosen" if self.certified is None else repr(self.certified)]
        return "\n".join(lines)


def screen(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    candidates: int = 200,
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

    Raises:
        ValueError: if the metric is not differentiable, or as the stages (`by_curvature`, `by_ablation`, `by_path`).
        SiteError: if a pattern names no editable matrix.

    >>> screening = attribution.screen(model, tokens, metrics.logit_difference(3, 5), choose=2, progress=False)
    >>> screening.costs()["method"].tolist()
    ['readout (4 draws)', 'ablation (zero)', 'path (8 steps)']
    """
    metric = as_metric(metric)
    candidates, choose = whole(candidates, "candidates", least=1), whole(choose, "choose")
    method = _estimate(metric, None if draws is None else whole(draws, "draws"), seed)
    prompts = prompts_for(model, tokens, metric, attention_mask)
    start = perf_counter()
    estimated = method(model, prompts, metric, sites, basis=basis, svds=svds, batch_size=batch_size, progress=progress)
    times = [perf_counter()]
    best = estimated.top(candidates)
    exact = by_ablation(model, prompts, metric, best, basis=basis, svds=svds, batch_size=batch_size, progress=progress)
    times.append(perf_counter())
    spec = exact.drop(choose) if metric.higher_is_better is None else exact.drop_most_harmful(choose)
    certified = (
        by_path(model, prompts, metric, spec, svds=svds, batch_size=batch_size, progress=progress) if spec else None
    )
    times.append(perf_counter())
    spent = torch.tensor([start, *times], dtype=torch.float64).diff().tolist()
    return Screening(estimated, exact, certified, spec, tuple(spent))


def _estimate(metric: Metric, draws: int | None, seed: int) -> Callable[..., Effects]:
    """The method for the first stage."""
    if draws is None and not metric.whole_batch:
        return partial(by_readout, seed=seed)
    return partial(by_curvature, draws=draws, seed=seed) if draws else by_gradient
