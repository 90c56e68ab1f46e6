"""Candidates as pieces of work, a few of one matrix at a time, which any engine does."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from analyses.engines import Work, WorkerError, carry_out, digest
from analyses.laser._trials import Bench, Said, Setup, Trial, judged
from analyses.laser.candidates import Candidate
from analyses.scoring import EncodedTask
from analyses.tasks.task import Task
from hooks import Site
from surgery.progress import progress_bar

_TOGETHER = 4
"""How many candidates of one matrix are handed out together. One decomposition serves them all, and a killed worker
loses at most these."""


def try_all(bench: Bench, candidates: Sequence[Candidate], doing: str) -> dict[Candidate, Trial]:
    """A trial of each candidate, from the log where it has one; each other one is logged as soon as it is finished."""
    setup = bench.setup
    known = {candidate: bench.known(candidate.key, candidate) for candidate in candidates}
    trials = {candidate: trial for candidate, trial in known.items() if trial is not None}
    # Blocks and not candidates, since one of the last layer takes a fraction of the time of one of the first.
    n_items, cost, quiet = len(bench.encoded.task), setup.cost, not setup.progress
    with progress_bar(doing, progress=not quiet, total=cost(candidates) * n_items, unit="block") as bar:
        bar.update(cost(trials) * n_items)

        def keep(found: Said) -> None:
            candidate, said = found
            if candidate is None:
                bench.kept_unedited(said)
                return
            edit = {str(candidate.site): repr(candidate.edit)}
            trials[candidate] = bench.kept(candidate.key, judged(candidate, bench.encoded, said), edit)
            bar.update(cost([candidate]) * n_items)

        pieces, executor = _pieces(bench, candidates, trials), setup.executor
        carry_out(Trying.of(bench), pieces, keep, here=bench.said_of, executor=executor, model=setup.model)
    return {candidate: trials[candidate] for candidate in candidates}


def _pieces(
    bench: Bench, candidates: Iterable[Candidate], known: Collection[Candidate]
) -> dict[int, tuple[Candidate, ...]]:
    """The candidates that are not known, numbered as if none were."""
    groups = [[candidate for candidate in candidates if candidate.site == site] for site in bench.sites]
    size = _TOGETHER if bench.setup.executor else max(map(len, groups), default=1)
    every = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    left = [tuple(candidate for candidate in some if candidate not in known) for some in every]
    return {number: some for number, some in enumerate(left) if some}


@final
@dataclass(frozen=True, slots=True)
class Trying(Work[tuple[Candidate, ...], Said]):
    """A bench as workers are told of it: they set up one of their own."""

    part: str
    task: Task
    sites: tuple[Site, ...]
    options: Mapping[str, object]
    rows: str

    @classmethod
    def of(cls, bench: Bench) -> "Trying":
        """What makes this bench."""
        setup = bench.setup
        options = {name: getattr(setup, name) for name in ("rule", "prepend_bos", "batch_size", "memory")}
        return cls(bench.part, bench.encoded.task, bench.sites, options, _rows(bench.encoded))

    def on(self, model: nn.Module) -> Callable[[tuple[Candidate, ...]], Iterable[Said]]:
        """As `Work.on`.

        Raises:
            WorkerError: if the task has other tokens here.
        """
        bench = Setup(model, progress=False, **self.options).bench(self.part, self.task, self.sites)  # type: ignore[arg-type]
        if _rows(bench.encoded) != self.rows:
            raise WorkerError(
                "the task becomes other tokens in a worker than in the caller's process: load the model with the same "
                "tokenizer."
            )
        return bench.said_of

    def turn(self, piece: tuple[Candidate, ...]) -> tuple[float, ...]:
        """Those under which most blocks run come first."""
        return (-len(piece) * (1.0 + self.sites[0].layer - piece[0].site.layer),)


def _rows(encoded: EncodedTask) -> str:
    """A digest of the tokens that are read and asked for."""
    return digest(repr([(batch.inputs.tokens.tolist(), batch.target.tolist()) for batch in encoded.batches]))
