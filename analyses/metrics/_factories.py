"""The metrics, each made from what it needs to know of every example."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from analyses.metrics import _answers as answers
from analyses.metrics import of_tasks
from analyses.metrics._answers import AnswerMetric
from analyses.metrics._functions import Custom, WholeBatch
from analyses.metrics._metric import IGNORED, Metric
from analyses.metrics.of_tasks import TaskLoss, TaskMetric
from analyses.metrics.positions import Mask, Position, Positions, kept, positions, rows_in, whole_numbers
from analyses.metrics.references import KLDivergence, KLFromNow, Loss, log_probs_at, reference_of
from analyses.prompts import Tokens, mask_of, read, warn_if_padded
from surgery.arguments import shown, whole

Answer = int | str | Sequence[int] | Sequence[str] | Tensor
"""Token ids: one for all examples, `[batch]` one for each, `[batch answers]` several for each. Or words, one or one for
each, which are one token of the model each, and say themselves whether a space comes before them."""


def logit(
    token: Answer,
    *,
    position: Position = None,
    attention_mask: Mask = None,
    name: str = "logit",
    higher_is_better: bool | None = None,
) -> Metric:
    """The logit of a token (of several: `ln Σ exp`), in logits. It says nothing of what the other tokens do.

    >>> torch.equal(metrics.logit(3)(model(tokens)), model(tokens)[:, -1, 3])
    True
    """
    where = positions(position, attention_mask)
    return _of_answers(name, "logits", higher_is_better, answers.log_sum, where, token)


def logit_difference(
    correct: Answer | None = None,
    wrong: Answer | None = None,
    *,
    position: Position = None,
    attention_mask: Mask = None,
    name: str = "logit difference",
    higher_is_better: bool | None = True,
) -> Metric:
    """The logit of the correct answer minus that of the wrong one, in logits: the log of their odds.

    Without answers it takes those of a task, item by item: the log-probability of the right answers minus that of the
    wrong ones (distractors, wrong labels, the bad sentence), which is the difference of logits where both are a token.

    >>> metrics.logit_difference(3, 5)(model(tokens)).shape
    torch.Size([3])
    >>> item = tasks.AnswerItem((1, 2), ((3,),), ((5,),))
    >>> effects = attribution.by_gradient(model, [item], metrics.logit_difference(), "W_out", progress=False)
    >>> effects.measure.label
    'logit difference [logits]'
    """
    if (correct is None) != (wrong is None):
        raise ValueError(
            f"logit_difference({shown(correct)}, {shown(wrong)}): give the correct and the wrong answer, or neither "
            "and a task, which has both."
        )
    about = name, "logits", higher_is_better
    return _made(*about, answers.logit_difference, of_tasks.log_odds, position, attention_mask, correct, wrong)


def log_prob(
    answer: Answer | None = None,
    *,
    position: Position = None,
    attention_mask: Mask = None,
    name: str = "log-probability",
    higher_is_better: bool | None = True,
) -> Metric:
    """The log-probability of the answer, in nats; without one, that of a task's accepted answers, item by item.

    >>> bool((metrics.log_prob(3)(model(tokens)) < 0).all())
    True
    """
    about = name, "nats", higher_is_better
    return _made(*about, answers.log_prob, of_tasks.log_prob, position, attention_mask, answer)


def prob(
    answer: Answer | None = None,
    *,
    position: Position = None,
    attention_mask: Mask = None,
    name: str = "probability",
    higher_is_better: bool | None = True,
) -> Metric:
    """The probability of the answer; without one, that of a task's accepted answers, item by item.

    Where it is a wrong or a generic answer, say `higher_is_better=False`.

    >>> both = metrics.prob(torch.tensor([[3, 5]]))(model(tokens))  # their probabilities are added
    >>> torch.allclose(both, metrics.prob(3)(model(tokens)) + metrics.prob(5)(model(tokens)))
    True
    """
    about = name, "probability", higher_is_better
    return _made(*about, answers.prob, of_tasks.prob, position, attention_mask, answer)


def rank(
    answer: Answer | None = None, *, position: Position = None, attention_mask: Mask = None, name: str = "rank"
) -> Metric:
    """How many tokens come before the answer (the best of several), 0 at the top; among equals, the lower id first.

    Without an answer, that of a task's accepted answers: the rank of the worst token of the best of them.

    >>> likeliest = model(tokens)[:, -1].argmax(-1)
    >>> metrics.rank(likeliest)(model(tokens)).tolist()
    [0.0, 0.0, 0.0]
    """
    return _made(name, "rank", False, answers.rank, of_tasks.rank, position, attention_mask, answer)


def accuracy(
    answer: Answer | None = None, *, position: Position = None, attention_mask: Mask = None, name: str = "accuracy"
) -> Metric:
    """1 where the answer (one of several) has the largest logit, else 0: `rank` 0.

    Without an answer, 1 where every token of an accepted answer of a task's item is the likeliest, else 0.

    >>> likeliest = model(tokens)[:, -1].argmax(-1)
    >>> metrics.accuracy(likeliest)(model(tokens)).tolist()
    [1.0, 1.0, 1.0]
    """
    return _made(name, "fraction", True, answers.accuracy, of_tasks.first, position, attention_mask, answer)


def loss(labels: Tensor | None = None) -> Metric:
    """The cross-entropy of the labels in nats: of each example, the mean over its labels.

    `labels: [batch pos]` are aligned to logits: `labels[b, t]` is the token that `logits[b, t]` should predict, -100
    where none is scored. `next_token_labels` makes them from tokens. Without labels, those of the prompts an analysis
    is asked on: the next tokens of a text; of a task, its accepted answers, in nats per token of the first.

    Raises:
        ValueError: if labels are not whole numbers [batch pos], or an example has none.

    >>> loss = metrics.loss(metrics.next_token_labels(tokens))
    >>> torch.equal(loss(model(tokens)), metrics.loss().bind(model, tokens)(model(tokens)))
    True
    """
    if labels is None:
        return TaskLoss()
    if labels.ndim != 2 or labels.is_floating_point() or 0 in labels.shape:
        raise ValueError(
            f"labels of dtype {labels.dtype} and shape {tuple(labels.shape)}: they are token ids [batch pos], one "
            "for each position. Pass metrics.next_token_labels(tokens), or your own in this form."
        )
    return Loss(kept(labels).long())


def kl_from(reference_logits: Tensor, *, position: Position = None, attention_mask: Mask = None) -> Metric:
    """KL(reference ‖ model) in nats, averaged over the positions read: 0 for the logits it was made from.

    Only the reference's log-probabilities at those positions are kept: at the last token, unless others are chosen.

    Raises:
        ValueError: if the reference is not logits [batch pos d_vocab], or is NaN where it is read.

    >>> metric = metrics.kl_from(model(tokens))
    >>> with surgery.apply(model, {"*.W_out": surgery.KeepTop(rank=1)}, progress=False):
    ...     bool((metric(model(tokens)) > 0).all())
    True
    """
    if reference_logits.ndim != 3 or 0 in reference_logits.shape or not reference_logits.is_floating_point():
        raise ValueError(
            f"{reference_logits.dtype} reference logits of shape {tuple(reference_logits.shape)}: they are "
            "floating-point [batch pos d_vocab]. Pass a model's output on the same tokens."
        )
    with torch.inference_mode(False), torch.no_grad():
        chosen = positions(position, attention_mask).resolve(reference_logits.shape[1])
        rows_in("the reference and the positions", reference_logits, rows=chosen.n_examples)
        mask = None if attention_mask is None else mask_of(attention_mask)
        return KLDivergence(log_probs_at(reference_logits, chosen), chosen, attention_mask=mask)


def kl_from_run(
    model: Callable[..., Tensor] | None = None,
    tokens: Tokens | None = None,
    *,
    position: Position = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
) -> Metric:
    """`kl_from` what the model computes now: make it before the edit.

    The model is called as `model(tokens)`, or as `model(tokens, attention_mask=...)` where a mask is given, without
    gradients, on `batch_size` examples at a time, so that no more than one batch of full logits is held. Without model
    and tokens, the reference is what the model of an analysis computes on its prompts when the analysis begins.

    Raises:
        ValueError: if the positions or the mask do not fit the tokens, or the model's output is NaN where it is read.

    >>> bool((metrics.kl_from_run(model, tokens)(model(tokens)) < 1e-6).all())
    True
    """
    size = None if batch_size is None else whole(batch_size, "batch_size", least=1)
    if (model is None) != (tokens is None):
        raise ValueError("kl_from_run was given a model or tokens alone: give both, or neither and the analysis's own.")
    if model is None or tokens is None:
        return KLFromNow(positions(position, attention_mask), size)
    mask = None
    if not isinstance(tokens, Tensor):
        prompts = read(cast(nn.Module, model), tokens, attention_mask)
        tokens, mask = prompts.tokens, prompts.mask
    elif attention_mask is not None:
        mask = mask_of(attention_mask, tokens.shape).to(tokens.device)
    elif isinstance(model, nn.Module):
        warn_if_padded(model, tokens)
    return reference_of(model, tokens, mask, positions(position, mask), size)


def custom(
    function: Callable[..., Tensor],
    *per_example: Tensor,
    name: str,
    unit: str,
    higher_is_better: bool | None,
    differentiable: bool = True,
    last_only: bool = False,
) -> Metric:
    """A metric of one's own: `function(logits, *per_example)`, from logits `[batch pos d_vocab]` to values `[batch]`.

    What it needs to know about each example (answers, labels) goes into `per_example`, tensors with one row an
    example, which are cut into batches together with the logits: a function that closes over such tensors would meet
    logits of another number of examples (leave it a plain function then: `as_metric`). `last_only` promises that it
    reads `logits[:, -1]` and nothing else, which makes many analyses faster.

    Raises:
        ValueError: if the tensors have different numbers of rows.

    >>> def of_answer(logits, answers):
    ...     return logits[:, -1].gather(1, answers.unsqueeze(1)).squeeze(1)
    >>> metric = metrics.custom(of_answer, torch.tensor([3, 4, 5]), name="mine", unit="logits", higher_is_better=True)
    >>> metric.select([2, 0])(model(tokens[[2, 0]])).shape
    torch.Size([2])
    """
    rows = sorted({len(x) for x in per_example})
    if len(rows) > 1:
        raise ValueError(
            f"{name}: per_example tensors with {' and '.join(map(str, rows))} rows: each has one row for every "
            "example. Repeat or cut them."
        )
    return Custom(
        function, tuple(kept(x) for x in per_example), name, unit, higher_is_better, differentiable, last_only
    )


def as_metric(metric: object) -> Metric:
    """The metric itself, or a plain function of the logits as one, named after it and without unit or direction.

    The function may know its examples by heart, as in `logits[torch.arange(n), -1, answers]`: every analysis gives it
    the logits of all examples, in their order, and never of a part. So examples are not split, whatever `batch_size`
    says. It returns a value for each example, or one for all (a mean), where an analysis makes do with that.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric) and not isinstance(metric, type) and getattr(metric, "__module__", None) != __name__:
        name = getattr(metric, "__name__", type(metric).__name__)
        return WholeBatch(cast(Callable[[Tensor], Tensor], metric), name)
    raise TypeError(
        f"{metric!r} is no metric: a metric is made by one of {', '.join(_FACTORIES)}, or a function from logits "
        "[batch pos d_vocab] to a tensor [batch]. For a token id write, for instance, metrics.log_prob(token)."
    )


