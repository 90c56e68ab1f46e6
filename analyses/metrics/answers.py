"""Metrics of given answers: token ids, or words that a model's tokenizer turns into ids."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from analyses.metrics.metric import Metric, Unbound
from analyses.metrics.positions import Chosen, Indices, Positions, kept, rows_in, rows_of
from analyses.prompts import Prompts
from analyses.tokens.words import token_of
from hooks.inputs import Reads


@final
@dataclass(frozen=True, slots=True, eq=False)
class AnswerMetric(Metric):
    """A score of given answers at given positions. `score` takes logits `[... d_vocab]` and answers `[... answers]`."""

    name: str
    unit: str
    higher_is_better: bool | None
    differentiable: bool
    score: Callable[..., Tensor]
    answers: tuple[Int[Tensor, "..."], ...]
    positions: Positions | Chosen

    def __post_init__(self) -> None:
        _ = self.n_examples  # refuses parts that disagree

    def bound(self, model: nn.Module, prompts: Prompts | None) -> "AnswerMetric":
        """The same metric, reading the real tokens of these prompts."""
        if prompts is None or prompts.mask is None or isinstance(self.positions, Chosen):
            return self
        where = self.positions.masked(prompts.mask).resolve(prompts.mask.shape[1])
        return replace(self, positions=where)

    @property
    def attention_mask(self) -> Bool[Tensor, "rows pos"] | None:
        """The mask that the metric was made with."""
        return self.positions.attention_mask if isinstance(self.positions, Positions) else None

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
        for ids in self.answers:
            if int(ids.max()) >= d_vocab:
                raise ValueError(
                    f"{self.name}: answer {int(ids.max())} is outside the vocabulary of these logits, 0 to "
                    f"{d_vocab - 1}: pass token ids of the same tokenizer."
                )
        x = where.by_row(logits)
        answers = (ids.to(x.device).unsqueeze(1).expand(len(x), x.shape[1], -1) for ids in self.answers)
        return where.mean(self.score(x, *answers))

    def select(self, indices: Indices) -> "AnswerMetric":
        """The same metric for the chosen examples."""
        answers = tuple(rows_of(ids, indices) for ids in self.answers)
        return replace(self, answers=answers, positions=self.positions.select(indices))


@final
@dataclass(frozen=True, slots=True, eq=False)
class WordMetric(Unbound):
    """An `AnswerMetric` of which some or all answers are words."""

    name: str
    unit: str
    higher_is_better: bool | None
    differentiable: bool
    score: Callable[..., Tensor]
    answers: tuple[Int[Tensor, "..."] | tuple[str, ...], ...]
    positions: Positions

    def bound(self, model: nn.Module, prompts: Prompts | None) -> AnswerMetric:
        """The same metric with the words' ids.

        Raises:
            ValueError: if a word is not one token of the model.
        """
        ids = tuple(
            answer if isinstance(answer, Tensor) else kept([token_of(model, word) for word in answer]).unsqueeze(1)
            for answer in self.answers
        )
        metric = AnswerMetric(
            self.name, self.unit, self.higher_is_better, self.differentiable, self.score, ids, self.positions
        )
        return metric.bound(model, prompts)

    @property
    def attention_mask(self) -> Bool[Tensor, "rows pos"] | None:
        """The mask that the metric was made with."""
        return self.positions.attention_mask

    @property
    def n_examples(self) -> int | None:
        """As of the metric that it becomes."""
        counts = [answer if isinstance(answer, Tensor) else torch.empty(len(answer)) for answer in self.answers]
        return rows_in("the answers and positions", *counts, rows=self.positions.n_examples)

    def missing(self) -> str:
        """The ids of the words."""
        words = next(answer for answer in self.answers if not isinstance(answer, Tensor))
        return (
            f"was made from words ({', '.join(map(repr, words[:3]))}), which have ids in a model only. Give the metric "
            "to an analysis, write metric.bind(model), or make it from token ids."
        )


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
