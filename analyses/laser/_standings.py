"""How far candidates are behind after some of the items, and what may be lost by giving one up: no model is run here.

Half of the items, those that the unedited model is less sure of, are asked more often than the others. Every number
here is an estimate for all items: each half counts by its size, and what a half is uncertain by shrinks to nothing as
its last item is asked.
"""

from math import pi, sqrt

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_SHARE = 0.6
"""The share of the first items that is drawn from the undecided half, until that runs out."""
_RARE = 40
"""Where candidates differ on fewer than one item in so many, they are taken to differ little on the others too."""


def undecided_half(decidedness: Float[Tensor, " item"]) -> Bool[Tensor, " item"]:
    """The half of the items that is nearest to being decided the other way."""
    nearest = torch.zeros(len(decidedness), dtype=torch.bool)
    nearest[decidedness.argsort(stable=True)[: len(decidedness) // 2]] = True
    return nearest


def in_order(undecided: Bool[Tensor, " item"], seed: int) -> Int[Tensor, " item"]:
    """A shuffled order in which every prefix holds about 60 % undecided items, while any remain."""
    shuffled = torch.randperm(len(undecided), generator=torch.Generator().manual_seed(seed))
    # The k-th item of a kind whose share is s is due at about position k/s; sorting by that interleaves the kinds.
    due = torch.empty(len(undecided), dtype=torch.double)
    for is_undecided, share in ((True, _SHARE), (False, 1 - _SHARE)):
        alike = undecided[shuffled] == is_undecided
        due[alike] = (torch.arange(int(alike.sum()), dtype=torch.double) + 0.5) / share
    return shuffled[due.argsort(stable=True)]


def weights_of(undecided: Bool[Tensor, " item"], n: int) -> Float[Tensor, " first"]:
    """Weights of the first n items, which sum to 1: each by how many items of its half it stands for.

    They make a mean over the first items, of which more are undecided, an estimate of the mean over all.
    """
    first = undecided[:n]
    weights = torch.zeros(n, dtype=torch.double)
    for is_undecided in (True, False):
        alike = first == is_undecided
        if alike.any():  # a kind may be missing among few items; the other then stands for all
            weights[alike] = float((undecided == is_undecided).sum()) / float(alike.sum())
    return weights / weights.sum()


def at_stake(
    leads: Float[Tensor, "candidate first"], undecided: Bool[Tensor, " item"], *, n_items: int, unit: float = 1.0
) -> Float[Tensor, " candidate"]:
    """What is expected to be lost by giving up each candidate: E max(0, L), L its lead over another on all items.

    L is taken as normal, with the weighted mean m of the leads on the first items and its standard error e, so that the
    expectation is `e φ(m/e) + m Φ(m/e)`. Candidates that agree on few items have seen too little to be called equal:
    each half is imagined to hold one more item, on which the two differ by the whole unit, or by less where hardly any
    candidate differs anywhere.

    Args:
        leads: of each candidate over the other, on the first items.
        undecided: of the items that the first are drawn from, which belong to the undecided half.
        n_items: how many items there are in all, of which these are a random part.
        unit: the difference between right and wrong.
    """
    n = leads.shape[1]
    weights = weights_of(undecided, n)
    mean, variance = leads @ weights, torch.zeros(len(leads), dtype=torch.double)
    for is_undecided in (True, False):
        alike = undecided[:n] == is_undecided
        seen, there = int(alike.sum()), int((undecided == is_undecided).sum()) * (n_items / len(undecided))
        if seen:
            apart = leads[:, alike] - leads[:, alike].mean(1, keepdim=True)
            squares = apart.square().sum(1)
            imagined = (_RARE * squares.mean() / seen).clamp_max(unit**2)
            spread = (squares + imagined) / seen
            share = float(weights[alike].sum())
            variance += share**2 * spread / seen * (1 - seen / there)
    error = variance.sqrt().clamp_min(torch.finfo(torch.double).tiny)
    z = mean / error
    return error * (-z.square() / 2).exp() / sqrt(2 * pi) + mean * torch.special.ndtr(z)
