"""A task as padded batches of tokens, made once: which logits are read, and for which next tokens.

Nothing here runs a model. Whoever has another way to the same logits, such as activations kept from an earlier run,
takes `Batch.tokens` and `Batch.mask` in and gives the logits at `Batch.row`, `Batch.pos` out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from analyses.scoring.rules import Rule, rule_for
from analyses.scoring.tokenizer import Ids, Vocabulary, vocabulary
from analyses.scoring.tokens import Continuation, TokenisedItem, UnscorableItems, tokenise
from analyses.tasks.items import Item, Text
from analyses.tasks.task import Task, as_task
from surgery.arguments import whole

PaddingSide: TypeAlias = Literal["right", "left"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded sequences, the places where a next token is asked for, and which token is asked about where.

    Args:
        tokens: the sequences.
        mask: 1 at tokens, 0 at padding; always given to the model, which works out positions and attention from it.
        row: of each place, its sequence in the batch.
        pos: of each place, its position in the padded sequence; the logits there are those of the token after it.
        at: of each target, its place.
        target: the token that is asked about.
        index: of each target, its position among all targets of the task.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    row: Int[Tensor, " place"]
    pos: Int[Tensor, " place"]
    at: Int[Tensor, " target"]
    target: Int[Tensor, " target"]
    index: Int[Tensor, " target"]

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        parts = (self.tokens, self.mask, self.row, self.pos, self.at, self.target, self.index)
        return Batch(*(part.to(device) for part in parts))


@dataclass(frozen=True, slots=True)
class Continuations:
    """Every continuation of every item, in one table; those of an item stand together, the right ones first.

    Args:
        item: the item it belongs to.
        right: whether it counts as right.
        length: its number of tokens.
        n_bytes: the length of its text in UTF-8; 0 if it is ids.
        nested: whether another one on the same side is the beginning of it, so that its probability is part of that
            one's.
        first: of each item, its first continuation, which is the reference; and one entry more, the number of all.
        target: of each target, its continuation; those of a continuation stand together, in order.
        ids: the tokens.
        text: as the item has it.
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


@dataclass(frozen=True, slots=True)
class EncodedTask:
    """A task made ready for one model: everything that does not depend on its weights.

    Args:
        task: the task.
        rule: what counts as right.
        vocabulary: of the model.
        prompts: of each item, the tokens of its prompt as it is given, which generation goes on from.
        contexts: of each item, the tokens before its continuations: the prompt, without the spaces at its end where
            strings continue it.
        continuations: what is asked about.
        batches: what the model reads, on its device.
    """

    task: Task
    rule: Rule
    vocabulary: Vocabulary
    prompts: tuple[Ids, ...]
    contexts: tuple[Ids, ...]
    continuations: Continuations
    batches: tuple[Batch, ...]

    @property
    def n_targets(self) -> int:
        """How many next-token log-probabilities are read."""
        return len(self.continuations.target)


def encode(
    model: nn.Module,
    task: Task | Sequence[Item],
    *,
    rule: Rule | None = None,
    batch_size: int = 32,
    padding: PaddingSide = "right",
    prepend_bos: bool | None = None,
) -> EncodedTask:
    """The task as batches for this model, each sequence once: what begins another one is read off that one.

    Args:
        model: a HookedTransformer or a TransformerBridge; only its tokenizer, configuration and device are used.
        task: any task, or a list of items.
        rule: what counts as right; by default `StartsWith()` for answers, `Likeliest()` for choices and pairs.
        batch_size: sequences a batch. Sequences of similar length go together.
        padding: the side to pad on; the numbers do not depend on it.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Raises:
        UnscorableItems: if there are items that this model cannot be asked.
        TypeError: if the task is none, such as Splits, of which one part is scored at a time.
        ValueError: if the task is empty, the rule is not for items of its kind, or a setting is impossible.
    """
    task = as_task(task)
    if padding not in get_args(PaddingSide):
        raise ValueError(f"padding={padding!r}: sequences are padded on the 'right' or on the 'left'. Give one.")
    whole(batch_size, "batch_size", least=1)
    words = vocabulary(model, prepend_bos=prepend_bos)
    rule = rule_for(task, rule)
    found, problems = tokenise(words, task, new_tokens=rule.new_tokens)
    if problems:
        raise UnscorableItems(task, problems)
    items = [item for item in found if item is not None]
    flat = [one for item in items for one in item.continuations]
    rows, places = _share([one.row for one in flat])
    targets = [
        (rows_of, len(one.context) - 1 + step, token)
        for one, rows_of in zip(flat, places, strict=True)
        for step, token in enumerate(one.ids)
    ]
    batches = _batches(rows, targets, batch_size, padding, words.pad)
    device = next(model.parameters()).device
    return EncodedTask(
        task=task,
        rule=rule,
        vocabulary=words,
        prompts=tuple(item.prompt for item in items),
        contexts=tuple(item.context for item in items),
        continuations=_table(items),
        batches=tuple(batch.to(device) for batch in batches),
    )


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


