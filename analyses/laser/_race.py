"""Screened search: a few candidates begin, and whoever cannot be the best any more drops out.

Good candidates differ by a few items in a hundred, so four things make the first items tell more than as many random
ones would:

- Items that the unedited model is undecided about come more often, and count for less.
- An item counts by whether it is right and by how probable the model makes what is right, half and half.
- Candidates are compared with the leader item by item. One drops out when next to nothing is expected to be lost
  without it; as long as that is undecided, it runs on, if need be to the last item. A leader of many is partly lucky,
  so that the better ones of a round go on in any case.
- Of neighbouring ρ, which do alike, one begins; the others join when it has survived a round.

Which matrices begin is decided by what their edits promise, `_promises`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.laser._pieces import try_all
from analyses.laser._promises import Promise, known_promises
from analyses.laser._standings import at_stake, in_order, undecided_half, weights_of
from analyses.laser._trials import Objective, Setup, Trial, joined
from analyses.laser.candidates import Candidate
from analyses.tasks.task import Task
from hooks import Site
from surgery.arguments import fraction, whole

POOL = 1000
"""From how many of the validation items, drawn at random, the first ones of a race are taken: the unedited model runs
on these beforehand."""

_AN_ITEM = 0.75
"""Less than this part of one item more or less right is not looked for, whatever the tolerance."""


@final
@dataclass(frozen=True, slots=True)
class Screened:
    """How a screened search spends its time.

    Args:
        items: how many of the screen items the gradient is taken on.
        keep: the fraction of the matrices, those that promise most, that enter the race with every third ρ of each
            edit. Every other one enters with the smallest of these ρ.
        at_least: how many matrices enter with every third ρ at least.
        first_round: on how many validation items the race begins. The second round has half as many more, every further
            one doubles them.
        tolerance: a candidate drops out when less accuracy than this is expected to be lost without it: by how much it
            may still be ahead of the leader, times how likely that is. A smaller one makes longer races; below three
            quarters of one item it counts as these. Of a metric in the rule's place, it is in units of twice the
            standard deviation over the items.
        survive: the fraction of the candidates that goes on to the next round at least.
        finalists: how many candidates are run on all validation items at least.

    Raises:
        ValueError: if a number is below 1, or a fraction not above 0 and at most 1.

    >>> laser.Screened(first_round=8).finalists
    3

    Source: racing is that of Maron and Moore, "Hoeffding Races" (1993); what is expected to be lost is the "expected
    improvement" of Jones, Schonlau and Welch (1998).
    """

    items: int = 100
    keep: float = 0.5
    at_least: int = 4
    first_round: int = 20
    tolerance: float = 0.002
    survive: float = 1 / 3
    finalists: int = 3

    def __post_init__(self) -> None:
        for name in ("items", "at_least", "first_round", "finalists"):
            whole(getattr(self, name), f"Screened was given {name}", least=1)
        if not all(fraction(getattr(self, name), name) for name in ("keep", "tolerance", "survive")):
            raise ValueError(f"{self!r}: the fractions are above 0 and at most 1. Start from Screened().")


def race(
    setup: Setup, screen: Task, validation: Task, candidates: Sequence[Candidate], settings: Screened, *, seed: int
) -> tuple[Trial, tuple[Trial, ...], dict[Candidate, float]]:
    """The unedited model and the finalists on all validation items, the others as far as they came; and the promises.

    The items of every trial stand in the order of the race.
    """
    promised = known_promises(setup.bench("screen", screen[: settings.items]), candidates)
    n = len(validation)
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if n > POOL else torch.arange(n)
    # A pass over the pool tells which of it are undecided, before the order of the race is drawn.
    unedited = setup.bench("validation", validation.take(drawn[:POOL].tolist())).unedited()
    undecided = undecided_half(Objective(unedited.scores).decidedness())
    order = in_order(undecided, seed)
    items = validation.take(torch.cat([drawn[order], drawn[POOL:]]).tolist())
    track = _Track(setup, items, undecided[order], settings)
    track.run(candidates, _entrants(candidates, promised, settings))
    trials = track.trials()
    unedited = trials.pop(None)
    found = tuple(trials[candidate] for candidate in candidates if candidate in trials)
    return unedited, found, {candidate: promise.most for candidate, promise in promised.items()}


@dataclass(slots=True)
class _Track:
    """A race in progress.

    Args:
        setup: the model and how it is asked.
        items: the validation items in the order of the race.
        undecided: which of those in the pool, which come first, belong to its undecided half.
        settings: how long the rounds are, and who survives.
        stretches: of each candidate, a trial for each round's new items. None stands for the unedited model.
    """

    setup: Setup
    items: Task
    undecided: Bool[Tensor, " item"]
    settings: Screened
    stretches: dict[Candidate | None, list[Trial]] = field(default_factory=lambda: {None: []})

    def run(self, candidates: Sequence[Candidate], entrants: Sequence[Candidate]) -> None:
        """Round after round, until as many are left as are to be run on all items."""
        running = list(entrants)
        for number, end in enumerate(_rounds(len(self.items), self.settings.first_round)):
            self._catch_up(running, end)
            running = self._survivors(running)
            if number == 0:
                joining = _neighbours(candidates, running, self.stretches)
                running = [candidate for candidate in candidates if candidate in running or candidate in joining]
            elif len(running) <= self.settings.finalists:
                break
        self._catch_up(running, len(self.items))

    def trials(self) -> dict[Candidate | None, Trial]:
        """Of each candidate that ran, and of the unedited model, the trial on all items that it has seen."""
        lengths = {one: self._seen(one) for one in self.stretches}
        # Scores need the items together, since some of their means are over classes.
        seen = {n: self.setup.encoded(self.items[:n]) for n in dict.fromkeys(lengths.values())}
        return {one: joined(run, seen[lengths[one]]) for one, run in self.stretches.items()}

    def _seen(self, candidate: Candidate | None) -> int:
        """How many items a candidate has run on."""
        return sum(len(trial.scores) for trial in self.stretches.get(candidate, ()))

    def _catch_up(self, running: Sequence[Candidate], end: int) -> None:
        """Run everyone in the race up to this item, and on no item twice."""
        seen = {candidate: self._seen(candidate) for candidate in running}
        for start in sorted(set(seen.values()) - {end}):  # those who joined late have seen none
            behind = [candidate for candidate in running if seen[candidate] == start]
            part, sites = f"validation {start}:{end} of the race", [candidate.site for candidate in behind]
            bench = self.setup.bench(part, self.items[start:end], sites)
            for candidate, trial in try_all(bench, behind, f"racing, items {start} to {end}").items():
                self.stretches.setdefault(candidate, []).append(trial)
            if self._seen(None) == start:
                self.stretches[None].append(bench.unedited())

    def _survivors(self, running: Sequence[Candidate]) -> list[Candidate]:
        """Those by whose loss more than the tolerance may be lost, but the better ones in any case."""
        points = torch.stack([self._points(candidate) for candidate in (*running, None)])
        n, n_items = points.shape[1], len(self.items)
        # Beyond the pool nobody knows which items are undecided; all of its own have then been asked.
        undecided = self.undecided if n <= len(self.undecided) else torch.zeros(n_items, dtype=torch.bool)
        means = points @ weights_of(undecided, n)
        # A metric may be in any unit. The median keeps out what edits do that destroy the model.
        by_rule = Objective(self.stretches[None][0].scores).by_rule
        unit = 1.0 if by_rule else 2 * float(points.std(1, correction=0).median()) or 1.0
        stakes = at_stake(points[:-1] - points[means.argmax()], undecided, n_items=n_items, unit=unit)
        n_better = max(self.settings.finalists, ceil(self.settings.survive * len(running)))
        better = set(means[:-1].argsort(descending=True, stable=True)[:n_better].tolist())
        matters = stakes > max(self.settings.tolerance, _AN_ITEM / n_items) * unit
        return [candidate for at, candidate in enumerate(running) if at in better or matters[at]]

    def _points(self, candidate: Candidate | None) -> Float[Tensor, " first"]:
        return torch.cat([Objective(trial.scores).points() for trial in self.stretches[candidate]])


def _rounds(n: int, first: int) -> list[int]:
    """The number of items seen after each round: a first round, half as much more, then doubling."""
    ends = [min(first, n)]
    while ends[-1] < n:
        after = ends[-1] + max(1, ends[-1] // 2) if len(ends) == 1 else 2 * ends[-1]
        # Where less than a third would be left for one more round, this round takes it along.
        ends.append(n if 3 * after > 2 * n else after)
    return ends


def _entrants(
    candidates: Sequence[Candidate], promised: Mapping[Candidate, Promise], settings: Screened
) -> list[Candidate]:
    """Every third ρ of the matrices that promise most, one ρ of each other; of single edits the most promising."""
    of_site: dict[Site, list[Candidate]] = {}
    for candidate in candidates:
        of_site.setdefault(candidate.site, []).append(candidate)
    # A matrix promises as much as its most promising edit.
    ranked = sorted(of_site, key=lambda site: -max(promised[candidate].most for candidate in of_site[site]))
    number = max(settings.at_least, ceil(settings.keep * len(of_site)))
    entrants: set[Candidate] = set()
    for rank, site in enumerate(ranked):
        single = [candidate for candidate in of_site[site] if candidate.family is None]
        if single:
            entrants |= set(single) if rank < number else {max(single, key=lambda candidate: promised[candidate].net)}
        for members in _families(of_site[site]):
            # From the second largest ρ downwards: the largest changes least.
            every_third = members[max(len(members) - 2, 0) :: -3]
            entrants |= set(every_third if rank < number else every_third[-1:])
    return [candidate for candidate in candidates if candidate in entrants]


def _neighbours(
    candidates: Sequence[Candidate], survivors: Sequence[Candidate], tried: Collection[Candidate | None]
) -> set[Candidate]:
    """The candidates between a survivor and the next ρ of the same edit that has been tried, on both sides."""
    joining: set[Candidate] = set()
    for members in _families(candidates):
        for at in (number for number, candidate in enumerate(members) if candidate in survivors):
            for side in (members[at + 1 :], members[:at][::-1]):
                # Beyond the next ρ that has been tried, that one speaks for its own neighbours.
                untried = next((n for n, candidate in enumerate(side) if candidate in tried), len(side))
                joining |= set(side[:untried])
    return joining


def _families(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates that are one edit of one matrix at several ρ, by rising ρ."""
    members: dict[tuple[Site, int], list[Candidate]] = {}
    for candidate in candidates:
        if candidate.family is not None:  # by identity, since a user's own family need not be hashable
            members.setdefault((candidate.site, id(candidate.family)), []).append(candidate)
    return [sorted(family, key=lambda candidate: candidate.rho or 0.0) for family in members.values()]
