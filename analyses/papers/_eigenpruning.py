"""Eigenpruning as its paper runs it: score, remove the lowest fifth of the key components, and look at other items."""

from dataclasses import dataclass
from math import isnan
from typing import ClassVar, Literal, final

import pandas as pd

import surgery
from analyses import attribution, eigenpruning, plots, scoring, tasks
from analyses.eigenpruning import FineTuning, Per, Pruning, Report, Score
from analyses.papers._estimates import Estimate, Work, decompositions, measure, memory_of
from analyses.papers._folders import RunFolder
from analyses.papers._items import TaskError
from analyses.papers._method import Asked, Findings, Method
from analyses.papers._models import short_name
from analyses.papers._published import EIGENPRUNING, published
from analyses.papers._reports import NOT_AT_HAND, Section, percent, write_figures
from analyses.scoring import Likeliest, StartsWith
from analyses.tasks import Splits
from hooks import Site, host_of
from hooks.sizes import nbytes
from surgery.arguments import counted

_TEST = 0.2
"""The share of the items that reports, drawn at random, where the task has no split of its own."""
_BACKWARD = 2
"""How many forward passes a backward pass is taken for."""
_JUDGED = ("pruned", "fine-tuned + pruned")
"""The variants that are held against controls."""
By = Literal["paper", "gradient", "curvature", "ablation"]
_SCORES: dict[By, Score] = {
    "gradient": attribution.by_gradient,
    "curvature": attribution.by_curvature,
    "ablation": attribution.by_ablation,
}
"""The attributions that may stand for the paper's score, each on the answers' loss."""
_PASSES: dict[By, int] = {"paper": 2 + _BACKWARD, "gradient": 2 + _BACKWARD, "curvature": 200}
"""Forward passes over the scored items that a score takes; `by_ablation` takes one for each component."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Eigenpruning(Method):
    """Scores on one part of the items, removal of the lowest fraction, and a report on the other part."""

    name: ClassVar[str] = "eigenpruning"
    title: ClassVar[str] = "Eigenpruning"
    paper: ClassVar[str] = EIGENPRUNING
    kinds: ClassVar[tuple[str, ...]] = ("answer", "choice")
    sites: tuple[str, ...] = ("blocks.*.attn.W_K[*]",)
    fraction: float = 0.2
    score: By = "paper"
    corrupt: Literal["previous", "shuffle"] = "previous"
    per: Per = "first"
    finetune: bool = False
    learning_rate: float = 0.01

    def estimate(self, asked: Asked) -> Estimate:
        """Counted in items; a backward pass is taken for two forward passes."""
        settings, (parts, _) = asked.settings, self._parts(asked)
        sites = [Site.parse(site) for site in surgery.sites(asked.model, self.sites)]
        measured = measure(
            asked.model, asked.task, sites, prepend_bos=settings.prepend_bos, batch_size=settings.batch_size
        )
        self._check(asked, parts)
        passes = _PASSES.get(self.score, _n_components(asked, sites))
        counts = items_asked(
            len(parts.screen), len(parts.test), draws=settings.draws, passes=passes, finetune=self.finetune
        )
        work = [Work(what, times, measured.an_item) for what, times in counts.items()]
        rounds = 2 if self.finetune else 1
        memory = memory_of(asked.model, sites, measured, activations=None, batch_size=settings.batch_size or 32)
        if self.finetune:
            memory["a copy of the model, and its gradients"] = 2 * nbytes(asked.model)
        return Estimate([*(decompositions(asked.model, sites, measured) * rounds), *work], memory)

    def find(self, asked: Asked, folder: RunFolder) -> Findings:
        """Prune, and fine-tune a copy and prune that if it is asked for; kept in the folder once it is finished."""
        parts, split = self._parts(asked)
        pruned = folder.piece("pruned", lambda: self._pruned(asked, folder, parts))
        frame = pd.DataFrame(pruned["rows"])
        folder.table("table", frame)
        return Findings(self._summary(frame, pruned), self._sections(asked, frame, pruned), split)

    def _parts(self, asked: Asked) -> tuple[Splits, str]:
        """What is scored and what reports, and how they were divided, in words."""
        task, seed = asked.task, asked.settings.seed
        if asked.settings.split == "published" and asked.items.recipe is not None:
            parts = tasks.recipe(asked.items.recipe).split(task, seed=seed)
            scored = parts.screen if len(parts.screen) else parts.validation
            said = f"{len(scored)} items are scored, {len(parts.test)} report: the paper's own division"
            return Splits(scored, task[:0], parts.test), said
        if len(task) < 3:
            raise TaskError(
                f"the task has {counted(len(task), 'item')}, and some are scored, others report: give 3 or more."
            )
        parts = task.split(screen=1 - _TEST, validation=0.0, test=_TEST, seed=seed)
        return parts, f"{_TEST:.0%} drawn at random report, the others are scored; items that belong together stay so"

    def _rule(self, asked: Asked) -> StartsWith | None:
        """Right by the first token where an answer is asked for it alone, as in the released script."""
        usual, _ = scoring.rule_for(asked.task, None)
        return StartsWith(per="first") if self.per == "first" and isinstance(usual, StartsWith) else None

    def _check(self, asked: Asked, parts: Splits) -> None:
        """Refuse, before anything is scored, answers and choices whose first token tells nothing.

        Raises:
            TaskError: if there are any.
        """
        if self.per != "first":
            return
        # Components are scored by the first token of choices too, whatever the rule reads of them.
        rule = StartsWith(per="first") if asked.task.kind == "answer" else Likeliest(per="first")
        for part in (parts.screen, parts.test):
            try:
                scoring.encode(asked.model, part, rule=rule, prepend_bos=asked.settings.prepend_bos)
            except ValueError as error:
                raise TaskError(f"{error} On the command line: --per sequence.") from error

    def _prune(self, asked: Asked, parts: Splits) -> Pruning:
        settings, finetune = asked.settings, None
        if self.finetune:
            finetune = FineTuning("epoch", lr=self.learning_rate, batch_size=5, optimizer="sgd", seed=settings.seed)
        how = {"per": self.per, "prepend_bos": settings.prepend_bos}
        method = eigenpruning.Method(corrupt=self.corrupt, **how)
        if self.score != "paper":
            method = eigenpruning.Method(score=_SCORES[self.score], reduce="mean", **how)
        report = Report(draws=settings.draws, finetune=finetune, rule=self._rule(asked))
        return eigenpruning.prune(
            asked.model, parts, self.sites, fraction=self.fraction, method=method, report=report, seed=settings.seed,
            batch_size=settings.batch_size, progress=asked.progress,
        )  # fmt: skip

    def _pruned(self, asked: Asked, folder: RunFolder, parts: Splits) -> dict:
        result = self._prune(asked, parts)
        surgery.save(result.spec, folder.path / "edit.json", model=asked.model)
        folder.table("scores", result.attribution.to_dataframe())
        figures = {"scores": plots.eigenpruning.scores(result), "variants": plots.eigenpruning.report(result)}
        comparison = result.compare(seed=asked.settings.seed)
        judged = [name for name in _JUDGED if name in result.scores and result.chosen.n_components]
        return {
            "told": repr(result),
            "verdicts": [str(result.verdict(name)) for name in judged],
            "rows": _records(result.to_dataframe()),
            "removed": result.chosen.n_components,
            "of": result.attribution.n_components,
            "scored_on": result.attribution.n_examples,
            "corrected": len(comparison.corrected),
            "broken": len(comparison.broken),
            "majority": comparison.before.majority_accuracy,
            "weight_state": result.attribution.effects.weight_state,
            "figures": write_figures(folder.path, figures),
        }

    def _summary(self, frame: pd.DataFrame, pruned: dict) -> list[str]:
        by = {str(row["variant"]): row for row in frame.to_dict("records")}
        accuracy = {name: float(row["accuracy"]) for name, row in by.items()}
        loss = {name: float(row["log_loss"]) for name, row in by.items()}
        controls = [name for name in by if name not in ("base", "pruned") and not name.startswith("fine-tuned")]
        low, high = (100 * float(by["pruned"][f"accuracy_{end}"]) for end in ("low", "high"))
        covers = low <= 0 <= high
        lines = [
            f"**{pruned['removed']} of {counted(pruned['of'], 'component')} removed**, scored on "
            f"{counted(pruned['scored_on'], 'item')}: accuracy on {counted(int(by['base']['n_items']), 'other item')} "
            f"{percent(accuracy['base'])} to {percent(accuracy['pruned'])} (95 % interval of the change "
            f"{low:+.1f} to {high:+.1f} points; {pruned['corrected']} corrected, {pruned['broken']} broken). "
            + ("The interval covers 0: no evidence of a change." if covers else "The interval does not cover 0."),
            *_verdicts(pruned),
            f"Log-loss {loss['base']:.3f} to {loss['pruned']:.3f} nats per token, lower than that of "
            f"{sum(loss[name] > loss['pruned'] for name in controls)} of {counted(len(controls), 'control')}; the "
            f"lowest of a control is {min(loss[name] for name in controls):.3f}.",
        ]
        if "fine-tuned" in by:
            lines.append(
                f"Fine-tuned on the scored items: {percent(accuracy['fine-tuned'])}; then pruned: "
                f"{percent(accuracy['fine-tuned + pruned'])}."
            )
        majority = pruned["majority"]
        if not isnan(majority):
            lines.append(f"Always giving the most frequent answer would get {percent(majority)}.")
        return lines

    def _sections(self, asked: Asked, frame: pd.DataFrame, pruned: dict) -> list[Section]:
        known = published(EIGENPRUNING, asked.task.name)
        accuracy = {str(row["variant"]): float(row["accuracy"]) for row in frame.to_dict("records")}
        columns = ["", "model", "accuracy before", "pruned", "which components"]
        paper = ["the paper", "", NOT_AT_HAND, NOT_AT_HAND, NOT_AT_HAND]
        if known is not None:
            paper = ["the paper", known.model, percent(known.before), percent(known.after), known.edit]
        ours = [
            "here", short_name(asked.settings.model), percent(accuracy["base"]),
            percent(accuracy["pruned"]), f"lowest {self.fraction:.0%} of {', '.join(self.sites)}",
        ]  # fmt: skip
        note = (
            "The published script fine-tunes first, and scores what [eigenpruning's page] lists; the figures are of "
            "another model and other items unless all of that is the same."
        ).replace("[eigenpruning's page]", "docs/eigenpruning.md of this library")
        table = pd.DataFrame({shown: frame[column] for column, shown in _COLUMNS.items()})
        said = [
            _ABOUT_VARIANTS,
            f"Weights: {pruned['weight_state']}. Scores of all components: [scores.csv](scores.csv).",
        ]
        return [
            Section("Beside the paper", [note], [pd.DataFrame([paper, ours], columns=columns)]),
            Section("Every variant", said, [table], pruned["figures"]),
            Section("The result, as Python prints it", [f"```\n{pruned['told']}\n```"]),
        ]


_COLUMNS = {
    "variant": "variant", "accuracy": "accuracy", "accuracy_low": "change from", "accuracy_high": "change to",
    "lead": "lead", "lead_low": "lead from", "lead_high": "lead to", "log_loss": "log-loss", "p_correct": "p_correct",
    "p_wrong": "p_wrong",
}  # fmt: skip
"""The columns of the table of variants, and what they are called there."""
_ABOUT_VARIANTS = (
    "On the items that report. `change from` and `change to` are the 95 % interval of the change of accuracy from "
    '"base". Controls remove as many components by another order: "random", "smallest s" and "sign flipped". `lead` is '
    'the accuracy of "pruned" less that of the control, `lead from` and `lead to` its interval, at 95 % for all '
    'controls together; likewise for "fine-tuned + pruned". Log-loss is in nats per token.'
)


def items_asked(n_scored: int, n_test: int, *, draws: int, passes: int, finetune: bool) -> dict[str, int]:
    """How many items go through the model, in forward passes, by what for; `passes` of them find the score.

    >>> from analyses.papers._eigenpruning import items_asked
    >>> sum(items_asked(10, 5, draws=3, passes=4, finetune=False).values())
    75
    """
    variants = 4 + draws  # base, pruned, smallest s, sign flipped
    counts = {
        "items that are scored": passes * n_scored,
        f"items that report, in {counted(variants, 'variant')}": variants * n_test,
    }
    if finetune:
        counts["items that are learned from, one epoch"] = (1 + _BACKWARD) * n_scored
        counts["items that are scored, fine-tuned"] = passes * n_scored
        counts["items that report, fine-tuned"] = variants * n_test
    return counts


def _n_components(asked: Asked, sites: list[Site]) -> int:
    """How many components compete."""
    places = [host_of(asked.model).place(site) for site in sites]
    return sum(min(place.d_in, place.d_out) for place in places)


def _verdicts(pruned: dict) -> list[str]:
    """Whether the score shows anything beyond its controls, a paragraph for each variant, in the result's words."""
    if not pruned["verdicts"]:
        return ["Nothing was removed, so there is nothing to hold against controls."]
    said = [verdict.split("\n", 1) for verdict in pruned["verdicts"]]
    return [f"**{head}** {' '.join(rest.split())}." for head, rest in said]


def _records(frame: pd.DataFrame) -> list[dict]:
    """The rows as plain Python values, which JSON can hold."""
    return [{str(name): getattr(value, "item", lambda value=value: value)() for name, value in row.items()}
            for row in frame.to_dict("records")]  # fmt: skip
