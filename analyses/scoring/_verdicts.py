"""From what a model says about every target to what counts as right: no model is run here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.metrics.of_tasks import ItemMetric
from analyses.metrics.readings import Readings, amax_by, log_p, logsumexp_by, summed, worst_rank
from analyses.prompts import Continuations
from analyses.scoring._batches import EncodedTask
from analyses.scoring._logit_readings import Outcome
from analyses.scoring._rules import Contains, Likeliest, SaysNext, StartsWith
from analyses.scoring._scores import NO_CLASS, UNDECIDED, Scores
from analyses.tasks.items import Text
from analyses.tokens.tokenizer import Ids


def judge(encoded: EncodedTask, outcome: Outcome) -> Scores:
    """The scores that follow from what a model said on the task's items, by the task's rule and metric."""
    table, readings = encoded.continuations, outcome.readings
    of_each = summed(table, readings.log_prob)
    right, wrong = (log_p(table, of_each, right=side) for side in (True, False))
    scores = partial(
        Scores,
        encoded=encoded,
        log_probs=of_each,
        log_loss=-right / table.length[table.first[:-1]],
        values=_values(encoded, outcome),
    )
    match encoded.rule:
        case Likeliest() as rule:
            return _likeliest(scores, table, rule.compared(table, readings.log_prob))
        case StartsWith() | SaysNext() | Contains() as rule:
            n_tokens = rule.n_tokens if isinstance(rule, StartsWith) else None
            judged = _starts_with(
                partial(scores, p_correct=right.exp(), p_wrong=wrong.exp()), table, readings, n_tokens=n_tokens
            )
            if isinstance(rule, SaysNext):
                return _says_next(judged, rule, table, readings)
            return judged if isinstance(rule, StartsWith) else _contains(judged, rule, outcome.generated)
        case rule:
            raise TypeError(
                f"rule={rule!r}: only StartsWith, SaysNext, Contains and Likeliest can be judged. Give one of them."
            )


def _values(encoded: EncodedTask, outcome: Outcome) -> Float[Tensor, " item"] | None:
    """The metric of each item; None where there is only a rule."""
    metric = encoded.metric
    if isinstance(metric, ItemMetric):
        return metric.value(encoded.continuations, outcome.readings).double()
    return outcome.measured


def _likeliest(scores: Callable[..., Scores], table: Continuations, values: Float[Tensor, " continuation"]) -> Scores:
    n = table.n_items
    best_right, best_wrong = (amax_by(values, table.item, side, n) for side in (table.right, ~table.right))
    correct = best_right > best_wrong
    all_of_them = logsumexp_by(values, table.item, torch.ones_like(table.right), n)
    p_correct, p_wrong = (
        (logsumexp_by(values, table.item, side, n) - all_of_them).exp() for side in (table.right, ~table.right)
    )
    as_likely = ~table.right & (values >= best_right[table.item])
    # The chosen text: the first of the best ones on the side that won; where both are equal, the wrong side has.
    chosen_side = table.right == correct[table.item]
    best = torch.where(correct, best_right, best_wrong)
    candidates = (chosen_side & (values == best[table.item])).nonzero().squeeze(1)
    chosen = torch.full((n,), len(values)).scatter_reduce(0, table.item[candidates], candidates, "amin").tolist()
    references = [table.text[first] for first in table.first[:-1].tolist()]
    classes = {text: number for number, text in enumerate(dict.fromkeys(references))}
    truth = torch.tensor([classes[text] for text in references])
    said = torch.tensor([classes.get(table.text[one], NO_CLASS) for one in chosen])
    return scores(
        correct=correct,
        rank=torch.zeros(n, dtype=torch.long).index_add(0, table.item, as_likely.long()),
        p_correct=p_correct,
        p_wrong=p_wrong,
        truth=truth,
        predicted=torch.where(correct, truth, said),
        prediction_ids=tuple(table.ids[one] for one in chosen),
        classes=tuple(classes),
    )


def _starts_with(
    scores: Callable[..., Scores], table: Continuations, readings: Readings, *, n_tokens: int | None
) -> Scores:
    """The scores by how an answer's tokens rank, of which the first `n_tokens` count, or all."""
    rank = worst_rank(table, readings.rank, n_tokens=n_tokens)
    references = table.first[:-1].tolist()
    counted = {one: table.ids[one][:n_tokens] for one in references}
    said = tuple(ids[:n_tokens] for ids in _greedy_prefixes(table, readings, references))
    first_with = {counted[one]: one for one in reversed(references)}
    distinct = [one for one in references if first_with[counted[one]] == one]
    classes = {counted[one]: number for number, one in enumerate(distinct)}
    unfinished = {ids[:end] for ids in classes for end in range(1, len(ids))}
    truth = torch.tensor([classes[counted[one]] for one in references])
    predicted = torch.tensor([UNDECIDED if ids in unfinished else _longest(ids, classes) for ids in said])
    return scores(
        correct=rank == 0,
        rank=rank,
        truth=truth,
        predicted=torch.where(rank == 0, truth, predicted),
        prediction_ids=said,
        classes=tuple(table.text[one] for one in distinct),
    )


