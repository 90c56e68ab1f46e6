"""Noisy in-context recall: text in which a trigger is followed by the sequence's own answer, or by a noise token.

Every sequence draws, for each of its triggers q, an answer ȳ(q), uniform over all tokens but the noise token τ. After
q stands τ with probability α, else ȳ(q), a fresh coin each time; after any other token z stands a draw from the bigram
statistics π_b(·|z). A model can only know ȳ by reading it in context, while "τ follows a trigger" is true everywhere
and can be stored.

Chen, Bruna, Bietti, "Distributional associations vs in-context reasoning" (arXiv:2406.03068), the noisy recall task;
the synthetic statistics stand in for its text.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.toys.recall_statistics import check_statistics, in_text, zipf_and_dirichlet
from analyses.toys.recall_triggers import Triggers, TriggersPerSequence, check_triggers, resolve, weights_of
from surgery.arguments import fraction, whole


@final
@dataclass(frozen=True, slots=True)
class RecallBatch:
    """Sequences of the task, and what follows and should follow each of their tokens.

    `targets` is the next token, the last position's too; `answers` is ȳ at triggers, −1 elsewhere. `scored` marks the
    triggers that have occurred before in their sequence: where loss and metrics are taken.
    """

    tokens: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch pos"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "RecallBatch":
        return RecallBatch(self.tokens[rows], self.targets[rows], self.answers[rows], self.scored[rows])

    def to(self, device: torch.device | str) -> "RecallBatch":
        """The same sequences on another device."""
        return RecallBatch(
            self.tokens.to(device), self.targets.to(device), self.answers.to(device), self.scored.to(device)
        )


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RecallTask:
    """The distribution of the sequences: π_u and the rows of π_b, the triggers, the noise token τ, its probability α.

    The first token of a sequence is drawn from π_u. `vocabulary` names the tokens, or is empty. Usually made by
    `RecallTask.synthetic` or `RecallTask.from_text`.

    Raises:
        ValueError: if a number is out of its range, a statistic is no distribution, or the noise token is a trigger.
    """

    unigram: Float[Tensor, " token"]
    bigram: Float[Tensor, "before after"]
    triggers: tuple[int, ...] | TriggersPerSequence
    noise_token: int
    alpha: float = 0.5
    n_ctx: int = 64
    vocabulary: tuple[str, ...] = ()
    _edges: Float[Tensor, " cell"] = field(init=False)

    def __post_init__(self) -> None:
        check_statistics(self.unigram, self.bigram)
        check_triggers(self.triggers, self.noise_token, self.unigram)
        fraction(self.alpha, "alpha")
        V = self.d_vocab
        if self.vocabulary and len(self.vocabulary) != V:
            raise ValueError(f"vocabulary names {len(self.vocabulary)} tokens of {V}: name all of them, or none.")
        whole(self.n_ctx, "n_ctx", least=2)  # a trigger can only occur a second time in 2 or more tokens
        # Row z of the cumulative bigram, shifted by z: one sorted vector, so one search draws a successor of any token.
        cumulative = self.bigram.double().cpu().cumsum(1)
        edges = cumulative / cumulative[:, -1:] + torch.arange(V)[:, None]
        object.__setattr__(self, "_edges", edges.flatten())

    @classmethod
    def synthetic(
        cls,
        *,
        d_vocab: int = 33,
        triggers: Triggers = 1,
        noise_token: int = 5,
        alpha: float = 0.5,
        n_ctx: int = 64,
        seed: int = 0,
    ) -> "RecallTask":
        """Made-up statistics: π_u ∝ 1/rank (token 0 is the most frequent), rows of π_b ~ Dirichlet(0.1 V π_u + 0.001).

        >>> from analyses import recall
        >>> recall.RecallTask.synthetic(triggers=2)
        RecallTask(33 tokens, n_ctx=64, triggers=(0, 1), noise_token=5, alpha=0.5)

        The defaults are a setting that trains in seconds on one core. `seed` draws the bigram rows.
        """
        unigram, bigram = zipf_and_dirichlet(d_vocab, seed=seed)
        return cls(unigram, bigram, resolve(triggers, noise_token, unigram), noise_token, alpha, n_ctx)

    @classmethod
    def from_text(
        cls, text: str, *, triggers: Triggers = 5, noise: str | None = None, alpha: float = 0.5, n_ctx: int = 256
    ) -> "RecallTask":
        """The statistics of the characters of a text, sorted; a character that only ends it is followed by π_u.

        >>> from analyses import recall
        >>> recall.RecallTask.from_text("to be or not to be", triggers=1).vocabulary
        (' ', 'b', 'e', 'n', 'o', 'r', 't', '<noise>')

        `noise` is one of the characters, or None for a token of its own, "<noise>", which is followed by π_u.
        """
        characters = sorted(set(text))
        if len(characters) < 2:
            raise ValueError(f"the text holds {len(characters)} different characters: give one with 2 or more.")
        if noise is not None and noise not in characters:
            raise ValueError(
                f"noise={noise!r} is not one of the {len(characters)} characters of the text: choose one of them, or "
                f"None for a token of its own."
            )
        vocabulary = (*characters, "<noise>") if noise is None else tuple(characters)
        unigram, bigram = in_text(text, vocabulary)
        tau = vocabulary.index("<noise>" if noise is None else noise)
        return cls(unigram, bigram, resolve(triggers, tau, unigram), tau, alpha, n_ctx, vocabulary)

    @property
    def d_vocab(self) -> int:
        """The number of tokens, V."""
        return len(self.unigram)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that shapes the sequences."""
        settings = (self.d_vocab, self.triggers, self.noise_token, float(self.alpha), self.n_ctx)
        statistics = [t.double().cpu().contiguous().numpy().tobytes() for t in (self.unigram, self.bigram)]
        return sha256(b"".join([repr(settings).encode(), *statistics])).hexdigest()

    def sample(self, sequences: int, *, seed: int | torch.Generator, alpha: float | None = None) -> RecallBatch:
        """New sequences of `n_ctx` tokens, on the generator's device (CPU for a seed).

        >>> from analyses import recall
        >>> recall.RecallTask.synthetic().sample(3, seed=0).tokens.shape
        torch.Size([3, 64])

        `alpha` replaces the task's own: 0 for the clean sequences that models are tested on.

        Raises:
            ValueError: if `sequences` is below 1 or `alpha` outside [0, 1].
        """
        whole(sequences, "sequences", least=1)
        alpha = self.alpha if alpha is None else fraction(alpha, "alpha")
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        answers = self._draw_answers(sequences, generator)
        tokens = self._draw_tokens(answers, alpha, generator)
        seen, following = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        answers = answers.gather(1, seen)
        again = (seen[:, :, None] == seen[:, None, :]).tril(-1).any(-1)
        return RecallBatch(seen, following, answers, again & (answers >= 0))

    def _draw_answers(self, sequences: int, generator: torch.Generator) -> Int[Tensor, "batch token"]:
        """ȳ of each sequence's triggers, −1 for every other token."""
        device = generator.device
        if isinstance(self.triggers, TriggersPerSequence):
            weights = weights_of(self.triggers.k, self.noise_token, self.unigram).to(device)
            triggers = weights.expand(sequences, -1).multinomial(self.triggers.k, generator=generator)
        else:
            triggers = torch.tensor(self.triggers, device=device).expand(sequences, -1)
        drawn = torch.randint(self.d_vocab - 1, triggers.shape, generator=generator, device=device)
        drawn += drawn >= self.noise_token
        return torch.full((sequences, self.d_vocab), -1, device=device).scatter(1, triggers, drawn)

    def _draw_tokens(
        self, answers: Int[Tensor, "batch token"], alpha: float, generator: torch.Generator
    ) -> Int[Tensor, "batch pos_and_next"]:
        device, V = generator.device, self.d_vocab
        edges, after_trigger = self._edges.to(device), answers >= 0
        # 24 random bits each: the sum of a token and one of them is exact, so it cannot fall into the next token's row.
        uniform = torch.rand(len(answers), self.n_ctx, generator=generator, device=device).double()
        noisy = torch.rand(len(answers), self.n_ctx, generator=generator, device=device) < alpha
        first = self.unigram.double().to(device).multinomial(len(answers), replacement=True, generator=generator)
        tokens = [first[:, None]]
        for pos in range(self.n_ctx):
            before = tokens[-1]
            generic = torch.searchsorted(edges, before + uniform[:, pos, None], right=True) - before * V
            recalled = torch.where(noisy[:, pos, None], self.noise_token, answers.gather(1, before))
            tokens.append(torch.where(after_trigger.gather(1, before), recalled, generic))
        return torch.cat(tokens, 1)

    def __repr__(self) -> str:
        return (
            f"RecallTask({self.d_vocab} tokens, n_ctx={self.n_ctx}, triggers={self.triggers}, "
            f"noise_token={self.noise_token}, alpha={self.alpha:g})"
        )
