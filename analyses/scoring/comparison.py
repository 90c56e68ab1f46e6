"""Two scorings of the same items compared: what was corrected, what was broken, and whether it is chance."""

from dataclasses import dataclass
from math import inf

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.scoring.scores import Scores
from surgery.arguments import counted, number, whole
from surgery.arguments import seed as checked_seed

_CHUNK = 2**22


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
        confidence: of both intervals.
    """

    before: Scores
    after: Scores
    corrected: tuple[int, ...]
    broken: tuple[int, ...]
    p_value: float
    accuracy: Change
    log_loss: Change
    confidence: float

    def __repr__(self) -> str:
        verdict = "covers 0: no evidence of a change" if self.accuracy.covers_zero else "does not cover 0"
        return (
            f"accuracy {self.before.accuracy:.3f} → {self.after.accuracy:.3f}, {self.accuracy} "
            f"at {self.confidence:.0%}, which {verdict}; {len(self.corrected)} corrected, {len(self.broken)} broken, "
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
        change = {
            (False, True): "corrected",
            (True, False): "broken",
            (True, True): "stays right",
            (False, False): "stays wrong",
        }
        pairs = zip(self.before.correct.tolist(), self.after.correct.tolist(), strict=True)
        return both.assign(change=[change[pair] for pair in pairs])


def compare(
    before: Scores, after: Scores, *, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """What changed from one scoring of a task's items to another.

    The intervals are percentiles of a paired bootstrap that draws clusters of items, so that paraphrases count once.

    Args:
        before: scores of the items.
        after: scores of the same items in the same order.
        confidence: of the intervals.
        n_resamples: how many times the items are drawn again.
        seed: the same seed gives the same intervals.

    Raises:
        ValueError: if the items or the rules differ, or the confidence or the number of resamples is impossible.
    """
    _check(before, after)
    was, now = before.correct, after.correct
    corrected, broken = (~was & now).nonzero().flatten().tolist(), (was & ~now).nonzero().flatten().tolist()
    changes = torch.stack([now.double() - was.double(), after.log_loss - before.log_loss])
    clusters = _cluster_of(before)
    accuracy, log_loss = bootstrap(changes, clusters, confidence=confidence, n_resamples=n_resamples, seed=seed)
    return Comparison(
        before=before,
        after=after,
        corrected=tuple(corrected),
        broken=tuple(broken),
        p_value=mcnemar(len(corrected), len(broken)),
        accuracy=accuracy,
        log_loss=log_loss,
        confidence=confidence,
    )


def mcnemar(corrected: int, broken: int) -> float:
    """The two-sided p-value that as uneven a split of the changed items is chance: twice the binomial tail, at most 1.

    Source: McNemar (1947); exact by the binomial distribution with probability ½.
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
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[Change, ...]:
    """The mean of each quantity over items, with a percentile interval from drawing whole clusters with replacement.

    Args:
        values: each item's values.
        cluster: of each item, the number of its cluster, from 0.
        confidence: of the intervals.
        n_resamples: how many times as many clusters as there are get drawn.
        seed: of the draws.

    One cluster alone says nothing of how others would vary: then the intervals are everything.

    Raises:
        ValueError: if the confidence or the number of resamples is impossible, or there is nothing to draw from.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", chapters 8 and 13.
    """
    _check_bootstrap(cluster, confidence, n_resamples)
    means_of_all = values.double().mean(1).tolist()
    n = int(cluster.max()) + 1
    if n == 1:
        return tuple(Change(mean, -inf, inf) for mean in means_of_all)
    sizes = torch.bincount(cluster, minlength=n).double()
    sums = torch.zeros(len(values), n, dtype=torch.double).index_add(1, cluster, values.double())
    generator = torch.Generator().manual_seed(checked_seed(seed))
    columns, means = torch.cat([sums, sizes[None]]), []
    for start in range(0, n_resamples, max(1, _CHUNK // n)):
        count = min(max(1, _CHUNK // n), n_resamples - start)
        drawn = torch.randint(n, (count, n), generator=generator)
        times = torch.zeros(count, n, dtype=torch.double).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=torch.double)
        )
        totals = times @ columns.T
        means.append(totals[:, :-1] / totals[:, -1:])
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.double), dim=0)
    return tuple(Change(*triple) for triple in zip(means_of_all, low.tolist(), high.tolist(), strict=True))


def _cluster_of(scores: Scores) -> Int[Tensor, " item"]:
    cluster = torch.empty(len(scores), dtype=torch.long)
    for at, members in enumerate(scores.task.clusters()):
        cluster[list(members)] = at
    return cluster


def _check_bootstrap(cluster: Int[Tensor, " item"], confidence: object, n_resamples: object) -> None:
    if not 0 < number(confidence, "confidence") < 1:
        raise ValueError(f"confidence={confidence!r}: it lies between 0 and 1. Give for instance 0.95.")
    whole(n_resamples, "n_resamples", least=1)
    if not len(cluster):
        raise ValueError("there are no values to draw from: give those of one item or more.")


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