def _says_next(scores: Scores, rule: SaysNext, table: Continuations, readings: Readings) -> Scores:
    """Right where the text of the likeliest next token is an accepted answer; else the class that it is, if any."""
    said = tuple((token,) for token in readings.top[table.first_target[:-1]].tolist())
    texts = [scores.encoded.vocabulary.decode(ids) for ids in said]
    correct, predicted = [], []
    for item, truth, ids, text in zip(scores.task.items, scores.truth.tolist(), said, texts, strict=True):
        hit = any(_is(rule, answer, ids, text) for answer in item.right)
        others = (number for number, answer in enumerate(scores.classes) if _is(rule, answer, ids, text))
        correct.append(hit)
        predicted.append(truth if hit else next(others, NO_CLASS))
    return replace(scores, correct=torch.tensor(correct), predicted=torch.tensor(predicted), prediction_ids=said)


def _is(rule: SaysNext, answer: Text, ids: Ids, text: str) -> bool:
    return rule.says(answer, text) if isinstance(answer, str) else ids == answer


def _contains(scores: Scores, rule: Contains, generated: Sequence[Ids]) -> Scores:
    """Right where an accepted answer is in the generated tokens; else the class that is in them first, if any."""
    texts = [scores.encoded.vocabulary.decode(ids) for ids in generated]
    correct, predicted = [], []
    for item, truth, ids, text in zip(scores.task.items, scores.truth.tolist(), generated, texts, strict=True):
        hit = any(_find(rule, answer, ids, text) is not None for answer in item.right)
        correct.append(hit)
        predicted.append(truth if hit else _earliest(rule, scores.classes, ids, text))
    return replace(
        scores, correct=torch.tensor(correct), predicted=torch.tensor(predicted), prediction_ids=tuple(generated)
    )


def _find(rule: Contains, answer: Text, ids: Ids, text: str) -> int | None:
    """Where the answer is in what was generated, in characters or, of ids, in tokens."""
    if isinstance(answer, str):
        return rule.find(answer, text)
    return next((at for at in range(len(ids) - len(answer) + 1) if ids[at : at + len(answer)] == answer), None)


def _earliest(rule: Contains, classes: Sequence[Text], ids: Ids, text: str) -> int:
    found = [(_find(rule, answer, ids, text), number) for number, answer in enumerate(classes)]
    return min(((at, number) for at, number in found if at is not None), default=(0, NO_CLASS))[1]


def _greedy_prefixes(table: Continuations, readings: Readings, references: Sequence[int]) -> tuple[Ids, ...]:
    """What greedy generation begins with, as far as the readings of the references tell: up to the first departure."""
    starts = torch.cat([torch.zeros(1, dtype=torch.long), table.length.cumsum(0)]).tolist()
    top = readings.top.tolist()
    said = []
    for one in references:
        greedy, wanted = top[starts[one] : starts[one + 1]], table.ids[one]
        departs = next((at for at, token in enumerate(wanted) if greedy[at] != token), len(wanted) - 1)
        said.append(tuple(greedy[: departs + 1]))
    return tuple(said)


def _longest(ids: Ids, classes: dict[Ids, int]) -> int:
    """The class that the ids begin with; of several the longest."""
    return next((classes[ids[:end]] for end in range(len(ids), 0, -1) if ids[:end] in classes), NO_CLASS)
