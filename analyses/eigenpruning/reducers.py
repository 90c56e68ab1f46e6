"""How one number is made of a component's scores on all examples and positions, in memory that does not grow with them.

Source: the aggregation of Eigenpruning (arXiv:2404.03147) is the maximum; the others are alternatives to
it.
"""

from abc import ABC, abstractmethod
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

Reduce = Literal["max", "mean", "mean_abs"] | tuple[Literal["quantile"], float | int]
"""The largest score, the mean, the mean of absolute values, or a quantile such as `("quantile", 0.95)`."""

_DIGITS, _BITS = 4, 8
_FLOAT32_OFFSET = 2**31


class Running(ABC):
    """The scores of a matrix's components so far, reduced; they come in `passes` rounds, the same in each."""

    passes = 1

    @abstractmethod
    def update(self, scores: Float[Tensor, "row component"]) -> None:
        """Take in more scores."""

    @abstractmethod
    def result(self) -> Float[Tensor, " component"]:
        """The reduced scores, after the last round."""

    def end_of_pass(self) -> None:  # noqa: B027 - most need one round only
        """Tell that all scores have come once."""


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
        self.absolute = absolute
        self.total = torch.zeros(n_components, dtype=torch.float64)
        self.count = 0

    def update(self, scores: Float[Tensor, "row component"]) -> None:
        values = scores.abs() if self.absolute else scores
        self.total += values.double().sum(0).cpu()
        self.count += len(scores)

    def result(self) -> Float[Tensor, " component"]:
        return (self.total / self.count).float()


@final
class _Quantile(Running):
    """The exact order statistic, by radix selection: each round counts one byte of the sorted bit pattern.

    A round needs 256 counts a component, however many scores there are; four rounds settle all 32 bits.
    """

    passes = _DIGITS

    def __init__(self, n_components: int, q: float) -> None:
        self.q = q
        self.prefix = torch.zeros(n_components, dtype=torch.int64)
        self.rank = torch.zeros(n_components, dtype=torch.int64)
        self.digit = 0
        self.counts = torch.zeros(n_components, 2**_BITS, dtype=torch.int64)

    def update(self, scores: Float[Tensor, "row component"]) -> None:
        keys = _sortable(scores.cpu().float())
        below = _BITS * (_DIGITS - 1 - self.digit)
        chosen = (keys >> (below + _BITS)) == self.prefix
        bins = ((keys >> below) & (2**_BITS - 1)).mT.contiguous()
        self.counts.scatter_add_(1, bins, chosen.mT.long().contiguous())

    def end_of_pass(self) -> None:
        if self.digit == 0:
            # The smallest value that at least the fraction q of all scores does not exceed.
            count = self.counts.sum(1).double()
            self.rank = (self.q * count - 1e-9).ceil().clamp_min(1).long() - 1
        passed = self.counts.cumsum(1)
        bin_ = (passed <= self.rank[:, None]).sum(1).clamp_max(2**_BITS - 1)
        before = passed.gather(1, bin_[:, None])[:, 0] - self.counts.gather(1, bin_[:, None])[:, 0]
        self.rank = self.rank - before
        self.prefix = (self.prefix << _BITS) | bin_
        self.counts.zero_()
        self.digit += 1

    def result(self) -> Float[Tensor, " component"]:
        return _unsorted(self.prefix)


def running(reduce: Reduce, n_components: int) -> Running:
    """A reduction that has seen nothing yet.

    Raises:
        ValueError: if there is no such reduction.
    """
    match check_reduce(reduce):
        case "max":
            return _Max(n_components)
        case "mean" | "mean_abs":
            return _Mean(n_components, absolute=reduce == "mean_abs")
        case (_, q):
            return _Quantile(n_components, float(q))


def check_reduce(reduce: object) -> Reduce:
    """The reduction, if there is one of that name.

    Raises:
        ValueError: if there is not, or a quantile is not from 0 to 1.
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


def _sortable(values: Float[Tensor, "row component"]) -> Tensor:
    """Whole numbers from 0 to 2³² − 1 in the same order as the values."""
    bits = (values + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0, which is the same value
    return torch.where(bits < 0, -bits - 1 - _FLOAT32_OFFSET, bits) + _FLOAT32_OFFSET


def _unsorted(keys: Tensor) -> Float[Tensor, " component"]:
    shifted = keys - _FLOAT32_OFFSET
    bits = torch.where(shifted < 0, -shifted - 1 - _FLOAT32_OFFSET, shifted)
    return bits.to(torch.int32).view(torch.float32)
