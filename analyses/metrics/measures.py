"""The kinds of metric that `analyses.metrics` makes: final, and values that can be cut into batches of examples."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from analyses.metrics.placement import Chosen, Indices, Positions, kept, numbers, rows_in, rows_of, widened

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
        return replace(self, reference=rows_of(self.reference, indices), positions=self.positions.select(indices))

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
