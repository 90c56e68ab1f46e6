"""Where in a row a model's output is read: at the last real token, at given columns, or over a stretch of them."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.prompts import mask_of
from hooks.inputs import Reads
from surgery.arguments import shown

Position = int | slice | Sequence[int] | Tensor | None
"""None is the last real token; an int is a column; a tensor has one for each example; a slice is averaged over."""
Mask = Tensor | Sequence[Sequence[int]] | None
"""1 on tokens, 0 on padding, `[batch pos]`, or a row for all; `position` reads real tokens only."""
Indices = Sequence[int] | Tensor
"""Which examples, in which order; repeats are welcome."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The columns read in each example; one row for all examples alike. Where `weight` is False, a column is filler."""

    index: Int[Tensor, "rows chosen"]
    weight: Bool[Tensor, "rows chosen"]
    n_pos: int

    @property
    def n_examples(self) -> int | None:
        """The number of rows, None if one serves all."""
        return rows_in("the positions", self.index)

    def resolve(self, n_pos: int) -> "Chosen":
        """Itself, if made for that many columns."""
        if n_pos != self.n_pos:
            raise ValueError(
                f"logits of {n_pos} positions, while this metric was made for {self.n_pos}: they have to agree. "
                "Pass logits of the same tokens, or make the metric anew."
            )
        return self

    def select(self, indices: Indices) -> "Chosen":
        """The rows of the chosen examples."""
        return Chosen(rows_of(self.index, indices), rows_of(self.weight, indices), self.n_pos)

    def reads(self, n_rows: int) -> Reads:
        """The pairs of row and column, row after row."""
        with torch.inference_mode(False):
            rows = torch.arange(n_rows).repeat_interleave(self.index.shape[1])
            return Reads(rows, self.index.expand(n_rows, -1).flatten())

    def by_row(self, logits: Float[Tensor, "read d_vocab"]) -> Float[Tensor, "row chosen d_vocab"]:
        """The logits of these reads, in fp32 or better."""
        return widened(logits.unflatten(0, (-1, self.index.shape[1])))

    def mean(self, values: Float[Tensor, "batch chosen"]) -> Float[Tensor, " batch"]:
        """The mean of each example over its own positions."""
        weight = self.weight.to(values.device)
        return torch.where(weight, values, 0).sum(1) / weight.sum(1)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Where to read, before the number of columns is known."""

    where: int | slice | Int[Tensor, " rows"] | None
    attention_mask: Bool[Tensor, "rows2 pos"] | None

    @property
    def n_examples(self) -> int | None:
        """How many examples have a position or a mask of their own."""
        own = self.where if isinstance(self.where, Tensor) else None
        return rows_in("positions and attention_mask", own, self.attention_mask)

    def masked(self, attention_mask: Bool[Tensor, "rows pos"]) -> "Positions":
        """The same, over the real tokens of this mask; a mask of one's own, which has to be the same, stays."""
        return self if self.attention_mask is not None else Positions(self.where, attention_mask.cpu())

    def select(self, indices: Indices) -> "Positions":
        """Those of the chosen examples."""
        where = rows_of(self.where, indices) if isinstance(self.where, Tensor) else self.where
        mask = self.attention_mask
        return Positions(where, None if mask is None else rows_of(mask, indices))

    @torch.inference_mode(False)  # what it makes may be saved for a backward pass
    def resolve(self, n_pos: int) -> Chosen:
        """The columns, in logits of `n_pos` of them.

        Raises:
            ValueError: if a position is outside, or on padding, or a slice leaves an example nothing.
        """
        mask = self.attention_mask
        if mask is None:
            mask = torch.ones(1, n_pos, dtype=torch.bool)
        elif mask.shape[1] != n_pos:
            raise ValueError(
                f"an attention_mask of {mask.shape[1]} positions for logits of {n_pos}: they have to agree. "
                "Pass the mask of these tokens."
            )
        columns = torch.arange(n_pos)
        match self.where:
            case None:
                index = torch.where(mask, columns, -1).amax(1, keepdim=True)
            case slice():
                index = torch.tensor(range(n_pos)[self.where], dtype=torch.long).expand(len(mask), -1)
            case where:
                index = _inside(torch.as_tensor(where).reshape(-1, 1), n_pos)
        rows = max(len(index), len(mask))
        index, mask = index.expand(rows, -1), mask.expand(rows, -1)
        real = mask.gather(1, index.clamp_min(0)) & (index >= 0)
        if not bool(real.any(1).all()):
            raise ValueError(
                f"position={self.where!r} leaves examples {numbers(~real.any(1))} no real token: every example is "
                "read at one or more tokens that are not padding. Choose other positions, or leave these examples out."
            )
        # A column on padding is replaced by the example's first real one, so that no value on padding is ever read.
        first = index.gather(1, real.int().argmax(1, keepdim=True))
        return Chosen(torch.where(real, index, first), real, n_pos)


