"""Eigenpruning as its paper runs it: score, remove the lowest fifth of the key components, and look at other items."""

from dataclasses import dataclass
from math import ceil, isnan
from typing import ClassVar, Literal, final

import pandas as pd

import surgery
from analyses import eigenpruning, plots, tasks
from analyses.eigenpruning import FineTuning, Pruning, Report
from analyses.papers._estimates import Estimate, Work, decompositions, measure, memory_of
from analyses.papers._folders import RunFolder
from analyses.papers._items import TaskError
from analyses.papers._method import Asked, Findings, Method
from analyses.papers._models import short_name
from analyses.papers._published import EIGENPRUNING, published
from analyses.papers._reports import NOT_AT_HAND, Section, percent, write_figures
from analyses.tasks import Splits, Task
from hooks import Site
from hooks.sizes import nbytes
from surgery.arguments import counted

_TEST = 0.2
"""The share of the items that reports, drawn at random, where the task has no split of its own."""
_BACKWARD = 2
"""How many forward passes a backward pass is taken for."""
_TUNED = ("fine-tuned", "fine-tuned + pruned")
_NOT_CONTROLS = ("base", "pruned", *_TUNED)


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
    corrupt: Literal["previous", "shuffle"] = "previous"
    finetune: bool = False
    learning_rate: float = 1e-4

    def estimate(self, asked: Asked) -> Estimate:
        """Counted in items; a backward pass is taken for two forward passes."""
        settings, (parts, _) = asked.settings, self._parts(asked)
        sites = [Site.parse(site) for site in surgery.sites(asked.model, self.sites)]
        measured = measure(
            asked.model, asked.task, sites, prepend_bos=settings.prepend_bos, batch_size=settings.batch_size
        )
        counts = items_asked(len(parts.screen), len(parts.test), draws=settings.draws, finetune=self.finetune)
        work = [Work(what, times, measured.an_item) for what, times in counts.items()]
        rounds = 2 if self.finetune else 1
        memory = memory_of(asked.model, sites, measured, activations=None, batch_size=settings.batch_size or 32)
        if self.finetune:
            memory["a copy of the model, its gradients and the optimiser's state"] = 4 * nbytes(asked.model)
        return Estimate([*(decompositions(asked.model, sites, measured) * rounds), *work], memory)

    def find(self, asked: Asked, folder: RunFolder) -> Findings:
        """Prune, then fine-tune and prune if that is asked for; each is kept in the folder once it is finished."""
        parts, split = self._parts(asked)
        pruned = folder.piece("pruned", lambda: self._pruned(asked, folder, parts))
        rows = list(pruned["rows"])
        if self.finetune:
            rows += folder.piece("fine-tuned", lambda: self._tuned(asked, parts))["rows"]
        frame = pd.DataFrame(rows)
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

    def _prune(self, asked: Asked, parts: Splits, report: Report) -> Pruning:
        settings = asked.settings
        method = eigenpruning.Method(corrupt=self.corrupt, prepend_bos=settings.prepend_bos)
        return eigenpruning.prune(
            asked.model, parts, self.sites, fraction=self.fraction, method=method, report=report, seed=settings.seed,
            batch_size=settings.batch_size, progress=asked.progress,
        )  # fmt: skip

    def _pruned(self, asked: Asked, folder: RunFolder, parts: Splits) -> dict:
        result = self._prune(asked, parts, Report(draws=asked.settings.draws))
        surgery.save(result.spec, folder.path / "edit.json", model=asked.model)
        folder.table("scores", result.attribution.to_dataframe())
        figures = {"scores": plots.eigenpruning.scores(result), "variants": plots.eigenpruning.report(result)}
        comparison = result.compare(seed=asked.settings.seed)
        return {
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

    def _tuned(self, asked: Asked, parts: Splits) -> dict:
        how = fine_tuning(parts.screen, lr=self.learning_rate, seed=asked.settings.seed)
        result = self._prune(asked, parts, Report(draws=0, finetune=how))
        frame = result.to_dataframe()
        return {"rows": _records(frame.loc[frame["variant"].isin(_TUNED)]), "steps": how.steps}

    def _summary(self, frame: pd.DataFrame, pruned: dict) -> list[str]:
        by = {str(row["variant"]): row for row in frame.to_dict("records")}
        accuracy = {name: float(row["accuracy"]) for name, row in by.items()}
        controls = [name for name in by if name not in _NOT_CONTROLS]
        strongest = max(controls, key=accuracy.__getitem__)
        less = sum(accuracy[name] < accuracy["pruned"] for name in controls)
        as_much = sum(accuracy[name] == accuracy["pruned"] for name in controls)
        loss = {name: float(row["log_loss"]) for name, row in by.items()}
        worse = sum(loss[name] > loss["pruned"] for name in controls)
        low, high = (100 * float(by["pruned"][f"accuracy_{end}"]) for end in ("low", "high"))
        covers = low <= 0 <= high
        lines = [
            f"**{pruned['removed']} of {counted(pruned['of'], 'component')} removed**, scored on "
            f"{counted(pruned['scored_on'], 'item')}: accuracy on {counted(int(by['base']['n_items']), 'other item')} "
            f"{percent(accuracy['base'])} to {percent(accuracy['pruned'])} (95 % interval of the change "
            f"{low:+.1f} to {high:+.1f} points; {pruned['corrected']} corrected, {pruned['broken']} broken). "
            + ("The interval covers 0: no evidence of a change." if covers else "The interval does not cover 0."),
            f"It is more accurate than {less} of {counted(len(controls), 'control')} and as accurate as {as_much}; the "
            f"strongest of them, '{strongest}', has {percent(accuracy[strongest])}.",
            f"Log-loss {loss['base']:.3f} to {loss['pruned']:.3f} nats per token, lower than that of {worse} of them; "
            f"the lowest of a control is {min(loss[name] for name in controls):.3f}.",
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
        named = {
            "variant": "variant", "accuracy": "accuracy", "accuracy_low": "change from", "accuracy_high": "change to",
            "log_loss": "log-loss", "p_correct": "p_correct", "p_wrong": "p_wrong",
        }  # fmt: skip
        table = pd.DataFrame({shown: frame[column] for column, shown in named.items()})
        said = (
            "On the items that report. `change from` and `change to` are the 95 % interval of the change of accuracy "
            'from "base"; "random", "smallest s" and "sign flipped" remove as many components by another order. '
            f"Log-loss in nats per token. Weights: {pruned['weight_state']}. The scores of all components are in "
            "[scores.csv](scores.csv)."
        )
        return [
            Section("Beside the paper", [note], [pd.DataFrame([paper, ours], columns=columns)]),
            Section("Every variant", [said], [table], pruned["figures"]),
        ]


def items_asked(n_scored: int, n_test: int, *, draws: int, finetune: bool) -> dict[str, int]:
    """How many items go through the model, in forward passes, by what for.

    >>> from analyses.papers._eigenpruning import items_asked
    >>> sum(items_asked(10, 5, draws=3, finetune=False).values())
    75
    """
    scoring = (2 + _BACKWARD) * n_scored  # clean rows forward and back, corrupted rows forward
    variants = 4 + draws  # base, pruned, smallest s, sign flipped
    counts = {
        "items that are scored, forward and back": scoring,
        f"items that report, in {counted(variants, 'variant')}": variants * n_test,
    }
    if finetune:
        counts["items that are learned from, one epoch"] = (1 + _BACKWARD) * n_scored
        counts["items that are scored again, by both models"] = 2 * scoring
        counts["items that report, fine-tuned"] = 6 * n_test
    return counts


def fine_tuning(task: Task, *, lr: float, seed: int, batch_size: int = 16) -> FineTuning:
    """As many steps as one epoch over the items has.

    >>> from analyses.papers._eigenpruning import fine_tuning
    >>> fine_tuning(tasks.addition(10), lr=1e-4, seed=0).steps
    7
    """
    return FineTuning(steps=ceil(len(task) / batch_size), lr=lr, batch_size=min(batch_size, len(task)), seed=seed)


def _records(frame: pd.DataFrame) -> list[dict]:
    """The rows as plain Python values, which JSON can hold."""
    return [{str(name): getattr(value, "item", lambda value=value: value)() for name, value in row.items()}
            for row in frame.to_dict("records")]  # fmt: skip
