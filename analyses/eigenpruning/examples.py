"""A task's items as examples to score components on: each with a corrupted example beside it.

Rows are right-padded. A clean and a corrupted row of different length are aligned at the end of their prompts, and
where only one of them has a token nothing is scored.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from analyses import metrics
from analyses.prompts import read, rows_of_items
from analyses.tasks.items import AnswerItem, Item, MinimalPair, Text
from analyses.tasks.task import Task
from analyses.tokens.items import TokenisedItem

Per = Literal["token", "sequence", "first"]
"""What an answer of several tokens is asked by: the mean over its tokens, their sum, or the first token alone."""
Corrupt = Literal["shuffle", "previous"] | Mapping[Text, Text] | Sequence[tuple[Text, Text]]
"""Where corrupted inputs come from: a random other example, the one before (as in the paper's script), or given pairs
of a clean and a corrupted prompt."""


class Rows(NamedTuple):
    """A row for each item: its prompt and those tokens of the reference answer that are asked about, but the last.

    `labels[row, pos]` is the answer's token that follows position pos, `metrics.IGNORED` where none does.
    """

    tokens: Int[Tensor, "example pos"]
    mask: Bool[Tensor, "example pos"]
    labels: Int[Tensor, "example pos"]

    @property
    def prompt_ends(self) -> Int[Tensor, " example"]:
        """The number of tokens in each prompt: the first of the answer's tokens follows its last one."""
        return (self.labels != metrics.IGNORED).int().argmax(1) + 1

    def weights(self, per: Per) -> Float[Tensor, " example"]:
        """By what each example's mean cross-entropy is multiplied: the number of tokens for their sum, else 1."""
        n = (self.labels != metrics.IGNORED).sum(1).float()
        return n if per == "sequence" else torch.ones_like(n)


def rows_of(model: nn.Module, task: Task, prepend_bos: bool | None = None, per: Per = "token") -> Rows:
    """A task as the model reads it to give the reference answers, or with `per="first"` their first tokens.

    Raises:
        UnscorableItems: if there are items that this model cannot be asked.

    >>> task = tasks.Task("sums", (tasks.AnswerItem((1, 2), ((3,),)), tasks.AnswerItem((4,), ((5, 6),))))
    >>> eigenpruning.examples.rows_of(model, task).tokens.tolist()
    [[1, 2], [4, 5]]
    """
    prompts = read(model, task, prepend_bos=prepend_bos)
    references = [_reference(item, per) for item in prompts.items or ()]
    rows = rows_of_items(references, prompts.filler)
    labels = torch.full_like(rows.tokens, metrics.IGNORED)
    labels[rows.row, rows.pos] = rows.token
    return Rows(rows.tokens, rows.mask, labels)


def _reference(item: TokenisedItem, per: Per) -> TokenisedItem:
    """The item with its first right answer alone, as much of it as is asked about."""
    answer = item.continuations[0]
    return replace(item, continuations=(replace(answer, ids=answer.ids[:1]) if per == "first" else answer,))


@final
@dataclass(frozen=True, slots=True)
class ScoredExamples:
    """Clean rows and the corrupted row of each; `shift` is how much later the corrupted prompt ends than the clean."""

    clean: Rows
    corrupted: Rows
    shift: Int[Tensor, " example"]

    def __len__(self) -> int:
        return len(self.clean.tokens)

    def aligned(self, x: Tensor, rows: Int[Tensor, " row"]) -> Tensor:
        """An activation of the corrupted rows, `[row pos2 ...]`, at the positions of the clean ones, `[row pos ...]`.

        Where no corrupted position corresponds, as `comparable` tells, some other position's stands.
        """
        source = self._source(rows).clamp(0, x.shape[1] - 1).to(x.device)
        return x.gather(1, source.view(*source.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))

    def comparable(self, rows: Int[Tensor, " row"]) -> Bool[Tensor, "row pos"]:
        """Where both the clean and the corrupted row have a token."""
        source, mask = self._source(rows), self.corrupted.mask[rows]
        inside = (source >= 0) & (source < mask.shape[1])
        return inside & self.aligned(mask, rows).bool() & self.clean.mask[rows].bool()

    def _source(self, rows: Int[Tensor, " row"]) -> Int[Tensor, "row pos"]:
        """The position of the corrupted row that corresponds to each of the clean row."""
        return torch.arange(self.clean.tokens.shape[1]) + self.shift[rows, None]


def examples_of(
    model: nn.Module, task: Task, *, corrupt: Corrupt, seed: int, prepend_bos: bool | None = None, per: Per = "token"
) -> ScoredExamples:
    """The items as examples, each beside a corrupted one.

    Raises:
        ValueError: if there is one example only to shuffle, a pair is missing or of another length, or `corrupt` is
            unknown.
        UnscorableItems: if there are items that this model cannot be asked.

    >>> task = tasks.Task("words", tuple(tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in (1, 5, 9)))
    >>> eigenpruning.examples.examples_of(model, task, corrupt="previous", seed=0).corrupted.tokens.tolist()
    [[9, 10], [1, 2], [5, 6]]
    """
    clean = rows_of(model, task, prepend_bos, per)
    ends = clean.prompt_ends
    if not isinstance(corrupt, str):
        return ScoredExamples(clean, _given(model, task, clean, corrupt, prepend_bos, per), torch.zeros_like(ends))
    partner = _partners(ends.tolist(), corrupt, seed)
    return ScoredExamples(clean, Rows(*(part[partner] for part in clean)), ends[partner] - ends)


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
    cycles: list[list[int]] = []
    for group in groups:
        # A cycle of one would corrupt an example by itself. The last length has only the one before to join.
        if cycles and (len(cycles[-1]) == 1 or (len(group) == 1 and group is groups[-1])):
            cycles[-1] += group
        else:
            cycles.append(group)
    partner = torch.empty(len(lengths), dtype=torch.long)
    for cycle in map(torch.tensor, cycles):
        partner[cycle] = cycle.roll(1)
    return partner


def _given(
    model: nn.Module,
    task: Task,
    clean: Rows,
    corrupt: Mapping[Text, Text] | Sequence[tuple[Text, Text]],
    prepend_bos: bool | None,
    per: Per,
) -> Rows:
    """The rows of the corrupted prompts, with the clean answers behind them."""
    pairs = _pairs(corrupt)
    prompts = [item.good if isinstance(item, MinimalPair) else item.context for item in task.items]
    missing = next((prompt for prompt in prompts if prompt not in pairs), None)
    if missing is not None:
        raise ValueError(
            f"no corrupted prompt is given for {missing!r}, one of the {len(prompts)} items that are scored: "
            "corrupt={clean prompt: corrupted prompt} names each of them. Add it, or take corrupt='shuffle'."
        )
    items = tuple(_with_prompt(item, pairs[prompt]) for item, prompt in zip(task.items, prompts, strict=True))
    corrupted = rows_of(model, Task(f"{task.name}, corrupted", items), prepend_bos, per)
    for prompt, n, other in zip(prompts, clean.mask.sum(1).tolist(), corrupted.mask.sum(1).tolist(), strict=True):
        if n != other:
            raise ValueError(
                f"the corrupted prompt {pairs[prompt]!r} makes {other} tokens and the clean one {prompt!r} {n}: a pair "
                "has the same length, position for position. Change one of them."
            )
    return corrupted


def _pairs(corrupt: Mapping[Text, Text] | Sequence[tuple[Text, Text]]) -> dict[Text, Text]:
    """The corrupted prompt of each clean one."""
    pairs = list(corrupt.items() if isinstance(corrupt, Mapping) else corrupt)
    odd = next((pair for pair in pairs if not isinstance(pair, tuple | list) or len(pair) != 2), None)
    if odd is not None:
        raise ValueError(
            f"corrupt holds {odd!r}: give pairs of a clean and a corrupted prompt, {{clean prompt: corrupted prompt}}."
        )
    by_clean = dict(pairs)
    twice = next((clean for clean, corrupted in pairs if by_clean[clean] != corrupted), None)
    if twice is not None:
        raise ValueError(
            f"corrupt names two corrupted prompts for {twice!r}: a clean prompt has one. Remove the other."
        )
    return by_clean


def _with_prompt(item: Item, prompt: Text) -> Item:
    """The item with another prompt and the same reference answer; of a pair, with another good sentence."""
    if isinstance(item, MinimalPair):
        return MinimalPair(prompt, item.bad if item.bad != prompt else item.good)
    return AnswerItem(prompt, (item.right[0],))
