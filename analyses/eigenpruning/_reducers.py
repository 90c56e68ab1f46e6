"""One number from a component's scores on all examples and positions, in memory that does not grow with them.

The paper takes the maximum (Vergara-Browne, Soto, Aizawa, arXiv:2404.03147); the other reductions are alternatives.
"""

from abc import ABC, abstractmethod
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

Reduce = Literal["max", "mean", "mean_abs"] | tuple[Literal["quantile"], float | int]
"""The largest score, the mean, the mean of absolute values, or a quantile such as `("quantile", 0.95)`."""


class Running(ABC):
    """The scores of a matrix's components so far, reduced; all scores come `passes` times, `end_of_pass` after each."""

    passes = 1

    @abstractmethod
    def update(self, scores: Float[Tensor, "row component"]) -> None:
        """Take in more scores."""

    @abstractmethod
    def result(self) -> Float[Tensor, " component"]:
        """The reduced scores, after the last pass."""

    def end_of_pass(self) -> None:  # noqa: B027 - most need one pass only
        """Tell that all scores have come once."""


def running(reduce: Reduce, n_components: int) -> Running:
    """A reduction that has seen no score yet.

    Raises:
        ValueError: if there is no such reduction.

    >>> largest = running("max", 2)
    >>> largest.update(torch.tensor([[1.0, -2.0], [0.0, -1.0]]))
    >>> largest.result().tolist()
    [1.0, -1.0]
    """
    match check_reduce(reduce):
        case "max":
            return _Max(n_components)
        case "mean" | "mean_abs":
            return _Mean(n_components, absolute=reduce == "mean_abs")
        case (_, q):
            return _Quantile(n_components, float(q))


def reduced(reduce: Reduce, scores: Float[Tensor, "row component"]) -> Float[Tensor, " component"]:
    """One number for each component from scores that are all there.

    >>> reduced("mean", torch.tensor([[1.0, -2.0], [0.0, -1.0]])).tolist()
    [0.5, -1.5]
    """
    state = running(reduce, scores.shape[1])
    for _ in range(state.passes):
        state.update(scores)
        state.end_of_pass()
    return state.result()


def check_reduce(reduce: object) -> Reduce:
    """The reduction, if there is one of that name.

    Raises:
        ValueError: if there is none, or a quantile is not from 0 to 1.
    """
    match reduce:
        case "max" | "mean" | "mean_abs" as name:
            return name  # type: ignore[return-value]
        case ("quantile", float() | int() as q) if 0 <= q <= 1 and not isinstance(q, bool):
            return ("quantile", q)
    raise ValueError(
        f"reduce={reduce!r}: scores are reduced by 'max', 'mean', 'mean_abs' or ('quantile', q) with q from 0 to 1. "
        "The paper takes 'max'."
    )


@final
class _Max(Running):
    def __init__(self, n_components: int) -> None:
        self.largest = torch.full((n_components,), -torch.inf)

    def update(self, scores: Float[Tensor, "row component"]) -> None:
        if len(scores):
            self.largest = torch.maximum(self.largest, scores.amax(0).cpu().float())

    def result(self) -> Float[Tensor, " component"]:
        return self.largest


@final
class _Mean(Running):
    def __init__(self, n_components: int, *, absolute: bool) -> None:
        self.absolute, self.count = absolute, 0
        self.total = torch.zeros(n_components, dtype=torch.float64)

    def update(self, scores: Float[Tensor, "row component"]) -> None:
        self.total += (scores.abs() if self.absolute else scores).double().sum(0).cpu()
        self.count += len(scores)

    def result(self) -> Float[Tensor, " component"]:
        return (self.total / self.count).float()


@final
class _Quantile(Running):
    """The smallest score that at least the fraction q of all scores does not exceed, exactly.

    Selection by bisection into 256 parts (radix selection): `low` and `width` are the interval of whole numbers, in the
    order of float32, that holds the quantile. A pass counts the scores in each 256th of the interval and ends in the
    part that holds the quantile. The first interval has 2³² numbers, so that four passes leave one.
    """

    passes = 4

    def __init__(self, n_components: int, q: float) -> None:
        self.q, self.width = q, 2**32
        self.low = torch.full((n_components,), -(2**31), dtype=torch.int64)
        self.rank = torch.full((n_components,), -1, dtype=torch.int64)  # of the quantile within the interval, from 0
        self.counts = torch.zeros(n_components, 256, dtype=torch.int64)

    def update(self, scores: Float[Tensor, "row component"]) -> None:
        zeros_alike = scores.cpu().float() + 0.0  # -0.0 becomes 0.0, which is the same number
        keys = _reordered(zeros_alike.view(torch.int32))
        part = (keys.long() - self.low).div(self.width // 256, rounding_mode="floor").mT
        inside = (part >= 0) & (part < 256)
        self.counts.scatter_add_(1, part.clamp(0, 255), inside.long())

    def end_of_pass(self) -> None:
        """Narrow every component's interval to the 256th part that holds its quantile."""
        if self.width == 2**32:
            n_scores = self.counts.sum(1).double()
            self.rank = (self.q * n_scores - 1e-9).ceil().clamp_min(1).long() - 1
        up_to = self.counts.cumsum(1)
        part = (up_to <= self.rank[:, None]).sum(1)
        self.rank -= (up_to - self.counts).gather(1, part[:, None])[:, 0]
        self.width //= 256
        self.low += part * self.width
        self.counts.zero_()

    def result(self) -> Float[Tensor, " component"]:
        return _reordered(self.low.int()).view(torch.float32)


def _reordered(bits: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Bit patterns of float32, as whole numbers in the order of the floats; or back, since it is its own inverse.

    Positive floats are in order already; among negative ones, whose sign bit is set, the order of the rest is turned.
    """
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
