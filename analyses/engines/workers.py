"""An executor of anybody's, with what its workers have to know."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from analyses.engines.loaders import Loader
from surgery.arguments import shown, whole


@runtime_checkable
class Pool(Protocol):
    """What pieces are handed to: the executors of `concurrent.futures` and whatever else has `submit`."""

    def submit(self, fn: Callable[..., object], /, *args: object) -> object:
        """Have the function called somewhere; what is returned has `result()`, and mostly `done()` and `cancel()`."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Workers:
    """An executor, how its workers get the model, and how often a piece that fails is tried again.

    Args:
        pool: anything with `submit(fn, *args)` whose results have `result()`: an executor of `concurrent.futures`,
            loky, Dask or mpi4py. Or a function that makes one: then a pool that broke is replaced by a new one, and
            the last one is shut down at the end.
        loader: how a worker loads the model; left out only where an analysis is given loaders by itself.
        retries: how many more times a piece is tried that failed, and how many pools in a row may break without
            finishing a piece.

    Raises:
        TypeError: if the pool has no `submit` and makes none.
        ValueError: if `retries` is not a whole number.

    >>> from concurrent.futures import ProcessPoolExecutor
    >>> from functools import partial
    >>> engines.Workers(partial(ProcessPoolExecutor, 2), engines.Loader("my_models:load"), retries=2).makes_pools
    True
    """

    pool: Pool | Callable[[], Pool]
    loader: Loader | None = None
    retries: int = 1

    def __post_init__(self) -> None:
        whole(self.retries, "retries")
        if not (isinstance(self.pool, Pool) or callable(self.pool)):
            raise TypeError(
                f"pool={shown(self.pool)} has no submit(): give an executor, such as ProcessPoolExecutor(2, "
                "mp_context=get_context('spawn')), or a function that makes one."
            )

    @property
    def makes_pools(self) -> bool:
        """Whether pools are made here, so that one that broke can be replaced."""
        return isinstance(self.pool, type) or not isinstance(self.pool, Pool)

    @contextmanager
    def opened(self) -> Iterator[Pool]:
        """A pool to hand pieces to; one that was made here is shut down at the end of the block."""
        if not self.makes_pools:
            yield self.pool  # type: ignore[misc]
            return
        pool, is_finished = self.pool(), False  # type: ignore[operator]
        try:
            yield pool
            is_finished = True
        finally:  # after an interrupt nobody waits for pieces that have begun
            if hasattr(pool, "shutdown"):
                pool.shutdown(wait=is_finished)  # type: ignore[attr-defined]
