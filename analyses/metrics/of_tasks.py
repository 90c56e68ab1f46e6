"""Metrics of a task's own answers: made without answers, they take those of each item when they meet a task.

Of each item, the probabilities of all accepted answers are added, and those of all wrong ones; an answer of several
tokens counts with all of them.
"""

# What is the same for all metrics of a kind is a class variable, and what others keep a property.
# pyright: reportIncompatibleVariableOverride=false, reportAssignmentType=false

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses.metrics._metric import IGNORED, Metric, Unbound
from analyses.metrics.positions import Indices, numbered, numbers
from analyses.metrics.readings import Readings, log_p, log_probs, ranks, summed, worst_rank
from analyses.metrics.references import Loss, next_token_labels
from analyses.prompts import Continuations, ItemRows, Prompts, rows_of_items
from analyses.tasks.items import Kind
from hooks.inputs import Reads

Quantity: TypeAlias = Callable[[Continuations, Readings], Tensor]
"""From what a model says about every target to a number for each item."""


class OfTask(Unbound):
    """A quantity of a task's items, for items of these `kinds`, read off whichever task it meets."""

    __slots__ = ()
    kinds: tuple[Kind, ...]

    @abstractmethod
    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """The number for each item."""

    def bound(self, model: nn.Module, prompts: Prompts | None) -> Metric:
        """The metric of the task's items, whose prompts these are.

        Raises:
            ValueError: if the prompts are not those of a task, or its items of another kind.
        """
        if prompts is None:
            return self
        if prompts.kind is not None and prompts.kind not in self.kinds:
            raise ValueError(
                f"{self.name} was asked of a task whose items are of kind {prompts.kind!r}: it is for the kinds "
                f"{' and '.join(self.kinds)}. Choices and pairs have a log_prob(), a logit_difference() (right against "
                "wrong) and the rule scoring.Likeliest()."
            )
        about = self.name, self.unit, self.higher_is_better, self.differentiable
        return ItemMetric(*about, self.quantity, prompts.with_continuations(), self.of_probability)

    def missing(self) -> str:
        """The answers."""
        return (
            "was made without answers, which it takes from a task: give it to an analysis of a task, or make it from "
            "token ids or words."
        )


@final
@dataclass(frozen=True, slots=True)
class TaskMetric(OfTask):
    """A named quantity; from `metrics.log_prob()` and its like."""

    name: str
    unit: str
    higher_is_better: bool | None
    differentiable: bool
    value: Quantity
    kinds: tuple[Kind, ...] = ("answer", "choice", "pair")

    @property
    def of_probability(self) -> Literal["p", "log p"] | None:
        """The probability of an item's accepted answers is `p`."""
        if self.value is prob:
            return "p"
        return "log p" if self.value is log_prob else None

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """The number for each item."""
        return self.value(table, readings)


@final
@dataclass(frozen=True, slots=True)
class TaskLoss(OfTask):
    """The loss of the answers of whichever task is met, or of the next tokens of other prompts."""

    name: str = "loss"
    unit: str = "nats"
    higher_is_better: bool | None = False
    differentiable: bool = True
    of_probability: Literal["-log p"] = "-log p"
    kinds: tuple[Kind, ...] = ("answer", "choice", "pair")

    def bound(self, model: nn.Module, prompts: Prompts | None) -> Metric:
        """The loss of the next tokens, or that of a task's answers."""
        if prompts is None:
            return self
        if prompts.items is None:
            return Loss(next_token_labels(prompts.tokens, prompts.mask)).bound(model, prompts)
        accepted = [[c for c in item.continuations if c.right] for item in prompts.items]
        if any(len(continuations) > 1 for continuations in accepted):
            return OfTask.bound(self, model, prompts)
        # With one answer an item, it is the cross-entropy of labels, of which more is known (by_fisher).
        rows = rows_of_items(
            [replace(item, continuations=tuple(own)) for item, own in zip(prompts.items, accepted, strict=True)],
            prompts.filler,
        )
        labels = torch.full_like(rows.tokens, IGNORED)
        labels[rows.row, rows.pos] = rows.token
        return Loss(labels, rows=rows)

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """−log p of an accepted answer, in nats per token of the reference."""
        return log_loss(table, readings)


@final
@dataclass(frozen=True, slots=True, eq=False)
class ItemMetric(Metric):
    """A quantity of the items of one task, in rows of their own."""

    name: str
    unit: str
    higher_is_better: bool | None
    differentiable: bool
    value: Quantity
    rows: ItemRows
    of_probability: Literal["p", "log p", "-log p"] | None = None

    @property
    def first_row(self) -> Int[Tensor, " example_plus_1"] | None:
        """The first row of each item; None where an item is a row."""
        first = self.rows.first
        return None if bool((first.diff() == 1).all()) else first

    @property
    def n_examples(self) -> int:
        """The number of items."""
        return len(self.rows.first) - 1

    def reads(self, n_rows: int, n_pos: int) -> Reads:
        """The positions before the tokens that are asked about."""
        with torch.inference_mode(False):
            return self._reads(n_pos)[0]

    def values(self, logits: Float[Tensor, "read d_vocab"], n_rows: int, n_pos: int) -> Float[Tensor, " item"]:
        """The quantity of each item."""
        at, token = self._reads(n_pos)[1], self.rows.token
        said = log_probs(logits, at, token)
        # Ranks and the likeliest tokens have no gradient, so that only what is not differentiated needs them.
        rank = torch.zeros_like(token) if self.differentiable else ranks(logits, at, token)
        top = torch.zeros_like(token) if self.differentiable else logits.argmax(-1)[at.to(logits.device)]
        values = self.value(self.rows.continuations, Readings(said, rank, top)).to(said)
        if self.differentiable and not bool(values.isfinite().all()):
            raise ValueError(
                f"{self.name} is not finite for items {numbers(~values.isfinite())}: an item has no answer on one of "
                "the two sides (no distractor, say). Give every item one, or take metrics.log_prob()."
            )
        return values

    def select(self, indices: Indices) -> "ItemMetric":
        """The same metric for the chosen items."""
        return replace(self, rows=self.rows.select(numbered(indices)))

    def _reads(self, n_pos: int) -> tuple[Reads, Int[Tensor, " target"]]:
        """The reads, each once and row after row, and of each target its read."""
        flat, at = (self.rows.row * n_pos + self.rows.pos).unique(return_inverse=True)
        return Reads(flat // n_pos, flat % n_pos), at


def log_loss(table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
    """−log p of an accepted answer, in nats per token of the reference."""
    said = log_p(table, summed(table, readings.log_prob), right=True)
    return -said / table.length[table.first[:-1]].to(said.device)


def log_prob(table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
    """The log-probability of an accepted answer."""
    return log_p(table, summed(table, readings.log_prob), right=True)


def prob(table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
    """The probability of an accepted answer."""
    return log_prob(table, readings).exp()


def log_odds(table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
    """The log-probability of the right answers minus that of the wrong ones."""
    values = summed(table, readings.log_prob)
    return log_p(table, values, right=True) - log_p(table, values, right=False)


def rank(table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
    """The rank of the worst token of the best accepted answer."""
    return worst_rank(table, readings.rank).float()


def first(table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
    """1 where every token of an accepted answer is the likeliest, else 0."""
    return (worst_rank(table, readings.rank) == 0).float()
