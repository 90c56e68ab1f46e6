"""Scores of a task and the loss on a text: encode, run, judge."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from analyses.metrics import Metric
from analyses.metrics.readings import log_probs
from analyses.prompts.continuations import PaddingSide
from analyses.scoring._batches import EncodedTask, encode
from analyses.scoring._generation import speaker_of
from analyses.scoring._logit_readings import Forward, outcome
from analyses.scoring._rules import Rule
from analyses.scoring._scores import Scores
from analyses.scoring._texts import EncodedText, encode_text
from analyses.scoring._verdicts import judge
from analyses.tasks.items import Item
from analyses.tasks.task import Task
from hooks.running import run


def score(
    model: nn.Module,
    task: Task | Sequence[Item],
    *,
    rule: Rule | Metric | None = None,
    batch_size: int = 32,
    padding: PaddingSide = "right",
    prepend_bos: bool | None = None,
) -> Scores:
    """How the model does on every item of the task.

    Args:
        model: a HookedTransformer or a TransformerBridge, in evaluation mode.
        task: any task, or a list of items.
        rule: what counts as right; by default `StartsWith()` for answers, `Likeliest()` for choices and pairs. A metric
            in its place is measured beside that, `scores.values`.
        batch_size: sequences a batch.
        padding: the side to pad on; the numbers do not depend on it.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Raises:
        UnscorableItems: if there are items that this model cannot be asked; `scoring.scorable` leaves them out in the
            open.
        TypeError: if the task is none, such as Splits, of which one part is scored at a time.
        ValueError: if the task is empty, the rule is not for items of its kind, or a setting is impossible.
        FloatingPointError: if a logit is not a number.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),), ((n + 3,),)) for n in range(12)]
    >>> scores = scoring.score(model, items)
    >>> len(scores), 0 <= scores.accuracy <= 1
    (12, True)
    >>> scoring.score(model, items, rule=metrics.logit_difference()).values.shape
    torch.Size([12])
    """
    encoded = encode(model, task, rule=rule, batch_size=batch_size, padding=padding, prepend_bos=prepend_bos)
    return score_model(model, encoded)


def score_model(model: nn.Module, encoded: EncodedTask) -> Scores:
    """The scores of the model as it is now, on a task that was encoded for it."""
    return judge(encoded, outcome(encoded, partial(run, model), speaker=speaker_of(model, encoded)))


def score_encoded(encoded: EncodedTask, forward: Forward) -> Scores:
    """The scores that follow from a forward's logits, by the task's rule.

    Args:
        encoded: the task, from `encode`.
        forward: from inputs to the logits at their reads. A rule that generates also calls it with inputs that are not
            among the task's batches, once a token: `score_model` keeps what was read.

    Raises:
        FloatingPointError: if a logit is not a number.
    """
    return judge(encoded, outcome(encoded, forward))


def text_loss(
    model: nn.Module,
    text: str | Int[Tensor, " pos"] | Int[Tensor, "batch pos"],
    *,
    context: int | None = None,
    batch_size: int = 4,
    prepend_bos: bool | None = None,
) -> float:
    """The mean next-token loss on a plain text, in nats per token: what an edit costs where nothing should change.

    Args:
        model: a HookedTransformer or a TransformerBridge, in evaluation mode.
        text: a string, one long row of token ids, or rows of them.
        context: tokens a window; 512, or what the model reads if that is less, by default.
        batch_size: windows a batch.
        prepend_bos: overrides `model.cfg.default_prepend_bos` for a string.

    Raises:
        ValueError: if there is nothing to predict, or a window is longer than the model reads.

    >>> scoring.text_loss(model, torch.arange(40), context=8) > 0
    True
    """
    encoded = encode_text(model, text, context=context, batch_size=batch_size, prepend_bos=prepend_bos)
    return text_loss_encoded(encoded, partial(run, model))


@torch.no_grad()
def text_loss_encoded(encoded: EncodedText, forward: Forward) -> float:
    """The mean next-token loss, in nats per token, that follows from a forward's logits."""
    said = (log_probs(forward(batch.inputs), batch.at, batch.target) for batch in encoded.batches)
    total = sum(values.cpu().double().sum().item() for values in said)
    return -total / encoded.n_targets