_FACTORIES = ("logit", "logit_difference", "log_prob", "prob", "loss", "kl_from", "rank", "accuracy", "custom")


def _made(
    name: str, unit: str, higher_is_better: bool | None, score: Callable[..., Tensor], quantity: of_tasks.Quantity,
    position: Position, attention_mask: Mask, *answers: Answer | None,
) -> Metric:  # fmt: skip
    """The score of answers, or without any the quantity of whichever task is met, which says where they are read."""
    where, known = positions(position, attention_mask), [answer for answer in answers if answer is not None]
    if known:
        return _of_answers(name, unit, higher_is_better, score, where, *known)
    if position is not None or attention_mask is not None:
        raise ValueError(
            f"{name} was given a position or an attention_mask and no answer: a task's answers are read where they are "
            "asked. Leave these out, or give the answer."
        )
    if score in _STEPS:
        return TaskMetric(name, unit, higher_is_better, False, quantity, ("answer",))
    return TaskMetric(name, unit, higher_is_better, True, quantity)


_STEPS = (answers.rank, answers.accuracy)
"""Scores without a useful gradient, for answers only."""


def _of_answers(
    name: str, unit: str, higher_is_better: bool | None, score: Callable[..., Tensor], where: Positions, *given: Answer
) -> AnswerMetric:
    """The score of answers, which are ids or words."""
    ids = tuple(_words(answer) or _ids(answer) for answer in given)
    return AnswerMetric(name, unit, higher_is_better, score not in _STEPS, score, ids, where)


def _words(answer: Answer) -> tuple[str, ...] | None:
    """The answer's words; None if it has none."""
    if isinstance(answer, str):
        return (answer,)
    if not isinstance(answer, list | tuple) or not any(isinstance(one, str) for one in answer):
        return None
    if not all(isinstance(one, str) for one in answer):
        raise ValueError(f"answers {shown(answer)}: some are words and some are not. Pass words only, or ids only.")
    return tuple(cast(Sequence[str], answer))


def _ids(answer: Answer) -> Int[Tensor, "rows answers"]:
    allowed = (
        "they are token ids or words, one for all examples or [batch] one for each, or ids [batch answers], rows "
        f"filled up with {IGNORED}. Pass one of these."
    )
    ids = whole_numbers(answer, "answers", allowed, most_axes=2)
    ids = ids.reshape(len(ids) if ids.ndim else 1, -1)
    if bool((ids < 0).logical_and(ids != IGNORED).any()) or bool((ids == IGNORED).all(1).any()):
        raise ValueError(
            f"answers {ids.tolist() if ids.numel() < 20 else f'with a smallest of {int(ids.min())}'}: every example "
            f"needs a token id from 0 up, and {IGNORED} only fills up rows of several. Pass the ids of real tokens."
        )
    return ids
