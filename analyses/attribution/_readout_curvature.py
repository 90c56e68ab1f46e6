"""The second derivative of a metric in the logits, and of the final normalisation, as random vectors.

A matrix H is known by pairs of random vectors a, b with `E[a bᵀ] = H`: then `E[(a·δ)(b·δ)] = δᵀHδ` for every δ at once,
and δ·a for all components is one backward pass. What is returned are `(a + b)/2` and `(a − b)/2`, of whose squares it
is the difference, and one of which is 0 where H has one sign and a, b are chosen well.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from hooks.readout import Norm

_LEAST = 1e-9
"""Probabilities below this are taken for it, where they only scale random vectors."""


_ROUNDING = 1e-6
"""A curvature this far below the slope is rounding."""


class Pair(NamedTuple):
    """Vectors of which `E[plus plusᵀ − minus minusᵀ]` is a matrix, one a read."""

    plus: Float[Tensor, "read d"]
    minus: Float[Tensor, "read d"]


@final
@dataclass(frozen=True, slots=True)
class LogitCurvature:
    """`D = ∂²m/∂l²`, l the logits at the reads of an example, whatever the metric m; from `of`.

    With any distribution p over tokens and random signs ε, `a = S ε` and `b = D S⁻¹ ε` with `S² = w p` have
    `E[a bᵀ] = D`. With the model's prediction for p and the log-sum-exp of all logits (in a loss, a divergence) D is
    `± w Cov_p`, and a less its part along p is ±b: one vector instead of two. The same holds of the log-odds of a
    token, with the prediction among the others. Where D changes under a shift of all logits, that part is put back.
    """

    unembedded: Float[Tensor, "read d_vocab"]
    slope: Float[Tensor, "read d_vocab"]
    p: Float[Tensor, "read d_vocab"]
    width: Float[Tensor, "read 1"]
    of_shift: Float[Tensor, "read d_vocab"]

    @staticmethod
    def of(slope: Tensor, unembedded: Tensor, p: Tensor, signs: Tensor) -> "LogitCurvature | None":
        """The curvature of what has this slope, with its graph; None if it has none."""
        if not slope.requires_grad:
            return None
        p = p.detach().to(unembedded.dtype)
        one = LogitCurvature(unembedded, slope, p, torch.ones_like(p[:, :1]), torch.zeros_like(p))
        of_shift = one._times(torch.ones_like(p))
        a, b = one._vectors(signs, torch.zeros_like(p[:, :1]))
        width = b.norm(dim=-1, keepdim=True) / a.norm(dim=-1, keepdim=True).clamp_min(_LEAST)
        if float(width.amax()) < _ROUNDING * float(slope.detach().norm(dim=-1).amax()):
            return None  # logits that cancel, as in a difference of log-probabilities
        return LogitCurvature(unembedded, slope, p, width, of_shift)

    def draw(self, signs: Float[Tensor, "read d_vocab_plus_1"]) -> Pair:
        """A random pair for D."""
        a, b = self._vectors(signs[:, 1:], signs[:, :1])
        return Pair((a + b) / 2, (a - b) / 2)

    def _vectors(self, signs: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        live = self.width > 0
        S = (self.width * self.p.clamp_min(_LEAST)).sqrt()
        a = torch.where(live, S * signs, 0)
        b = self._times(torch.where(live, signs / S, 0))
        a = a - self.p * a.sum(-1, keepdim=True)
        far = self.of_shift.norm(dim=-1, keepdim=True)
        share = (far / self.p.norm(dim=-1, keepdim=True)).sqrt() * shift
        return a + share * self.p, b + torch.where(far > 0, self.of_shift / share, 0).nan_to_num(0, 0, 0)

    def _times(self, vectors: Float[Tensor, "read d_vocab"]) -> Tensor:
        (product,) = torch.autograd.grad(
            self.slope, self.unembedded, vectors, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return product


def norm_pair(norm: Norm, x: Tensor, G: Tensor, signs: Float[Tensor, "read d_plus_2"]) -> Pair:
    """A random pair for the second derivative N of `G·x / n(x)`, x and G centred where the norm centres.

    `N = −(G xᵀ + x Gᵀ)/(n³d) + 3 (G·x) x xᵀ/(n⁵d²) − (G·x) I/(n³d)`: two directions in the plane of x and G, and all
    others alike.
    """
    d, x = x.shape[-1], norm.centre(x)
    n = norm.scale(x)
    along = (G * x).sum(-1, keepdim=True)
    plane, coordinates = torch.linalg.qr(torch.stack([x, G], dim=-1))
    M = torch.zeros(len(x), 2, 2, dtype=x.dtype, device=x.device)
    M[:, 0, 0] = (3 * along / (n**5 * d**2)).squeeze(-1)
    M[:, 0, 1] = M[:, 1, 0] = (-1 / (n**3 * d)).squeeze(-1)
    elsewhere = -along / (n**3 * d)
    values, vectors = torch.linalg.eigh(coordinates @ M @ coordinates.mT)
    values, directions = values + elsewhere, plane @ vectors
    in_plane = (directions * (signs[:, :2] * values.abs().sqrt()).unsqueeze(1)).unbind(-1)
    rest = norm.centre(signs[:, 2:])
    rest = (rest - (plane @ (plane.mT @ rest.unsqueeze(-1))).squeeze(-1)) * elsewhere.abs().sqrt()
    parts = [*zip(values.unbind(-1), in_plane, strict=True), (elsewhere.squeeze(-1), rest)]
    zero = torch.zeros_like(x)
    plus = sum((torch.where((value > 0).unsqueeze(-1), part, 0) for value, part in parts), zero)
    minus = sum((torch.where((value < 0).unsqueeze(-1), part, 0) for value, part in parts), zero)
    return Pair(plus, minus)
