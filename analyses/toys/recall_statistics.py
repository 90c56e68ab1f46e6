"""Unigram and bigram statistics for the noisy recall task: made up, or counted in a text."""

from math import isfinite

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surgery.arguments import whole

Statistics = tuple[Float[Tensor, " token"], Float[Tensor, "before after"]]
"""π_u, and π_b with a row for each token: what follows it."""


def zipf_and_dirichlet(d_vocab: int, *, seed: int) -> Statistics:
    """π_u ∝ 1/rank, token 0 the most frequent, and rows of π_b ~ Dirichlet(0.1 V π_u + 0.001).

    Raises:
        ValueError: if `d_vocab` is below 2.
    """
    whole(d_vocab, "d_vocab", least=2)  # a trigger and a noise token
    unigram = 1 / np.arange(1, d_vocab + 1)
    unigram /= unigram.sum()
    bigram = np.random.default_rng(seed).dirichlet(0.1 * d_vocab * unigram + 1e-3, size=d_vocab)
    return torch.from_numpy(unigram), torch.from_numpy(bigram)


def in_text(text: str, vocabulary: tuple[str, ...]) -> Statistics:
    """The shares of a text's characters and of the pairs of neighbours; what nothing follows is followed by π_u."""
    code, V = {character: i for i, character in enumerate(vocabulary)}, len(vocabulary)
    codes = np.fromiter((code[character] for character in text), dtype=np.int64, count=len(text))
    unigram = np.bincount(codes, minlength=V) / len(codes)
    pairs = np.bincount(codes[:-1] * V + codes[1:], minlength=V**2).reshape(V, V).astype(float)
    pairs[pairs.sum(1) == 0] = unigram
    return torch.from_numpy(unigram), torch.from_numpy(pairs / pairs.sum(1, keepdims=True))


def check_statistics(unigram: Float[Tensor, " token"], bigram: Float[Tensor, "before after"]) -> None:
    """Refuse what is no distribution.

    Raises:
        ValueError: if the shapes disagree, or a row is negative anywhere or does not sum to 1 within 1e-4.
    """
    V = len(unigram)
    if unigram.ndim != 1 or bigram.shape != (V, V):
        raise ValueError(
            f"bigram has the shape {tuple(bigram.shape)}, unigram {tuple(unigram.shape)}: give one row and one column "
            f"of bigram for each token, ({V}, {V}) here."
        )
    _check_rows("unigram", unigram[None])
    _check_rows("bigram", bigram)


def _check_rows(name: str, rows: Float[Tensor, "row token"]) -> None:
    totals = rows.sum(1)
    bad = ~((rows >= 0).all(1) & ((totals - 1).abs() < 1e-4))
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    total = float(totals[row])
    what = f"sums to {total:.6g}" if isfinite(total) else "holds values that are not finite"
    what = "holds negative values" if bool((rows[row] < 0).any()) else what
    raise ValueError(
        f"row {row} of {name} {what}: a distribution has values from 0 up that sum to 1; clip it and divide by the sum."
    )
