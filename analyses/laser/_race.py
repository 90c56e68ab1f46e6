"""Screened search: a few candidates begin, the losers of every round drop out, and the finalists run in full.

Good candidates differ by a few items in a hundred, so three things make early rounds tell more than as many random
items would:

- Items that the unedited model is undecided about come more often, and count for less.
- Candidates that get equally many items right are told apart by how probable they make what is right.
- Of neighbouring ρ, which do alike, one begins; the others join when it has survived a round.

Which matrices begin is decided by the gradient of the loss with respect to every singular value (arXiv:2510.20800,
where ∂L/∂s from 100 samples ranks the matrices). How the components' derivatives become one number is our own:
`Σ max(0, (1 − γ_i) s_i ∂L/∂s_i)` over what an edit takes away. To first order that is by how much the loss falls if
only the components that do harm are removed.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.laser._pieces import try_all
from analyses.laser._trials import Bench, Objective, Setup, Trial, joined
from analyses.laser.candidates import Candidate
from analyses.metrics.of_tasks import ItemMetric, log_loss
from analyses.metrics.readings import Readings, log_probs, logsumexp_by
from analyses.prompts import Batch
from analyses.scoring import EncodedTask, Likeliest, StartsWith, outcome
from analyses.tasks.task import Task
from hooks import Place, Site, host_of
from hooks.running import autograd
from hooks.temporary import Temporary, together
from surgery import SVD, Basis, Decomposition, RandomizedSVD
from surgery.arguments import fraction, whole
from surgery.decompositions import decomposed
from surgery.edits import gains_on_all
from surgery.progress import progress_bar

_SHARE = 0.6
"""The share of every round that is drawn from the undecided half of the items, until those run out."""


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
        survive: the fraction of the candidates that goes on to the next round.
        finalists: how many candidates are run on all validation items at least.

    Raises:
        ValueError: if a number is below 1, or a fraction not above 0 and at most 1.

    >>> laser.Screened(first_round=8).finalists
    6

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


class Promise(NamedTuple):
    """By how much a candidate could lower the loss, to first order, in nats.

    `most`: if of what the edit takes away only the components that do harm were removed. `net`: if all were.
    """

    most: float
    net: float


def race(
    setup: Setup, screen: Task, validation: Task, candidates: Sequence[Candidate], settings: Screened, *, seed: int
) -> tuple[Trial, tuple[Trial, ...], dict[Candidate, float]]:
    """The unedited model and the finalists on all validation items, the others as far as they came; and the promises.

    The items of every trial stand in the order of the race.
    """
    promised = _promises(setup.bench("screen", screen[: settings.items]), candidates)
    # One pass over all items tells which are undecided, before the order of the race is drawn.
    undecided = _undecided(setup.bench("validation", validation).unedited())
    order = _order(undecided, seed)
    track = _Track(setup, validation.take(order.tolist()), undecided[order], settings)
    unedited = track.run(candidates, _entrants(candidates, promised, settings))
    trials = tuple(track.trials[candidate] for candidate in candidates if candidate in track.trials)
    return unedited, trials, {candidate: promise.most for candidate, promise in promised.items()}


@dataclass(slots=True)
class _Track:
    """A race in progress.

    Args:
        setup: the model and how it is asked.
        items: the validation items in the order of the race.
        undecided: which of them belong to the undecided half.
        settings: how long the rounds are, and who survives.
        trials: each candidate on all items that it has seen.
        stretches: the same by stretches: what each round added. None stands for the unedited model.
    """

    setup: Setup
    items: Task
    undecided: Bool[Tensor, " item"]
    settings: Screened
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    stretches: dict[Candidate | None, list[Trial]] = field(default_factory=lambda: {None: []})

    def run(self, candidates: Sequence[Candidate], entrants: Sequence[Candidate]) -> Trial:
        """Round after round; the trial of the unedited model on all items."""
        ends, running = _rounds(len(self.items), self.settings.first_round), list(entrants)
        for number in range(1, len(ends) + 1):
            self._catch_up(running, ends[:number])
            running = self._survivors(running)
            if number == 1:
                joining = _neighbours(candidates, running, self.trials)
                running = [candidate for candidate in candidates if candidate in running or candidate in joining]
        self._catch_up(running, ends)  # for those who joined after a first round that was the last
        return joined(self.stretches[None], self.trials[running[0]].scores.encoded)

    def _catch_up(self, running: Sequence[Candidate], ends: Sequence[int]) -> None:
        """Run everyone in the race up to the last of these items, and on no item twice."""
        for number, (start, end) in enumerate(pairwise([0, *ends])):
            # Those who joined late have seen fewer stretches than the others.
            behind = [candidate for candidate in running if len(self.stretches.get(candidate, ())) == number]
            if not behind:
                continue
            part, sites = f"validation {start}:{end} of the race", [candidate.site for candidate in behind]
            bench = self.setup.bench(part, self.items[start:end], sites)
            for candidate, trial in try_all(bench, behind, f"racing, items {start} to {end}").items():
                self.stretches.setdefault(candidate, []).append(trial)
            if len(self.stretches[None]) == number:  # nobody has run this stretch before
                self.stretches[None].append(bench.unedited())
        behind = [
            candidate
            for candidate in running
            if candidate not in self.trials or len(self.trials[candidate].scores) < ends[-1]
        ]
        if behind:
            # Scores need the items together, since a race goes by means over all of them.
            so_far = self.setup.encoded(self.items[: ends[-1]])
            self.trials |= {candidate: joined(self.stretches[candidate], so_far) for candidate in behind}

    def _survivors(self, running: Sequence[Candidate]) -> list[Candidate]:
        weights = _weights(self.undecided, len(self.trials[running[0]].scores))
        standings = {one: Objective(self.trials[one].scores).standing(weights) for one in running}
        most = max(self.settings.finalists, ceil(self.settings.survive * len(running)))
        return sorted(running, key=standings.__getitem__, reverse=True)[:most]


def _undecided(unedited: Trial) -> Bool[Tensor, " item"]:
    """The half of the items that is nearest to being decided the other way."""
    decidedness = Objective(unedited.scores).decidedness()
    nearest = torch.zeros(len(decidedness), dtype=torch.bool)
    nearest[decidedness.argsort(stable=True)[: len(decidedness) // 2]] = True
    return nearest


def _weights(undecided: Bool[Tensor, " item"], n: int) -> Float[Tensor, " first"]:
    """Weights of the first n items, which sum to 1: each by how many items of its half it stands for.

    They make a mean over the first items, of which more are undecided, an estimate of the mean over all.
    """
    first = undecided[:n]
    weights = torch.zeros(n, dtype=torch.double)
    for is_undecided in (True, False):
        alike = first == is_undecided
        if alike.any():  # a kind may be missing among few items; the other then stands for all
            weights[alike] = float((undecided == is_undecided).sum()) / float(alike.sum())
    return weights / weights.sum()


def _order(undecided: Bool[Tensor, " item"], seed: int) -> Int[Tensor, " item"]:
    """A shuffled order in which every prefix holds about 60 % undecided items, while any remain."""
    shuffled = torch.randperm(len(undecided), generator=torch.Generator().manual_seed(seed))
    # The k-th item of a kind whose share is s is due at about position k/s; sorting by that interleaves the kinds.
    due = torch.empty(len(undecided), dtype=torch.double)
    for is_undecided, share in ((True, _SHARE), (False, 1 - _SHARE)):
        alike = undecided[shuffled] == is_undecided
        due[alike] = (torch.arange(int(alike.sum()), dtype=torch.double) + 0.5) / share
    return shuffled[due.argsort(stable=True)]


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
    candidates: Sequence[Candidate], survivors: Sequence[Candidate], tried: Collection[Candidate]
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


def _promises(bench: Bench, candidates: Sequence[Candidate]) -> dict[Candidate, Promise]:
    """The promises, from the log where it has them."""
    log, names = bench.setup.log, {name: f"promises {name}" for name in Promise._fields}
    if any(key not in log for key in names.values()):
        computed = promises(bench, candidates)
        for name, key in names.items():
            log.put(key, {"numbers": {one.key: getattr(promise, name) for one, promise in computed.items()}})
    numbers = {name: log.get(key) or {} for name, key in names.items()}
    return {
        candidate: Promise(**{name: piece["numbers"][candidate.key] for name, piece in numbers.items()})
        for candidate in candidates
    }


def promises(bench: Bench, candidates: Sequence[Candidate]) -> dict[Candidate, Promise]:
    """By how much each candidate could lower the loss on the bench's items.

    The loss is the mean log-loss for answers, and −log of the right texts' share for choices and pairs.
    """
    setup = bench.setup
    gradients = _weight_gradients(bench, [candidate.site for candidate in candidates])
    by_basis: dict[Basis, list[Candidate]] = {}
    for candidate in candidates:
        # The components of an incomplete basis do not sum to the matrix: what is left out has to be looked up in SVD.
        basis = candidate.edit.basis if candidate.edit.basis.complete else SVD()
        by_basis.setdefault(basis, []).append(candidate)
    promised = {}
    for basis, alike in by_basis.items():
        sites = dict.fromkeys(candidate.site for candidate in alike)
        decompositions = decomposed(setup.model, sites, basis=basis, svds=setup.svds, progress=setup.progress)
        # ∂loss/∂γ_i = s_i u_iᵀ (∂loss/∂W) v_i
        slopes = {site: d.S * ((d.U.mT @ gradients[site].to(d.U)) * d.Vh).sum(1) for site, d in decompositions.items()}
        for candidate in alike:
            # Lowering γ_i by 1 − γ_i lowers the loss by (1 − γ_i) ∂loss/∂γ_i, to first order.
            falls = _removed(candidate, decompositions[candidate.site]) * slopes[candidate.site]
            promised[candidate] = Promise(float(falls.clamp_min(0).sum()), float(falls.sum()))
    return {candidate: promised[candidate] for candidate in candidates}


def _removed(candidate: Candidate, decomposition: Decomposition) -> Float[Tensor, " component"]:
    """How much of each component the candidate takes away: 1 − γ_i."""
    if decomposition.basis == candidate.edit.basis or candidate.edit.basis.leading:
        return 1 - gains_on_all(candidate.edit, decomposition)
    removed = torch.ones_like(decomposition.S)
    if isinstance(candidate.edit.basis, RandomizedSVD):  # which keeps about the leading components
        removed[: candidate.edit.basis.rank] = 0
    return removed


def _weight_gradients(bench: Bench, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "d_in d_out"]]:
    """The gradient of the loss by the matrix at every site, `∂loss/∂W = Σ_t x_tᵀ ∂loss/∂y_t`, in fp32 or better.

    The field `grad` of the parameters is left alone.
    """
    host, encoded = host_of(bench.setup.model), bench.encoded
    places = {site: host.place(site) for site in dict.fromkeys(sites)}
    # Heads of one matrix share its ends: each end is tapped once.
    joint = {site.joint: place for site, place in places.items()}
    weights = _loss_weights(bench).float()
    gradients: dict[Site, Tensor] = {}
    quiet = not bench.setup.progress
    for batch in progress_bar("gradients", encoded.batches, progress=not quiet, unit="batch"):

        def loss(batch: Batch = batch) -> Float[Tensor, ""]:
            said = log_probs(bench.run(batch.inputs), batch.at, batch.target)
            return (said * weights[batch.index.cpu()].to(said.device)).sum()

        ends = _ends(joint, loss)
        for site, place in places.items():
            x, g = ends[site.joint]
            dtype = torch.promote_types(x.dtype, torch.float32)
            part = place.read_input(x).to(dtype).flatten(0, 1).mT @ place.read_output(g).to(dtype).flatten(0, 1)
            gradients[site] = gradients[site] + part if site in gradients else part
    return gradients


def _ends(places: Mapping[Site, Place], loss: Callable[[], Tensor]) -> dict[Site, tuple[Tensor, Tensor]]:
    """What flows into each matrix, and ∂loss/∂(what flows out of it): one pass forward and one back."""
    inputs: dict[Site, Tensor] = {}
    outputs: dict[Site, Tensor] = {}

    def taps(site: Site, place: Place) -> Temporary[None]:
        def on_input(x: Tensor) -> None:
            inputs[site] = x.detach()

        def on_output(y: Tensor) -> Tensor:
            # A leaf where the weights need no gradient; else a copy, since a view cannot be asked for its own.
            outputs[site] = y.clone() if y.requires_grad else y.detach().clone().requires_grad_()
            return outputs[site]

        return place.tapped(at_input=on_input, at_output=on_output)

    # The caller may be in inference mode, whose tensors take no part in a graph.
    with autograd(True):
        with together(*(taps(site, place) for site, place in places.items())):
            value = loss()
        # None where a matrix has no part in the loss.
        gradients = torch.autograd.grad(value, list(outputs.values()), allow_unused=True)
    return {
        site: (inputs[site], torch.zeros_like(y) if gradient is None else gradient)
        for (site, y), gradient in zip(outputs.items(), gradients, strict=True)
    }


def _loss_weights(bench: Bench) -> Float[Tensor, " target"]:
    """The gradient of the loss by the log-probability of each target.

    The loss has the gradient of the sum of the log-probabilities, each times its weight, and every batch adds its own
    terms to that sum: no graph has to outlive its batch.
    """
    encoded = bench.encoded
    table = encoded.continuations
    one_answer_each = len(encoded.task) == int((table.right & ~table.nested).sum())
    if one_answer_each and not isinstance(encoded.rule, Likeliest) and encoded.metric is None:
        values = torch.zeros(encoded.n_targets, dtype=torch.double)  # the loss is linear: any values do
    else:
        # Nothing has to be generated for the readings.
        read = replace(encoded, rule=StartsWith()) if encoded.rule.new_tokens else encoded
        with torch.no_grad():
            values = outcome(read, bench.run).readings.log_prob
    with autograd(True):
        values = values.clone().requires_grad_()
        return torch.autograd.grad(_mean_loss(encoded, values), values)[0]


def _mean_loss(encoded: EncodedTask, log_prob: Float[Tensor, " target"]) -> Float[Tensor, ""]:
    table, metric = encoded.continuations, encoded.metric
    nothing = torch.zeros_like(table.target)
    readings = Readings(log_prob, nothing, nothing)
    if isinstance(metric, ItemMetric) and metric.differentiable:
        values = metric.value(table, readings)
        return (-values if metric.higher_is_better else values).mean()
    if not isinstance(encoded.rule, Likeliest):
        return log_loss(table, readings).mean()
    values = encoded.rule.compared(table, log_prob)
    every, right = (logsumexp_by(values, table.item, keep, table.n_items) for keep in (table.right | True, table.right))
    return (every - right).mean()
