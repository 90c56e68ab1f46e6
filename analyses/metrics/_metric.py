"""What every metric is: a number for each example, read from the logits at the positions that it names."""

from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from analyses.metrics.positions import Indices, numbers
from analyses.prompts import ItemRows, Prompts, mask_of, read
from hooks.inputs import Reads

__all__ = ["IGNORED", "Metric", "Unbound", "check"]

IGNORED = -100
"""The label, or answer, that stands for none (as in `torch.nn.functional.cross_entropy`)."""


class Metric(ABC):
    """A number for each example, in `unit`; `higher_is_better` is None if the metric has no preferred direction.

    A metric of one's own is `metrics.custom(function, ...)`, or a class that says where it reads and what it makes of
    the logits there:

    >>> class Entropy(metrics.Metric):
    ...     name, unit, higher_is_better, differentiable = "entropy", "nats", None, True
    ...     def reads(self, n_rows, n_pos):
    ...         return Reads(torch.arange(n_rows), torch.full((n_rows,), n_pos - 1))
    ...     def values(self, logits, n_rows, n_pos):
    ...         return torch.distributions.Categorical(logits=logits).entropy()
    ...     def select(self, indices):
    ...         return self
    >>> from hooks.inputs import Reads
    >>> attribution.by_gradient(model, tokens, Entropy(), "blocks.0.mlp.W_out", progress=False).measure.baseline.shape
    torch.Size([3])
    """

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
        reads = self.reads(*logits.shape[:2])
        return self.checked(logits if reads is None else reads.of(logits), *logits.shape[:2])

    def checked(self, logits: Tensor, n_rows: int, n_pos: int) -> Float[Tensor, " example"]:
        """As `values`, refusing what is not one number for each example."""
        return check(self.values(logits, n_rows, n_pos), self._n_examples_in(n_rows), name=self.name)

    def checked_log_probs(
        self, log_probs: Float[Tensor, " read"], n_rows: int, n_pos: int
    ) -> Float[Tensor, " example"]:
        """As `of_log_probs`, refusing what is not one number for each example."""
        return check(self.of_log_probs(log_probs, n_rows, n_pos), self._n_examples_in(n_rows), name=self.name)

    def _n_examples_in(self, n_rows: int) -> int:
        return n_rows if self.first_row is None else len(self.first_row) - 1

    def bind(self, model: nn.Module, tokens: object = None, attention_mask: object = None) -> "Metric":
        """The same metric for this model and, where given, these examples: words have ids, and padding is not read.

        Analyses do this; by hand it is needed only where a metric that was made from words is called on logits.

        Raises:
            ValueError: if a word is not one token of the model, or the metric reads padding.
        """
        mask = None if attention_mask is None else mask_of(attention_mask)
        if tokens is None:
            return self.bound(model, None)
        if isinstance(tokens, Tensor):
            return self.bound(model, Prompts(tokens, None if mask is None else mask_of(mask, tokens.shape)))
        return self.bound(model, read(model, tokens, mask))

    def bound(self, model: nn.Module, prompts: Prompts | None) -> "Metric":
        """As `bind`, for prompts that were read."""
        return self

    attention_mask: Bool[Tensor, "rows pos"] | None = None
    """The mask that the metric was made with."""
    rows: ItemRows | None = None
    """The rows that the metric is read from, where these are others than the prompts."""
    first_row: Int[Tensor, " example_plus_1"] | None = None
    """The first row of each example, and one entry more; None where an example is a row."""
    whole_batch: bool = False
    """Whether the metric has to see all examples at once, in their order."""
    pooled: bool = False
    """Whether the metric gave one number for all examples together, which then stands in each one's place."""
    of_probability: Literal["p", "log p", "-log p"] | None = None
    """What the value is of a probability p, where it is read at one position; None if it is of none."""
    n_examples: int | None = None
    """How many examples the metric knows something about each of; None if it treats all alike."""

    @abstractmethod
    def reads(self, n_rows: int, n_pos: int) -> Reads | None:
        """The pairs of row and position whose logits the metric reads, row after row; None for all of them."""

    @abstractmethod
    def values(self, logits: Tensor, n_rows: int, n_pos: int) -> Tensor:
        """The metric of each example, unchecked, from the logits at `reads`: `[read d_vocab]`.

        A metric that reads everywhere gets `[row pos d_vocab]`.
        """

    @abstractmethod
    def select(self, indices: Indices) -> "Metric":
        """The same metric for the chosen examples, in this order, with repeats."""

    def scored(self, n_rows: int, n_pos: int) -> Int[Tensor, " read"] | None:
        """The token of each read, if its log-probability is all that the metric takes from there; None if not."""
        return None

    def of_log_probs(self, log_probs: Float[Tensor, " read"], n_rows: int, n_pos: int) -> Tensor:
        """As `values`, from the log-probabilities of the tokens that are `scored`."""
        raise ValueError(f"{self.name} scores no tokens: give `values` the logits.")


class Unbound(Metric):
    """A metric that lacks something which only a model or a task knows: `bind` gives the metric that has it."""

    __slots__ = ()

    @abstractmethod
    def missing(self) -> str:
        """What is missing, and where it comes from."""

    def reads(self, n_rows: int, n_pos: int) -> Reads | None:
        """Raises: the metric is not bound."""
        raise ValueError(f"{self.name} {self.missing()}")

    def values(self, logits: Tensor, n_rows: int, n_pos: int) -> Tensor:
        """Raises: the metric is not bound."""
        raise ValueError(f"{self.name} {self.missing()}")

    def select(self, indices: Indices) -> Metric:
        """Raises: the metric is not bound."""
        raise ValueError(f"{self.name} {self.missing()}")


def check(values: object, batch: int, *, name: str = "the metric") -> Float[Tensor, " batch"]:
    """The values, if they are one real number for each of `batch` examples.

    Raises:
        ValueError: if they are not, or one is NaN.
    """
    if not isinstance(values, Tensor) or values.shape != (batch,) or not values.is_floating_point():
        kind = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name} returned {kind}: allowed is a tensor with one real number for each example, shape ({batch},). "
            "Leave out .item(), and reduce over everything but the examples, for instance values.flatten(1).mean(1)."
        )
    if bool(values.isnan().any()):
        raise ValueError(
            f"{name} is NaN for examples {numbers(values.isnan())}: values are numbers. Look for NaN or infinite "
            "logits, or leave these examples out."
        )
    return values
