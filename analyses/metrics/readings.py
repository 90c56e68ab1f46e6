"""From logits to what a model says about the tokens that a task asks about, and from that to a number an item.

Both ways of asking about a task stand on this: a rule, which says what is right, and a metric made without answers.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.prompts import Continuations

# Of the logits looked at in one go: 64 MiB in float32.
_CHUNK = 2**24
# From this many targets a read on, sorting its logits once is quicker than counting for each target.
_SORT_FROM = 16


@final
@dataclass(frozen=True, slots=True)
class Readings:
    """What the model says about every target of a task.

    Args:
        log_prob: of the target, in nats.
        rank: how many tokens are likelier; among equals the one with the lower id counts as likelier.
        top: the likeliest token in the target's position.
    """

    log_prob: Float[Tensor, " target"]
    rank: Int[Tensor, " target"]
    top: Int[Tensor, " target"]


def log_probs(
    logits: Float[Tensor, "read d_vocab"], at: Int[Tensor, " target"], target: Int[Tensor, " target"]
) -> Float[Tensor, " target"]:
    """The log-probability of every target at its read, in nats, in at least float32; differentiable."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    step = max(1, _CHUNK // logits.shape[1])
    totals = [logits[start : start + step].to(wide).logsumexp(-1) for start in range(0, len(logits), step)]
    at, target = at.to(logits.device), target.to(logits.device)
    return logits[at, target].to(wide) - torch.cat(totals)[at]


def ranks(
    logits: Float[Tensor, "read d_vocab"], at: Int[Tensor, " target"], target: Int[Tensor, " target"]
) -> Int[Tensor, " target"]:
    """How many tokens are likelier than each target, 0 for the likeliest; among equals the lower id comes first."""
    reads, targets = at.to(logits.device), target.to(logits.device)
    if len(targets) > _SORT_FROM * len(logits):
        order = logits.argsort(dim=-1, descending=True, stable=True)
        return order.argsort(dim=-1)[reads, targets]
    step = max(1, _CHUNK // logits.shape[1])
    ids = torch.arange(logits.shape[1], device=logits.device)
    counts = []
    for some, ids_asked in zip(reads.split(step), targets.split(step), strict=True):
        here, asked = logits[some], ids_asked.unsqueeze(1)
        own = here.gather(1, asked)
        counts.append(((here > own) | ((here == own) & (ids < asked))).sum(-1))
    return torch.cat(counts)


def summed(table: Continuations, log_prob: Float[Tensor, " target"]) -> Float[Tensor, " continuation"]:
    """The log-probability of each continuation."""
    zeros = torch.zeros(len(table.item), dtype=log_prob.dtype, device=log_prob.device)
    return zeros.index_add(0, table.target.to(log_prob.device), log_prob)


def log_p(table: Continuations, values: Float[Tensor, " continuation"], *, right: bool) -> Float[Tensor, " item"]:
    """The log-probability that one of each item's right (or wrong) continuations comes next; −∞ without any.

    A continuation that another one on its side begins is part of that one, and is not counted twice.
    """
    return logsumexp_by(values, table.item, (table.right == right) & ~table.nested, table.n_items)


def place_of(table: Continuations) -> Int[Tensor, " target"]:
    """The place of each target in its continuation, from 0."""
    starts = table.length.cumsum(0) - table.length
    return torch.arange(len(table.target)) - starts[table.target]


def worst_rank(
    table: Continuations, rank: Int[Tensor, " target"], *, n_tokens: int | None = None
) -> Int[Tensor, " item"]:
    """The rank of the worst token of each item's best right continuation: 0 if all its tokens are the likeliest.

    `n_tokens` is how many of its tokens count, from the first on; None for all.
    """
    rank = rank.cpu()
    if n_tokens is not None:
        rank = torch.where(place_of(table) < n_tokens, rank, 0)
    worst = torch.zeros(len(table.item), dtype=torch.long).scatter_reduce(0, table.target, rank, "amax")
    largest = torch.full((table.n_items,), torch.iinfo(torch.long).max)
    return largest.scatter_reduce(0, table.item[table.right], worst[table.right], "amin")


def amax_by(
    values: Float[Tensor, " value"], index: Int[Tensor, " value"], keep: Bool[Tensor, " value"], n: int
) -> Float[Tensor, " item"]:
    """The largest of each item's values that are kept; −∞ where there is none."""
    empty = torch.full((n,), -torch.inf, dtype=values.dtype, device=values.device)
    index, keep = index.to(values.device), keep.to(values.device)
    return empty.scatter_reduce(0, index[keep], values[keep], "amax")


def logsumexp_by(
    values: Float[Tensor, " value"], index: Int[Tensor, " value"], keep: Bool[Tensor, " value"], n: int
) -> Float[Tensor, " item"]:
    """The logarithm of each item's sum of exponentials over the values that are kept; −∞ where there is none."""
    index, keep = index.to(values.device), keep.to(values.device)
    largest = amax_by(values.detach(), index, keep, n)
    base = torch.where(largest.isfinite(), largest, 0.0)
    terms = (values[keep] - base[index[keep]]).exp()
    total = torch.zeros(n, dtype=values.dtype, device=values.device).index_add(0, index[keep], terms)
    return total.log() + base
