"""What a model is run on: rows of tokens, which of the tokens are real, and where the logits are read."""

from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooks.past import Past

__all__ = ["Inputs", "Reads"]


class Reads(NamedTuple):
    """Pairs of a row and a position, in the order of the rows."""

    row: Int[Tensor, " read"]
    pos: Int[Tensor, " read"]

    def of(self, x: Tensor) -> Tensor:
        """The entries of `x`, `[row pos ...]`, at these pairs: `[read ...]`."""
        return x[self.row.to(x.device), self.pos.to(x.device)]


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """Rows of tokens and the positions at which their logits are read.

    `mask` is 1 on tokens and 0 on padding; None says that every token is real. Where `reads` is None, logits are read
    everywhere. The rows follow what is in `past`, which a pass through the model adds them to.

    >>> inputs = Inputs(tokens, reads=Reads(torch.tensor([0, 1]), torch.tensor([7, 7])))
    >>> len(inputs), inputs.take(torch.tensor([2, 0, 0])).tokens.shape
    (3, torch.Size([3, 8]))
    """

    tokens: Int[Tensor, "row pos"]
    mask: Int[Tensor, "row pos"] | Bool[Tensor, "row pos"] | None = None
    reads: Reads | None = None
    past: Past | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_pos(self) -> int:
        """The number of positions of every row."""
        return self.tokens.shape[1]

    @property
    def reads_per_row(self) -> float:
        """At how many positions of a row logits are read, on average."""
        return float(self.n_pos) if self.reads is None else max(1.0, len(self.reads.row) / len(self))

    @torch.inference_mode(False)
    def take(self, rows: Int[Tensor, " chosen"]) -> "Inputs":
        """Some rows, in any order and as often as wanted, read everywhere."""
        at = rows.to(self.tokens.device)
        return Inputs(self.tokens[at], None if self.mask is None else self.mask[at])

    def read_at(self, reads: Reads | None) -> "Inputs":
        """The same rows, read at other positions."""
        return replace(self, reads=reads)
