"""Moving components one at a time and measuring each time: what ablation and patching have in common.

Moving the coordinate `x·u_i` by δ changes a matrix's output by `s_i δ v_i`. Many such patches share a forward pass, as
rows of a batch, and only the part of the model that comes after the matrix runs; what comes before is recorded once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.attribution.passes import inputs_kept
from analyses.attribution.question import Examples, Question, Target
from analyses.attribution.selections import Unit
from analyses.engines import Work, Workers, carry_out
from hooks import Site, host_of
from hooks.fused import fused
from hooks.inputs import Reads
from hooks.log_probs import Unembedding, unembedding_of
from hooks.recording import Recording, has_hooks
from hooks.running import arithmetic, record, rerun, reruns_reads_alone
from surgery.progress import progress_bar

Substitute = Callable[[Target, Tensor, Tensor], Tensor]
"""How far every coordinate `x·u` moves when its component is out: a function of target, input and example indices."""


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """The metric with nothing moved, and what moving each unit by itself adds to it, at each of some positions."""

    baseline: Float[Tensor, " example"]
    effects: dict[Site, Float[Tensor, "example position unit"]]
    passes: float


Piece = tuple[int, Site]
"""The number of a batch of examples, and a matrix."""


@final
@dataclass(frozen=True, slots=True)
class Measured:
    """What was found about one matrix on one batch, and in how many passes of the whole model over all examples."""

    piece: Piece
    baseline: Float[Tensor, " example"]
    effects: Float[Tensor, "example position unit"]
    passes: float


def measure_each(
    question: Question,
    substitute: Substitute,
    *,
    positions: Sequence[int] | None = None,
    work: str,
    progress: bool,
    asking: Work[Piece, Measured] | None = None,
    executor: Workers | None = None,
) -> Moved:
    """Move every unit by itself and measure: at all positions together, or at each of `positions` by itself.

    `asking` makes the same question in a worker, where there are workers.
    """
    at = (None,) if positions is None else tuple(positions)
    removals = Removals(question, substitute, at)
    pieces = [(batch, site) for batch in range(len(removals.batches)) for site in question.targets]
    found: dict[Piece, Measured] = {}
    total = question.n_examples * len(at) * sum(len(target.units) for target in question.targets.values())
    with progress_bar(work, progress=progress, total=total, unit="run") as bar:

        def keep(one: Measured) -> None:
            found[one.piece] = one
            bar.update(one.effects.numel() if executor else 0)

        removals.done = bar.update
        numbered, here = dict(enumerate(pieces)), removals.measured
        carry_out(asking, numbered, keep, here=here, executor=executor, model=question.model)
    first = next(iter(question.targets))
    parts = {site: [found[batch, site].effects for batch in range(len(removals.batches))] for site in question.targets}
    return Moved(
        torch.cat([found[batch, first].baseline for batch in range(len(removals.batches))]),
        {site: torch.cat(effects) for site, effects in parts.items()},
        1.0 + sum(found[piece].passes for piece in pieces),
    )


def share_behind(question: Question, site: Site) -> float:
    """What a pass takes that begins at a matrix, as a part of a whole one: the blocks from its own on."""
    n_layers = host_of(question.model).n_layers
    return (n_layers - site.layer) / n_layers


@dataclass(slots=True)
class Removals:
    """A question, and by how far each coordinate moves; what lies before the matrices is recorded once a batch."""

    question: Question
    substitute: Substitute
    at: tuple[int | None, ...] = (None,)
    done: Callable[[int], object] = bool
    batches: tuple[Tensor, ...] = field(init=False)
    _batch: int = field(default=-1, init=False)
    _part: Examples = field(init=False)
    _recording: Recording = field(default_factory=Recording, init=False)
    _unembedding: Unembedding | None = field(default=None, init=False)
    _baseline: Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    _inputs: dict[Site, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.batches, self._part = tuple(self.question.batches()), self.question.examples

    def measured(self, piece: Piece) -> Iterator[Measured]:
        """The metric with each unit of one matrix moved by itself, on one batch."""
        batch, site = piece
        if batch != self._batch:
            self._record(batch)
        question, target, chosen = self.question, self.question.targets[site], self.batches[batch]
        moves = self.substitute(target, self._inputs[site], chosen)
        suffix = _Suffix(question, self._part, target, self._recording, self._unembedding, self._baseline, moves)
        patches = [(unit, position) for position in self.at for unit in target.units]
        effects = suffix.effects(patches, self.done).view(len(chosen), len(self.at), -1).float().cpu()
        share = share_behind(question, site) * len(chosen) / question.n_examples
        yield Measured(piece, self._baseline.cpu(), effects, share * len(suffix.reaching(patches)))

    def _record(self, batch: int) -> None:
        question, self._batch = self.question, -1
        self._part = question.examples.take(self.batches[batch])
        read = self._part.read
        self._unembedding = unembedding_of(question.model)

        def recorded() -> Tensor:
            self._recording, logits = record(question.model, read)
            return logits

        with inputs_kept(question) as kept, arithmetic(False), fused(question.model):
            self._baseline = self._part.measured_after(recorded, self._unembedding)
        self._inputs, self._batch = kept(), batch


Patch = tuple[Unit, int | None]
"""Components that move together, and the one position at which they do (None: at all of them)."""


@dataclass(slots=True)
class _Suffix:
    """The part of the model after one matrix, for one batch of examples; `moves` is the change of every coordinate."""

    question: Question
    part: Examples
    target: Target
    recording: Recording
    unembedding: Unembedding | None
    baseline: Float[Tensor, " example"]
    moves: Float[Tensor, "row pos component"]

    def effects(self, patches: Sequence[Patch], done: Callable[[int], object]) -> Float[Tensor, "example patch"]:
        """What each patch adds to the metric, in chunks of patches that share a pass."""
        reaching, n_examples = self.reaching(patches), self.part.n_examples
        size = self._patches_per_pass()
        effects = self.baseline.new_zeros(n_examples, len(patches))
        for start in range(0, len(reaching), size):
            some = reaching[start : start + size]
            values = self._run([patches[n] for n in some]).view(len(some), n_examples)
            effects[:, some] = values.mT - self.baseline.unsqueeze(1)
            done(len(some) * n_examples)
        done((len(patches) - len(reaching)) * n_examples)
        return effects

    def reaching(self, patches: Sequence[Patch]) -> list[int]:
        """The patches that can change the metric: not those at a position that nothing read mixes with."""
        alone = self._reads_alone
        read = None if alone is None else set(alone.pos.tolist())
        return [n for n, (_, at) in enumerate(patches) if at is None or read is None or at in read]

    @property
    def _reads_alone(self) -> Reads | None:
        """The reads, where nothing after the matrix mixes positions, so that they run by themselves."""
        inputs = self.part.read
        return inputs.reads if reruns_reads_alone(self.question.model, inputs, self.target.place.site) else None

    def _patches_per_pass(self) -> int:
        if has_hooks(self.question.model):
            return 1
        inputs = self.part.read
        n_reads = inputs.reads_per_row
        n_pos = inputs.n_pos if self._reads_alone is None else max(1, round(n_reads))
        return max(1, self.question.rows_per_pass(n_pos, n_reads) // len(inputs))

    def _run(self, patches: Sequence[Patch]) -> Float[Tensor, " patch_example"]:
        """The metric under every patch on every example, patches outermost."""
        part, place = self.part, self.target.place
        repeated = part.take(torch.arange(part.n_examples).repeat(len(patches)))
        rows = torch.arange(len(part.inputs)).repeat(len(patches))

        added = place, lambda reads: self._added(patches, reads)
        rerun_ = partial(rerun, self.question.model, repeated.read, self.recording, place.site, rows=rows, added=added)
        with arithmetic(False), fused(self.question.model):
            return repeated.measured_after(rerun_, self.unembedding)

    def _added(self, patches: Sequence[Patch], reads: Reads | None) -> Float[Tensor, "patch_row pos d_out"]:
        """What the patches add to the matrix's output: at the reads, or everywhere."""
        members = [i for unit, _ in patches for i in unit]
        writes = self.target.components.S[members].unsqueeze(1) * self.target.components.Vh[members]
        moves, pos = self.moves[..., members], torch.arange(self.moves.shape[1]).unsqueeze(0)
        if reads is not None:  # those of the first patch; every other patch is read alike
            n = len(reads.row) // len(patches)
            first = Reads(reads.row[:n], reads.pos[:n])
            moves, pos = first.of(moves).unsqueeze(1), first.pos.unsqueeze(1)
        moves = moves.permute(2, 0, 1)  # [member row pos]
        where = [at for unit, at in patches for _ in unit]
        if None not in where:
            moves = moves * (pos == torch.tensor(where).view(-1, 1, 1)).to(moves)
        added = moves.unsqueeze(-1) * writes[:, None, None]
        if len(members) == len(patches):
            return added.flatten(0, 1)
        owner = torch.tensor([n for n, (unit, _) in enumerate(patches) for _ in unit], device=writes.device)
        summed = added.new_zeros(len(patches), *added.shape[1:])
        return summed.index_add_(0, owner, added).flatten(0, 1)
