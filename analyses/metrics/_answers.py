"""Metrics of given answers: token ids, or words that a model's tokenizer turns into ids."""

# What is the same for all metrics of a kind is a class variable, and what others keep a property.
# pyright: reportIncompatibleVariableOverride=false, reportAssignmentType=false

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from analyses.metrics._metric import Metric
from analyses.metrics.positions import Chosen, Indices, Positions, kept, rows_in, rows_of
from analyses.prompts import Prompts
from analyses.tokens.words import token_of
from hooks.inputs import Reads


@final
@dataclass(frozen=True, slots=True, eq=False)
class AnswerMetric(Metric):
    """A score of given answers at given positions. `score` takes logits `[... d_vocab]` and answers `[... answers]`.

    Answers may be words, until the metric is bound to a model.
    """

    name: str
    unit: str
    higher_is_better: bool | None
    differentiable: bool
    score: Callable[..., Tensor]
    answers: tuple[Int[Tensor, "..."] | tuple[str, ...], ...]
    positions: Positions | Chosen

    def __post_init__(self) -> None:
        _ = self.n_examples  # refuses parts that disagree

    def bound(self, model: nn.Module, prompts: Prompts | None) -> "AnswerMetric":
        """The same metric with the words' ids, reading the real tokens of these prompts.

        Raises:
            ValueError: if a word is not one token of the model.
        """
        ids = tuple(
            answer if isinstance(answer, Tensor) else kept([token_of(model, word) for word in answer]).unsqueeze(1)
            for answer in self.answers
        )
        where = self.positions
        if prompts is not None and prompts.mask is not None and isinstance(where, Positions):
            where = where.masked(prompts.mask).resolve(prompts.mask.shape[1])
        return replace(self, answers=ids, positions=where)

    @property
    def attention_mask(self) -> Bool[Tensor, "rows pos"] | None:
        """The mask that the metric was made with."""
        return self.positions.attention_mask if isinstance(self.positions, Positions) else None

    @property
    def of_probability(self) -> Literal["p", "log p"] | None:
        """The answer's probability is `p`."""
        if self.score is prob:
            return "p"
        return "log p" if self.score is log_prob else None

    @property
    def n_examples(self) -> int | None:
        """How many examples have an answer, a position or a mask of their own."""
        return rows_in("the answers and positions", *self.answers, rows=self.positions.n_examples)

    def reads(self, n_rows: int, n_pos: int) -> Reads:
        """The positions of the answers."""
        return self.positions.resolve(n_pos).reads(n_rows)

    def values(self, logits: Float[Tensor, "read d_vocab"], n_rows: int, n_pos: int) -> Tensor:
        """The score, averaged over the positions read."""
        where, d_vocab = self.positions.resolve(n_pos), logits.shape[-1]
        x = where.by_row(logits)
        answers = []
        for ids in self.answers:
            if not isinstance(ids, Tensor):
                raise ValueError(
                    f"{self.name} was made from words ({', '.join(map(repr, ids[:3]))}), which have ids in a model "
                    "only. Give the metric to an analysis, write metric.bind(model), or make it from token ids."
                )
            if int(ids.max()) >= d_vocab:
                raise ValueError(
                    f"{self.name}: answer {int(ids.max())} is outside the vocabulary of these logits, 0 to "
                    f"{d_vocab - 1}: pass token ids of the same tokenizer."
                )
            answers.append(ids.to(x.device).unsqueeze(1).expand(len(x), x.shape[1], -1))
        return where.mean(self.score(x, *answers))

    def select(self, indices: Indices) -> "AnswerMetric":
        """The same metric for the chosen examples."""
        answers = tuple(
            rows_of(answer, indices) if isinstance(answer, Tensor) else _words_of(answer, indices)
            for answer in self.answers
        )
        return replace(self, answers=answers, positions=self.positions.select(indices))


def _words_of(words: tuple[str, ...], indices: Indices) -> tuple[str, ...]:
    return words if len(words) == 1 else tuple(words[i] for i in rows_of(torch.arange(len(words)), indices).tolist())


def log_sum(x: Float[Tensor, "*at d_vocab"], ids: Int[Tensor, "*at answers"]) -> Float[Tensor, "*at"]:
    """The logarithm of the summed exponentials of several answers' logits: the logit of "one of them"."""
    return x.gather(-1, ids.clamp_min(0)).masked_fill(ids < 0, -torch.inf).logsumexp(-1)


def logit_difference(x: Tensor, correct: Tensor, wrong: Tensor) -> Tensor:
    """The logit of the correct answer minus that of the wrong one."""
    return log_sum(x, correct) - log_sum(x, wrong)


def log_prob(x: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of the answer."""
    return log_sum(x, ids) - x.logsumexp(-1)


def prob(x: Tensor, ids: Tensor) -> Tensor:
    """The probability of the answer."""
    return log_prob(x, ids).exp()


def rank(x: Float[Tensor, "*at d_vocab"], ids: Int[Tensor, "*at answers"]) -> Float[Tensor, "*at"]:
    """How many tokens come before the best answer."""
    x, d_vocab = x.detach(), x.shape[-1]
    own = x.gather(-1, ids.clamp_min(0)).masked_fill(ids < 0, -torch.inf)
    best = own.amax(-1, keepdim=True)
    first = torch.where((own == best) & (ids >= 0), ids, d_vocab).amin(-1, keepdim=True)
    before = (x > best) | ((x == best) & (torch.arange(d_vocab, device=x.device) < first))
    return torch.where(x.isnan().any(-1), torch.nan, before.sum(-1).to(x.dtype))


def accuracy(x: Tensor, ids: Tensor) -> Tensor:
    """1 where the best answer comes first, else 0."""
    ranks = rank(x, ids)
    return torch.where(ranks.isnan(), ranks, (ranks == 0).to(ranks.dtype))
