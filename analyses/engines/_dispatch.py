"""Jobs on their way to workers and back: what is finished is kept, what failed is tried again."""

import pickle
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future
from queue import SimpleQueue
from time import sleep
from typing import final

from analyses.engines._worker import Done, Failed, Job, Refused, answer
from analyses.engines.loaders import WorkerError
from analyses.engines.workers import Pool, Workers
from surgery.arguments import counted

_PAUSE = 0.05
"""Seconds between two looks at results that nobody announces."""


@final
class Dispatch:
    """Jobs that workers do: those that are left, how often each was tried, and what became of the failed."""

    def __init__(self, workers: Workers, jobs: Mapping[int, Job], keep: Callable[[object], object]) -> None:
        self.workers, self.keep = workers, keep
        self.n_jobs, self.left = len(jobs), dict(jobs)
        self.tries: Counter[int] = Counter()
        self.failed: dict[int, str] = {}

    def run(self) -> None:
        """Have every job done.

        Raises:
            WorkerError: if workers refuse, fail as often as they may, or die and cannot be replaced.
        """
        broke = 0
        while self.left:
            before = len(self.left)
            try:
                with self.workers.opened() as pool:
                    self._by(pool)
            except BrokenExecutor as error:
                broke = broke + 1 if len(self.left) == before else 0
                if not self.workers.makes_pools or broke > self.workers.retries:
                    raise self._lost(error) from error
        if self.failed:
            raise self._failure()

    def _by(self, pool: Pool) -> None:
        """Have one pool do what is left."""
        results = _Results()
        try:
            for number, job in list(self.left.items()):
                results.add(pool.submit(answer, job), number)
            while results.waiting:
                for number in self._taken(results.finished()):
                    results.add(pool.submit(answer, self.left[number]), number)
        except BrokenExecutor:
            self._taken(results.ready())  # what was finished before is not lost
            raise
        finally:
            results.cancel()

    def _taken(self, finished: list[tuple[object, int]]) -> list[int]:
        """Keep what these results have found; the numbers of those to be tried again."""
        again, lost = [], None
        for result, number in finished:
            try:
                said = result.result()  # type: ignore[attr-defined]
            except BrokenExecutor as error:  # others may have been finished before
                lost = error
                continue
            except Exception:
                said = Failed(traceback.format_exc())
            match said:
                case Done(found):
                    for one in pickle.loads(found):
                        self.keep(one)
                    del self.left[number]
                case Refused(why):
                    raise WorkerError(why)
                case Failed(trace):
                    self.tries[number] += 1
                    if self.tries[number] <= self.workers.retries:
                        again.append(number)
                    else:
                        self.failed[number] = trace
                        del self.left[number]
        if lost is not None:
            raise lost
        return again

    def _lost(self, error: BrokenExecutor) -> WorkerError:
        done = self.n_jobs - len(self.left) - len(self.failed)
        return WorkerError(
            f"the pool broke ({type(error).__name__}: {error}): a worker was killed, perhaps for want of memory, or "
            f"could not start. {done} of {counted(self.n_jobs, 'piece')} had been finished, and are in the log if "
            "there is one. Repeat the call with the same log= and a new pool, and it goes on from there. Or give "
            "Workers a function that makes pools: then a broken one is replaced."
        )

    def _failure(self) -> WorkerError:
        trace = next(iter(self.failed.values()))
        times = counted(self.workers.retries + 1, "time")
        error = WorkerError(
            f"{len(self.failed)} of {counted(self.n_jobs, 'piece')} failed, {times} each, the first with "
            f"{trace.strip().splitlines()[-1]}. The others are finished, and in the log if there is one. Mend the "
            "cause, and repeat the call with the same log=."
        )
        error.add_note(f"In the worker:\n{trace}")
        return error


class _Results:
    """What `submit` returned, until it is finished."""

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[object, int]] = {}
        self._announced: SimpleQueue[object] = SimpleQueue()
        self._n_silent = 0

    def add(self, result: object, number: int) -> None:
        """Wait for one more."""
        self.waiting[id(result)] = result, number
        if isinstance(result, Future):
            result.add_done_callback(self._announced.put)
        else:
            self._n_silent += 1

    def finished(self) -> list[tuple[object, int]]:
        """Those that are finished, of which there is one at least, with their numbers."""
        if self._n_silent:  # an engine whose results have to be asked one by one
            while not (done := [result for result, _ in self.waiting.values() if _is_done(result)]):
                sleep(_PAUSE)
        else:
            done = [self._announced.get()]
            while not self._announced.empty():
                done.append(self._announced.get())
        return [self.waiting.pop(id(result)) for result in done]

    def ready(self) -> list[tuple[object, int]]:
        """Those that are finished already, with their numbers."""
        return [one for one in self.waiting.values() if isinstance(one[0], Future) and one[0].done()]

    def cancel(self) -> None:
        """Take back what has not begun."""
        for result, _ in self.waiting.values():
            getattr(result, "cancel", bool)()


def _is_done(result: object) -> bool:
    # One that cannot say so is asked for its result, which waits for it.
    done = getattr(result, "done", None)
    return True if done is None else bool(done())
