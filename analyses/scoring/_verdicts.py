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
from analyses.scoring._generating_rules import Contains, Generates, LastNumber, find_ids
from analyses.scoring._logit_readings import Outcome
from analyses.scoring._rules import Likeliest, StartsWith
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
            return _likeliest(scores, table, rule.compared(table, of_each))
        case StartsWith() | Generates() as rule:
            judged = _starts_with(partial(scores, p_correct=right.exp(), p_wrong=wrong.exp()), table, readings)
            return judged if isinstance(rule, StartsWith) else _generated(judged, rule, outcome.generated)
        case rule:
            raise TypeError(
                f"rule={rule!r}: only StartsWith, Contains, LastNumber and Likeliest can be judged. Give one of them."
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


def _starts_with(scores: Callable[..., Scores], table: Continuations, readings: Readings) -> Scores:
    rank = worst_rank(table, readings.rank)
    references = table.first[:-1].tolist()
    said = _greedy_prefixes(table, readings, references)
    first_with = {table.ids[one]: one for one in reversed(references)}
    distinct = [one for one in references if first_with[table.ids[one]] == one]
    classes = {table.ids[one]: number for number, one in enumerate(distinct)}
    unfinished = {ids[:end] for ids in classes for end in range(1, len(ids))}
    truth = torch.tensor([classes[table.ids[one]] for one in references])
    predicted = torch.tensor([UNDECIDED if ids in unfinished else _longest(ids, classes) for ids in said])
    return scores(
        correct=rank == 0,
        rank=rank,
        truth=truth,
        predicted=torch.where(rank == 0, truth, predicted),
        prediction_ids=said,
        classes=tuple(table.text[one] for one in distinct),
    )


def _generated(scores: Scores, rule: Generates, generated: Sequence[Ids]) -> Scores:
    match rule:
        case Contains():
            return _contains(scores, rule, generated)
        case LastNumber():
            return _last_number(scores, rule, generated)
        case _:
            raise TypeError(f"rule={rule!r}: only Contains and LastNumber judge what is generated. Give one of them.")


def _contains(scores: Scores, rule: Contains, generated: Sequence[Ids]) -> Scores:
    """Right where an accepted answer is in the generated tokens; else the class that is in them first, if any."""
    texts = [rule.before_stop(scores.encoded.vocabulary.decode(ids)) for ids in generated]
    correct, predicted = [], []
    for item, truth, ids, text in zip(scores.task.items, scores.truth.tolist(), generated, texts, strict=True):
        hit = any(_find(rule, answer, ids, text) is not None for answer in item.right)
        correct.append(hit)
        predicted.append(truth if hit else _earliest(rule, scores.classes, ids, text))
    return replace(
        scores, correct=torch.tensor(correct), predicted=torch.tensor(predicted), prediction_ids=tuple(generated)
    )


def _last_number(scores: Scores, rule: LastNumber, generated: Sequence[Ids]) -> Scores:
    """Right where the number that most samples end in is the answer's; else the class that this number is, if any."""
    number_of = {rule.reference(str(text)): number for number, text in reversed(list(enumerate(scores.classes)))}
    correct, predicted, shown = [], [], []
    for index, (item, truth) in enumerate(zip(scores.task.items, scores.truth.tolist(), strict=True)):
        samples = generated[index * rule.samples : (index + 1) * rule.samples]
        numbers = [rule.number(scores.encoded.vocabulary.decode(ids)) for ids in samples]
        said = rule.vote(numbers)
        hit = said is not None and any(said == rule.reference(str(answer)) for answer in item.right)
        correct.append(hit)
        predicted.append(truth if hit else NO_CLASS if said is None else number_of.get(said, NO_CLASS))
        shown.append(samples[numbers.index(said)])
    return replace(
        scores, correct=torch.tensor(correct), predicted=torch.tensor(predicted), prediction_ids=tuple(shown)
    )


def _find(rule: Contains, answer: Text, ids: Ids, text: str) -> int | None:
    """Where the answer is in what was generated, in characters or, of ids, in tokens."""
    return rule.find(answer, text) if isinstance(answer, str) else find_ids(answer, ids)


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
