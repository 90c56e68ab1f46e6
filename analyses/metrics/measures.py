"""The kinds of metric that `analyses.metrics` makes: final, and values that can be cut into batches of examples."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.metrics.placement import Chosen, Indices, Mask, Positions, kept, numbers, rows_in, rows_of, widened
from analyses.metrics.words import token_of
from analyses.prompts import mask_of

RealTokens = Bool[Tensor, "batch pos"]
IGNORED = -100
"""The label, or answer, that stands for none (as in `torch.nn.functional.cross_entropy`)."""


class Metric(ABC):
    """A number for each example, read from logits, in `unit`; `higher_is_better` is None where neither end is."""

    __slots__ = ()
    name: str
    unit: str
    higher_is_better: bool | None
    differentiable: bool

    def __call__(self, logits: Tensor) -> Float[Tensor, " batch"]:
        """The metric of each example, from logits `[batch pos d_vocab]`, fp32 or better.

        Raises:
            ValueError: if logits have another shape, the metric knows another number of examples, or a value is NaN.
        """
        if logits.ndim != 3 or 0 in logits.shape or not logits.is_floating_point():
            raise ValueError(
                f"{self.name}: {logits.dtype} logits of shape {tuple(logits.shape)}; a metric reads floating-point "
                "logits [batch pos d_vocab] with nothing empty. Pass the model's output for at least one example."
            )
        if self.n_examples not in (None, len(logits)):
            raise ValueError(
                f"{self.name}: logits of {len(logits)} examples, while the metric was made for {self.n_examples}: "
                "they have to agree. Pass all of them, or metric.select(indices) for a part."
            )
        return check(self.values(logits), len(logits), name=self.name)

    def bind(self, model: nn.Module, tokens: Tensor | None = None, attention_mask: Mask = None) -> "Metric":
        """The same metric for this model and, where given, these examples: words have ids, and padding is not read.

        Analyses do this; by hand it is needed only where a metric that was made from words is called on logits.

        Raises:
            ValueError: if a word is not one token of the model, or the metric reads padding.
        """
        shape = None if tokens is None else tokens.shape
        return self.bound(model, tokens, None if attention_mask is None else mask_of(attention_mask, shape))

    def bound(self, model: nn.Module, tokens: Tensor | None, attention_mask: RealTokens | None) -> "Metric":
        """As `bind`, for a mask that was checked."""
        return self

    @property
    def attention_mask(self) -> Bool[Tensor, "rows pos"] | None:
        """The mask that the metric was made with."""
        return None

    @property
    def whole_batch(self) -> bool:
        """Whether it has to see all examples at once, in their order."""
        return False

    @property
    def pooled(self) -> bool:
        """Whether it gave one number for all examples together, which then stands in each one's place."""
        return False

    @abstractmethod
    def values(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Tensor:
        """The metric of each example, unchecked."""

    @property
    @abstractmethod
    def n_examples(self) -> int | None:
        """How many examples the metric knows something about each of; None if it treats all alike."""

    @abstractmethod
    def select(self, indices: Indices) -> "Metric":
        """The same metric for the chosen examples, in this order, with repeats."""

    @abstractmethod
    def needed_positions(self, n_pos: int) -> tuple[int, ...]:
        """The columns of `[batch n_pos d_vocab]` logits that any example's value depends on, rising."""

    @abstractmethod
    def narrow(self, n_pos: int) -> "Metric":
        """The same metric for `logits[:, list(self.needed_positions(n_pos))]`."""

    @property
    @abstractmethod
    def last_only(self) -> bool:
        """Whether nothing but the last column is needed, whatever the number of columns."""


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

    def bound(self, model: nn.Module, tokens: Tensor | None, attention_mask: RealTokens | None) -> "AnswerMetric":
        """The same metric, reading the real tokens of this mask."""
        if attention_mask is None or isinstance(self.positions, Chosen):
            return self
        here = self.positions.masked(attention_mask).resolve(attention_mask.shape[1])
        return replace(self, positions=here)

    @property
    def attention_mask(self) -> Bool[Tensor, "rows pos"] | None:
        """The mask that the metric was made with."""
        return self.positions.attention_mask if isinstance(self.positions, Positions) else None

    @property
    def n_examples(self) -> int | None:
        """How many examples have an answer, a position or a mask of their own."""
        return rows_in("the answers and positions", *self.answers, rows=self.positions.n_examples)

    @property
    def last_only(self) -> bool:
        """Whether the last column is all that is read."""
        return self.positions.last_only

    def values(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Tensor:
        """The score, averaged over the positions read."""
        chosen, d_vocab = self.positions.resolve(logits.shape[1]), logits.shape[2]
        for ids in self.answers:
            if int(ids.max()) >= d_vocab:
                raise ValueError(
                    f"{self.name}: answer {int(ids.max())} is outside the vocabulary of these logits, 0 to "
                    f"{d_vocab - 1}: pass token ids of the same tokenizer."
                )
        x = chosen.gather(logits)
        answers = (ids.to(x.device).unsqueeze(1).expand(len(x), x.shape[1], -1) for ids in self.answers)
        return chosen.mean(self.score(x, *answers))

    def select(self, indices: Indices) -> "AnswerMetric":
        """The same metric for the chosen examples."""
        answers = tuple(rows_of(ids, indices) for ids in self.answers)
        return replace(self, answers=answers, positions=self.positions.select(indices))

    def needed_positions(self, n_pos: int) -> tuple[int, ...]:
        """The columns read."""
        return self.positions.resolve(n_pos).needed

    def narrow(self, n_pos: int) -> "AnswerMetric":
        """The same metric for logits at the needed columns."""
        return replace(self, positions=self.positions.resolve(n_pos).narrow())


@final
@dataclass(frozen=True, slots=True, eq=False)
class WordMetric(Metric):
    """An `AnswerMetric` whose answers are words, some or all: a model's tokenizer gives them ids, in `bind`."""

    name: str
    unit: str
    higher_is_better: bool | None
    differentiable: bool
    score: Callable[..., Tensor]
    answers: tuple[Int[Tensor, "..."] | tuple[str, ...], ...]
    positions: Positions

    def bound(self, model: nn.Module, tokens: Tensor | None, attention_mask: RealTokens | None) -> AnswerMetric:
        """The same metric with the words' ids.

        Raises:
            ValueError: if a word is not one token of the model.
        """
        ids = tuple(
            given if isinstance(given, Tensor) else kept([token_of(model, word) for word in given]).unsqueeze(1)
            for given in self.answers
        )
        made = AnswerMetric(
            self.name, self.unit, self.higher_is_better, self.differentiable, self.score, ids, self.positions
        )
        return made.bound(model, tokens, attention_mask)

    @property
    def attention_mask(self) -> Bool[Tensor, "rows pos"] | None:
        """The mask that the metric was made with."""
        return self.positions.attention_mask

    @property
    def n_examples(self) -> int | None:
        """As of the metric that it becomes."""
        counts = [given if isinstance(given, Tensor) else torch.empty(len(given)) for given in self.answers]
        return rows_in("the answers and positions", *counts, rows=self.positions.n_examples)

    @property
    def last_only(self) -> bool:
        """Whether the last column is all that is read."""
        return self.positions.last_only

    def values(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Tensor:
        """Nothing: words have no ids here."""
        raise self._unbound()

    def select(self, indices: Indices) -> "WordMetric":
        """Nothing: words have no ids here."""
        raise self._unbound()

    def needed_positions(self, n_pos: int) -> tuple[int, ...]:
        """Nothing: words have no ids here."""
        raise self._unbound()

    def narrow(self, n_pos: int) -> "WordMetric":
        """Nothing: words have no ids here."""
        raise self._unbound()

    def _unbound(self) -> ValueError:
        words = next(given for given in self.answers if not isinstance(given, Tensor))
        return ValueError(
            f"{self.name} was made from words ({', '.join(map(repr, words[:3]))}), which have ids in a model only. "
            "Give the metric to an analysis, write metric.bind(model), or make it from token ids."
        )


@final
@dataclass(frozen=True, slots=True, eq=False)
class Loss(Metric):
    """The mean cross-entropy of each example over its labels, in nats; see `loss`."""

    labels: Int[Tensor, "rows pos"]
    name: str = "loss"
    unit: str = "nats"
    higher_is_better: bool | None = False
    differentiable: bool = True

    def __post_init__(self) -> None:
        labelled = self.labels != IGNORED
        if not bool(labelled.any(1).all()):
            raise ValueError(
                f"{self.name}: examples {numbers(~labelled.any(1))} have no label that is not {IGNORED} (ignored): "
                "each needs one or more for a mean. Leave these examples out."
            )
        if bool((self.labels[labelled] < 0).any()):
            raise ValueError(
                f"{self.name}: label {int(self.labels[labelled].min())}: labels are token ids, or {IGNORED} where "
                f"none is scored. Use {IGNORED}."
            )

    def bound(self, model: nn.Module, tokens: Tensor | None, attention_mask: RealTokens | None) -> "Loss":
        """Itself, if no label is on padding, or predicts it, or is the token that stands at its own place."""
        if tokens is None or tokens.shape[1] != self.labels.shape[1] or len(self.labels) not in (1, len(tokens)):
            return self  # refused elsewhere
        tokens = tokens.to(self.labels.device)
        labels, after = self.labels.expand_as(tokens), tokens.roll(-1, 1)
        scored = labels != IGNORED
        if attention_mask is not None:
            real = attention_mask.to(labels.device)
            ends = real & ~torch.cat([real[:, 1:], real[:, -1:]], 1)  # padding comes next
            every = (scored | ~real).all(1, keepdim=True)  # as labels that were made from all tokens
            wrong = (scored & (~real | (every & ends & (labels == after)))).any(1)
            if bool(wrong.any()):
                raise ValueError(
                    f"{self.name}: examples {numbers(wrong)} have labels on padding or for it: only real tokens are "
                    f"predicted. Set these to {IGNORED}; metrics.next_token_labels(tokens, attention_mask) does."
                )
        own, next_ = ((labels == x)[scored].all() for x in (tokens, after))
        if bool(own) and not bool(next_) and bool((scored.sum(1) > 1).all()):
            raise ValueError(
                f"{self.name}: each label is the token at its own position, which the model has already read: labels "
                "are aligned to logits, the token after. Pass metrics.next_token_labels(tokens)."
            )
        return self

    @property
    def n_examples(self) -> int | None:
        """The number of rows of labels, None if one serves all."""
        return rows_in("the labels", self.labels)

    @property
    def last_only(self) -> bool:
        """Whether labels are in the last column alone."""
        n_pos = self.labels.shape[1]
        return self.needed_positions(n_pos) == (n_pos - 1,)

    def values(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Tensor:
        """−log p of the labels, averaged over those of each example."""
        batch, n_pos, d_vocab = logits.shape
        self._check_width(n_pos)
        labels = self.labels.to(logits.device).expand(batch, -1)
        if int(labels.max()) >= d_vocab:
            raise ValueError(
                f"{self.name}: label {int(labels.max())} is outside the vocabulary of these logits, 0 to "
                f"{d_vocab - 1}: pass token ids of the same tokenizer."
            )
        scored = labels != IGNORED
        row, column = scored.nonzero(as_tuple=True)
        if len(row) > labels.numel() / 2:  # most are scored: no copy of the logits
            nats = F.cross_entropy(
                widened(logits).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
            )
            return nats.view(batch, n_pos).sum(1) / scored.sum(1)
        nats = F.cross_entropy(widened(logits[row, column]), labels[row, column], reduction="none")
        return nats.new_zeros(batch).index_add(0, row, nats) / scored.sum(1)

    def select(self, indices: Indices) -> "Loss":
        """The same metric for the chosen examples."""
        return replace(self, labels=rows_of(self.labels, indices))

    def needed_positions(self, n_pos: int) -> tuple[int, ...]:
        """The columns with a label."""
        self._check_width(n_pos)
        return tuple((self.labels != IGNORED).any(0).nonzero().flatten().tolist())

    def narrow(self, n_pos: int) -> "Loss":
        """The same metric for logits at the columns with a label."""
        with torch.inference_mode(False):
            return replace(self, labels=self.labels[:, list(self.needed_positions(n_pos))])

    def _check_width(self, n_pos: int) -> None:
        if self.labels.shape[1] != n_pos:
            raise ValueError(
                f"{self.name}: labels {list(self.labels.shape)} for logits of {n_pos} positions: one label for each "
                f"position, {IGNORED} where none is scored. Align them (metrics.next_token_labels(tokens) does)."
            )


@final
@dataclass(frozen=True, slots=True, eq=False)
class KLDivergence(Metric):
    """KL(reference ‖ model) in nats, averaged over positions; see `kl_from`. `reference` holds log-probabilities."""

    reference: Float[Tensor, "rows chosen d_vocab"]
    positions: Chosen
    name: str = "KL divergence"
    unit: str = "nats"
    higher_is_better: bool | None = False
    differentiable: bool = True
    mask: Bool[Tensor, "rows pos"] | None = None

    def bound(self, model: nn.Module, tokens: Tensor | None, attention_mask: RealTokens | None) -> "KLDivergence":
        """Itself, if the reference was read at real tokens."""
        if attention_mask is not None:
            chosen = self.positions.resolve(attention_mask.shape[1])
            mask = attention_mask.to(chosen.index.device)
            index, weight = (x.expand(len(mask), -1) for x in (chosen.index, chosen.weight))
            wrong = (weight & ~mask.gather(1, index)).any(1)
            if self.mask is None:  # padding before a text changes its logits, where nothing told the model of it
                wrong |= ~mask[:, 0]
            if bool(wrong.any()):
                raise ValueError(
                    f"{self.name}: the reference of examples {numbers(wrong)} was read at padding, or computed without "
                    "the mask of the padding before them. Make it with the attention_mask, "
                    "metrics.kl_from_run(model, tokens, attention_mask=...)."
                )
        return self

    @property
    def attention_mask(self) -> Bool[Tensor, "rows pos"] | None:
        """The mask that the metric was made with."""
        return self.mask

    @property
    def n_examples(self) -> int | None:
        """The number of examples of the reference, None if one serves all."""
        return rows_in("the reference and the positions", self.reference, rows=self.positions.n_examples)

    @property
    def last_only(self) -> bool:
        """Whether the last column is all that is read."""
        return self.positions.last_only

    def values(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Tensor:
        """`Σ p (ln p − ln q)`, averaged over the positions read."""
        if logits.shape[2] != self.reference.shape[2]:
            raise ValueError(
                f"{self.name}: logits over {logits.shape[2]} tokens, while the reference has "
                f"{self.reference.shape[2]}: they have to agree. Use logits of the same model."
            )
        log_q = self.positions.resolve(logits.shape[1]).gather(logits).log_softmax(-1)
        log_p = self.reference.to(log_q)
        p = log_p.exp()
        return self.positions.mean(torch.where(p > 0, p * (log_p - log_q), 0).sum(-1))

    def select(self, indices: Indices) -> "KLDivergence":
        """The same metric for the chosen examples."""
        mask = None if self.mask is None else rows_of(self.mask, indices)
        reference, here = rows_of(self.reference, indices), self.positions.select(indices)
        return replace(self, reference=reference, positions=here, mask=mask)

    def needed_positions(self, n_pos: int) -> tuple[int, ...]:
        """The columns read."""
        return self.positions.resolve(n_pos).needed

    def narrow(self, n_pos: int) -> "KLDivergence":
        """The same metric for logits at the needed columns."""
        return replace(self, positions=self.positions.resolve(n_pos).narrow())


@final
@dataclass(frozen=True, slots=True, eq=False)
class Custom(Metric):
    """A user's function of the logits and of tensors with one row an example; see `custom`."""

    function: Callable[..., Tensor]
    per_example: tuple[Tensor, ...]
    name: str
    unit: str
    higher_is_better: bool | None
    differentiable: bool
    reads_last_only: bool

    def bound(self, model: nn.Module, tokens: Tensor | None, attention_mask: RealTokens | None) -> "Custom":
        """Itself, unless it said that it reads the last column, and that is padding."""
        if self.last_only and attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError(
                f"{self.name} reads the last column only, which is padding in examples "
                f"{numbers(~attention_mask[:, -1])}. Leave out last_only and read each example's last real token, or "
                "pad on the left."
            )
        return self

    @property
    def n_examples(self) -> int | None:
        """The number of rows of the tensors that go with the function."""
        sizes = {len(x) for x in self.per_example}
        return sizes.pop() if sizes else None

    @property
    def last_only(self) -> bool:
        """What the user said: a function cannot be asked."""
        return self.reads_last_only

    def values(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Tensor:
        """What the function returns; truth values and whole numbers as fp32."""
        found = self.function(logits, *(x.to(logits.device) for x in self.per_example))
        whole = isinstance(found, Tensor) and not found.is_floating_point() and not found.is_complex()
        return check(found.float() if whole else found, len(logits), name=self.name)

    def select(self, indices: Indices) -> "Custom":
        """The same function with the chosen rows; a function alone is applied as it is."""
        at = kept(indices)
        with torch.inference_mode(False):
            return replace(self, per_example=tuple(x[at.to(x.device)] for x in self.per_example))

    def needed_positions(self, n_pos: int) -> tuple[int, ...]:
        """The last column if the user said so, else all."""
        return (n_pos - 1,) if self.last_only else tuple(range(n_pos))

    def narrow(self, n_pos: int) -> "Custom":
        """Itself: it reads all columns, or `logits[:, -1]`, the same in both."""
        return self


@final
@dataclass(slots=True)
class _Returned:
    """What kind of number a function gave; known when it has run, and shared by all parts of a metric."""

    one_for_all: bool = False


@final
@dataclass(frozen=True, slots=True, eq=False)
class WholeBatch(Metric):
    """A user's plain function, which may know its examples by heart: it is given all of them, in their order.

    `rows` says which examples the logits are of: complete batches, one or more, each of which the function is given by
    itself. It returns a value for each example, or one for all, which then stands for each.
    """

    function: Callable[[Tensor], Tensor]
    name: str
    rows: Int[Tensor, " row"] | None = None
    batch: int | None = None
    returned: _Returned = field(default_factory=_Returned)
    unit: str = ""
    higher_is_better: bool | None = None
    differentiable: bool = True

    def bound(self, model: nn.Module, tokens: Tensor | None, attention_mask: RealTokens | None) -> "WholeBatch":
        """The function for these examples."""
        if tokens is None:
            return self
        return replace(self, rows=torch.arange(len(tokens)), batch=len(tokens), returned=_Returned())

    @property
    def whole_batch(self) -> bool:
        """It has."""
        return True

    @property
    def pooled(self) -> bool:
        """Whether the function returned one number for all examples."""
        return self.returned.one_for_all

    @property
    def n_examples(self) -> int | None:
        """The number of rows, once it has met its examples."""
        return None if self.rows is None else len(self.rows)

    @property
    def last_only(self) -> bool:
        """Nobody knows what a function reads."""
        return False

    def values(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Tensor:
        """What the function returns for each complete batch; truth values and whole numbers as fp32."""
        batch = self.batch or len(logits)
        return torch.cat([self._one(copy, batch) for copy in logits.split(batch)])

    def _one(self, logits: Float[Tensor, "batch pos d_vocab"], batch: int) -> Float[Tensor, " batch"]:
        found = self.function(logits)
        if isinstance(found, Tensor) and not found.is_floating_point() and not found.is_complex():
            found = found.float()
        if isinstance(found, Tensor) and found.ndim == 0:
            self.returned.one_for_all = True
            found = found.expand(batch)
        return check(found, batch, name=self.name)

    def select(self, indices: Indices) -> "WholeBatch":
        """The function for these rows, which have to be all of its examples in their order, once or more.

        Raises:
            ValueError: if they are not.
        """
        at = kept(indices)
        at = at.nonzero().squeeze(1) if at.dtype == torch.bool else at.long()
        batch = self.batch
        if self.rows is not None and len(at):
            at = self.rows[at]
        if batch is None or len(at) % batch or not bool((at.view(-1, batch) == torch.arange(batch)).all()):
            raise ValueError(
                f"{self.name} is a plain function, which has to see its whole batch in order. Make it "
                "metrics.custom(function, *per_example, ...), with what it needs of each example, to measure a part."
            )
        return replace(self, rows=at)

    def needed_positions(self, n_pos: int) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(n_pos))

    def narrow(self, n_pos: int) -> "WholeBatch":
        """Itself: it reads all columns."""
        return self


def check(values: object, batch: int, *, name: str = "the metric") -> Float[Tensor, " batch"]:
    """The values, if they are one real number for each of `batch` examples.

    Raises:
        ValueError: if they are not, or one is NaN.
    """
    if not isinstance(values, Tensor):
        raise ValueError(
            f"{name} returned {type(values).__name__}: a metric returns a tensor with one number for each of the "
            f"{batch} examples. Leave out .item() and the mean over examples."
        )
    if values.shape != (batch,) or not values.is_floating_point():
        raise ValueError(
            f"{name} returned {values.dtype} of shape {tuple(values.shape)}: allowed is one real number for each "
            f"example, shape ({batch},). Reduce over everything but the examples, for instance "
            "values.flatten(1).mean(1)."
        )
    if bool(values.isnan().any()):
        raise ValueError(
            f"{name} is NaN for examples {numbers(values.isnan())}: values are numbers. Look for NaN or infinite "
            "logits, or leave these examples out."
        )
    return values
