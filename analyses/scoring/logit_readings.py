"""From logits to what scoring needs of them: log-probabilities, ranks, and generated tokens.

A *forward* is any function from a batch to the logits at its places. The plain one runs the model; another may reuse
what an earlier run has computed. All else is the same for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses.scoring.batches import Batch, EncodedTask, pad
from analyses.scoring.tokenizer import Ids

Forward: TypeAlias = Callable[[Batch], Tensor]
"""From a batch to logits `[place, d_vocab]`."""

# Of the logits looked at in one go: 64 MiB in float32.
_CHUNK = 2**24
# From this many targets a place on, sorting its logits once is quicker than counting for each target.
_SORT_FROM = 16


@dataclass(frozen=True, slots=True)
class Readings:
    """What the model says about every target of a task, on the CPU.

    Args:
        log_prob: of the target, in nats.
        rank: how many tokens are likelier; among equals the one with the lower id counts as likelier.
        top: the likeliest token in the target's place.
    """

    log_prob: Float[Tensor, " target"]
    rank: Int[Tensor, " target"]
    top: Int[Tensor, " target"]


def forward(model: nn.Module, batch: Batch) -> Float[Tensor, "place d_vocab"]:
    """The model's logits at the batch's places, by one forward pass over all of it.

    The mask is always passed: without one, TransformerLens makes its own from the padding side and the padding token,
    which may be a token of the text.
    """
    logits = model(batch.tokens, attention_mask=batch.mask, return_type="logits")
    # A model spread over several devices gives its logits on the last one.
    return logits[batch.row.to(logits.device), batch.pos.to(logits.device)]


def log_probs(logits: Float[Tensor, "place d_vocab"], batch: Batch) -> Float[Tensor, " target"]:
    """The log-probability of every target of the batch, in nats, in at least float32; differentiable."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    step = max(1, _CHUNK // logits.shape[1])
    totals = [logits[start : start + step].to(wide).logsumexp(-1) for start in range(0, len(logits), step)]
    at, target = batch.at.to(logits.device), batch.target.to(logits.device)
    return logits[at, target].to(wide) - torch.cat(totals)[at]


def ranks(logits: Float[Tensor, "place d_vocab"], batch: Batch) -> Int[Tensor, " target"]:
    """How many tokens are likelier than each target, 0 for the likeliest; among equals the lower id comes first."""
    places, targets = batch.at.to(logits.device), batch.target.to(logits.device)
    if len(targets) > _SORT_FROM * len(logits):
        order = logits.argsort(dim=-1, descending=True, stable=True)
        return order.argsort(dim=-1)[places, targets]
    step = max(1, _CHUNK // logits.shape[1])
    ids = torch.arange(logits.shape[1], device=logits.device)
    found = []
    for at, target in zip(places.split(step), targets.split(step), strict=True):
        here = logits[at]
        own = here.gather(1, target[:, None])
        found.append(((here > own) | ((here == own) & (ids < target[:, None]))).sum(-1))
    return torch.cat(found)


def read(encoded: EncodedTask, run: Forward) -> Readings:
    """What a forward says about every target of the task.

    Raises:
        FloatingPointError: if a logit is not a number.
    """
    parts = []
    for batch in encoded.batches:
        logits = run(batch)
        found = log_probs(logits, batch)
        _check(found, logits)
        parts.append((batch.index, found, ranks(logits, batch), logits.argmax(-1)[batch.at.to(logits.device)]))
    index, log_prob, rank, top = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    back = index.argsort()
    return Readings(log_prob[back].double(), rank[back], top[back])


def generate(encoded: EncodedTask, run: Forward, *, batch_size: int) -> tuple[Ids, ...]:
    """The tokens that follow each item's prompt greedily, up to the end of text or the number that the rule asks for.

    Sequences are padded on the right and grow into their padding, so that no position or cache has to be kept right.
    The text has ended when the model says so; a sequence that has ended waits for the others of its batch.
    """
    prompts = sorted(set(encoded.prompts), key=lambda ids: (len(ids), ids), reverse=True)
    said: dict[Ids, Ids] = {}
    for start in range(0, len(prompts), batch_size):
        chosen = prompts[start : start + batch_size]
        said.update(zip(chosen, _continue(chosen, encoded, run), strict=True))
    return tuple(said[prompt] for prompt in encoded.prompts)


def _continue(contexts: list[Ids], encoded: EncodedTask, run: Forward) -> list[Ids]:
    device = encoded.batches[0].tokens.device
    words, rows = encoded.vocabulary, list(contexts)
    for _ in range(encoded.rule.new_tokens):
        tokens, mask = pad(rows, "right", words.pad)
        each, last = torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])
        none = torch.empty(0, dtype=torch.long)
        logits = run(Batch(tokens, mask, each, last, none, none, none).to(device))
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