def _share(sequences: Sequence[Ids]) -> tuple[list[Ids], list[int]]:
    """The sequences that begin no other, and for each given one the one that it begins."""
    rows: list[Ids] = []
    place: dict[Ids, int] = {}
    # In reversed order a sequence comes right after those that it begins with, one of which was kept.
    for sequence in sorted(set(sequences), reverse=True):
        if not rows or rows[-1][: len(sequence)] != sequence:
            rows.append(sequence)
        place[sequence] = len(rows) - 1
    return rows, [place[sequence] for sequence in sequences]


def _batches(
    rows: Sequence[Ids], targets: Sequence[tuple[int, int, int]], batch_size: int, padding: PaddingSide, filler: int
) -> Iterable[Batch]:
    """Batches of rows of similar length; a target is its row, the position before it, and the token."""
    asked: list[list[tuple[int, int, int]]] = [[] for _ in rows]
    for index, (row, pos, token) in enumerate(targets):
        asked[row].append((pos, token, index))
    by_length = sorted(range(len(rows)), key=lambda row: (len(rows[row]), rows[row]), reverse=True)
    for start in range(0, len(rows), batch_size):
        chosen = by_length[start : start + batch_size]
        yield _batch([rows[row] for row in chosen], [asked[row] for row in chosen], padding, filler)


def _batch(rows: list[Ids], asked: list[list[tuple[int, int, int]]], padding: PaddingSide, filler: int) -> Batch:
    tokens, mask = pad(rows, padding, filler)
    width = tokens.shape[1]
    place: dict[tuple[int, int], int] = {}
    at, target, index = [], [], []
    for row, wanted in enumerate(asked):
        offset = width - len(rows[row]) if padding == "left" else 0
        for pos, token, number in wanted:
            at.append(place.setdefault((row, offset + pos), len(place)))
            target.append(token)
            index.append(number)
    where = torch.tensor(list(place), dtype=torch.long).reshape(-1, 2)
    return Batch(tokens, mask, where[:, 0], where[:, 1], torch.tensor(at), torch.tensor(target), torch.tensor(index))


def _table(items: Sequence[TokenisedItem]) -> Continuations:
    flat = [one for item in items for one in item.continuations]
    counts = torch.tensor([len(item.continuations) for item in items])
    lengths = torch.tensor([len(one.ids) for one in flat])
    return Continuations(
        item=torch.repeat_interleave(counts),
        right=torch.tensor([one.right for one in flat]),
        length=lengths,
        n_bytes=torch.tensor([len(one.text.encode()) if isinstance(one.text, str) else 0 for one in flat]),
        nested=torch.tensor([nested for item in items for nested in _nested(item.continuations)]),
        first=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        target=torch.repeat_interleave(lengths),
        ids=tuple(one.ids for one in flat),
        text=tuple(one.text for one in flat),
    )


def _nested(continuations: Sequence[Continuation]) -> list[bool]:
    sides = {right: {one.ids for one in continuations if one.right is right} for right in (True, False)}
    return [any(one.ids[:end] in sides[one.right] for end in range(1, len(one.ids))) for one in continuations]
