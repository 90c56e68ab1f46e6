"""The method from scores to report: score on one part of a task, choose how many to remove, report on another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd
from torch import nn

import surgery
from analyses.eigenpruning._finetuning import FineTuning, fine_tuned
from analyses.eigenpruning._results import FineTuned, Pruning
from analyses.eigenpruning._settings import Best, Method, Report, as_fraction, says_where_settings_are
from analyses.eigenpruning.scores import ComponentScores, Order, attribute
from analyses.scoring import EncodedTask, Scores, encode, score_model
from analyses.tasks.items import Item
from analyses.tasks.task import Splits, Task, as_splits
from hooks import place_of
from surgery import Decompositions, Edit

_KEYS = "blocks.*.attn.W_K[*]"
_METHOD, _REPORT, _FINE_TUNING = Method(), Report(), FineTuning()


@says_where_settings_are
def prune(
    model: nn.Module,
    task: Task | Splits | Sequence[Item],
    sites: str | Iterable[str] = _KEYS,
    *,
    fraction: float | int | Literal["validation"] | Best = 0.2,
    method: Method = _METHOD,
    report: Report = _REPORT,
    seed: int = 0,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Pruning:
    """The spec that removes the lowest-scored fraction of the components, and what it does on items not scored.

    Args:
        model: a HookedTransformer or a TransformerBridge in evaluation mode; edits in force stay and count as the
            model.
        task: items, split here with `seed` so that what belongs together stays together; or parts made before, of which
            `screen` is scored, `validation` chooses the fraction and `test` is reported.
        sites: matrices or heads, all of whose components compete.
        fraction: of the components to remove; or `Best(of=...)` to choose it, by default with "validation".
        method: how components are scored, and what takes their place.
        report: the variants to report on, and what counts as right.

    Source: arXiv:2404.03147. The first `fraction` of Phi-2's keys is the paper's setting.

    Raises:
        ValueError: if a fraction is not from 0 to 1, the task is too small to be split or to be shuffled, or a matrix
            that has no bias to carry a compensation is named (`compensation="none"` works there).
        UnscorableItems: if there are items that this model cannot be asked.
        SiteError: if a pattern names no editable matrix.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(20)]
    >>> eigenpruning.prune(model, items, fraction=0.25, progress=False).chosen.n_components
    8
    """
    addresses, choice = surgery.sites(model, sites), as_fraction(fraction)
    _check_compensable(model, addresses, method)
    parts = _parts(task, seed, choosing=isinstance(choice, Best))
    attributed = partial(
        attribute, task=parts.screen, sites=addresses, reduce=method.reduce, corrupt=method.corrupt,
        prepend_bos=method.prepend_bos, seed=seed, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    size = 32 if batch_size is None else batch_size
    encoded = partial(encode, model, rule=report.rule, prepend_bos=method.prepend_bos, batch_size=size)
    trial = _Trial(model, attributed(model, svds=svds), method)
    best, validation = _best(trial, choice, partial(encoded, parts.validation))
    test, tuned = encoded(parts.test), None
    scores = _variants(trial, test, best, range(seed, seed + report.draws))
    if report.finetune is not None:
        copy = fine_tuned(model, parts.screen, report.finetune, prepend_bos=method.prepend_bos, progress=progress)
        again = _Trial(copy, attributed(copy, svds=Decompositions()), method)
        tuned = FineTuned(copy, again.spec(best), again.attribution)
        scores |= {"fine-tuned": _scored(copy, test, {}), "fine-tuned + pruned": _scored(copy, test, tuned.spec)}
    chosen = trial.attribution.lowest(best, budget=method.budget)
    return Pruning(trial.spec(best), trial.attribution, chosen, best, method, scores, validation, tuned)


def published(
    model: nn.Module,
    task: Task | Splits | Sequence[Item],
    sites: str | Iterable[str] = _KEYS,
    *,
    finetune: FineTuning | None = _FINE_TUNING,
    prepend_bos: bool | None = None,
    seed: int = 0,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Pruning:
    """`prune` as in the paper: max over examples and positions, the lowest 0.2 of all components, the previous example.

    Like the released script it also fine-tunes first, and reports both. docs/eigenpruning.md lists where it departs
    from that script, and why.

    Source: arXiv:2404.03147.

    Raises:
        as `prune`.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(20)]
    >>> result = eigenpruning.published(model, items, finetune=eigenpruning.FineTuning(steps=1), progress=False)
    >>> result.method.corrupt, list(result.scores)[-2:]
    ('previous', ['fine-tuned', 'fine-tuned + pruned'])
    """
    return prune(
        model, task, sites, fraction=0.2, method=Method(corrupt="previous", prepend_bos=prepend_bos),
        report=Report(finetune=finetune), seed=seed, svds=svds, batch_size=batch_size, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Trial:
    """Removing components of a model by some order."""

    model: nn.Module
    attribution: ComponentScores
    method: Method

    def spec(self, fraction: float, *, by: Order = "score", seed: int = 0) -> dict[str, Edit]:
        selection = self.attribution.lowest(fraction, budget=self.method.budget, by=by, seed=seed)
        return self.attribution.spec(selection, compensation=self.method.compensation)

    def scored(self, encoded: EncodedTask, fraction: float, *, by: Order = "score", seed: int = 0) -> Scores:
        return _scored(self.model, encoded, self.spec(fraction, by=by, seed=seed))


def _variants(trial: _Trial, test: EncodedTask, fraction: float, seeds: Iterable[int]) -> dict[str, Scores]:
    """The model as it is, pruned, and with as many components removed by the orders that are controls."""
    scores = {"base": _scored(trial.model, test, {}), "pruned": trial.scored(test, fraction)}
    for n, seed in enumerate(seeds, start=1):
        scores[f"random {n}"] = trial.scored(test, fraction, by="random", seed=seed)
    scores["smallest s"] = trial.scored(test, fraction, by="strength")
    if trial.method.reduce != "mean_abs":  # which takes no account of signs, so that there is none to flip
        scores["sign flipped"] = trial.scored(test, fraction, by="flipped")
    return scores


def _scored(model: nn.Module, encoded: EncodedTask, spec: Mapping[str, Edit]) -> Scores:
    if not spec:
        return score_model(model, encoded)
    with surgery.apply(model, spec, progress=False):
        return score_model(model, encoded)


def _best(
    trial: _Trial, choice: float | Best, validation: Callable[[], EncodedTask]
) -> tuple[float, pd.DataFrame | None]:
    """The fraction to remove; if it is chosen, accuracy, log-loss (nats per token) and rank of all, 0 for the best."""
    if not isinstance(choice, Best):
        return choice, None
    encoded, rows = validation(), []
    for fraction in map(float, choice.of):
        scores = trial.scored(encoded, fraction)
        rows.append((fraction, scores.accuracy, scores.log_loss.mean().item()))
    frame = pd.DataFrame(rows, columns=["fraction", "accuracy", "log_loss"])
    order = frame.sort_values(["accuracy", "log_loss", "fraction"], ascending=[False, True, True]).index
    return rows[order[0]][0], frame.assign(rank=pd.Series(range(len(frame)), index=order))


def _parts(task: Task | Splits | Sequence[Item], seed: int, *, choosing: bool) -> Splits:
    """The parts to score, to choose the fraction and to report on.

    Raises:
        ValueError: if one of them has no items.
    """
    if choosing:
        return as_splits(task, screen=0.4, validation=0.2, test=0.4, seed=seed)
    return as_splits(task, needed=("screen", "test"), screen=0.5, validation=0.0, test=0.5, seed=seed)


def _check_compensable(model: nn.Module, addresses: Iterable[str], method: Method) -> None:
    """Refuse matrices without a bias, which a constant output would have to be added to."""
    if method.compensation != "mean":
        return
    without = next((site for site in addresses if place_of(model, site).bias is None), None)
    if without is not None:
        raise ValueError(
            f"'{without}' cannot be compensated on this host: nothing is added to its output that could carry the "
            "constant. Leave this matrix out, or give compensation='none'."
        )
