"""Several reductions together: a greedy walk over candidates, each judged with the earlier ones in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import pandas as pd
from jaxtyping import Int
from torch import Tensor, nn

from analyses.laser._trials import MEMORY, Bench, Objective, Setup, Trial
from analyses.laser.candidates import MLP, PAPER_RHOS, Candidate, Edits, candidates
from analyses.laser.search import SearchResult, TextCost, prepared, test_report, tested, text_cost
from analyses.metrics import Metric
from analyses.scoring import Comparison, Rule
from analyses.tasks.items import Item
from analyses.tasks.task import Splits, Task
from hooks import Site, host_of
from surgery import Decompositions, Drop, Edit, KeepTop
from surgery.arguments import counted
from surgery.decompositions import decomposed
from surgery.progress import progress_bar


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One candidate of the walk: the edit tried (None: taken back), the trial, whether that was kept."""

    candidate: Candidate
    edit: Edit | None
    trial: Trial
    accepted: bool


@final
@dataclass(frozen=True, slots=True, repr=False)
class Composition:
    """The edits that a greedy composition kept, and every step of it.

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
        return pd.DataFrame(
            {
                "step": number,
                "site": str(step.candidate.site),
                "edit": "taken back" if step.edit is None else repr(step.edit),
                "rho": step.candidate.rho,
                "accepted": step.accepted,
                "split": "validation",
                **step.trial.summary.as_row(),
            }
            for number, step in enumerate(self.steps)
        )

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
    rule: Rule | Metric | None = None,
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
    already replaces the earlier cut; a `Drop` of further components is added to it. At the end every kept edit is taken
    back, in the order of the layers, if the model does as well or better without it: early steps often gain only
    because a better one has not come yet.

    With `among`, a search of the same task, only its candidates that were better than the unedited model are tried;
    `sites`, `rhos` and `edits` are not used then. The package `analyses.laser` says what the other arguments mean.

    Raises:
        ValueError: if a matrix is named both whole and by its heads, or as `search`, which also says what else is.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> result = laser.compose(model, items, rhos=(0.5,), progress=False)
    >>> len(result.steps) == 4 + len([step for step in result.steps if step.edit is None])
    True

    Source: arXiv:2312.13558, whose published code accepts every step.
    """
    tried = candidates(model, sites, rhos, edits) if among is None else _helpful(among)
    _check_disjoint(tried)
    setup = Setup(
        model, rule=rule, prepend_bos=prepend_bos, svds=svds, batch_size=batch_size, memory=memory, progress=progress
    )
    setup, parts = prepared(setup, task, tried, {"walk": "greedy"}, text=text, log=log, seed=seed)
    bench = setup.bench("validation", parts.validation, (candidate.site for candidate in tried))
    walk = _Walk(bench, bench.unedited())
    walk.over(sorted(tried, key=_paper_order))
    spec = {site: walk.spec[site] for site in sorted(walk.spec, key=Site.parse)}
    return Composition(
        task=parts.validation.name,
        seed=seed,
        weight_state=host_of(model).weight_state(),
        spec=spec,
        unedited=bench.unedited(),
        steps=tuple(walk.steps),
        test=tested(setup, parts.test, spec, seed=seed),
        text=text_cost(setup, text, spec),
    )


@dataclass(slots=True)
class _Walk:
    """Where a composition stands: the trial under the edits kept so far, and which candidate each is from."""

    bench: Bench
    current: Trial
    spec: dict[str, Edit] = field(default_factory=dict)
    kept: dict[str, Candidate] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def over(self, order: Sequence[Candidate]) -> None:
        """Try every candidate, then try to take every kept edit back."""
        setup, n_items = self.bench.setup, len(self.current.scores)
        total = setup.cost(order) * n_items
        with progress_bar("composing", progress=setup.progress, total=total, unit="block") as bar:
            for candidate in order:
                self._try(candidate, self._joined(candidate))
                bar.update(setup.cost([candidate]) * n_items)
        for site in sorted(self.spec, key=Site.parse):
            self._try(self.kept[site], None)

    def _try(self, candidate: Candidate, edit: Edit | None) -> None:
        site = str(candidate.site)
        others = {other: kept for other, kept in self.spec.items() if other != site}
        spec = others if edit is None else {**self.spec, site: edit}
        trial = self._trial(candidate, spec)
        better, as_good = trial.merit > self.current.merit, trial.merit >= self.current.merit
        accepted = as_good if edit is None else better
        self.steps.append(Step(candidate, edit, trial, accepted))
        if accepted:
            # From now on recordings are made with this edit in place.
            self.spec, self.current, self.kept[site] = spec, trial, candidate
            self.bench.forget_after(candidate.site)

    def _trial(self, candidate: Candidate, spec: dict[str, Edit]) -> Trial:
        if not spec:
            return self.bench.unedited()
        key = repr({site: spec[site] for site in sorted(spec)})
        return self.bench.try_spec(spec, key=key, first=candidate.site, candidate=candidate, under=self.spec)

    def _joined(self, candidate: Candidate) -> Edit:
        """The candidate's edit, together with an earlier one of the same matrix where both drop single components."""
        earlier, edit, setup = self.spec.get(str(candidate.site)), candidate.edit, self.bench.setup
        if not isinstance(earlier, Drop) or not isinstance(edit, Drop) or earlier.basis != edit.basis:
            return edit
        site, basis = candidate.site, edit.basis
        components = decomposed(setup.model, [site], basis=basis, svds=setup.svds, progress=False)[site]
        # A component stays only if both edits keep it.
        gains = earlier.gains(components).values * edit.gains(components).values
        return Drop((gains == 0).nonzero().flatten().tolist(), basis=basis)


def _paper_order(candidate: Candidate) -> tuple[int, float]:
    """Last layer first, smallest ρ first; the sort keeps the rest as it was given."""
    return -candidate.site.layer, 0.0 if candidate.rho is None else candidate.rho


def _helpful(result: SearchResult) -> tuple[Candidate, ...]:
    # A screened search has run some candidates on the first items only: they are compared on these.
    before = Objective(result.unedited.scores)
    helpful = [
        trial.candidate
        for trial in result.trials
        if trial.candidate is not None and trial.merit > before.merit(first=len(trial.scores))
    ]
    if not helpful:
        raise ValueError(
            f"among={result.strategy} search of {result.task!r}: none of its candidates was better than the unedited "
            "model. Compose other candidates, or give sites and rhos instead."
        )
    return tuple(helpful)


def _check_disjoint(tried: Iterable[Candidate]) -> None:
    """Refuse the whole and a head of one matrix, which cannot be edited together."""
    forms: dict[Site, set[bool]] = {}
    for candidate in tried:
        forms.setdefault(candidate.site.joint, set()).add(candidate.site.head is None)
    clash = next((site for site, kinds in forms.items() if len(kinds) == 2), None)
    if clash is not None:
        raise ValueError(
            f"'{clash}' is to be edited both whole and by its heads, which have different components: a composition "
            "takes one or the other. Name only the whole matrix, or only its heads."
        )
