"""What a task asks after its prompts: the continuations of every item, and the rows in which they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.tasks.items import Text
from analyses.tokens.items import Continuation, TokenisedItem
from analyses.tokens.tokenizer import Ids
from hooks.inputs import Inputs, Reads

PaddingSide: TypeAlias = Literal["right", "left"]
Target: TypeAlias = tuple[int, int, int]
"""A row, the position before a token, and the token that is asked about there."""


@final
@dataclass(frozen=True, slots=True)
class Continuations:
    """Every continuation of every item, in one table; those of an item stand together, the right ones first.

    Args:
        item: the item that a continuation belongs to.
        right: whether it counts as right.
        length: its number of tokens.
        n_bytes: the length of its text in UTF-8; 0 if it is ids.
        nested: whether another continuation on the same side begins it, so that its probability is part of that one's.
        first: of each item, its first continuation, which is the reference; and one entry more, the number of all.
        target: of each target (a token that is asked about), its continuation, in order.
        ids: the tokens of each continuation.
        text: each continuation as its item has it.
    """

    item: Int[Tensor, " continuation"]
    right: Bool[Tensor, " continuation"]
    length: Int[Tensor, " continuation"]
    n_bytes: Int[Tensor, " continuation"]
    nested: Bool[Tensor, " continuation"]
    first: Int[Tensor, " item_plus_1"]
    target: Int[Tensor, " target"]
    ids: tuple[Ids, ...]
    text: tuple[Text, ...]

    @property
    def n_items(self) -> int:
        """The number of items."""
        return len(self.first) - 1

    @property
    def first_target(self) -> Int[Tensor, " item_plus_1"]:
        """Of each item, its first target; and one entry more, the number of all."""
        of_continuation = torch.cat([self.length.new_zeros(1), self.length.cumsum(0)])
        return of_continuation[self.first]

    def select(self, items: Int[Tensor, " chosen"]) -> "Continuations":
        """The continuations of some items, in any order and as often as wanted."""
        at = segments(self.first, items)
        counts = self.first.diff()[items]
        length = self.length[at]
        return Continuations(
            item=torch.repeat_interleave(counts),
            right=self.right[at],
            length=length,
            n_bytes=self.n_bytes[at],
            nested=self.nested[at],
            first=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            target=torch.repeat_interleave(length),
            ids=tuple(self.ids[n] for n in at.tolist()),
            text=tuple(self.text[n] for n in at.tolist()),
        )


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Padded rows, read at the positions before the tokens that are asked about.

    Args:
        inputs: the rows, with their mask and reads.
        at: of each target, its read.
        target: the token that is asked about.
        index: of each target, its number among all targets of the task.
    """

    inputs: Inputs
    at: Int[Tensor, " target"]
    target: Int[Tensor, " target"]
    index: Int[Tensor, " target"]

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        inputs, reads = self.inputs, self.inputs.reads
        moved = replace(
            inputs,
            tokens=inputs.tokens.to(device),
            mask=None if inputs.mask is None else inputs.mask.to(device),
            reads=None if reads is None else Reads(*(part.to(device) for part in reads)),
        )
        return Batch(moved, self.at.to(device), self.target.to(device), self.index.to(device))


@final
@dataclass(frozen=True, slots=True)
class ItemRows:
    """A task's items as one rectangle of rows, padded on the right; the rows of an item stand together.

    `first` is the first row of each item, and one entry more; `row`, `pos` and `token` say of each target of
    `continuations` where it is read.
    """

    tokens: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]
    first: Int[Tensor, " item_plus_1"]
    row: Int[Tensor, " target"]
    pos: Int[Tensor, " target"]
    token: Int[Tensor, " target"]
    continuations: Continuations

    def select(self, items: Int[Tensor, " chosen"]) -> "ItemRows":
        """The rows of some items, in any order and as often as wanted."""
        rows, targets = segments(self.first, items), self.continuations.first_target
        counts, chosen = self.first.diff()[items], segments(targets, items)
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shift = (first[:-1] - self.first[items]).repeat_interleave(targets.diff()[items])
        return ItemRows(
            self.tokens[rows], self.mask[rows], first,
            self.row[chosen] + shift, self.pos[chosen], self.token[chosen], self.continuations.select(items),
        )  # fmt: skip


def rows_of_items(items: Sequence[TokenisedItem], filler: int) -> ItemRows:
    """The rows in which the continuations of each item are read, an item's own."""
    rows: list[Ids] = []
    first, targets = [0], []
    for item in items:
        own, owner = shared([continuation.row for continuation in item.continuations])
        targets += targets_of(item.continuations, [len(rows) + row for row in owner])
        rows += own
        first.append(len(rows))
    tokens, mask = pad(rows, "right", filler)
    row, pos, token = torch.tensor(targets).unbind(1)
    return ItemRows(tokens, mask.bool(), torch.tensor(first), row, pos, token, table_of(items))


def targets_of(continuations: Sequence[Continuation], rows: Sequence[int]) -> list[Target]:
    """Where each token of each continuation is asked about, if the continuations are read in these rows."""
    return [
        (row, len(continuation.context) - 1 + step, token)
        for continuation, row in zip(continuations, rows, strict=True)
        for step, token in enumerate(continuation.ids)
    ]


def table_of(items: Sequence[TokenisedItem]) -> Continuations:
    """The continuations of the items."""
    flat = [continuation for item in items for continuation in item.continuations]
    counts = torch.tensor([len(item.continuations) for item in items])
    lengths = torch.tensor([len(continuation.ids) for continuation in flat])
    return Continuations(
        item=torch.repeat_interleave(counts),
        right=torch.tensor([continuation.right for continuation in flat]),
        length=lengths,
        n_bytes=torch.tensor([len(c.text.encode()) if isinstance(c.text, str) else 0 for c in flat]),
        nested=torch.tensor([nested for item in items for nested in _nested(item.continuations)]),
        first=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        target=torch.repeat_interleave(lengths),
        ids=tuple(continuation.ids for continuation in flat),
        text=tuple(continuation.text for continuation in flat),
    )


def shared(sequences: Sequence[Ids]) -> tuple[list[Ids], list[int]]:
    """The sequences that begin no other, and for each given one the number of the sequence that it begins."""
    rows: list[Ids] = []
    number: dict[Ids, int] = {}
    # In reversed order a sequence comes right after those that it begins with, one of which was kept.
    for sequence in sorted(set(sequences), reverse=True):
        if not rows or rows[-1][: len(sequence)] != sequence:
            rows.append(sequence)
        number[sequence] = len(rows) - 1
    return rows, [number[sequence] for sequence in sequences]


def pad(rows: Sequence[Ids], side: PaddingSide, filler: int) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """The rows as one tensor, padded on one side, and the mask of what is not padding."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), filler, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, ids in enumerate(rows):
        start = width - len(ids) if side == "left" else 0
        tokens[row, start : start + len(ids)] = torch.tensor(ids)
        mask[row, start : start + len(ids)] = 1
    return tokens, mask


def segments(first: Int[Tensor, " plus_1"], chosen: Int[Tensor, " chosen"]) -> Int[Tensor, " member"]:
    """The members of some groups, in the order of the groups, where group g has the members first[g] to first[g+1]."""
    counts = first.diff()[chosen]
    before = counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum())) - torch.repeat_interleave(before, counts)
    return torch.repeat_interleave(first[chosen], counts) + within


def _nested(continuations: Sequence[Continuation]) -> list[bool]:
    sides = {right: {c.ids for c in continuations if c.right is right} for right in (True, False)}
    return [any(c.ids[:end] in sides[c.right] for end in range(1, len(c.ids))) for c in continuations]
