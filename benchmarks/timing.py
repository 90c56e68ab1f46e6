"""Timing calls against each other on a machine that is never quiet: in turns, with ratios taken within a round."""

import ctypes
import gc
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch

Call = Callable[[], object]
Around = Callable[[], AbstractContextManager[object]]
T = TypeVar("T")
_STATM = Path("/proc/self/statm")
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of every call in every round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds of a call, in the median round."""
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """How many times as long as the other a call takes: the median of the ratios within one round."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))

    def spread(self, name: str, other: str) -> str:
        """The smallest and the largest of these ratios."""
        return "{:.2f}-{:.2f}".format(*self.extremes(name, other))

    def extremes(self, name: str, other: str) -> tuple[float, float]:
        """The same as numbers."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True)]
        return min(ratios), max(ratios)


def in_turns(
    calls: Mapping[str, Call], *, rounds: int, device: str, around: Mapping[str, Around] | None = None
) -> Timings:
    """Every call once in each round, every other round backwards, after one round that does not count.

    `around` gives a context to be in during a call; entering and leaving it is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name in list(calls) if turn % 2 else reversed(list(calls)):
            with (around or {}).get(name, nullcontext)():
                took = seconds_of(calls[name], device=device)
            if turn:
                seconds[name].append(took)
    return Timings(seconds)


def seconds_of(call: Call, *, device: str) -> float:
    """How long a call takes, until the device has finished it."""
    return timed(call, device=device)[0]


def timed(call: Callable[[], T], *, device: str) -> tuple[float, T]:
    """How long a call takes, until the device has finished it, and what it returns."""
    synchronise(device)
    start = perf_counter()
    result = call()
    synchronise(device)
    return perf_counter() - start, result


def synchronise(device: str) -> None:
    """Wait for the device to finish."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(call: Call, *, device: str) -> float | None:
    """MiB that a call needs at most beyond what was held before: device memory on CUDA, else the process's memory.

    None where the system does not tell (no /proc).
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronise(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not _STATM.exists():
        call()
        return None
    return _peak_resident(call) / 2**20


def _peak_resident(call: Call) -> int:
    """Sampled every millisecond by a thread: torch allocates where tracemalloc does not look."""
    _give_back_freed_memory()
    before = peak = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(peak, _resident()) - before


def _give_back_freed_memory() -> None:
    """glibc keeps freed memory, which the next call would use unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE


def machine(device: str) -> str:
    """What the figures were measured on, for the top of a table."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def verdict(value: float, aim: float, *, at_most: bool = False) -> str:
    """Whether an aim was met, with the aim."""
    met = value <= aim if at_most else value >= aim
    return f"{'met' if met else 'MISSED'} (aim {'<=' if at_most else '>='} {aim:g})"
