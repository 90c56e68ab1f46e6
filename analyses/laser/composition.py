"""Several reductions together: a greedy walk over candidates, each judged with the earlier ones in place."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import pandas as pd
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from analyses.attribution.question import check_deterministic
from analyses.laser.candidates import PAPER_RHOS, Candidate, Edits, candidates, check_possible
from analyses.laser.evaluation import MEMORY, Evaluator, Outcome, cost
from analyses.laser.reports import TextCost, test_report
from analyses.laser.results import SearchResult
from analyses.laser.searching import MLP, open_log, splits_of, tested, text_cost
from analyses.laser.trials import Bench, Trial, trial
from analyses.scoring import Comparison, Rule
from analyses.tasks.items import Item
from analyses.tasks.task import Splits, Task
from hooks import Site, host_of
from surgery import Decompositions, Drop, Edit, KeepTop
from surgery.arguments import counted
from surgery.arguments import seed as checked_seed
from surgery.decompositions import decomposed


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One candidate of the walk: the edit then tried (None: taken back), how the model did, whether that was kept."""

    candidate: Candidate
    edit: Edit | None
    trial: Trial
    accepted: bool


@final
@dataclass(frozen=True, slots=True, repr=False)
class Composition:
    """What a greedy composition came to.

    Args:
        task: the task's name.
        seed: of the split.
        weight_state: which form of the weights was decomposed.
        spec: the edits that were kept, as `surgery.apply` takes them.
        unedited: the model as it was given, on the validation items.
        steps: every candidate in the order in which it was tried.
        test: the unedited and the edited model on the test items.
        text: the cost on the user's plain text, if one was given.
    """

    task: str
    seed: int
    weight_state: str
    spec: dict[str, Edit]
    unedited: Trial
    steps: tuple[Step, ...]
    test: Comparison
    text: TextCost | None

    @property
    def accepted(self) -> tuple[Step, ...]:
        """The steps that were kept, in order."""
        return tuple(step for step in self.steps if step.accepted)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each step: site, edit, rho, accepted, and the validation scores with the earlier edits in place."""
        rows = []
        for number, step in enumerate(self.steps):
            row = {
                "step": number,
                "site": str(step.candidate.site),
                "edit": "taken back" if step.edit is None else repr(step.edit),
                "rho": step.candidate.rho,
                "accepted": step.accepted,
                "split": "validation",
                **step.trial.summary.as_row(),
            }
            rows.append(row)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        before = self.unedited.summary
        after = self.accepted[-1].trial.summary if self.accepted else before
        lines = [
            f"composition for {self.task!r}: {len(self.accepted)} of {counted(len(self.steps), 'step')} kept, "
            f"edits of {counted(len(self.spec), 'matrix', 'matrices')}; seed {self.seed}, weights {self.weight_state}",
            *(f"  {site}: {edit!r}" for site, edit in self.spec.items()),
            f"validation, {counted(before.n_items, 'item')}: accuracy {before.accuracy:.3f} → {after.accuracy:.3f}, "
            f"log-loss {before.log_loss:.3f} → {after.log_loss:.3f} nats per token",
            *test_report(self.test, self.text),
        ]
        return "\n".join(lines)


def compose(
    model: nn.Module,
    task: Task | Splits | Sequence[Item],
    sites: str | Iterable[str] = MLP,
    *,
    rhos: Sequence[float] = PAPER_RHOS,
    edits: Edits = (KeepTop,),
    among: SearchResult | None = None,
    seed: int = 0,
    rule: Rule | None = None,
    prepend_bos: bool | None = None,
    text: str | Int[Tensor, " pos"] | Int[Tensor, "batch pos"] | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    log: str | Path | None = None,
    progress: bool = True,
) -> Composition:
    """Edits of several matrices that together do better than fewer of them, found greedily.

    From the last layer to the first and from the smallest ρ up, every candidate is tried with all edits kept so far in
    place, and kept if the validation accuracy rises, or stays and the log-loss falls. A cut of a matrix that is cut
    already takes the earlier one's place; a `Drop` of further components is added to it. At the end every kept edit is
    taken back, in the order of the layers, if the model does as well or better without it: early steps often gain only
    because a better one has not come yet.

    Args:
        model: a HookedTransformer or a TransformerBridge; as it was when this returns, or is interrupted.
        task: as `search`; the same task and seed give the same parts.
        sites: a pattern of matrices or heads, or several.
        rhos: fractions of the full rank.
        edits: as `search`; for single components give `Drop([i])` for every i.
        among: a search whose candidates alone are tried if they were better than the unedited model by themselves;
            `sites`, `rhos` and `edits` are not used then.
        seed: of the split, and of the intervals.
        rule: what counts as right, as in `scoring.score`.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.
        text: plain text on which the cost is measured.
        svds: decompositions made before; new ones are added.
        batch_size: sequences a pass; as the memory allows by default.
        memory: bytes for activations.
        log: a file to which results go as they are finished, and from which the same walk goes on.
        progress: whether to show progress bars.

    Raises:
        LogError: if the log belongs to something else.
        ValueError: if a matrix is named both whole and by its heads, a split is empty, or as `search`.

    Source: arXiv:2312.13558, whose published code accepts every step.
    """
    check_deterministic(model)
    checked_seed(seed)
    wanted = candidates(model, sites, rhos, edits) if among is None else _helpful(among)
    _check_disjoint(wanted)
    check_possible(model, wanted, svds=svds, progress=progress)
    parts = splits_of(task, seed)
    bench = Bench(
        model, open_log(log, model, parts, {"walk": "greedy", "rule": rule, "prepend_bos": prepend_bos}, wanted),
        rule, prepend_bos, svds, batch_size, memory, progress,
    )  # fmt: skip
    order = sorted(wanted, key=_paper_order)
    asked = bench.evaluator(parts.validation, sorted({one.site for one in order}, reverse=True))
    unedited = trial(None, asked.encoded, bench.unedited(asked, "validation"))
    walk = _Walk(bench, asked, unedited)
    steps, spec = walk.over(order)
    return Composition(
        task=parts.validation.name,
        seed=seed,
        weight_state=host_of(model).weight_state(),
        spec=spec,
        unedited=unedited,
        steps=tuple(steps),
        test=tested(bench, parts.test, spec, seed=seed),
        text=text_cost(bench, text, spec),
    )


@dataclass(slots=True)
class _Walk:
    """Where a composition stands."""

    bench: Bench
    asked: Evaluator
    current: Trial
    spec: dict[str, Edit] = field(default_factory=dict)
    kept: dict[str, Candidate] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def over(self, order: Sequence[Candidate]) -> tuple[list[Step], dict[str, Edit]]:
        """Every candidate, then every kept edit once more; the steps, and the spec in the order of the layers."""
        items = len(self.asked.encoded.task)
        total = sum(cost(self.bench.model, one.site) for one in order) * items
        with tqdm(total=total, desc="composing", unit="block", delay=1, disable=not self.bench.progress) as bar:
            for one in order:
                self._try(one, _together(self.bench, self.spec.get(str(one.site)), one))
                bar.update(cost(self.bench.model, one.site) * items)
        for site in sorted(self.spec, key=Site.parse):
            self._try(self.kept[site], None)
        return self.steps, {site: self.spec[site] for site in sorted(self.spec, key=Site.parse)}

    def _try(self, one: Candidate, edit: Edit | None) -> None:
        site = str(one.site)
        tried = {**self.spec, site: edit} if edit is not None else _without(self.spec, site)
        outcome = self._outcome(one, tried)
        now = trial(one, self.asked.encoded, outcome)
        accepted = now.merit >= self.current.merit if edit is None else now.merit > self.current.merit
        self.steps.append(Step(one, edit, now, accepted))
        if accepted:
            self.spec, self.current = tried, now
            self.kept[site] = one
            self.asked.forget_after(one.site)

    def _outcome(self, one: Candidate, tried: dict[str, Edit]) -> Outcome:
        if not tried:
            return self.bench.unedited(self.asked, "validation")
        key = repr({site: tried[site] for site in sorted(tried)})
        return self.bench.edited(self.asked, "validation", tried, key, first=one.site, under=self.spec)


def _without(spec: Mapping[str, Edit], site: str) -> dict[str, Edit]:
    return {other: edit for other, edit in spec.items() if other != site}


def _together(bench: Bench, before: Edit | None, one: Candidate) -> Edit:
    """The candidate's edit, with an earlier one of the same matrix where both remove components one by one."""
    if not isinstance(before, Drop) or not isinstance(one.edit, Drop) or before.basis != one.edit.basis:
        return one.edit
    parts = decomposed(bench.model, [one.site], basis=before.basis, svds=bench.svds, progress=False)[one.site]
    gains = before.gains(parts).values * one.edit.gains(parts).values
    return Drop((gains == 0).nonzero().flatten().tolist(), basis=before.basis)


