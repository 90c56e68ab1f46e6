"""Metrics that are a user's own function of the logits."""

# What is the same for all metrics of a kind is a class variable, and what others keep a property.
# pyright: reportIncompatibleVariableOverride=false, reportAssignmentType=false

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses.metrics._metric import Metric, check
from analyses.metrics.positions import Indices, kept, numbered, numbers
from analyses.prompts import Prompts
from hooks.inputs import Reads


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
    last_only: bool
    """What the user promised: a function cannot be asked."""

    def bound(self, model: nn.Module, prompts: Prompts | None) -> "Custom":
        """The metric itself, unless its user said that it reads the last column, and that is padding."""
        attention_mask = None if prompts is None else prompts.mask
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

    def reads(self, n_rows: int, n_pos: int) -> Reads | None:
        """The last column if the user said so, else everything."""
        if not self.last_only:
            return None
        with torch.inference_mode(False):
            return Reads(torch.arange(n_rows), torch.full((n_rows,), n_pos - 1))

    def values(self, logits: Tensor, n_rows: int, n_pos: int) -> Tensor:
        """What the function returns; truth values and whole numbers as fp32."""
        if self.last_only:  # the function reads `logits[:, -1]`, the same in a row of one position
            logits = logits.unsqueeze(1)
        values = self.function(logits, *(x.to(logits.device) for x in self.per_example))
        return check(_as_float(values), n_rows, name=self.name)

    def select(self, indices: Indices) -> "Custom":
        """The same function with the chosen rows; a function alone is applied as it is."""
        at = kept(indices)
        with torch.inference_mode(False):
            return replace(self, per_example=tuple(x[at.to(x.device)] for x in self.per_example))


@final
@dataclass(slots=True)
class _Returned:
    """What kind of number a function gave; known when it has run, and shared by all parts of a metric."""

    one_for_all: bool = False


@final
@dataclass(frozen=True, slots=True, eq=False)
class WholeBatch(Metric):
    """A user's plain function, which may know its examples by heart: it is given all of them, in their order.

    `order` says which examples the logits are of: complete batches, one or more, each of which the function is given by
    itself. It returns a value for each example, or one for all, which then stands for each.
    """

    whole_batch: ClassVar[bool] = True
    function: Callable[[Tensor], Tensor]
    name: str
    order: Int[Tensor, " row"] | None = None
    batch: int | None = None
    returned: _Returned = field(default_factory=_Returned)
    unit: str = ""
    higher_is_better: bool | None = None
    differentiable: bool = True

    def bound(self, model: nn.Module, prompts: Prompts | None) -> "WholeBatch":
        """The function for these examples."""
        if prompts is None:
            return self
        return replace(self, order=torch.arange(len(prompts)), batch=len(prompts), returned=_Returned())

    @property
    def pooled(self) -> bool:
        """Whether the function returned one number for all examples."""
        return self.returned.one_for_all

    @property
    def n_examples(self) -> int | None:
        """The number of rows, once it has met its examples."""
        return None if self.order is None else len(self.order)

    def reads(self, n_rows: int, n_pos: int) -> None:
        """Everything: nobody knows what a function reads."""

    def values(self, logits: Float[Tensor, "row pos d_vocab"], n_rows: int, n_pos: int) -> Tensor:
        """What the function returns for each complete batch; truth values and whole numbers as fp32."""
        batch = self.batch or n_rows
        return torch.cat([self._of_batch(rows, batch) for rows in logits.split(batch)])

    def _of_batch(self, logits: Float[Tensor, "row pos d_vocab"], batch: int) -> Float[Tensor, " row"]:
        values = _as_float(self.function(logits))
        if isinstance(values, Tensor) and values.ndim == 0:
            self.returned.one_for_all = True
            values = values.expand(batch)
        return check(values, batch, name=self.name)

    def select(self, indices: Indices) -> "WholeBatch":
        """The function for these rows, which have to be all of its examples in their order, once or more.

        Raises:
            ValueError: if they are not.
        """
        at = numbered(indices)
        batch = self.batch
        if self.order is not None and len(at):
            at = self.order[at]
        if batch is None or len(at) % batch or not bool((at.view(-1, batch) == torch.arange(batch)).all()):
            raise ValueError(
                f"{self.name} is a plain function, which has to see its whole batch in order. Make it "
                "metrics.custom(function, *per_example, ...), with what it needs of each example, to measure a part."
            )
        return replace(self, order=at)


def _as_float(values: object) -> object:
    """Truth values and whole numbers as fp32; whatever else as it is, for the check to refuse."""
    whole = isinstance(values, Tensor) and not values.is_floating_point() and not values.is_complex()
    return values.float() if whole else values  # type: ignore[union-attr]
