"""Work on a model, cut into pieces, and who does it: workers, a part of it here, or all of it here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import getpid
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar, final

from torch import nn

from analyses.engines._dispatch import Dispatch
from analyses.engines._worker import PROCESS, Job, packed
from analyses.engines.identity import marks_of
from analyses.engines.loaders import Loader
from analyses.engines.workers import Workers
from hooks.recording import has_hooks
from surgery.arguments import whole

Piece = TypeVar("Piece")
Found = TypeVar("Found")
R = TypeVar("R")


@final
@dataclass(frozen=True, slots=True)
class Part:
    """One of several equal shares of the pieces, worked on in this process; the others are left to other jobs.

    Raises:
        ValueError: if there are no such shares.
    """

    index: int
    of: int

    def __post_init__(self) -> None:
        whole(self.of, "the number of parts", least=1)
        whole(self.index, "the number of this part", most=self.of - 1)


class PartDone(Exception):
    """This part of the pieces is finished; what comes after needs all of them."""


Executor: TypeAlias = Workers | Part | None
"""Where pieces are worked on: by workers, a part of them here, or (None) all of them here."""


def run_part(call: Callable[..., R], *, part: tuple[int, int], log: str | Path) -> R | None:
    """Do one share of a call's work, for a batch system that runs `part[1]` such jobs; None if others have more to do.

    `call` takes `executor=` and `log=`, as `partial(laser.search, model, task)` does: the same call in every job. Each
    job has a log of its own, and goes on from it. With a log that `laser.join_logs` made of all of them nothing is left
    to do, and the result of the call is returned.

    Raises:
        ValueError: if `part` is not `(i, n)` with i from 0 to n − 1.

    >>> from functools import partial
    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> search = partial(laser.search, model, items, rhos=(0.5, 0.1), progress=False)
    >>> [engines.run_part(search, part=(n, 2), log=f"part-{n}.jsonl") for n in range(2)]
    [None, None]
    >>> joined = laser.join_logs(["part-0.jsonl", "part-1.jsonl"], into="all.jsonl")
    >>> search(log=joined).spec == search().spec
    True
    """
    try:
        return call(executor=Part(*part), log=log)
    except PartDone:
        return None


class Work(ABC, Generic[Piece, Found]):
    """What is asked of a model, apart from the model: it is sent to every worker, and prepared there once."""

    @abstractmethod
    def on(self, model: nn.Module) -> Callable[[Piece], Iterable[Found]]:
        """The function that works on a piece with this model, and gives what it finds one after the other."""

    def turn(self, piece: Piece) -> tuple[float, ...]:
        """When a piece is handed out: the smaller, the earlier. Those that take longest had better not come last."""
        return (0.0,)


def carry_out(
    work: Work[Piece, Found] | None,
    pieces: Mapping[int, Piece],
    keep: Callable[[Found], object],
    *,
    here: Callable[[Piece], Iterable[Found]],
    executor: Executor,
    model: nn.Module | Mapping[int, Loader],
) -> None:
    """Work on every piece, by workers or here, and hand whatever is found to `keep` as it comes.

    Args:
        work: what workers are asked; None where there can be none.
        pieces: by numbers, which are the same in every run.
        keep: what is done with each finding, always in this process and in one thread.
        here: the same function as `work.on(model)`, prepared in this process.
        executor: who does it.
        model: the model that workers have to hold, or the loader of each piece.

    Raises:
        PartDone: if pieces were left to other jobs.
        WorkerError: if workers failed, died, or do not hold this model.
        ValueError: if the work cannot be sent to workers.
    """
    if isinstance(executor, Workers):
        assert work is not None, "whoever takes workers has work for them"
        jobs = _jobs(work, pieces, executor.loader, model)
        Dispatch(executor, jobs, keep).run()  # type: ignore[arg-type]
        return
    mine = {n: p for n, p in pieces.items() if executor is None or n % executor.of == executor.index}
    for piece in mine.values():
        for found in here(piece):
            keep(found)
    if len(mine) < len(pieces):
        raise PartDone


def _jobs(
    work: Work[Piece, Found],
    pieces: Mapping[int, Piece],
    loader: Loader | None,
    model: nn.Module | Mapping[int, Loader],
) -> dict[int, Job]:
    """The jobs, in the order in which they are handed out.

    Raises:
        ValueError: if there is no loader or one too many, the model has hooks, or something cannot be sent.
    """
    if not pieces:
        return {}
    marks = None
    if isinstance(model, nn.Module):
        if loader is None:
            raise ValueError(
                "Workers(pool) does not say how a worker gets the model: give Workers(pool, Loader('module:function'))."
            )
        if has_hooks(model):
            raise ValueError("the model has hooks, which workers do not have: remove them, or leave out executor=.")
        marks, loaders = marks_of(model), dict.fromkeys(pieces, packed(loader, "the loader"))
    elif loader is not None:
        raise ValueError(f"{loader!r} is not used, since each piece has a loader of its own: give Workers(pool).")
    else:
        loaders = {number: packed(model[number], "a loader") for number in pieces}
    order = sorted(pieces, key=lambda number: work.turn(pieces[number]))
    asked, sender = packed(work, "what is asked"), (PROCESS, getpid())
    return {n: Job(loaders[n], marks, asked, packed(pieces[n], "a piece of the work"), sender) for n in order}
