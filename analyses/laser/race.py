"""Screened search: the gradient chooses the matrices, successive halving the candidates; finalists run in full."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import final

from tqdm.auto import tqdm

from analyses.laser.candidates import Candidate
from analyses.laser.evaluation import Outcome, cost
from analyses.laser.screening import Promise, promises
from analyses.laser.trials import Bench, Trial, joined, trial
from analyses.tasks.task import Task
from hooks import Site

_MOST, _NET = "promises at most", "promises net"


@final
@dataclass(frozen=True, slots=True)
class Screened:
    """How a screened search spends its time.

    Args:
        items: how many of the screen items the gradient is taken on.
        keep: the fraction of the matrices that enters the race with all candidates, those of most promise. Every other
            one enters with the candidate whose net first-order effect is best: small gradients add up unreliably.
        at_least: how many matrices enter with all candidates at least.
        first_round: on how many validation items the race begins; every round has twice as many as the last.
        survive: the fraction of the candidates that goes on to the next round.
        finalists: how many candidates are run on all validation items at least.

    Source: the halving is that of Jamieson and Talwalkar, arXiv:1502.07943, figure 1.
    """

    items: int = 100
    keep: float = 0.25
    at_least: int = 4
    first_round: int = 16
    survive: float = 1 / 3
    finalists: int = 4

    def __post_init__(self) -> None:
        whole = (self.items, self.at_least, self.first_round, self.finalists)
        if min(whole) < 1 or not 0 < self.keep <= 1 or not 0 < self.survive <= 1:
            raise ValueError(
                f"{self!r}: every number is 1 or more, every fraction above 0 and at most 1. Start from Screened()."
            )


@final
@dataclass(frozen=True, slots=True)
class Race:
    """How a race went: the unedited model and the finalists on all items, the others as far as they came."""

    unedited: Trial
    trials: tuple[Trial, ...]
    promises: Mapping[Candidate, float]
    items_run: int


def race(bench: Bench, screen: Task, validation: Task, wanted: Sequence[Candidate], settings: Screened) -> Race:
    """The promising candidates, raced on the validation items."""
    promised = _promises(bench, screen, wanted, settings)
    running = _entrants(wanted, promised, settings)
    ends = _rounds(len(validation), settings.first_round)
    total = _total_cost(bench, running, ends, settings)
    said: dict[Candidate | None, list[Outcome]] = {None: [], **{one: [] for one in running}}
    trials: dict[Candidate, Trial] = {}
    with tqdm(total=total, desc="racing", unit="block", delay=1, disable=not bench.progress) as bar:
        for start, end in zip([0, *ends], ends, strict=False):
            part = f"validation {start}:{end}"
            asked = bench.evaluator(validation[start:end], _from_last(running))
            found = bench.try_all(asked, part, running, bar)
            said[None].append(bench.unedited(asked, part))
            so_far = asked.encoded if start == 0 else bench.evaluator(validation[:end]).encoded
            for one in running:
                said[one].append(found[one])
                trials[one] = trial(one, so_far, joined(said[one]))
            if end < len(validation):
                running = _survivors(running, trials, settings)
    whole = bench.evaluator(validation).encoded
    items_run = sum(len(one.encoded.task) for one in trials.values()) + len(validation)
    most = {one: promise.most for one, promise in promised.items()}
    return Race(trial(None, whole, joined(said[None])), tuple(trials.values()), most, items_run)


def _promises(bench: Bench, screen: Task, wanted: Sequence[Candidate], settings: Screened) -> dict[Candidate, Promise]:
    most, net = bench.log.numbers(_MOST), bench.log.numbers(_NET)
    if most is None or net is None:
        encoded = bench.evaluator(screen[: settings.items]).encoded
        found = promises(bench.model, encoded, wanted, svds=bench.svds, progress=bench.progress)
        bench.log.put_numbers(_MOST, {one.key: promise.most for one, promise in found.items()})
        bench.log.put_numbers(_NET, {one.key: promise.net for one, promise in found.items()})
        return found
    return {one: Promise(most[one.key], net[one.key]) for one in wanted}


def _entrants(
    wanted: Sequence[Candidate], promised: Mapping[Candidate, Promise], settings: Screened
) -> list[Candidate]:
    """All candidates of the matrices that promise most, and the best one of each other that promises anything."""
    of_site: dict[Site, list[Candidate]] = {}
    for one in wanted:
        of_site.setdefault(one.site, []).append(one)
    most = {site: max(promised[one].most for one in here) for site, here in of_site.items()}
    ranked = sorted(of_site, key=lambda site: -most[site])
    ranked = [site for site in ranked if most[site] > 0] or ranked
    number = max(settings.at_least, round(settings.keep * len(of_site)))
    chosen = {one for site in ranked[:number] for one in of_site[site]}
    chosen |= {max(of_site[site], key=lambda one: promised[one].net) for site in ranked[number:]}
    return [one for one in wanted if one in chosen]


def _survivors(running: Sequence[Candidate], trials: Mapping[Candidate, Trial], settings: Screened) -> list[Candidate]:
    number = max(settings.finalists, ceil(settings.survive * len(running)))
    ranked = sorted(running, key=lambda one: trials[one].merit, reverse=True)[:number]
    return [one for one in running if one in ranked]


def _rounds(n: int, first: int) -> list[int]:
    """Up to which item each round goes."""
    ends = [min(first, n)]
    while ends[-1] < n:
        ends.append(n if 3 * ends[-1] >= 2 * n else min(2 * ends[-1], n))
    return ends


def _from_last(running: Sequence[Candidate]) -> list[Site]:
    return sorted({one.site for one in running}, reverse=True)


def _total_cost(bench: Bench, running: Sequence[Candidate], ends: Sequence[int], settings: Screened) -> int:
    """How many blocks the race runs, if survivors are as costly as the others."""
    each, left, total = sum(cost(bench.model, one.site) for one in running) / len(running), len(running), 0.0
    for start, end in zip([0, *ends], ends, strict=False):
        total += each * left * (end - start)
        left = max(settings.finalists, ceil(settings.survive * left))
    return round(total)
