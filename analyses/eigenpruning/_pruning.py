"""The method from scores to report: score on one part of a task, choose how many to remove, report on another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd
from torch import nn

import surgery
from analyses.attribution.effects import Effects
from analyses.eigenpruning._finetuning import FineTuning, fine_tuned
from analyses.eigenpruning._results import FINE_TUNED, FineTuned, Pruning
from analyses.eigenpruning._settings import Best, Method, Report, as_fraction, says_where_settings_are
from analyses.eigenpruning.scores import ComponentScores, Order, attribute
from analyses.scoring import EncodedTask, Scores, StartsWith, encode, score_model
from analyses.tasks.items import Item
from analyses.tasks.task import Splits, Task, as_splits, as_task
from hooks import place_of
from surgery import Decompositions, Edit

_KEYS = "blocks.*.attn.W_K[*]"
_METHOD, _REPORT = Method(), Report()
_PUBLISHED = FineTuning("epoch", lr=0.01, batch_size=5, optimizer="sgd")


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
            that has no bias to carry a compensation is named (`compensation="none"` works there), or effects given as
            the score are not of this model's components or may have been found on the reported items.
        UnscorableItems: if there are items that this model cannot be asked.
        SiteError: if a pattern names no editable matrix.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(20)]
    >>> eigenpruning.prune(model, items, fraction=0.25, progress=False).chosen.n_components
    8
    """
    addresses, choice = surgery.sites(model, sites), as_fraction(fraction)
    _check_compensable(model, addresses, method)
    _check_found_before(task, method, report)
    parts = _parts(task, seed, report.test, choosing=isinstance(choice, Best))
    attributed = partial(
        attribute, task=parts.screen, sites=addresses, reduce=method.reduce, corrupt=method.corrupt, per=method.per,
        score=method.score, prepend_bos=method.prepend_bos, seed=seed, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    size = 32 if batch_size is None else batch_size
    encoded = partial(encode, model, rule=report.rule, prepend_bos=method.prepend_bos, batch_size=size)
    trial = _Trial(model, attributed(model, svds=svds), method)
    best, validation = _best(trial, choice, partial(encoded, parts.validation))
    test, seeds, tuned = encoded(parts.test), range(seed, seed + report.draws), None
    scores = _variants(trial, test, best, seeds)
    if report.finetune is not None:
        copy = _copy(model, parts.screen, report.finetune, method, progress)
        again = _Trial(copy, attributed(copy, svds=Decompositions()), method)
        tuned, of_copy = FineTuned(copy, again.spec(best), again.attribution), _variants(again, test, best, seeds)
        scores |= {"fine-tuned": of_copy.pop("base")} | {FINE_TUNED + name: of for name, of in of_copy.items()}
    chosen = trial.attribution.lowest(best, budget=method.budget)
    split = None if isinstance(task, Splits) else seed
    return Pruning(trial.spec(best), trial.attribution, chosen, best, method, scores, validation, tuned, split)


def published(
    model: nn.Module,
    task: Task | Splits | Sequence[Item],
    sites: str | Iterable[str] = _KEYS,
    *,
    finetune: FineTuning | None = _PUBLISHED,
    prepend_bos: bool | None = None,
    seed: int = 0,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Pruning:
    """`prune` as in the paper: the lowest 0.2 of all components, by the maximum over examples and positions.

    A fifth of the items is reported on. Like the released script it compares with the previous example, asks for the
    first token of an answer (right where it is the likeliest of the whole vocabulary), and fine-tunes for an epoch
    first; the model as it is gets pruned and reported too. docs/eigenpruning.md lists where it departs from that
    script, and why.

    Source: arXiv:2404.03147.

    Raises:
        as `prune`.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(20)]
    >>> result = eigenpruning.published(model, items, finetune=eigenpruning.FineTuning(steps=1), progress=False)
    >>> result.method.corrupt, list(result.scores)[7:9]
    ('previous', ['fine-tuned', 'fine-tuned + pruned'])
    """
    reported = task.test if isinstance(task, Splits) else as_task(task, allowed="a Task, Splits,")
    rule = StartsWith(per="first") if reported.kind == "answer" else None
    return prune(
        model, task, sites, fraction=0.2, method=Method(corrupt="previous", prepend_bos=prepend_bos, per="first"),
        report=Report(finetune=finetune, rule=rule, test=0.2), seed=seed, svds=svds, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip


def _copy(model: nn.Module, task: Task, how: FineTuning, method: Method, progress: bool) -> nn.Module:
    return fine_tuned(model, task, how, per=method.per, prepend_bos=method.prepend_bos, progress=progress)


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


def _parts(task: Task | Splits | Sequence[Item], seed: int, test: float, *, choosing: bool) -> Splits:
    """The parts to score, to choose the fraction and to report on.

    Raises:
        ValueError: if one of them has no items.
    """
    validation = 0.2 if choosing else 0.0
    needed = ("screen", "validation", "test") if choosing else ("screen", "test")
    screen, test = (share * (1 - validation) for share in (1 - test, test))
    return as_splits(task, needed=needed, screen=screen, validation=validation, test=test, seed=seed)


def _check_found_before(task: object, method: Method, report: Report) -> None:
    """Refuse effects that were found before where one cannot tell on what, or that are not of what is pruned."""
    if not isinstance(method.score, Effects):
        return
    if not isinstance(task, Splits):
        raise ValueError(
            "score=Effects(...) with a task that is split here: the items that are reported on may be among those that "
            "the effects were found on. Split first, parts = task.split(...), attribute parts.screen, and give parts."
        )
    if report.finetune is not None:
        raise ValueError(
            "score=Effects(...) with finetune=...: the effects are those of the model as it is, and a fine-tuned copy "
            "has others. Give the attribution itself, such as score=attribution.by_ablation."
        )


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
