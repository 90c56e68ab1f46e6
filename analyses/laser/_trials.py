"""Candidates tried on one part of a task: each is run once from its matrix on, judged once, and kept in a log.

Everything that touches scoring (encode, forward, read, judge) and everything that runs the model goes through `Bench`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

import surgery
from analyses.engines import Executor, Workers
from analyses.laser._drafts import Drafts
from analyses.laser._resume import Log, LogError, lengths, packed, unpacked
from analyses.laser.candidates import UNEDITED, Candidate, first_alike, gains_of
from analyses.metrics import Metric
from analyses.scoring import EncodedTask, Outcome, Readings, Rule, Scores, Summary, encode, judge, outcome
from analyses.tasks.task import Task
from hooks import Site, host_of
from hooks.inputs import Inputs
from hooks.modes import check_deterministic
from hooks.recording import Recording
from hooks.running import nbytes, record, rerun, run
from surgery import Decompositions, Edit, Operation
from surgery.arguments import whole

MEMORY = 2 * 2**30
"""The budget in bytes: recordings of earlier layers take at most so much, a pass about a quarter of it."""
_LARGEST_BATCH = 64


@final
@dataclass(frozen=True, slots=True)
class Objective:
    """What candidates are compared by: accuracy, then log-loss; or the metric that was given in the rule's place.

    Everything that ranks trials asks here. In each tuple larger is better, and a later number decides where the earlier
    ones are equal.

    Source: arXiv:2312.13558.
    """

    scores: Scores

    def merit(self, first: int | None = None) -> tuple[float, ...]:
        """The means over all items, or over the first of them: accuracy and the negative log-loss, or the metric."""
        if not self.by_rule:
            return (float(self._signed()[:first].mean()),)
        correct, log_loss = self.scores.correct[:first].double(), self.scores.log_loss[:first]
        return correct.mean().item(), -log_loss.mean().item()

    @property
    def by_rule(self) -> bool:
        """Whether a rule decides, and no metric in its place."""
        return self.scores.values is None

    def points(self) -> Float[Tensor, " item"]:
        """What a race goes by: the mean of being right, 0 or 1, and the probability of what is right; or the metric.

        Among few items many candidates have the same accuracy. The probability tells them apart, and unlike the
        log-loss it is not ruled by the one item that a candidate finds most unlikely.
        """
        if not self.by_rule:
            return self._signed().double()
        return (self.scores.correct.double() + self.scores.p_correct.double()) / 2

    def _signed(self) -> Float[Tensor, " item"]:
        """The metric of each item, turned so that larger is better."""
        metric, values = self.scores.encoded.metric, self.scores.values
        assert metric is not None and values is not None
        return values if metric.higher_is_better else -values

    def decidedness(self) -> Float[Tensor, " item"]:
        """How far each item is from being decided the other way: |log p/(1 − p)|, p the probability of the answer."""
        # A probability of exactly 0 or 1 has infinite log-odds.
        return self.scores.p_correct.double().clamp(1e-12, 1 - 1e-12).logit().abs()


@final
@dataclass(frozen=True, slots=True, repr=False)
class Trial:
    """What a model does on a task's items under one candidate, judged once.

    Args:
        candidate: the edit; None for the unedited model, and for specs of several edits.
        scores: the scores of every item.
        outcome: what the model says, from which the scores follow.
    """

    candidate: Candidate | None
    scores: Scores
    outcome: Outcome

    @property
    def summary(self) -> Summary:
        """The scores in sum."""
        return self.scores.summary()

    @property
    def merit(self) -> tuple[float, ...]:
        """What trials on the same items are compared by."""
        return Objective(self.scores).merit()

    def __repr__(self) -> str:
        name = UNEDITED if self.candidate is None else str(self.candidate)
        short = self.summary
        return f"Trial({name}: accuracy {short.accuracy:.3f}, log-loss {short.log_loss:.3f}, {short.n_items} items)"


def judged(candidate: Candidate | None, encoded: EncodedTask, said: Outcome) -> Trial:
    """The trial that follows from what a model said: the only place where anything is judged."""
    return Trial(candidate, judge(encoded, said), said)


def joined(stretches: Sequence[Trial], encoded: EncodedTask) -> Trial:
    """Trials of one candidate on consecutive stretches of a task, as its trial on all of them together."""
    if len(stretches) == 1:
        return stretches[0]
    said = [trial.outcome for trial in stretches]
    columns = {name: torch.cat([getattr(part.readings, name) for part in said]) for name in ("log_prob", "rank", "top")}
    measured = [part.measured for part in said if part.measured is not None]
    generated = tuple(ids for part in said for ids in part.generated)
    whole = Outcome(Readings(**columns), generated, torch.cat(measured) if measured else None)
    return judged(stretches[0].candidate, encoded, whole)


@final
@dataclass(frozen=True, slots=True)
class Setup:
    """A model and how it is asked: what is the same for every part of a task. The package says what each field means.

    Raises:
        ValueError: if the model has active dropout, the memory is not a positive number of bytes, or a metric has no
            direction to choose by.
    """

    model: nn.Module
    _: KW_ONLY
    rule: Rule | Metric | None = None
    prepend_bos: bool | None = None
    svds: Decompositions | None = None
    batch_size: int | None = None
    memory: int = MEMORY
    progress: bool = True
    log: Log = field(default_factory=Log)
    executor: Executor = None

    def __post_init__(self) -> None:
        check_deterministic(self.model)
        whole(self.memory, "memory", least=1)
        if isinstance(self.executor, Workers) and self.svds is not None:
            raise ValueError("svds= stays in this process, and workers decompose by themselves: leave out one of both.")
        if isinstance(self.rule, Metric) and self.rule.higher_is_better is None:
            raise ValueError(
                f"the metric {self.rule.name!r} has no direction, so that no candidate is better by it than another: "
                "give it higher_is_better=True or False."
            )

    def bench(self, part: str, task: Task, sites: Iterable[Site] = ()) -> "Bench":
        """The task made ready for the model; `part` is its name in the log, `sites` what is going to be edited.

        Raises:
            UnscorableItems: if there are items that this model cannot be asked.
            ValueError: if the task is empty, or the rule is not for its kind.
        """
        # From the last layer to the first: early trials then need few layers to run.
        return Bench(self, part, self.encoded(task), tuple(sorted(set(sites), reverse=True)))

    def encoded(self, task: Task) -> EncodedTask:
        """The task in batches of `batch_size`, or as large as the memory allows."""
        options = {"rule": self.rule, "prepend_bos": self.prepend_bos}
        if self.batch_size is not None:
            return encode(self.model, task, batch_size=self.batch_size, **options)
        encoded = encode(self.model, task, batch_size=_LARGEST_BATCH, **options)
        size = _fitting_batch(self.model, encoded, self.memory // 4)
        return encoded if size >= _LARGEST_BATCH else encode(self.model, task, batch_size=size, **options)

    def under(self, spec: Mapping[str, Edit]) -> Operation:
        """The model under a spec, until the operation is undone."""
        # One store serves a search whose edits are in several bases: it is left out where none is in its own.
        bases = [edit.basis for edit in spec.values()]
        store = self.svds if self.svds is not None and self.svds.basis in bases else None
        return surgery.apply(self.model, spec, svds=store, progress=False)

    def cost(self, candidates: Iterable[Candidate]) -> int:
        """How many blocks run for one item when each candidate is tried, from its layer to the last."""
        n_layers = host_of(self.model).n_layers
        return sum(n_layers - candidate.site.layer for candidate in candidates)


Said: TypeAlias = tuple[Candidate | None, Outcome]
"""A candidate, or None for the unedited model, and what the model says under it."""


@final
@dataclass(slots=True)
class Bench:
    """One part of a task on one model, asked under one edit after another.

    What flows into a site's block is recorded under the edits in force before it is edited, for as many of the coming
    `sites` as the memory takes, and every trial of these sites starts from the recording. Batches beyond the memory
    are run in full.
    """

    setup: Setup
    part: str
    encoded: EncodedTask
    sites: tuple[Site, ...]
    _unedited: Trial | None = field(default=None, init=False, repr=False)
    _recordings: dict[int, Recording] = field(default_factory=dict, init=False, repr=False)
    """By the identity of the inputs' tokens."""
    _recorded: tuple[Site, ...] = field(default=(), init=False, repr=False)
    """The sites at which a trial can start from the recordings."""
    _drafts: Drafts = field(init=False, repr=False)
    """What the rule has had generated without an edit, where it has anything generated."""

    def __post_init__(self) -> None:
        self._drafts = Drafts(self.setup.model, self.encoded)

    def unedited(self) -> Trial:
        """The model as it was given."""
        self._unedited = self._unedited or self.known(UNEDITED, None) or self.kept_unedited(self.said())
        return self._unedited

    def kept_unedited(self, said: Outcome) -> Trial:
        """The trial of the unedited model, which is found on the way to others, and kept once."""
        if self._unedited is None:
            trial = self.known(UNEDITED, None) or self.kept(UNEDITED, judged(None, self.encoded, said), UNEDITED)
            self._unedited = trial
        return self._unedited

    def said_of(self, candidates: Sequence[Candidate]) -> Iterator[Said]:
        """What the model says under candidates of one matrix; those that leave the same matrix behind are run once.

        With it comes what the unedited model says, where that is found on the way.
        """
        gains, found = gains_of(self.setup.model, candidates, svds=self.setup.svds, progress=False), {}
        for candidate, first in first_alike(gains).items():
            if first is candidate:
                self._make_ready(candidate.site)
                with self.setup.under(candidate.spec):
                    found[candidate] = self.said(candidate.site)
            else:
                found[candidate] = self.unedited().outcome if first is None else found[first]
            yield candidate, found[candidate]
        if self._unedited is not None:
            yield None, self._unedited.outcome

    def try_spec(
        self,
        spec: Mapping[str, Edit],
        *,
        key: str,
        first: Site,
        candidate: Candidate | None = None,
        under: Mapping[str, Edit] | None = None,
    ) -> Trial:
        """The trial of a spec.

        Args:
            spec: one edit or several, by exact addresses.
            key: what it is called in the log.
            first: the earliest matrix that differs between `spec` and `under`.
            candidate: what the trial is of, if it is one candidate.
            under: edits that are in force while activations up to `first` are recorded.
        """
        known = self.known(key, candidate)
        if known is not None:
            return known
        self._make_ready(first, under)
        with self.setup.under(spec):
            trial = judged(candidate, self.encoded, self.said(first))
        return self.kept(key, trial, {site: repr(edit) for site, edit in spec.items()})

    @torch.no_grad()
    def said(self, first: Site | None = None) -> Outcome:
        """What the model says as it is now, where nothing before the matrix `first` differs from what was recorded."""
        start = first if first in self._recorded else None
        forward = self.run if start is None else partial(self._rerun, start)
        return outcome(self.encoded, forward, speaker=self._drafts.follower(start))

    def run(self, inputs: Inputs) -> Float[Tensor, "read d_vocab"]:
        """The logits by a pass through the whole model."""
        return run(self.setup.model, inputs)

    def forget_after(self, changed: Site) -> None:
        """Drop the recordings that depend on the matrix at `changed`, whose edit is another one from now on."""
        self._recorded = tuple(site for site in self._recorded if not _is_before(changed, site))
        if not self._recorded:
            self._recordings.clear()
            self._drafts.clear()

    def _make_ready(self, first: Site, under: Mapping[str, Edit] | None = None) -> None:
        """Record what trials that start at the matrix `first` need, unless that is there."""
        if first not in self._recorded:
            # A recording made under the edits that stay serves every trial that only adds to them.
            with self.setup.under(under or {}):
                self._record_up_to(first, is_unedited=not under)

    @torch.no_grad()
    def _record_up_to(self, site: Site, *, is_unedited: bool) -> None:
        """Record what `rerun` needs to start at `site`, and at those after it in the list as the memory allows."""
        self._recordings.clear()
        self._drafts.clear()
        self._recorded = self._fitting(site)
        speaker = self._drafts.recorder(self._recorded, self._room)
        said = outcome(self.encoded, partial(self._record, self._recorded), speaker=speaker)
        # That pass is the unedited model's trial, if no edit is in force: nothing has to be run for it again.
        if is_unedited:
            self.kept_unedited(said)

    def _fitting(self, site: Site) -> tuple[Site, ...]:
        """Sites that recordings within the memory serve: those of one layer at least.

        The layers of all sites are cut into the same stretches wherever work begins, so that the same batches are
        recorded, and the numbers are the same to the last bit.
        """
        sites = self.sites if site in self.sites else (site,)
        tokens = sum(batch.inputs.tokens.numel() for batch in self.encoded.batches)
        # For every layer the residual stream before the block and, for sites in the MLP, after the attention.
        of_layer = 2 * tokens * _width(self.setup.model)
        layers, size = list(dict.fromkeys(other.layer for other in sites)), max(1, self.setup.memory // of_layer)
        start = layers.index(site.layer) // size * size
        return tuple(other for other in sites if other.layer in layers[start : start + size])

    def _room(self) -> int:
        """How many bytes of the memory recordings have left."""
        return self.setup.memory - sum(map(nbytes, self._recordings.values()))

    def _record(self, sites: Sequence[Site], inputs: Inputs) -> Float[Tensor, "read d_vocab"]:
        recording, logits = record(self.setup.model, inputs, sites)
        # A first estimate chose the sites; what recordings really take decides how many batches are kept.
        if nbytes(recording) <= self._room():
            self._recordings[id(inputs.tokens)] = recording
        return logits

    def _rerun(self, site: Site, inputs: Inputs) -> Float[Tensor, "read d_vocab"]:
        recording = self._recordings.get(id(inputs.tokens))
        return self.run(inputs) if recording is None else rerun(self.setup.model, inputs, recording, site)

    def known(self, key: str, candidate: Candidate | None) -> Trial | None:
        """The trial that the log has under this key.

        Raises:
            LogError: if its columns are not those of this part of the task.
        """
        piece = self.setup.log.get(f"{self.part} {key}")
        if piece is None:
            return None
        said = unpacked(piece["said"])
        n, n_items, metric = self.encoded.n_targets, len(self.encoded.task), self.encoded.metric
        wanted = [n, n, n, n_items * self.encoded.rule.n_generated]
        wanted.append(n_items if metric is not None and metric.rows is None else 0)
        if lengths(said) != wanted:
            raise LogError(
                f"{self.setup.log.path}, the line of '{self.part} {key}': its columns have {lengths(said)} entries, "
                f"and this search reads {wanted}. Delete the line, or the file, and search again."
            )
        return judged(candidate, self.encoded, said)

    def kept(self, key: str, trial: Trial, edit: str | dict[str, str]) -> Trial:
        """The trial, which is in the log when this returns; all but `said` is for people who read the file."""
        scores = trial.scores
        piece = {"part": self.part, "edit": edit, "items": len(scores), "accuracy": scores.accuracy}
        piece |= {"log_loss": scores.log_loss.mean().item(), "said": packed(trial.outcome)}
        self.setup.log.put(f"{self.part} {key}", piece)
        return trial


def _is_before(changed: Site, site: Site) -> bool:
    """Whether what was recorded to start at `site` depends on the matrix at `changed`."""
    # Recordings hold what flows into a block and what its attention returns, so within a layer only W_O and the other
    # attention matrices come before, and only before the MLP.
    if changed.layer != site.layer:
        return changed.layer < site.layer
    return changed.part == "attn" and site.part == "mlp"


def _width(model: nn.Module) -> int:
    """The bytes of the residual stream at one token."""
    host = host_of(model)
    return host.d_model * host.dtype.itemsize


def _fitting_batch(model: nn.Module, encoded: EncodedTask, memory: int) -> int:
    """How many sequences a pass can hold: a block's activations at every token and the logits at every read."""
    host = host_of(model)
    pos = max(batch.inputs.n_pos for batch in encoded.batches)
    reads = max(batch.inputs.reads_per_row for batch in encoded.batches)
    # Of a block: the residual stream and its norms, Q, K, V and Z; the MLP before and after its activation and gate;
    # three patterns of attention. Of a read: the logits, and two copies while log-probabilities are taken.
    a_token = 12 * host.d_model + 4 * host.d_mlp + 3 * host.n_heads("W_Q") * pos
    a_sequence = (pos * a_token + 3 * reads * host.d_vocab) * max(4, host.dtype.itemsize)
    return max(1, int(min(_LARGEST_BATCH, memory // a_sequence)))
