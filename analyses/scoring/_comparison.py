"""Two scorings of the same items compared: what was corrected, what was broken, and whether it is chance."""

from dataclasses import dataclass
from math import inf

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.scoring._scores import Scores
from analyses.statistics import bootstrap_interval
from surgery.arguments import counted


@dataclass(frozen=True, slots=True)
class Change:
    """A difference, after − before, with its confidence interval."""

    difference: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether no change at all lies in the interval."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """How the same items came out before and after.

    Args:
        before: the scores before.
        after: the scores after.
        corrected: positions of the items that were wrong before and are right after.
        broken: positions of the items that were right before and are wrong after.
        p_value: of McNemar's exact test that correcting and breaking are equally likely. It takes items for
            independent: with paraphrases in the task, look at the interval.
        accuracy: the change of the fraction right.
        log_loss: the change of the mean log-loss, in nats per token.
        level: of the intervals.
        metric: the change of the mean of the metric that was asked for in a rule's place; None where none was.
    """

    before: Scores
    after: Scores
    corrected: tuple[int, ...]
    broken: tuple[int, ...]
    p_value: float
    accuracy: Change
    log_loss: Change
    level: float
    metric: Change | None = None

    def __repr__(self) -> str:
        verdict = "covers 0: no evidence of a change" if self.accuracy.covers_zero else "does not cover 0"
        measured = "" if self.metric is None else f"{self.before.encoded.metric.name} {self.metric}; "  # type: ignore[union-attr]
        return (
            f"{measured}accuracy {self.before.accuracy:.3f} → {self.after.accuracy:.3f}, {self.accuracy} "
            f"at {self.level:.0%}, which {verdict}; {len(self.corrected)} corrected, {len(self.broken)} broken, "
            f"McNemar p = {self.p_value:.3g}; log-loss {self.log_loss} nats per token; "
            f"{counted(len(self.before), 'item')}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row an item: the task's columns, both scorings, and `change`, such as `corrected` or `stays right`."""
        before, after = self.before.to_dataframe(), self.after.to_dataframe()
        scored = [name for name in after.columns if name not in self.before.task.to_dataframe().columns]
        both = before.drop(columns=scored)
        for name in scored:
            both[f"{name}_before"], both[f"{name}_after"] = before[name], after[name]
        was, now = self.before.correct.tolist(), self.after.correct.tolist()
        change = (("stays wrong", "corrected"), ("broken", "stays right"))
        return both.assign(change=[change[a][b] for a, b in zip(was, now, strict=True)])


def compare(
    before: Scores, after: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """What changed from one scoring of a task's items to another.

    The intervals are percentiles of a paired bootstrap that draws clusters of items, so that paraphrases count once.

    Args:
        before: scores of the items.
        after: scores of the same items in the same order.
        level: of the intervals.
        resamples: how many times the items are drawn again.
        seed: the same seed gives the same intervals.

    Raises:
        ValueError: if the items or the rules differ, or the level or the number of resamples is impossible.

    >>> task = tasks.Task("count", tuple(tasks.AnswerItem((n,), ((n + 1,),)) for n in range(12)))
    >>> before = scoring.score(model, task)
    >>> with surgery.apply(model, {"*.W_out": surgery.KeepTop(rank=1)}, progress=False):
    ...     after = scoring.score(model, task)
    >>> change = scoring.compare(before, after)
    >>> change.accuracy.low <= change.accuracy.difference <= change.accuracy.high
    True
    """
    _check(before, after)
    was, now = before.correct, after.correct
    corrected, broken = (~was & now).nonzero().flatten().tolist(), (was & ~now).nonzero().flatten().tolist()
    changes = [now.double() - was.double(), after.log_loss - before.log_loss]
    if before.values is not None and after.values is not None:
        changes.append(after.values - before.values)
    clusters = before.clusters
    accuracy, log_loss, *metric = bootstrap(torch.stack(changes), clusters, level=level, resamples=resamples, seed=seed)
    return Comparison(
        before=before,
        after=after,
        corrected=tuple(corrected),
        broken=tuple(broken),
        p_value=mcnemar(len(corrected), len(broken)),
        accuracy=accuracy,
        log_loss=log_loss,
        level=level,
        metric=metric[0] if metric else None,
    )


def mcnemar(corrected: int, broken: int) -> float:
    """The two-sided p-value of McNemar's exact test: how often chance splits the changed items at least as unevenly.

    Twice the tail of the binomial distribution, at most 1.

    Source: McNemar (1947); exact by the binomial distribution with probability ½.

    >>> round(scoring.mcnemar(8, 1), 3)
    0.039
    """
    n, fewer = corrected + broken, min(corrected, broken)
    tail = term = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    # Whole numbers to the last step: their quotient is rounded once, however large they are.
    return min(1.0, 2 * tail / 2**n)


def bootstrap(
    values: Float[Tensor, "quantity item"],
    cluster: Int[Tensor, " item"],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[Change, ...]:
    """The mean of each quantity over items, with a percentile interval from drawing whole clusters with replacement.

    Args:
        values: each item's values.
        cluster: of each item, the number of its cluster, from 0.
        level: of the intervals.
        resamples: how many times as many clusters as there are get drawn.
        seed: of the draws.

    One cluster alone says nothing of how others would vary: then the intervals are everything.

    Raises:
        ValueError: if the level or the number of resamples is impossible, or there is nothing to draw from.

    Source: `analyses.statistics.bootstrap_interval`.
    """
    intervals = bootstrap_interval(values.T, clusters=cluster, level=level, resamples=resamples, seed=seed)
    if int(cluster.max()) == 0:
        intervals = torch.tensor([[-inf], [inf]]).expand(2, len(values))
    means = values.double().mean(1)
    return tuple(Change(*triple) for triple in zip(means.tolist(), *intervals.tolist(), strict=True))


def _check(before: Scores, after: Scores) -> None:
    if before.task is not after.task and before.task.items != after.task.items:
        raise ValueError(
            f"the scores are of {before.task!r} and {after.task!r}, whose items differ: only the same items in the "
            "same order can be compared. Score one task twice."
        )
    if before.encoded.rule != after.encoded.rule:
        raise ValueError(
            f"the scores are by {before.encoded.rule!r} and {after.encoded.rule!r}: only scores by the same rule "
            "can be compared. Score both with one."
        )