def _paper_order(one: Candidate) -> tuple[int, float]:
    """Last layer first, smallest ρ first; the sort keeps the rest as it was given."""
    return -one.site.layer, 0.0 if one.rho is None else one.rho


def _helpful(found: SearchResult) -> tuple[Candidate, ...]:
    helpful = [one.candidate for one in found.trials if one.candidate and one.merit > _unedited_merit(found, one)]
    if not helpful:
        raise ValueError(
            f"among={found.strategy} search of {found.task!r}: none of its candidates was better than the unedited "
            "model. Compose other candidates, or give sites and rhos instead."
        )
    return tuple(helpful)


def _unedited_merit(found: SearchResult, one: Trial) -> tuple[float, float]:
    """The unedited model's merit on the items that the trial has seen."""
    before, n = found.unedited.scores, len(one.encoded.task)
    return before.correct[:n].double().mean().item(), -before.log_loss[:n].mean().item()


def _check_disjoint(wanted: Iterable[Candidate]) -> None:
    """Refuse the whole and a head of one matrix, which cannot be edited together."""
    heads: dict[Site, set[bool]] = {}
    for one in wanted:
        heads.setdefault(one.site.joint, set()).add(one.site.head is None)
    clash = next((site for site, kinds in heads.items() if len(kinds) == 2), None)
    if clash is not None:
        raise ValueError(
            f"'{clash}' is to be edited both whole and by its heads, which have different components: a composition "
            "takes one or the other. Name only the whole matrix, or only its heads."
        )
