"""The method from scores to report: score on one part of a task, choose how many to remove, report on another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import pandas as pd
from torch import nn

import surgery
from analyses.attribution.effects import Selection
from analyses.eigenpruning.examples import Corrupt
from analyses.eigenpruning.finetuning import FineTuning, fine_tuned
from analyses.eigenpruning.reducers import Reduce
from analyses.eigenpruning.scores import (
    Budget,
    Compensation,
    ComponentScores,
    Order,
    attribute,
    check_budget,
    check_compensation,
)  # fmt: skip
from analyses.scoring import Comparison, EncodedTask, Rule, Scores, compare, encode, forward, score_encoded
from analyses.tasks.items import Item
from analyses.tasks.task import Splits, Task, as_task
from hooks import place_of
from surgery import Decompositions, Edit
from surgery.arguments import counted, whole

FRACTIONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""What `fraction="validation"` tries: 0 leaves the model as it is, which may be the best."""
_KEYS = "blocks.*.attn.W_K[*]"
_FINE_TUNING = FineTuning()


@final
@dataclass(frozen=True, slots=True)
class FineTuned:
    """A fine-tuned copy of the model, and what was pruned from it."""

    model: nn.Module
    spec: dict[str, Edit]
    attribution: ComponentScores


@final
@dataclass(frozen=True, slots=True, repr=False)
class Pruning:
    """What was removed, why, and what it did to the held-out items.

    `scores` holds, on the test part, "base", "pruned", the controls ("random 1", …, "smallest s", "sign flipped") and,
    if asked for, "fine-tuned" and "fine-tuned + pruned". `validation` has a row for each fraction that was tried.
    """

    spec: dict[str, Edit]
    attribution: ComponentScores
    chosen: Selection
    fraction: float
    budget: Budget
    compensation: Compensation
    scores: dict[str, Scores]
    validation: pd.DataFrame | None = None
    fine_tuned: FineTuned | None = None

    def compare(self, variant: str = "pruned", *, to: str = "base", seed: int = 0) -> Comparison:
        """A variant held against another, with intervals over clusters of items.

        Raises:
            KeyError: if there is no such variant.
        """
        for name in (variant, to):
            if name not in self.scores:
                raise KeyError(f"{name!r} is no variant of this result; there are {', '.join(self.scores)}.")
        return compare(self.scores[to], self.scores[variant], seed=seed)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each variant: accuracy, log-loss (nats per token), probabilities, and what changed from "base".

        Changes come with 95 % intervals.
        """
        rows = []
        for name in self.scores:
            row: dict[str, str | int | float] = {"variant": name} | self.scores[name].summary().as_row()
            changes = self.compare(name)
            for quantity in ("accuracy", "log_loss"):
                change = getattr(changes, quantity)
                row[f"{quantity}_change"] = change.difference
                row |= {f"{quantity}_low": change.low, f"{quantity}_high": change.high}
            rows.append(row)
        return pd.DataFrame(rows).drop(columns=["task", "n_unscorable"])

    def __repr__(self) -> str:
        base = self.scores["base"]
        lines = [
            f"eigenpruning: {self.chosen.n_components} of {counted(self.attribution.n_components, 'component')} "
            f"removed ({self.fraction:.3g}, budget {self.budget}), compensation {self.compensation}",
            f"scored on {counted(self.attribution.n_examples, 'item')} by {self.attribution.reduce}, "
            f"reported on {counted(len(base), 'other')}; 95 % intervals",
            f"{'variant':<20} {'accuracy':>8}  {'change of accuracy':<27} {'log-loss':>8}  {'p(correct)':>10} "
            f"{'p(wrong)':>8}",
        ]
        for name, found in self.scores.items():
            short = found.summary()
            change = "" if name == "base" else str(self.compare(name).accuracy)
            lines.append(
                f"{name:<20} {short.accuracy:>8.3f}  {change:<27} {short.log_loss:>8.3f}  {short.p_correct:>10.3f} "
                f"{short.p_wrong:>8.3f}"
            )
        return "\n".join(lines)


def prune(
    model: nn.Module,
    task: Task | Splits | Sequence[Item],
    sites: str | Iterable[str] = _KEYS,
    *,
    fraction: float | int | Literal["validation"] = 0.2,
    fractions: Sequence[float | int] | None = None,
    reduce: Reduce = "max",
    corrupt: Corrupt = "shuffle",
    budget: Budget = "global",
    compensation: Compensation = "mean",
    finetune: FineTuning | None = None,
    random_controls: int = 3,
    rule: Rule | None = None,
    prepend_bos: bool | None = None,
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
        fraction: of the components to remove; "validation" tries several and takes the most accurate (at equal accuracy
            the one with the lower log-loss).
        fractions: those to try; giving them means fraction="validation".
        reduce: one number from all examples and positions.
        corrupt: another example's prompt, or given pairs {clean prompt: corrupted prompt}.
        budget: where the fraction is counted.
        compensation: "mean" puts the mean of a removed component's input in its place, at every position alike and at
            any sequence length; it travels with the spec.
        finetune: also fine-tune a copy on the scored items, and prune that.
        random_controls: how many random removals of the same size to report.
        rule: what counts as right, as in `scoring.score`.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Source: arXiv:2404.03147. The first `fraction` of Phi-2's keys is the paper's setting.

    Raises:
        ValueError: if a fraction is not from 0 to 1, the task is too small to be split or to be shuffled, or a matrix
            that has no bias to carry a compensation is named (`compensation="none"` works there).
        UnscorableItems: if there are items that this model cannot be asked.
        SiteError: if a pattern names no editable matrix.
    """
    patterns = list(sites) if isinstance(sites, Iterable) and not isinstance(sites, str | Mapping) else sites
    check_compensation(compensation)
    check_budget(budget)
    whole(random_controls, "random_controls")
    tried, choosing = _fractions(fraction, fractions), fractions is not None or fraction == "validation"
    _check_compensable(model, patterns, compensation)
    parts = task if isinstance(task, Splits) else _split(as_task(task, allowed="a Task, Splits,"), seed, choosing)
    _check_parts(parts, choosing=choosing)
    asked = partial(
        attribute, task=parts.screen, sites=patterns, reduce=reduce, corrupt=corrupt, seed=seed,
        prepend_bos=prepend_bos, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    attribution = asked(model, svds=svds)
    size = 32 if batch_size is None else batch_size
    made = partial(encode, model, rule=rule, batch_size=size, prepend_bos=prepend_bos)
    trial = _Trial(model, attribution, budget, compensation)
    validation, best = None, tried[0]
    if choosing:
        validation = _tried(trial, made(parts.validation), tried)
        best = tried[validation["place"].tolist().index(0)]
    encoded = made(parts.test)
    found = {"base": _scored(model, encoded, {}), "pruned": trial.scored(encoded, best)}
    found |= {
        f"random {n + 1}": trial.scored(encoded, best, by="random", seed=seed + n) for n in range(random_controls)
    }
    found["smallest s"] = trial.scored(encoded, best, by="strength")
    if reduce != "mean_abs":  # where the sign does not count, there is none to flip
        found["sign flipped"] = trial.scored(encoded, best, by="flipped")
    tuned = None
    if finetune is not None:
        copy = fine_tuned(model, parts.screen, finetune, prepend_bos=prepend_bos, progress=progress)
        again = _Trial(copy, asked(copy, svds=Decompositions(basis=attribution.basis)), budget, compensation)
        tuned = FineTuned(copy, again.spec(best), again.attribution)
        found |= {"fine-tuned": _scored(copy, encoded, {}), "fine-tuned + pruned": _scored(copy, encoded, tuned.spec)}
    chosen = attribution.lowest(best, budget=budget)
    return Pruning(trial.spec(best), attribution, chosen, best, budget, compensation, found, validation, tuned)


def published(
    model: nn.Module,
    task: Task | Splits | Sequence[Item],
    sites: str | Iterable[str] = _KEYS,
    *,
    finetune: FineTuning | None = _FINE_TUNING,
    prepend_bos: bool | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> Pruning:
    """`prune` as in the paper: max over examples and positions, the lowest 0.2 of all components, the previous example.

    Like the released script it also fine-tunes first, and reports both. docs/eigenpruning.md lists where it departs
    from that script, and why.

    Source: arXiv:2404.03147.

    Raises:
        as `prune`.
    """
    return prune(
        model, task, sites, fraction=0.2, reduce="max", corrupt="previous", budget="global", compensation="mean",
        finetune=finetune, prepend_bos=prepend_bos, seed=seed, batch_size=batch_size, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Trial:
    """Removing components of a model by some order."""

    model: nn.Module
    attribution: ComponentScores
    budget: Budget
    compensation: Compensation

    def spec(self, fraction: float, *, by: Order = "score", seed: int = 0) -> dict[str, Edit]:
        chosen = self.attribution.lowest(fraction, budget=self.budget, by=by, seed=seed)
        return self.attribution.spec(chosen, compensation=self.compensation)

    def scored(self, encoded: EncodedTask, fraction: float, *, by: Order = "score", seed: int = 0) -> Scores:
        return _scored(self.model, encoded, self.spec(fraction, by=by, seed=seed))


def _scored(model: nn.Module, encoded: EncodedTask, spec: Mapping[str, Edit]) -> Scores:
    if not spec:
        return score_encoded(encoded, partial(forward, model))
    with surgery.apply(model, spec, progress=False):
        return score_encoded(encoded, partial(forward, model))


def _tried(trial: _Trial, encoded: EncodedTask, fractions: Sequence[float]) -> pd.DataFrame:
    """Accuracy and log-loss (nats per token) of every fraction on the validation part; place 0 is the best."""
    rows = []
    for fraction in fractions:
        found = trial.scored(encoded, fraction)
        rows.append((fraction, found.accuracy, found.log_loss.mean().item()))
    frame = pd.DataFrame(rows, columns=["fraction", "accuracy", "log_loss"])
    order = frame.sort_values(["accuracy", "log_loss", "fraction"], ascending=[False, True, True]).index
    return frame.assign(place=pd.Series(range(len(frame)), index=order))


def _fractions(fraction: float | int | str, fractions: Sequence[float | int] | None) -> tuple[float, ...]:
    given = fractions if fractions is not None else FRACTIONS if fraction == "validation" else (fraction,)
    several = isinstance(given, Sequence) and not isinstance(given, str)
    if not several or not given or any(isinstance(f, str | bool) or not 0 <= f <= 1 for f in given):
        raise ValueError(
            f"fraction={fraction!r}, fractions={fractions!r}: a fraction of the components to remove is from 0 to 1, "
            "or 'validation' to choose among fractions. Give for instance 0.2."
        )
    return tuple(float(f) for f in given)


def _split(task: Task, seed: int, validate: bool) -> Splits:
    if validate:
        return task.split(screen=0.4, validation=0.2, test=0.4, seed=seed)
    return task.split(screen=0.5, validation=0.0, test=0.5, seed=seed)


def _check_parts(parts: Splits, *, choosing: bool) -> None:
    needed = ("screen", "validation", "test") if choosing else ("screen", "test")
    empty = next((name for name in needed if not len(getattr(parts, name))), None)
    if empty is not None:
        raise ValueError(
            f"the part {empty!r} of the task has no items: screen is scored, validation chooses the fraction, test is "
            "reported. Split with a fraction above 0 for it."
        )


def _check_compensable(model: nn.Module, patterns: str | Iterable[str], compensation: Compensation) -> None:
    if compensation != "mean":
        return
    without = next((site for site in surgery.sites(model, patterns) if place_of(model, site).bias is None), None)
    if without is not None:
        raise ValueError(
            f"'{without}' cannot be compensated on this host: nothing is added to its output that could carry the "
            "constant. Leave this matrix out, or give compensation='none'."
        )
