"""A task as padded batches of tokens, made once: which logits are read, and for which next tokens.

Nothing here runs a model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from analyses.metrics import Metric
from analyses.metrics.of_tasks import OfTask
from analyses.prompts.continuations import (
    Batch,
    Continuations,
    PaddingSide,
    Target,
    pad,
    shared,
    table_of,
    targets_of,
)
from analyses.prompts.reading import Prompts
from analyses.scoring._rules import Rule, check_decided, rule_for
from analyses.tasks.items import Item
from analyses.tasks.task import Task, as_task
from analyses.tokens.items import TokenisedItem, UnscorableItems, tokenise
from analyses.tokens.tokenizer import Ids, Vocabulary, vocabulary
from hooks import host_of
from hooks.inputs import Inputs, Reads
from surgery.arguments import one_of, whole


@dataclass(frozen=True, slots=True)
class EncodedTask:
    """A task made ready for one model: everything that does not depend on its weights.

    Args:
        task: the task.
        rule: what counts as right.
        metric: what else is measured of each item, where its answer is asked; None for nothing.
        vocabulary: of the model.
        items: the items as token ids.
        continuations: what is asked about.
        batches: what the model reads, on its device.
    """

    task: Task
    rule: Rule
    metric: Metric | None
    vocabulary: Vocabulary
    items: tuple[TokenisedItem, ...]
    continuations: Continuations
    batches: tuple[Batch, ...]

    @property
    def contexts(self) -> tuple[Ids, ...]:
        """Of each item, the tokens before its continuations.

        They are its prompt, without the spaces at its end where strings continue it.
        """
        return tuple(item.context for item in self.items)

    @property
    def prompts(self) -> tuple[Ids, ...]:
        """Of each item, the tokens of its prompt as it is given, which generation goes on from."""
        return tuple(item.prompt for item in self.items)

    @property
    def n_targets(self) -> int:
        """How many next-token log-probabilities are read."""
        return len(self.continuations.target)


def encode(
    model: nn.Module,
    task: Task | Sequence[Item],
    *,
    rule: Rule | Metric | None = None,
    batch_size: int = 32,
    padding: PaddingSide = "right",
    prepend_bos: bool | None = None,
) -> EncodedTask:
    """The task as batches for this model, each sequence once: what begins another one is read off that one.

    Args:
        model: a HookedTransformer or a TransformerBridge; only its tokenizer, configuration and device are used, and
            its output where a metric takes it as its reference.
        task: any task, or a list of items.
        rule: what counts as right, by default the task's own rule, or else `StartsWith()` for answers and
            `Likeliest()` for choices and pairs; or a metric, which is measured beside the default rule.
        batch_size: sequences a batch. Sequences of similar length go together.
        padding: the side to pad on; the numbers do not depend on it.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Raises:
        UnscorableItems: if there are items that this model cannot be asked.
        TypeError: if the task is none, such as Splits, of which one part is scored at a time.
        ValueError: if the task is empty, the rule is not for items of its kind, or a setting is impossible.
    """
    task = as_task(task)
    one_of(padding, "padding", get_args(PaddingSide))
    whole(batch_size, "batch_size", least=1)
    words = vocabulary(model, prepend_bos=prepend_bos)
    rule, metric = rule_for(task, rule)
    tokenised, problems = tokenise(words, task, new_tokens=rule.new_tokens)
    if problems:
        raise UnscorableItems(task, problems)
    items = tuple(item for item in tokenised if item is not None)
    check_decided(task, rule, items, words)
    flat = [continuation for item in items for continuation in item.continuations]
    rows, owners = shared([continuation.row for continuation in flat])
    batches = _batches(rows, targets_of(flat, owners), batch_size, padding, words.pad)
    device = host_of(model).device
    bound = metric and _bound(model, metric, task, items, words)
    moved = tuple(batch.to(device) for batch in batches)
    return EncodedTask(task, rule, bound, words, items, table_of(items), moved)


def _bound(model: nn.Module, metric: Metric, task: Task, items: tuple[TokenisedItem, ...], words: Vocabulary) -> Metric:
    """The metric for these items.

    Raises:
        ValueError: if it reads more than the position where an item's answer is asked.
    """
    tokens, mask = pad([item.context for item in items], "right", words.pad)
    device = host_of(model).device
    prompts = Prompts(tokens.to(device), mask.bool().to(device), items, task.kind, words.pad)
    if isinstance(metric, OfTask):  # it follows from what the model says about the answers
        return OfTask.bound(metric, model, prompts)
    bound = metric.bound(model, prompts)
    if bound.n_examples not in (None, len(items)):
        raise ValueError(
            f"{metric.name} was made for {bound.n_examples} examples, and task {task.name!r} has {len(items)}: make it "
            "without answers, such as metrics.logit_difference(), which takes those of each item."
        )
    reads = bound.reads(len(items), tokens.shape[1])
    last = mask.sum(1) - 1
    if reads is None or not torch.equal(reads.pos.cpu(), last):
        raise ValueError(
            f"{metric.name} reads other positions than the last of each prompt, where the answer is asked: a task is "
            "scored there. Leave out position=, or attribute with the metric instead."
        )
    return bound


def _batches(
    rows: Sequence[Ids], targets: Sequence[Target], batch_size: int, padding: PaddingSide, filler: int
) -> Iterator[Batch]:
    """Batches of rows of similar length."""
    asked: list[list[Target]] = [[] for _ in rows]
    for index, (row, pos, token) in enumerate(targets):
        asked[row].append((pos, token, index))
    by_length = sorted(range(len(rows)), key=lambda row: (len(rows[row]), rows[row]), reverse=True)
    for start in range(0, len(rows), batch_size):
        chosen = by_length[start : start + batch_size]
        yield _batch([rows[row] for row in chosen], [asked[row] for row in chosen], padding, filler)


def _batch(rows: list[Ids], asked: list[list[Target]], padding: PaddingSide, filler: int) -> Batch:
    """One batch; `asked` has of each row the position, the token and the number of each of its targets."""
    tokens, mask = pad(rows, padding, filler)
    width = tokens.shape[1]
    number: dict[tuple[int, int], int] = {}
    at, target, index = [], [], []
    for row, wanted in enumerate(asked):
        offset = width - len(rows[row]) if padding == "left" else 0
        for pos, token, n in wanted:
            at.append(number.setdefault((row, offset + pos), len(number)))
            target.append(token)
            index.append(n)
    row, pos = torch.tensor(list(number), dtype=torch.long).reshape(-1, 2).unbind(1)
    reads = Reads(row, pos)
    return Batch(Inputs(tokens, mask, reads), torch.tensor(at), torch.tensor(target), torch.tensor(index))
