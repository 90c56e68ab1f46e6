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
from analyses.scoring._choosing import Key, check_numbers, chosen, unended
from analyses.scoring._generating_rules import Generates
from analyses.scoring._generation import Speaker
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
        generated: the tokens that followed each item's prompt, where the rule asks for them; of an item's samples one
            after the other. A speaker ends where nothing that follows changes the verdict.
        measured: the metric of each item, where one that readings do not tell was asked for.
    """

    readings: Readings
    generated: tuple[Ids, ...] = ()
    measured: Float[Tensor, " item"] | None = None


@torch.no_grad()
def outcome(encoded: EncodedTask, forward: Forward, *, speaker: Speaker | None = None) -> Outcome:
    """What a forward says about the task.

    `speaker` generates what the rule asks for, from the keys and values that each batch leaves behind. Without one the
    forward does, a whole pass a token, and gets inputs that are not among the task's batches.

    Raises:
        FloatingPointError: if a logit is not a number.
    """
    parts, values = [], []
    metric = encoded.metric if encoded.metric is not None and encoded.metric.rows is None else None
    first_targets = encoded.continuations.first_target[:-1]
    for batch in encoded.batches:
        inputs = batch.inputs if speaker is None else speaker.reading(batch.inputs)
        logits = forward(inputs)
        said = log_probs(logits, batch.at, batch.target)
        check_numbers(said, logits)
        top = logits.argmax(-1)[batch.at.to(logits.device)]
        parts.append((batch.index, said, ranks(logits, batch.at, batch.target), top))
        if metric is not None:  # the answer of an item is asked for where its first target is read
            items, targets = (first_targets.unsqueeze(1) == batch.index.cpu().unsqueeze(0)).nonzero(as_tuple=True)
            n_pos = max(len(context) for context in encoded.contexts)
            asked = logits[batch.at[targets.to(batch.at.device)].to(logits.device)]
            if len(items):
                values.append((items, metric.select(items).checked(asked, len(items), n_pos).double().cpu()))
        if speaker is not None and inputs.past is not None:
            speaker.speak(batch, inputs.past, logits)
    index, log_prob, rank, top = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    back = index.argsort()
    readings = Readings(log_prob[back].double(), rank[back], top[back])
    generated = () if not encoded.rule.new_tokens else speaker.generated() if speaker else generate(encoded, forward)
    if metric is None:
        return Outcome(readings, generated)
    items, measured = (torch.cat(column) for column in zip(*values, strict=True))
    return Outcome(readings, generated, measured[items.argsort()])


def generate(encoded: EncodedTask, forward: Forward) -> tuple[Ids, ...]:
    """The tokens that follow each item's prompt, sample by sample, up to the end of text.

    They end with a stop string, or when there are as many as the rule asks for. Every token takes a pass through whole
    rows, of which nothing is kept. Rows are padded on the right and grow into their padding, so that no position has
    to be kept right. What has ended waits for the others of its batch.
    """
    rule, eos = encoded.rule, encoded.vocabulary.eos
    assert isinstance(rule, Generates), "no other rule has tokens generated"
    batch_size = max(len(batch.inputs) for batch in encoded.batches)
    prompts = sorted(set(encoded.prompts), key=lambda ids: (len(ids), ids), reverse=True)
    keys = [(prompt, sample) for prompt in prompts for sample in range(rule.samples)]
    said: dict[Key, Ids] = {}
    for start in range(0, len(keys), batch_size):
        said |= _continued(keys[start : start + batch_size], encoded, rule, forward)
    return tuple(unended(said[prompt, n], eos) for prompt in encoded.prompts for n in range(rule.samples))


def _continued(keys: list[Key], encoded: EncodedTask, rule: Generates, forward: Forward) -> dict[Key, Ids]:
    device = encoded.batches[0].inputs.tokens.device
    words = encoded.vocabulary
    said: dict[Key, Ids] = dict.fromkeys(keys, ())
    live = keys
    while live:
        tokens, mask = pad([(*key[0], *said[key]) for key in keys], "right", words.pad)
        last = Reads(torch.arange(len(keys)), mask.sum(1) - 1)
        logits = forward(Inputs(tokens.to(device), mask.to(device), last))
        for key, token in zip(keys, chosen(rule, logits, [(key, len(said[key])) for key in keys]), strict=True):
            if key in live:
                said[key] = (*said[key], token)
        live = [
            key
            for key in live
            if len(said[key]) < rule.n_tokens
            and said[key][-1] != words.eos
            and not (rule.stop and rule.has_stopped(words.decode(said[key])))
        ]
    return said
