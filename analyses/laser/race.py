"""Screened search: a few candidates begin, the losers of every round drop out, and the finalists run in full.

The accuracies of good candidates differ by a few items in a hundred, so three things make early rounds tell more than
as many items at random would. Items that the unedited model is undecided about come more often, and count for less.
Candidates that decide as many items rightly are told apart by how probable they make what is right. And of
neighbouring ρ, which do alike, one begins; the others join when it has survived a round.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from analyses.laser.candidates import Candidate
from analyses.laser.evaluation import Outcome, cost
from analyses.laser.screening import Promise, promises
from analyses.laser.trials import Bench, Trial, joined, trial
from analyses.scoring import Scores
from analyses.tasks.task import Task
from hooks import Site
from surgery.arguments import fraction, whole

_MOST, _NET = "promises at most", "promises net"
_UNDECIDED = 0.6
"""The fraction of the items that is of the half about which the unedited model is least decided, while they last."""


@final
@dataclass(frozen=True, slots=True)
class Screened:
    """How a screened search spends its time.

    Args:
        items: how many of the screen items the gradient is taken on.
        keep: the fraction of the matrices, those of most promise, that enter the race with every third ρ of each edit.
            Every other one enters with the smallest of these ρ.
        at_least: how many matrices enter with every third ρ at least.
        first_round: on how many validation items the race begins; the second round has half as many more, every further
            one doubles them.
        survive: the fraction of the candidates that goes on to the next round.
        finalists: how many candidates are run on all validation items at least.

    Source: the halving is that of Jamieson and Talwalkar, arXiv:1502.07943.
    """

    items: int = 100
    keep: float = 0.5
    at_least: int = 4
    first_round: int = 20
    survive: float = 1 / 3
    finalists: int = 6

    def __post_init__(self) -> None:
        for name in ("items", "at_least", "first_round", "finalists"):
            whole(getattr(self, name), f"Screened was given {name}", least=1)
        if fraction(self.keep, "keep") == 0 or fraction(self.survive, "survive") == 0:
            raise ValueError(f"{self!r}: the fractions are above 0 and at most 1. Start from Screened().")


@final
@dataclass(frozen=True, slots=True)
class Race:
    """How a race went: the unedited model and the finalists on all items, the others as far as they came."""

    unedited: Trial
    trials: tuple[Trial, ...]
    promises: Mapping[Candidate, float]
    items_run: int


def race(
    bench: Bench, screen: Task, validation: Task, wanted: Sequence[Candidate], settings: Screened, *, seed: int
) -> Race:
    """The promising candidates, raced on the validation items; the trials have these in the order of the race."""
    promised = _promises(bench, screen, wanted, settings)
    asked = bench.evaluator(validation)
    undecided = _undecided(trial(None, asked.encoded, bench.unedited(asked, "validation")).scores)
    order = _order(undecided, seed)
    track = _Track(bench, validation.take(order.tolist()), undecided[order], settings)
    track.run(wanted, _entrants(wanted, promised, settings))
    trials = tuple(track.trials[one] for one in wanted if one in track.trials)
    items_run = sum(len(one.encoded.task) for one in trials) + 2 * len(validation)
    most = {one: promise.most for one, promise in promised.items()}
    return Race(track.unedited(), trials, most, items_run)


@dataclass(slots=True)
class _Track:
    """A race in progress: each candidate as far as it has come, and what it said on each stretch so far."""

    bench: Bench
    items: Task
    undecided: Bool[Tensor, " item"]
    settings: Screened
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    _said: dict[Candidate, list[Outcome]] = field(default_factory=dict)

    def run(self, wanted: Sequence[Candidate], entrants: Sequence[Candidate]) -> None:
        """Round after round; after the first, the neighbours of the survivors join."""
        ends, running = self.ends, list(entrants)
        total = self._total_cost(running, ends, len(wanted))
        with tqdm(total=total, desc="racing", unit="block", delay=1, disable=not self.bench.progress) as bar:
            for number in range(1, len(ends) + 1):
                self._round(ends[:number], running, bar)
                running = self._survivors(running)
                if number == 1:
                    joining = _neighbours(wanted, running, self.trials)
                    running = [one for one in wanted if one in running or one in joining]
            self._round(ends, running, bar)  # Those who joined after a first round that was the last.

    @property
    def ends(self) -> list[int]:
        """Up to which item each round goes."""
        return _rounds(len(self.items), self.settings.first_round)

    def unedited(self) -> Trial:
        """The model as it was given, on all items."""
        parts = pairwise([0, *self.ends])
        said = [self.bench.unedited(self.bench.evaluator(self.items[a:b]), _name(a, b)) for a, b in parts]
        return trial(None, self.bench.evaluator(self.items).encoded, joined(said))

    def _round(self, ends: Sequence[int], running: Sequence[Candidate], bar: tqdm) -> None:
        """Everyone in the race is run up to the last of these items, and on none twice."""
        for number, (start, end) in enumerate(pairwise([0, *ends])):
            asking = [one for one in running if len(self._said.get(one, ())) == number]
            if asking:
                asked = self.bench.evaluator(self.items[start:end], _from_last(asking))
                for one, outcome in self.bench.try_all(asked, _name(start, end), asking, bar).items():
                    self._said.setdefault(one, []).append(outcome)
        so_far = self.bench.evaluator(self.items[: ends[-1]]).encoded
        self.trials |= {one: trial(one, so_far, joined(self._said[one])) for one in running}

    def _survivors(self, running: Sequence[Candidate]) -> list[Candidate]:
        number = _surviving(len(running), self.settings)
        return sorted(running, key=lambda one: self._standing(self.trials[one]), reverse=True)[:number]

    def _standing(self, one: Trial) -> tuple[float, float]:
        """The accuracy and the mean probability of what is right, every item weighted by how many it stands for."""
        scores, undecided = one.scores, self.undecided[: len(one.encoded.task)]
        weights = torch.zeros(len(undecided), dtype=torch.double)
        for alike in (undecided, ~undecided):
            if alike.any():
                weights[alike] = float((self.undecided == undecided[alike][0]).sum()) / float(alike.sum())
        weights /= weights.sum()
        return float(weights @ scores.correct.double()), float(weights @ scores.p_correct.double())

    def _total_cost(self, running: Sequence[Candidate], ends: Sequence[int], most: int) -> int:
        """About how many blocks the race runs: if those who come and go are as costly as those who begin."""
        each, left, total = sum(cost(self.bench.model, one.site) for one in running) / len(running), len(running), 0.0
        for number, (start, end) in enumerate(pairwise([0, *ends])):
            total += each * left * (end - start)
            left = _surviving(left, self.settings)
            if number == 0:
                joining = min(2 * left, most - len(running))
                total, left = total + each * joining * end, left + joining
        return round(total)


def _promises(bench: Bench, screen: Task, wanted: Sequence[Candidate], settings: Screened) -> dict[Candidate, Promise]:
    most, net = bench.log.numbers(_MOST), bench.log.numbers(_NET)
    if most is None or net is None:
        encoded = bench.evaluator(screen[: settings.items]).encoded
        found = promises(bench.model, encoded, wanted, svds=bench.svds, progress=bench.progress)
        bench.log.put_numbers(_MOST, {one.key: promise.most for one, promise in found.items()})
        bench.log.put_numbers(_NET, {one.key: promise.net for one, promise in found.items()})
        return found
    return {one: Promise(most[one.key], net[one.key]) for one in wanted}


def _undecided(scores: Scores) -> Bool[Tensor, " item"]:
    """The half of the items where the probability of what is right is nearest to one half, in log-odds."""
    p = scores.p_correct.double().clamp(1e-12, 1 - 1e-12)
    nearest = torch.zeros(len(p), dtype=torch.bool)
    nearest[p.logit().abs().argsort(stable=True)[: len(p) // 2]] = True
    return nearest


def _order(undecided: Bool[Tensor, " item"], seed: int) -> Int[Tensor, " item"]:
    """Shuffled items, of which every stretch from the first on has its share of undecided ones while there are any."""
    shuffled = torch.randperm(len(undecided), generator=torch.Generator().manual_seed(seed))
    due = torch.empty(len(undecided), dtype=torch.double)
    for kind, share in ((True, _UNDECIDED), (False, 1 - _UNDECIDED)):
        alike = undecided[shuffled] == kind
        due[alike] = (torch.arange(int(alike.sum()), dtype=torch.double) + 0.5) / share
    return shuffled[due.argsort(stable=True)]


def _entrants(
    wanted: Sequence[Candidate], promised: Mapping[Candidate, Promise], settings: Screened
) -> list[Candidate]:
    """Every third ρ of the matrices that promise most, one ρ of each other; edits without a ρ as they promise."""
    of_site: dict[Site, list[Candidate]] = {}
    for one in wanted:
        of_site.setdefault(one.site, []).append(one)
    ranked = sorted(of_site, key=lambda site: -max(promised[one].most for one in of_site[site]))
    number = max(settings.at_least, ceil(settings.keep * len(of_site)))
    chosen: set[Candidate] = set()
    for place, site in enumerate(ranked):
        alone = [one for one in of_site[site] if one.family is None]
        if alone:
            chosen |= set(alone) if place < number else {max(alone, key=lambda one: promised[one].net)}
        for members in _families(of_site[site]):
            every_third = members[max(len(members) - 2, 0) :: -3]
            chosen |= set(every_third if place < number else every_third[-1:])
    return [one for one in wanted if one in chosen]


def _families(wanted: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates that are one edit of one matrix at several ρ, by rising ρ."""
    found: dict[tuple[Site, int], list[Candidate]] = {}
    for one in wanted:
        if one.family is not None:
            found.setdefault((one.site, id(one.family)), []).append(one)
    return [sorted(members, key=lambda one: one.rho or 0.0) for members in found.values()]


def _neighbours(
    wanted: Sequence[Candidate], survivors: Sequence[Candidate], tried: Collection[Candidate]
) -> set[Candidate]:
    """The candidates between a survivor and the next ρ of the same edit that has been tried, on both sides."""
    found: set[Candidate] = set()
    for members in _families(wanted):
        for at in (place for place, one in enumerate(members) if one in survivors):
            for side in (members[at + 1 :], members[:at][::-1]):
                met = next((place for place, one in enumerate(side) if one in tried), len(side))
                found |= set(side[:met])
    return found


def _surviving(running: int, settings: Screened) -> int:
    return min(running, max(settings.finalists, ceil(settings.survive * running)))


def _rounds(n: int, first: int) -> list[int]:
    """Up to which item each round goes: a first round, half as much more, then doubling."""
    ends = [min(first, n)]
    while ends[-1] < n:
        after = ends[-1] + max(1, ends[-1] // 2) if len(ends) == 1 else 2 * ends[-1]
        ends.append(n if 3 * after > 2 * n else after)
    return ends


def _from_last(running: Sequence[Candidate]) -> list[Site]:
    return sorted({one.site for one in running}, reverse=True)


def _name(start: int, end: int) -> str:
    return f"validation {start}:{end} of the race"
