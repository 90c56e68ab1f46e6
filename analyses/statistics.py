"""How sure a mean is: its standard error, and its bootstrap interval."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.arguments import number, whole
from surgery.arguments import seed as checked_seed

_CHUNK = 2**22
"""How many drawn rows are in memory at a time."""


def check_level(level: float) -> None:
    """Refuse a confidence level that is none.

    Raises:
        ValueError: if it does not lie between 0 and 1.
    """
    if not 0 < number(level, "level") < 1:
        raise ValueError(f"level={level!r}: a confidence level lies between 0 and 1, such as 0.95.")


def mean_and_stderr(rows: Float[Tensor, "row ..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The mean over rows, and its standard error s/√n, where s divides by n − 1; NaN of a single row.

    >>> from analyses.statistics import mean_and_stderr
    >>> [round(x.item(), 3) for x in mean_and_stderr(torch.tensor([1.0, 2.0, 3.0]))]
    [2.0, 0.577]
    """
    n = len(rows)
    stderr = rows.std(0) / n**0.5 if n > 1 else torch.full_like(rows[0], torch.nan)
    return rows.mean(0), stderr


def bootstrap_interval(
    rows: Float[Tensor, "row quantity"],
    *,
    clusters: Int[Tensor, " row"] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Float[Tensor, "2 quantity"]:
    """The lower and the upper end of the percentile interval of each mean over rows.

    Rows are drawn with replacement, or whole clusters of rows, as many as there are; each draw has its mean, and the
    interval holds the middle `level` of these means.

    Args:
        rows: the values of each example or item.
        clusters: of each row, the number of its cluster, from 0; every row is its own by default.
        level: of the interval.
        resamples: how many times the rows are drawn again.
        seed: of the draws.

    Raises:
        ValueError: if the level or the number of resamples is impossible, or there is nothing to draw from.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", chapters 8 and 13.

    >>> from analyses.statistics import bootstrap_interval
    >>> low, high = bootstrap_interval(torch.arange(100.0).unsqueeze(1), resamples=500)
    >>> 40 < low.item() < 49.5 < high.item() < 59
    True
    """
    check_level(level)
    whole(resamples, "resamples", least=1)
    if not len(rows):
        raise ValueError("there are no values to draw from: give those of one item or more.")
    clusters = torch.arange(len(rows)) if clusters is None else clusters
    n = int(clusters.max()) + 1
    # A mean over drawn clusters is the sum of their sums over the sum of their sizes: the last column holds the sizes.
    values = torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.double)], 1)
    sums = torch.zeros(n, values.shape[1], dtype=torch.double).index_add(0, clusters, values)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    means = []
    for start in range(0, resamples, max(1, _CHUNK // n)):
        count = min(max(1, _CHUNK // n), resamples - start)
        draws = torch.randint(n, (count, n), generator=generator)
        # How often each cluster was drawn, a row for each resample: one product then sums all of them.
        times_drawn = torch.zeros(count, n, dtype=torch.double)
        times_drawn.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.double))
        totals = times_drawn @ sums
        means.append(totals[:, :-1] / totals[:, -1:])
    tail = (1 - level) / 2
    # numpy's quantile: torch's refuses more than 2**24 numbers.
    return torch.from_numpy(np.quantile(torch.cat(means).numpy(), [tail, 1 - tail], axis=0))


def bounded_interval(
    rows: Float[Tensor, "row quantity"],
    *,
    clusters: Int[Tensor, " row"] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Float[Tensor, "2 quantity"]:
    """`bootstrap_interval` of values from −1 to 1, kept wide where few clusters were seen.

    Draws from K clusters never hold what was not among these K: where five items agree, every draw agrees, and the
    interval has no width. So two clusters of the mean size are imagined beside them, one of −1 and one of 1, as in
    Agresti and Caffo's interval for a difference of proportions. They pull the ends towards 0, by 2/(K + 2) at most.

    Raises:
        ValueError: if a value is not from −1 to 1, or as `bootstrap_interval`.

    Source: Agresti and Caffo, "Simple and Effective Confidence Intervals for Proportions and Differences of
    Proportions", The American Statistician 54 (2000).

    >>> from analyses.statistics import bounded_interval
    >>> [round(x, 2) for x in bounded_interval(torch.zeros(5, 1)).flatten().tolist()]
    [-0.43, 0.43]
    """
    if len(rows) and float(rows.abs().max()) > 1:
        raise ValueError(f"a value is {float(rows.abs().max()):.3g} in size: these are from -1 to 1. Scale them.")
    clusters = torch.arange(len(rows)) if clusters is None else clusters
    n = int(clusters.max()) + 1 if len(rows) else 0
    size = -(-len(rows) // n) if n else 1
    imagined = torch.tensor([-1.0, 1.0]).repeat_interleave(size).to(rows)[:, None].expand(-1, rows.shape[1])
    numbers = torch.tensor([n, n + 1]).repeat_interleave(size)
    return bootstrap_interval(
        torch.cat([rows, imagined]) if n else rows, clusters=torch.cat([clusters, numbers]) if n else clusters,
        level=level, resamples=resamples, seed=seed,
    )  # fmt: skip
