"""The metrics, each made from what it needs to know of every example."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.metrics.measures import IGNORED, AnswerMetric, Custom, KLDivergence, Loss, Metric
from analyses.metrics.placement import Chosen, Position, kept, numbers, positions, rows_in

Answer = int | Sequence[int] | Tensor
"""Token ids: one for all examples, `[batch]` one for each, `[batch answers]` several for each."""


def logit(
    token: Answer,
    *,
    position: Position = None,
    attention_mask: Tensor | None = None,
    name: str = "logit",
    higher_is_better: bool | None = None,
) -> Metric:
    """The logit of a token (of several: `ln Σ exp`), in logits. It says nothing of what the other tokens do."""
    where = positions(position, attention_mask)
    return AnswerMetric(name, "logits", higher_is_better, True, _logit, (_ids(token),), where)


def logit_difference(
    correct: Answer,
    wrong: Answer,
    *,
    position: Position = None,
    attention_mask: Tensor | None = None,
    name: str = "logit difference",
    higher_is_better: bool | None = True,
) -> Metric:
    """The logit of the correct answer minus that of the wrong one, in logits: the log of their odds."""
    where = positions(position, attention_mask)
    answers = (_ids(correct), _ids(wrong))
    return AnswerMetric(name, "logits", higher_is_better, True, _logit_difference, answers, where)


def log_prob(
    answer: Answer,
    *,
    position: Position = None,
    attention_mask: Tensor | None = None,
    name: str = "log-probability",
    higher_is_better: bool | None = True,
) -> Metric:
    """The log-probability of the answer, in nats."""
    where = positions(position, attention_mask)
    return AnswerMetric(name, "nats", higher_is_better, True, _log_prob, (_ids(answer),), where)


def prob(
    answer: Answer,
    *,
    position: Position = None,
    attention_mask: Tensor | None = None,
    name: str = "probability",
    higher_is_better: bool | None = True,
) -> Metric:
    """The probability of the answer. Where it is a wrong or a generic answer, say `higher_is_better=False`."""
    where = positions(position, attention_mask)
    return AnswerMetric(name, "probability", higher_is_better, True, _prob, (_ids(answer),), where)


def rank(
    answer: Answer, *, position: Position = None, attention_mask: Tensor | None = None, name: str = "rank"
) -> Metric:
    """How many tokens come before the answer (the best of several), 0 at the top; among equals, the lower id first."""
    return AnswerMetric(name, "rank", False, False, _rank, (_ids(answer),), positions(position, attention_mask))


def accuracy(
    answer: Answer, *, position: Position = None, attention_mask: Tensor | None = None, name: str = "accuracy"
) -> Metric:
    """1 where the answer (one of several) has the largest logit, else 0: `rank` 0."""
    return AnswerMetric(name, "fraction", True, False, _accuracy, (_ids(answer),), positions(position, attention_mask))


def loss(labels: Tensor) -> Metric:
    """The cross-entropy of the labels in nats: of each example, the mean over its labels.

    `labels: [batch pos]` are aligned to logits: `labels[b, t]` is the token that `logits[b, t]` should predict, -100
    where none is scored. `next_token_labels` makes them from tokens.

    Raises:
        ValueError: if labels are not whole numbers [batch pos], or an example has none.
    """
    if labels.ndim != 2 or labels.is_floating_point() or 0 in labels.shape:
        raise ValueError(
            f"labels of dtype {labels.dtype} and shape {tuple(labels.shape)}: they are token ids [batch pos], one "
            "for each position. Pass metrics.next_token_labels(tokens), or your own in this form."
        )
    return Loss(kept(labels).long())


def next_token_labels(
    tokens: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None
) -> Int[Tensor, "batch pos"]:
    """Labels for `loss`: each position's is the token after it; -100 at the last one and on either side of padding."""
    labels = torch.full_like(tokens, IGNORED, dtype=torch.long)
    labels[:, :-1] = tokens[:, 1:]
    if attention_mask is not None:
        real = attention_mask.bool().to(tokens.device)
        labels[:, :-1][~(real[:, 1:] & real[:, :-1])] = IGNORED
    return labels


def kl_from(reference_logits: Tensor, *, position: Position = None, attention_mask: Tensor | None = None) -> Metric:
    """KL(reference ‖ model) in nats, averaged over the positions read: 0 for the logits it was made from.

    Only the reference's log-probabilities at those positions are kept: at the last token, unless others are chosen.

    Raises:
        ValueError: if the reference is not logits [batch pos d_vocab], or is NaN where it is read.
    """
    if reference_logits.ndim != 3 or 0 in reference_logits.shape or not reference_logits.is_floating_point():
        raise ValueError(
            f"{reference_logits.dtype} reference logits of shape {tuple(reference_logits.shape)}: they are "
            "floating-point [batch pos d_vocab]. Pass a model's output on the same tokens."
        )
    with torch.inference_mode(False), torch.no_grad():
        chosen = positions(position, attention_mask).resolve(reference_logits.shape[1])
        rows_in("the reference and the positions", reference_logits, rows=chosen.n_examples)
        return KLDivergence(_reference(reference_logits, chosen), chosen)


