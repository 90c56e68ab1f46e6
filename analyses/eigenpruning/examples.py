"""A task's items as examples to score components on: clean rows, where their loss is read, and corrupted rows.

Rows are right-padded. A clean and a corrupted row of different length are aligned at the end of their prompts, and
where only one of them has a token nothing is scored.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from analyses import metrics
from analyses.scoring.batches import encode, pad
from analyses.tasks.items import AnswerItem, Item, MinimalPair, Text
from analyses.tasks.task import Task
from analyses.tokens.tokenizer import Ids

Corrupt = Literal["shuffle", "previous"] | Mapping[Text, Text] | Sequence[tuple[Text, Text]]
"""Where corrupted inputs come from: a random other example, the one before (as in the paper's script), or given pairs
of a clean and a corrupted prompt."""


@final
@dataclass(frozen=True, slots=True)
class ScoredExamples:
    """Clean rows, the tokens of the answers in them, and the corrupted row of each.

    `shift` is how much later than the clean prompt the corrupted one ends.
    """

    tokens: Int[Tensor, "example pos"]
    mask: Int[Tensor, "example pos"]
    labels: Int[Tensor, "example pos"]
    corrupted: Int[Tensor, "example pos2"]
    corrupted_mask: Int[Tensor, "example pos2"]
    shift: Int[Tensor, " example"]

    def __len__(self) -> int:
        return len(self.tokens)

    def aligned(self, x: Tensor, rows: Int[Tensor, " row"]) -> Tensor:
        """What the corrupted rows hold, `[row pos2 ...]`, at the positions of the clean ones, `[row pos ...]`."""
        at = self._source(rows).clamp(0, self.corrupted.shape[1] - 1).to(x.device)
        return x.gather(1, at.view(*at.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))

    def comparable(self, rows: Int[Tensor, " row"]) -> Bool[Tensor, "row pos"]:
        """Where both the clean and the corrupted row have a token."""
        source = self._source(rows)
        inside = (source >= 0) & (source < self.corrupted.shape[1])
        other = self.corrupted_mask[rows].gather(1, source.clamp(0, self.corrupted.shape[1] - 1))
        return inside & other.bool() & self.mask[rows].bool()

    def _source(self, rows: Int[Tensor, " row"]) -> Int[Tensor, "row pos"]:
        return torch.arange(self.tokens.shape[1]) + self.shift[rows, None]


def examples_of(
    model: nn.Module, task: Task, *, corrupt: Corrupt, seed: int, prepend_bos: bool | None = None
) -> ScoredExamples:
    """The items as examples: the loss is that of the first right answer, the mean over its tokens.

    Raises:
        ValueError: if there is one example only to shuffle, a pair is missing or of another length, or `corrupt` is
        unknown. UnscorableItems: if there are items that this model cannot be asked.
    """
    contexts, answers = _tokenised(model, task, prepend_bos)
    rows = [(*context, *answer[:-1]) for context, answer in zip(contexts, answers, strict=True)]
    tokens, mask = pad(rows, "right", 0)
    labels = torch.full_like(tokens, metrics.IGNORED)
    for row, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        labels[row, len(context) - 1 : len(context) - 1 + len(answer)] = torch.tensor(answer)
    ends = torch.tensor([len(context) for context in contexts])
    if not isinstance(corrupt, str):
        others = _paired(model, task, rows, answers, _pairs(corrupt), prepend_bos)
        return ScoredExamples(tokens, mask, labels, *pad(others, "right", 0), torch.zeros_like(ends))
    partner = _partners(ends.tolist(), corrupt, seed)
    return ScoredExamples(tokens, mask, labels, tokens[partner], mask[partner], ends[partner] - ends)


def _tokenised(model: nn.Module, task: Task, prepend_bos: bool | None) -> tuple[list[Ids], list[Ids]]:
    """What comes before the first right answer of each item, and its tokens."""
    encoded = encode(model, task, prepend_bos=prepend_bos)
    answers = [encoded.continuations.ids[first] for first in encoded.continuations.first[:-1].tolist()]
    return list(encoded.contexts), answers


def _partners(lengths: list[int], corrupt: str, seed: int) -> Int[Tensor, " example"]:
    """Another example for each, of the same length where there is one."""
    n = len(lengths)
    if n < 2:
        raise ValueError(
            f"{n} example with corrupt={corrupt!r}: the corrupted input comes from another example, so that one alone "
            "would score everything 0. Give two items or more, or corrupted prompts, corrupt={clean: corrupted}."
        )
    match corrupt:
        case "previous":
            return torch.arange(n).roll(1)
        case "shuffle":
            return _cycles(lengths, seed)
    raise ValueError(
        f"corrupt={corrupt!r}: corrupted inputs are 'shuffle' (a random other example), 'previous' (the one before) "
        "or given, {clean prompt: corrupted prompt}."
    )


def _cycles(lengths: list[int], seed: int) -> Int[Tensor, " example"]:
    """A random cycle through all examples of a length; one that is alone joins those of a neighbouring length."""
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda example: lengths[example])
    groups = [list(members) for _, members in groupby(order, key=lambda example: lengths[example])]
    merged: list[list[int]] = []
    for group in groups:
        if merged and (len(merged[-1]) == 1 or (len(group) == 1 and group is groups[-1])):
            merged[-1] += group
        else:
            merged.append(group)
    partner = torch.empty(len(lengths), dtype=torch.long)
    for group in merged:
        members = torch.tensor(group)
        partner[members] = members.roll(1)
    return partner


def _pairs(corrupt: Mapping[Text, Text] | Sequence[tuple[Text, Text]]) -> dict[Text, Text]:
    pairs = list(corrupt.items() if isinstance(corrupt, Mapping) else corrupt)
    odd = next((pair for pair in pairs if not isinstance(pair, tuple | list) or len(pair) != 2), None)
    if odd is not None:
        raise ValueError(
            f"corrupt holds {odd!r}: give pairs of a clean and a corrupted prompt, {{clean prompt: corrupted prompt}}."
        )
    found = dict(pairs)
    twice = next((clean for clean, other in pairs if found[clean] != other), None)
    if twice is not None:
        raise ValueError(
            f"corrupt names two corrupted prompts for {twice!r}: a clean prompt has one. Remove the other."
        )
    return found


def _paired(
    model: nn.Module,
    task: Task,
    rows: list[Ids],
    answers: list[Ids],
    pairs: dict[Text, Text],
    prepend_bos: bool | None,
) -> list[Ids]:
    """The corrupted prompts with the clean answers behind them."""
    keys = [_clean_text(item) for item in task.items]
    missing = next((key for key in keys if key not in pairs), None)
    if missing is not None:
        raise ValueError(
            f"no corrupted prompt is given for {missing!r}, one of the {len(keys)} items that are scored: "
            "corrupt={clean prompt: corrupted prompt} names each of them. Add it, or take corrupt='shuffle'."
        )
    items = [_with_prompt(item, pairs[key]) for item, key in zip(task.items, keys, strict=True)]
    contexts, own = _tokenised(model, Task(f"{task.name}, corrupted", tuple(items)), prepend_bos)
    answers = own if task.kind == "pair" else answers
    found = [(*context, *answer[:-1]) for context, answer in zip(contexts, answers, strict=True)]
    uneven = next((at for at, row in enumerate(rows) if len(found[at]) != len(row)), None)
    if uneven is not None:
        raise ValueError(
            f"the corrupted prompt {pairs[keys[uneven]]!r} makes {len(found[uneven])} tokens and the clean one "
            f"{keys[uneven]!r} {len(rows[uneven])}: a pair has the same length, position for position. Change one of "
            "them."
        )
    return found


def _clean_text(item: Item) -> Text:
    return item.good if isinstance(item, MinimalPair) else item.context


def _with_prompt(item: Item, prompt: Text) -> Item:
    if isinstance(item, MinimalPair):
        return MinimalPair(prompt, item.bad if item.bad != prompt else item.good)
    return AnswerItem(prompt, (item.right[0],))
