"""Which token a rule takes of some logits: the likeliest, or one drawn by a seed."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.scoring._generating_rules import Generates
from analyses.tokens.tokenizer import Ids

Key: TypeAlias = tuple[Ids, int]
"""A prompt, and the number of one of the continuations that are sampled for it."""


def chosen(rule: Generates, logits: Float[Tensor, "read d_vocab"], keys: Sequence[tuple[Key, int]]) -> list[int]:
    """The token that comes next at each read; a key with a number of tokens said so far tells which draw it is.

    A draw is the largest of `logit / temperature + g` with Gumbel noise g, which has the probabilities of a softmax.
    The noise follows from the rule's seed and the key alone: not from the batch, and not from the model.

    Raises:
        FloatingPointError: if a logit is not a number.
    """
    if rule.temperature:
        noise = torch.stack([_gumbel(rule.seed, key, logits.shape[1]) for key in keys]).to(logits.device)
        logits = logits.float() / rule.temperature + noise
    best, tokens = logits.max(-1)  # which is not a number if any of them is none
    if best.isnan().any():
        check_numbers(logits, logits)
    return tokens.tolist()


def unended(ids: Ids, end: int | None) -> Ids:
    """The ids up to the end-of-text token."""
    return ids[: ids.index(end)] if end is not None and end in ids else ids


def check_numbers(values: Tensor, logits: Tensor) -> None:
    """Refuse values that are not numbers.

    Raises:
        FloatingPointError: if there are any.
    """
    if values.isnan().any():
        raise FloatingPointError(
            f"logits of {logits.dtype} contain {int(logits.isnan().sum())} values that are not numbers: a score needs "
            "numbers. Look at the edited weights, or use a wider dtype."
        )


def _gumbel(seed: int, key: tuple[Key, int], size: int) -> Float[Tensor, " d_vocab"]:
    digest = blake2b(repr((seed, key)).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
    return -torch.empty(size).exponential_(generator=generator).log()