def positions(position: Position, attention_mask: Mask) -> Positions:
    """Where to read, from what a user writes.

    Raises:
        ValueError: if the mask is not `[batch pos]` of 0 and 1, or positions are not whole numbers, one for each
            example.
    """
    mask = None if attention_mask is None else mask_of(attention_mask)
    if position is None:
        return Positions(None, mask)
    if isinstance(position, slice):
        try:
            position.indices(1)
        except (TypeError, ValueError) as error:
            raise ValueError(f"position={position!r}: {error}. Give whole numbers, such as slice(1, None).") from None
        return Positions(position, mask)
    where = whole_numbers(
        position,
        "positions",
        "they are a column, [batch] one column for each example, a slice, or None for the last real token. Pass one of "
        "these.",
        most_axes=1,
    )
    return Positions(where if where.ndim else int(where), mask)


def rows_of(x: Tensor, indices: Indices) -> Tensor:
    """The chosen rows of x; x itself if it has one row, which serves every example.

    Raises:
        ValueError: if an index is outside.
    """
    if len(x) == 1:
        return x
    at = numbered(indices)
    if at.numel() and not -len(x) <= int(at.min()) <= int(at.max()) < len(x):
        raise ValueError(
            f"select(indices from {int(at.min())} to {int(at.max())}) of {len(x)} examples: they are counted from 0 to "
            f"{len(x) - 1}. Choose among them."
        )
    with torch.inference_mode(False):
        return x[at.to(x.device)]


def kept(x: Tensor | Sequence[int] | int) -> Tensor:
    """x as a tensor that autograd may save, also where it is made or comes from inference mode."""
    with torch.inference_mode(False):
        x = torch.as_tensor(x)
        return x.clone() if x.is_inference() else x.detach()


def numbered(indices: Indices) -> Int[Tensor, " chosen"]:
    """Which examples, by their numbers, where they may be chosen by truth values."""
    at = kept(indices).cpu()
    return at.nonzero().squeeze(1) if at.dtype == torch.bool else at.long()


def whole_numbers(given: object, what: str, allowed: str, *, most_axes: int) -> Int[Tensor, "..."]:
    """The numbers as a tensor on the CPU.

    Raises:
        ValueError: if they are not whole, or have too many axes; `allowed` says what is right.
    """
    try:
        x = kept(given).cpu()  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{what} {shown(given)}: {allowed}") from None
    if x.ndim > most_axes or not x.numel() or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{what} of dtype {x.dtype} and shape {tuple(x.shape)}: {allowed}")
    return x.long()


def rows_in(what: str, *parts: Sized | None, rows: int | None = None) -> int | None:
    """How many examples the parts, and what already has `rows`, are about; None if one row serves all.

    Raises:
        ValueError: if they disagree.
    """
    counts = {n for n in (rows, *(len(part) for part in parts if part is not None and len(part) != 1)) if n is not None}
    if len(counts) > 1:
        raise ValueError(
            f"{what} are for {' and '.join(map(str, sorted(counts)))} examples: they have to agree, or be one for all. "
            "Pass one row for each example."
        )
    return counts.pop() if counts else None


def numbers(rows: Tensor) -> str:
    """Which rows are True, in words: the first few by number."""
    at = rows.nonzero().flatten().tolist()
    return ", ".join(map(str, at[:8])) + (f" and {len(at) - 8} more" if len(at) > 8 else "")


def widened(logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The logits in fp32, or fp64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _inside(where: Int[Tensor, "rows 1"], n_pos: int) -> Int[Tensor, "rows 1"]:
    if int(where.min()) < -n_pos or int(where.max()) >= n_pos:
        raise ValueError(
            f"positions from {int(where.min())} to {int(where.max())} in logits of {n_pos}: columns go from 0 to "
            f"{n_pos - 1}, or from -{n_pos} to -1 counted from the end. Choose among them."
        )
    return where % n_pos
