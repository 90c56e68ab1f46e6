"""The exact readout at one position, as a function of a few numbers for each component.

Let x be the final residual where logits are read (less its mean where the normalisation centres), v = x/n(x) times the
gain, h(v) the metric, and δ the change of x when a component goes. With `α = n(x)/n(x + δ)` and η the change of v at
fixed length, the metric becomes `h(α(v + η))`, and

    h(αv) + α ∇h·η + α(α − 1) ηᵀ∇²h v + ½ α² ηᵀ∇²h η,

exact in the length of the residual, and altogether where h is linear, as for a logit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from hooks.readout import Norm, Readout

NODES = 32
"""At so many lengths of the residual the readout is run; between them it is interpolated."""
_SURE = -1e-15


@final
@dataclass(frozen=True, slots=True)
class Link:
    """Between a metric that is made of one probability p and the log-odds of p, which bend less: p saturates."""

    of: Literal["p", "log p", "-log p"] | None

    def inner(self, values: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
        """The log-odds of p, `ln p − ln (1 − p)`; the values themselves where they are of no probability."""
        if self.of is None:
            return values
        log_p = values.log() if self.of == "p" else values if self.of == "log p" else -values
        log_p = log_p.clamp_max(_SURE)
        return log_p - (-torch.expm1(log_p)).log()

    def change(self, odds: Float[Tensor, "example 1"], by: Float[Tensor, "example unit"]) -> Tensor:
        """How much the metric changes when its log-odds do."""
        match self.of:
            case None:
                return by
            case "p":
                return (odds + by).sigmoid() - odds.sigmoid()
            case "log p":
                return logsigmoid(odds + by) - logsigmoid(odds)
            case "-log p":
                return logsigmoid(odds) - logsigmoid(odds + by)


@final
@dataclass(frozen=True, slots=True)
class Known:
    """Directions along which the change of x is known, as an orthonormal basis: what is left is found by chance."""

    directions: Float[Tensor, "read d known"]
    coordinates: Float[Tensor, "read known2 known"]

    @staticmethod
    def of(vectors: list[Float[Tensor, "read d"]]) -> "Known":
        """The span of these vectors."""
        columns = torch.stack(vectors, dim=-1).double()
        size = columns.norm(dim=1, keepdim=True)
        Q, R = torch.linalg.qr(columns / size.clamp_min(1e-300))
        # Vectors that are parallel add nothing: their rounding errors are not to be divided by.
        return Known(Q, torch.linalg.pinv(R, rtol=1e-6) / size.clamp_min(1e-300).mT)

    def without(self, vectors: Float[Tensor, "read d"]) -> Float[Tensor, "read d"]:
        """The vectors less their parts in the span."""
        Q = self.directions.to(vectors)
        return vectors - (Q @ (Q.mT @ vectors.unsqueeze(-1))).squeeze(-1)

    def square(self, products: list[Float[Tensor, "read unit"]]) -> Float[Tensor, "read unit"]:
        """The squared length of the part of δ in the span, from its products with the vectors."""
        return (self.coordinates.mT @ torch.stack(products, dim=1)).square().sum(1)


@final
@dataclass(frozen=True, slots=True)
class Numbers:
    """What is known of δ for every component of a matrix, `[example unit]`; all 0 or empty where it does not matter.

    Args:
        slope: `∇h·η`.
        turn: `ηᵀ∇²h v`.
        along: `x·δ`.
        square: the squared length of δ along known directions.
        rest: random estimates of the rest of it.
        bend: random estimates of `ηᵀ∇²h η`.
    """

    slope: Float[Tensor, "example unit"]
    turn: Float[Tensor, "example unit"]
    along: Float[Tensor, "example unit"]
    square: Float[Tensor, "example unit"]
    rest: Float[Tensor, "draw example unit"]
    bend: Float[Tensor, "draw2 example unit"]

    def left_out(self) -> "list[Numbers]":
        """The same with one draw less, each in turn."""
        draws = max(len(self.rest), len(self.bend))
        return [self] if draws < 2 else [self._without(k) for k in range(draws)]

    def _without(self, k: int) -> "Numbers":
        parts = (torch.cat([x[:k], x[k + 1 :]]) for x in (self.rest, self.bend))
        return Numbers(self.slope, self.turn, self.along, self.square, *parts)

    def log_length(self, norm: Norm | None, n: Float[Tensor, "example 1"], d: int) -> Float[Tensor, "example unit"]:
        """`ln α`, α by how much what is normalised grows when the residual loses δ."""
        if norm is None:
            return torch.zeros_like(self.slope)
        rest = self.rest.mean(0) if len(self.rest) else 0
        grown = (2 * self.along + self.square + rest) / (d * n.double().square())
        least = norm.eps / n.double().square() - 1
        return -0.5 * torch.log1p(torch.maximum(grown, 0.999999 * least))

    def change(self, ray: "Ray", log_length: Float[Tensor, "example unit"]) -> Float[Tensor, "example unit"]:
        """The change of h."""
        alpha, beyond = log_length.exp(), torch.expm1(log_length)
        bend = self.bend.mean(0) if len(self.bend) else 0
        return ray.change(log_length) + alpha * self.slope + alpha * beyond * self.turn + 0.5 * alpha**2 * bend


@final
@dataclass(frozen=True, slots=True)
class Ray:
    """`h(αv) − h(v)` of each example as a function of ln α: Chebyshev series of an antiderivative, on `[low, high]`."""

    low: float
    high: float
    series: np.ndarray

    @staticmethod
    def flat(slope: Float[Tensor, " example"]) -> "Ray":
        """That of a linear h, `(α − 1) slope`."""
        return Ray(0.0, 0.0, slope.double().cpu().numpy())

    @staticmethod
    def run(readout: Readout, bias: Tensor, v: Tensor, h: Callable[[Tensor], Tensor], low: float, high: float) -> "Ray":
        """By running the readout, and back, at Chebyshev nodes."""
        low, high = min(low, 0.0) - 0.05, max(high, 0.0) + 0.05
        nodes = np.polynomial.chebyshev.chebpts1(NODES)
        slopes = []
        for t in (low + high) / 2 + (high - low) / 2 * nodes:
            at = (float(np.exp(t)) * v).requires_grad_()
            values = h(readout.of_normalised(bias + at).logits)
            (gradient,) = torch.autograd.grad(values.sum(), at)
            slopes.append((gradient * at).sum(-1).detach().double().cpu().numpy())
        fitted = np.linalg.solve(np.polynomial.chebyshev.chebvander(nodes, NODES - 1), np.stack(slopes))
        return Ray(low, high, np.polynomial.chebyshev.chebint(fitted * (high - low) / 2))

    def change(self, log_length: Float[Tensor, "example unit"]) -> Float[Tensor, "example unit"]:
        """`h(αv) − h(v)`."""
        if self.series.ndim == 1:
            return torch.expm1(log_length) * torch.from_numpy(self.series).to(log_length.device).unsqueeze(1)
        series = self.series[:, :, None]
        t = (2 * log_length.cpu().numpy() - self.low - self.high) / (self.high - self.low)
        at_one = np.polynomial.chebyshev.chebval(-(self.low + self.high) / (self.high - self.low), series)
        values = np.polynomial.chebyshev.chebval(t, series, tensor=False) - at_one
        return torch.from_numpy(values).to(log_length)
