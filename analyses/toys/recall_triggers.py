"""Which tokens of the noisy recall task are triggers: frequent ones, named ones, or drawn once or in every sequence."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.arguments import whole


@final
@dataclass(frozen=True, slots=True)
class RandomTriggers:
    """`k` triggers drawn once from the unigram statistics, without replacement: the same in every sequence."""

    k: int
    seed: int


@final
@dataclass(frozen=True, slots=True)
class TriggersPerSequence:
    """`k` triggers that every sequence draws anew from the unigram statistics, without replacement."""

    k: int


Triggers = int | tuple[int, ...] | RandomTriggers | TriggersPerSequence
"""The k most frequent tokens, named tokens, or tokens drawn at random; the noise token is never drawn or counted."""


def resolve(
    triggers: Triggers, noise_token: int, unigram: Float[Tensor, " token"]
) -> tuple[int, ...] | TriggersPerSequence:
    """The tokens that a description of triggers stands for.

    Raises:
        ValueError: if the noise token is outside the vocabulary, or there are fewer tokens than triggers wanted.
    """
    if isinstance(triggers, tuple | TriggersPerSequence):
        return triggers
    whole(noise_token, "noise_token", most=len(unigram) - 1)
    k = triggers if isinstance(triggers, int) else triggers.k
    weights = weights_of(k, noise_token, unigram)
    if isinstance(triggers, int):
        return tuple(weights.argsort(descending=True, stable=True)[:k].tolist())
    generator = torch.Generator().manual_seed(triggers.seed)
    return tuple(weights.multinomial(k, generator=generator).tolist())


def weights_of(k: int, noise_token: int, unigram: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """How likely each token is as a trigger: π_u, not normalised, and 0 for the noise token.

    Raises:
        ValueError: if fewer than `k` tokens can be triggers.
    """
    weights = unigram.double().cpu().clone()
    weights[noise_token] = 0
    possible = int((weights > 0).sum())
    whole(k, "the number of triggers", least=1, most=possible)
    return weights


def check_triggers(
    triggers: tuple[int, ...] | TriggersPerSequence, noise_token: int, unigram: Float[Tensor, " token"]
) -> None:
    """Refuse triggers that are no tokens, the same twice, too many, or the noise token.

    Raises:
        ValueError: in each of these cases.
    """
    V = len(unigram)
    whole(noise_token, "noise_token", most=V - 1)
    if isinstance(triggers, TriggersPerSequence):
        weights_of(triggers.k, noise_token, unigram)
        return
    if not triggers or len(set(triggers)) < len(triggers) or not all(0 <= q < V for q in triggers):
        raise ValueError(
            f"triggers={triggers!r}: name 1 to {V - 1} different tokens of the vocabulary, each from 0 to {V - 1}, or "
            "give a number to RecallTask.synthetic or RecallTask.from_text."
        )
    if noise_token in triggers:
        raise ValueError(
            f"noise_token={noise_token!r} is one of the triggers {triggers!r}: what follows it would be noise and "
            "answer at once. Choose another noise token or leave it out of the triggers."
        )
