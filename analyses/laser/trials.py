"""Candidates tried on a part of a task: each once, whatever is known from a log taken from there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import nn
from tqdm.auto import tqdm

import surgery
from analyses.laser.candidates import Candidate, distinct, gains_of
from analyses.laser.evaluation import MEMORY, Evaluator, Outcome, cost, evaluator
from analyses.laser.log import Log
from analyses.scoring import EncodedTask, Readings, Rule, Scores, Summary, judge
from analyses.tasks.task import Task
from hooks import Site
from surgery import Decompositions, Spec
from surgery.decompositions import store_for

UNEDITED = "unedited"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Trial:
    """What a model does on a task's items under one candidate; None stands for the model as it was given.

    Args:
        candidate: the edit.
        encoded: the items.
        outcome: what the model said on each of them.
        summary: the scores in sum.
    """

    candidate: Candidate | None
    encoded: EncodedTask
    outcome: Outcome
    summary: Summary

    @property
    def scores(self) -> Scores:
        """The scores of every item."""
        return judge(self.encoded, self.outcome.readings, self.outcome.generated)

    @property
    def merit(self) -> tuple[float, float]:
        """What candidates are compared by: accuracy, then log-loss (arXiv:2312.13558)."""
        return self.summary.accuracy, -self.summary.log_loss

    def __repr__(self) -> str:
        name = UNEDITED if self.candidate is None else str(self.candidate)
        short = self.summary
        return f"Trial({name}: accuracy {short.accuracy:.3f}, log-loss {short.log_loss:.3f}, {short.n_items} items)"


def trial(candidate: Candidate | None, encoded: EncodedTask, outcome: Outcome) -> Trial:
    """The outcome with its scores in sum."""
    return Trial(candidate, encoded, outcome, judge(encoded, outcome.readings, outcome.generated).summary())


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """What was said on consecutive stretches of a task, as what was said on the whole of it."""
    columns = [torch.cat([getattr(o.readings, name) for o in outcomes]) for name in ("log_prob", "rank", "top")]
    return Outcome(Readings(*columns), tuple(ids for o in outcomes for ids in o.generated))


def best(trials: Sequence[Trial]) -> Trial:
    """The trial of the highest accuracy, among equals of the lowest log-loss, among equals the first."""
    return max(trials, key=lambda one: one.merit)


@final
@dataclass(frozen=True, slots=True)
class Bench:
    """How candidates are tried: the model, the settings of every evaluation, and the log of what is finished."""

    model: nn.Module
    log: Log
    rule: Rule | None = None
    prepend_bos: bool | None = None
    svds: Decompositions | None = None
    batch_size: int | None = None
    memory: int = MEMORY
    progress: bool = True

    def evaluator(self, task: Task, sites: Sequence[Site] = ()) -> Evaluator:
        """An evaluator of the task that is going to be asked about these sites, in this order."""
        return evaluator(
            self.model, task, sites,
            rule=self.rule, prepend_bos=self.prepend_bos, batch_size=self.batch_size, memory=self.memory,
        )  # fmt: skip

    def quiet(self) -> "Bench":
        """The same without progress bars."""
        return replace(self, progress=False)

    def unedited(self, asked: Evaluator, part: str) -> Outcome:
        """What the model says as it is."""
        known = self.log.outcome(f"{part} {UNEDITED}", asked.encoded)
        return self.keep_unedited(asked, part, asked.outcome()) if known is None else known

    def keep_unedited(self, asked: Evaluator, part: str, outcome: Outcome) -> Outcome:
        """Remember what the model says as it is."""
        if f"{part} {UNEDITED}" not in self.log:
            _keep(self.log, asked, part, UNEDITED, outcome, edit=UNEDITED)
        return outcome

    def edited(
        self, asked: Evaluator, part: str, spec: Spec, key: str, *, first: Site, under: Spec | None = None
    ) -> Outcome:
        """What the model says under a spec whose first matrix that is not in `under` too is at `first`."""
        known = self.log.outcome(f"{part} {key}", asked.encoded)
        if known is not None:
            return known
        with surgery.apply(self.model, under or {}, svds=self._store(under or {}), progress=False):
            before = asked.prepare(first)
        if before is not None and not under:
            self.keep_unedited(asked, part, before)
        with surgery.apply(self.model, spec, svds=self._store(spec), progress=False):
            outcome = asked.outcome(first)
        _keep(self.log, asked, part, key, outcome, edit={site: repr(edit) for site, edit in spec.items()})
        return outcome

    def _store(self, spec: Spec) -> Decompositions | None:
        return store_for((edit.basis for edit in spec.values()), self.svds)

    def try_all(self, asked: Evaluator, part: str, wanted: Sequence[Candidate], bar: tqdm) -> dict[Candidate, Outcome]:
        """What the model says under each candidate; those that leave the same matrix behind are run once."""
        found: dict[Candidate, Outcome] = {}
        for site in asked.sites:
            here = [one for one in wanted if one.site == site]
            if all(f"{part} {one.key}" in self.log for one in here):
                found |= {one: self._known(asked, part, one) for one in here}
            else:
                found |= self._try_site(asked, part, here)
            bar.update(len(here) * cost(self.model, site) * len(asked.encoded.task))
        return {one: found[one] for one in wanted}

    def _try_site(self, asked: Evaluator, part: str, here: Sequence[Candidate]) -> dict[Candidate, Outcome]:
        gains = gains_of(self.model, here, svds=self.svds, progress=False)
        found: dict[Candidate, Outcome] = {}
        for one, same in distinct(here, gains).items():
            if same is None:
                found[one] = self.unedited(asked, part)
            elif same is one:
                found[one] = self.edited(asked, part, one.spec, one.key, first=one.site)
            else:
                found[one] = found[same]
            if f"{part} {one.key}" not in self.log:
                _keep(self.log, asked, part, one.key, found[one], edit={str(one.site): repr(one.edit)})
        return found

    def _known(self, asked: Evaluator, part: str, one: Candidate) -> Outcome:
        known = self.log.outcome(f"{part} {one.key}", asked.encoded)
        assert known is not None, "it is in the log"
        return known


def _keep(log: Log, asked: Evaluator, part: str, key: str, outcome: Outcome, *, edit: str | dict[str, str]) -> None:
    short = asked.scores(outcome).summary()
    shown = {"part": part, "edit": edit, "items": short.n_items}
    log.put_outcome(f"{part} {key}", outcome, {**shown, "accuracy": short.accuracy, "log_loss": short.log_loss})