def kl_from_run(
    model: Callable[..., Tensor],
    tokens: Int[Tensor, "batch pos"],
    *,
    position: Position = None,
    attention_mask: Tensor | None = None,
    batch_size: int | None = None,
) -> Metric:
    """`kl_from` what the model computes now: make it before the edit.

    The model is called as `model(tokens)`, or as `model(tokens, attention_mask=...)` where a mask is given, without
    gradients, on `batch_size` examples at a time, so that no more than one batch of full logits is held.

    Raises:
        ValueError: if the positions or the mask do not fit the tokens, or the model's output is NaN where it is read.
    """
    parts = []
    with torch.inference_mode(False), torch.no_grad():
        chosen = positions(position, attention_mask).resolve(tokens.shape[1])
        rows_in("the tokens and the positions", tokens, rows=chosen.n_examples)
        for at in torch.arange(len(tokens)).split(batch_size or len(tokens)):
            batch = tokens[at.to(tokens.device)]
            mask = {} if attention_mask is None else {"attention_mask": attention_mask[at.to(attention_mask.device)]}
            parts.append(_reference(model(batch, **mask), chosen.select(at)))
        return KLDivergence(torch.cat(parts), chosen)


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
    logits of another number of examples. `last_only` promises that it reads `logits[:, -1]` and nothing else, which
    makes many analyses faster.

    Raises:
        ValueError: if the tensors have different numbers of rows.
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
    """The metric itself, or a plain function of the logits as a `custom` one, named after it and without a direction.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return custom(cast(Callable[..., Tensor], metric), name=name, unit="", higher_is_better=None)
    raise TypeError(
        f"{metric!r} is no metric: a metric is made by one of {', '.join(_FACTORIES)}, or a function from logits "
        "[batch pos d_vocab] to a tensor [batch]. For a token id write, for instance, metrics.log_prob(token)."
    )


_FACTORIES = ("logit", "logit_difference", "log_prob", "prob", "loss", "kl_from", "rank", "accuracy", "custom")


def _ids(answer: Answer) -> Int[Tensor, "rows answers"]:
    ids = kept(answer).cpu()
    if ids.ndim > 2 or ids.numel() == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"answers of dtype {ids.dtype} and shape {tuple(ids.shape)}: they are token ids, an int for all "
            "examples, [batch], or [batch answers]. Convert the answers with the model's tokenizer."
        )
    ids = ids.long().reshape(1, 1) if ids.ndim == 0 else ids.long().reshape(len(ids), -1)
    if bool((ids < 0).logical_and(ids != IGNORED).any()) or bool((ids == IGNORED).all(1).any()):
        raise ValueError(
            f"answers {ids.tolist() if ids.numel() < 20 else f'with a smallest of {int(ids.min())}'}: every example "
            f"needs a token id from 0 up, and {IGNORED} only fills up rows of several. Pass the ids of real tokens."
        )
    return ids


def _reference(logits: Tensor, chosen: Chosen) -> Float[Tensor, "batch chosen d_vocab"]:
    reference = chosen.gather(kept(logits)).log_softmax(-1)
    nan = reference.isnan().flatten(1).any(1)
    if bool(nan.any()):
        raise ValueError(
            f"the reference is NaN for examples {numbers(nan)}: its logits are numbers wherever they are read. Look "
            "for NaN or infinite logits, or leave these examples out."
        )
    return reference


def _log_sum(x: Float[Tensor, "*at d_vocab"], ids: Int[Tensor, "*at answers"]) -> Float[Tensor, "*at"]:
    return x.gather(-1, ids.clamp_min(0)).masked_fill(ids < 0, -torch.inf).logsumexp(-1)


def _logit(x: Tensor, ids: Tensor) -> Tensor:
    return _log_sum(x, ids)


def _logit_difference(x: Tensor, correct: Tensor, wrong: Tensor) -> Tensor:
    return _log_sum(x, correct) - _log_sum(x, wrong)


def _log_prob(x: Tensor, ids: Tensor) -> Tensor:
    return _log_sum(x, ids) - x.logsumexp(-1)


def _prob(x: Tensor, ids: Tensor) -> Tensor:
    return _log_prob(x, ids).exp()


def _rank(x: Float[Tensor, "*at d_vocab"], ids: Int[Tensor, "*at answers"]) -> Float[Tensor, "*at"]:
    x, d_vocab = x.detach(), x.shape[-1]
    own = x.gather(-1, ids.clamp_min(0)).masked_fill(ids < 0, -torch.inf)
    best = own.amax(-1, keepdim=True)
    first = torch.where((own == best) & (ids >= 0), ids, d_vocab).amin(-1, keepdim=True)
    before = (x > best) | ((x == best) & (torch.arange(d_vocab, device=x.device) < first))
    return torch.where(x.isnan().any(-1), torch.nan, before.sum(-1).to(x.dtype))


def _accuracy(x: Tensor, ids: Tensor) -> Tensor:
    place = _rank(x, ids)
    return torch.where(place.isnan(), place, (place == 0).to(place.dtype))
