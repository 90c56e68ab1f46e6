"""From logits to what scoring needs of them: log-probabilities, ranks, a metric, and generated tokens.

A *forward* is any function from inputs to the logits at their reads. The plain one runs the model; another may reuse
what an earlier run has computed. All else is the same for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.metrics.readings import Readings, log_probs, ranks
from analyses.prompts.continuations import pad
from analyses.scoring._batches import EncodedTask
from analyses.tokens.tokenizer import Ids
from hooks.inputs import Inputs, Reads

Forward: TypeAlias = Callable[[Inputs], Tensor]
"""From inputs to logits `[read d_vocab]`."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model said on a task's items: enough to judge them again.

    Args:
        readings: about every target, on the CPU.
        generated: the tokens that followed each item's prompt, where the rule asks for them.
        measured: the metric of each item, where one that readings do not tell was asked for.
    """

    readings: Readings
    generated: tuple[Ids, ...] = ()
    measured: Float[Tensor, " item"] | None = None


@torch.no_grad()
def outcome(encoded: EncodedTask, forward: Forward, *, generate_with: Forward | None = None) -> Outcome:
    """What a forward says about the task.

    `generate_with` is the forward for what the rule has generated, whose inputs are not among the task's batches.

    Raises:
        FloatingPointError: if a logit is not a number.
    """
    parts, values = [], []
    metric = encoded.metric if encoded.metric is not None and encoded.metric.rows is None else None
    first_targets = encoded.continuations.first_target[:-1]
    for batch in encoded.batches:
        logits = forward(batch.inputs)
        said = log_probs(logits, batch.at, batch.target)
        _check(said, logits)
        top = logits.argmax(-1)[batch.at.to(logits.device)]
        parts.append((batch.index, said, ranks(logits, batch.at, batch.target), top))
        if metric is not None:  # the answer of an item is asked for where its first target is read
            items, targets = (first_targets.unsqueeze(1) == batch.index.cpu().unsqueeze(0)).nonzero(as_tuple=True)
            n_pos = max(len(context) for context in encoded.contexts)
            asked = logits[batch.at[targets.to(batch.at.device)].to(logits.device)]
            if len(items):
                values.append((items, metric.select(items).checked(asked, len(items), n_pos).double().cpu()))
    index, log_prob, rank, top = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    back = index.argsort()
    readings = Readings(log_prob[back].double(), rank[back], top[back])
    generated = generate(encoded, generate_with or forward) if encoded.rule.new_tokens else ()
    if metric is None:
        return Outcome(readings, generated)
    items, measured = (torch.cat(column) for column in zip(*values, strict=True))
    return Outcome(readings, generated, measured[items.argsort()])


def generate(encoded: EncodedTask, forward: Forward) -> tuple[Ids, ...]:
    """The tokens that follow each item's prompt greedily, up to the end of text or the number that the rule asks for.

    Sequences are padded on the right and grow into their padding, so that no position or cache has to be kept right.
    The text has ended when the model says so; a sequence that has ended waits for the others of its batch.
    """
    batch_size = max(len(batch.inputs) for batch in encoded.batches)
    prompts = sorted(set(encoded.prompts), key=lambda ids: (len(ids), ids), reverse=True)
    said: dict[Ids, Ids] = {}
    for start in range(0, len(prompts), batch_size):
        chosen = prompts[start : start + batch_size]
        said.update(zip(chosen, _continue(chosen, encoded, forward), strict=True))
    return tuple(said[prompt] for prompt in encoded.prompts)


def _continue(contexts: list[Ids], encoded: EncodedTask, forward: Forward) -> list[Ids]:
    device = encoded.batches[0].inputs.tokens.device
    words, rows = encoded.vocabulary, list(contexts)
    for _ in range(encoded.rule.new_tokens):
        tokens, mask = pad(rows, "right", words.pad)
        last = Reads(torch.arange(len(rows)), mask.sum(1) - 1)
        logits = forward(Inputs(tokens.to(device), mask.to(device), last))
        _check(logits, logits)
        rows = [(*row, token) for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True)]
        if words.eos is not None and all(words.eos in row[len(c) :] for row, c in zip(rows, contexts, strict=True)):
            break
    return [_until(row[len(context) :], words.eos) for row, context in zip(rows, contexts, strict=True)]


def _until(ids: Ids, end: int | None) -> Ids:
    return ids[: ids.index(end)] if end is not None and end in ids else ids


def _check(values: Tensor, logits: Tensor) -> None:
    if values.isnan().any():
        raise FloatingPointError(
            f"logits of {logits.dtype} contain {int(logits.isnan().sum())} values that are not numbers: a score needs "
            "numbers. Look at the edited weights, or use a wider dtype."
        )
