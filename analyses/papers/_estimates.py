"""How long a run takes and how much memory: a few passes and one decomposition are measured, the rest is counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from time import perf_counter
from typing import final

import pandas as pd
from torch import nn

import surgery
from analyses.scoring import encode, rule_for
from analyses.tasks import Task
from hooks import Site, host_of
from hooks.running import run
from hooks.sizes import nbytes
from surgery import SVD
from surgery.arguments import counted

_ITEMS, _REPEATS = 32, 2
"""Items that are asked to measure a pass, and how often after a first time that warms up; the fastest counts."""


@final
@dataclass(frozen=True, slots=True)
class Work:
    """So many of one thing, each of which takes so many seconds."""

    what: str
    times: float | int
    seconds_each: float

    @property
    def seconds(self) -> float:
        """How long all of them take."""
        return self.times * self.seconds_each


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds and bytes that a run will take, by what takes them."""

    work: Sequence[Work]
    memory: dict[str, int]

    @property
    def seconds(self) -> float:
        """How long the run takes altogether."""
        return sum(work.seconds for work in self.work)

    @property
    def bytes(self) -> int:
        """How much memory is in use at most, if all of it is in use at once."""
        return sum(self.memory.values())

    def __str__(self) -> str:
        time = pd.DataFrame(
            [(work.what, f"{work.times:,.0f}", spoken(work.seconds_each), spoken(work.seconds)) for work in self.work],
            columns=["what", "how many", "each", "together"],
        )
        memory = "\n".join(f"  {_size(n):>10}  {what}" for what, n in self.memory.items())
        return (
            f"estimate, from a few passes and one decomposition measured here: about {spoken(self.seconds)}, "
            f"{_size(self.bytes)} of memory\n{time.to_string(index=False)}\nmemory:\n{memory}"
        )


@final
@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on this machine.

    Args:
        an_item: seconds to ask the model one item: all rows of it, and all tokens that are generated.
        a_decomposition: seconds for one matrix, and which it was.
        tokens: tokens that an item has, in all its rows.
        rows: rows that an item has.
    """

    an_item: float
    a_decomposition: tuple[float, Site] | None
    tokens: float
    rows: float


def measure(
    model: nn.Module,
    task: Task,
    sites: Sequence[Site],
    *,
    prepend_bos: bool | None,
    batch_size: int | None,
    clock: Callable[[], float] = perf_counter,
) -> Measured:
    """Ask a few items, decompose the smallest of the matrices, and see how long it takes.

    Raises:
        UnscorableItems: if there are items, of any of the task, that this model cannot be asked.
    """
    rule, _ = rule_for(task, None)
    whole = encode(model, task, prepend_bos=prepend_bos, batch_size=batch_size or _ITEMS)
    few = encode(model, task[:_ITEMS], prepend_bos=prepend_bos, batch_size=batch_size or _ITEMS)
    passes = [partial(run, model, batch.inputs) for batch in few.batches]
    seconds = _fastest(lambda: [ask() for ask in passes], clock)
    tokens = sum(batch.inputs.tokens.numel() for batch in whole.batches)
    rows = sum(len(batch.inputs) for batch in whole.batches)
    few_tokens = sum(batch.inputs.tokens.numel() for batch in few.batches)
    decomposition = None
    if sites:
        smallest = min(sites, key=lambda site: cost_of_decomposing(model, site))
        W = surgery.weight(model, smallest)
        decomposition = _fastest(lambda: SVD().decompose(W), clock), smallest
    # The first items may be shorter or longer than all: time goes by tokens. What is generated is a pass a token.
    per_token = seconds / few_tokens
    an_item = per_token * tokens / len(task) * (1 + rule.new_tokens * rule.n_generated)
    return Measured(
        an_item,
        decomposition,
        tokens / len(task),
        rows / len(task),
    )


def cost_of_decomposing(model: nn.Module, site: Site) -> float:
    """What the time of a decomposition is proportional to: the elements of the matrix times its smaller side."""
    place = host_of(model).place(site)
    return float(place.d_in * place.d_out * min(place.d_in, place.d_out))


def decompositions(model: nn.Module, sites: Sequence[Site], measured: Measured) -> list[Work]:
    """Decomposing these matrices, scaled from the one that was measured; alike ones in one line."""
    if measured.a_decomposition is None:
        return []
    seconds, at = measured.a_decomposition
    unit = seconds / cost_of_decomposing(model, at)
    kinds: dict[tuple[str, float], int] = {}
    for site in sites:
        kind = (site.matrix, cost_of_decomposing(model, site))
        kinds[kind] = kinds.get(kind, 0) + 1
    return [Work(f"decompositions of {matrix}", n, unit * cost) for (matrix, cost), n in kinds.items()]


def fraction_from(model: nn.Module, site: Site) -> float:
    """The part of the model that runs when a pass starts at the matrix's block."""
    n_layers = host_of(model).n_layers
    return (n_layers - site.layer) / n_layers


def memory_of(
    model: nn.Module, sites: Sequence[Site], measured: Measured, *, activations: int | None, batch_size: int
) -> dict[str, int]:
    """Bytes by what takes them; `activations` are those of recordings, None where nothing is recorded."""
    host, decomposed = host_of(model), 0
    for site in sites:
        place = host.place(site)
        rank = min(place.d_in, place.d_out)
        decomposed += 4 * rank * (place.d_in + place.d_out + 1)
    width = max((host.place(site).d_in * host.place(site).d_out for site in sites), default=0)
    a_row = measured.tokens / max(measured.rows, 1e-9)
    of_a_pass = batch_size * a_row * (12 * host.d_model + 4 * host.d_mlp + 3 * host.n_heads("W_Q") * a_row)
    logits = 3 * batch_size * host.d_vocab
    return {
        "weights": nbytes(model),
        f"components of {counted(len(sites), 'matrix', 'matrices')}, in fp32": decomposed,
        "the largest matrix while it is edited": 3 * 4 * width,
        "activations and logits of a pass": int((of_a_pass + logits) * max(4, host.dtype.itemsize)),
        **({} if activations is None else {"recordings of earlier layers, at most": activations}),
    }


def recordings(model: nn.Module, measured: Measured, n_items: int, *, budget: int) -> int:
    """Bytes of the residual stream of so many items, before every block and after its attention; at most the budget."""
    host = host_of(model)
    a_token = 2 * host.n_layers * host.d_model * host.dtype.itemsize
    return min(budget, int(measured.tokens * n_items * a_token))


def spoken(seconds: float) -> str:
    """A time in words, to two figures."""
    for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.2g} {name}" if seconds / size < 10 else f"{seconds / size:.0f} {name}"
    return f"{seconds * 1e6:.0f} µs"


def _fastest(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """The shortest of a few runs of the work, in seconds."""
    work()
    best = inf
    for _ in range(_REPEATS):
        start = clock()
        work()
        best = min(best, clock() - start)
    return best


def _size(n: int) -> str:
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 else f"{n / 2**20:,.1f} MiB"
