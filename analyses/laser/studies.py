"""What else LASER's paper looks at: paraphrases, frequency, effective ranks, layer by task, and its estimator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import final

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import surgery
from analyses.laser.candidates import MLP, PAPER_RHOS, Published, fractions
from analyses.laser.search import SearchResult, complete
from analyses.scoring import Change, Comparison, bootstrap
from analyses.tasks.items import Item, Text
from hooks import Site
from surgery import SVD, Decomposition, Decompositions, Edit
from surgery.arguments import counted, number, whole
from surgery.ranks import rank_from_rho

Frequency = Mapping[str, float] | Mapping[Text, float] | Sequence[float] | Callable[[Item], float]
"""How often each item's fact was seen in training: by the reference answer's text, by position, or by item."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Robustness:
    """How a model does on groups of paraphrases, before and after.

    Args:
        groups: how many groups of two or more items there are.
        all_right: the fraction of groups with every item right, and its change.
        consistent: the fraction of groups whose items are all right or all wrong, and its change.
        before: `all_right` and `consistent` before.
        after: the same after.
    """

    groups: int
    all_right: Change
    consistent: Change
    before: tuple[float, float]
    after: tuple[float, float]

    def __repr__(self) -> str:
        return (
            f"{counted(self.groups, 'group')} of paraphrases: all right {self.before[0]:.3f} → {self.after[0]:.3f}, "
            f"{self.all_right}; all alike {self.before[1]:.3f} → {self.after[1]:.3f}, {self.consistent}"
        )


def paraphrase_robustness(comparison: Comparison, *, level: float = 0.95, seed: int = 0) -> Robustness:
    """Whether an edit makes a model right on all wordings of a fact, or only on some.

    Items that share a group or a prompt are wordings of one fact. The intervals, at this confidence level, draw facts.

    Raises:
        ValueError: if no two items belong together.

    >>> items = [tasks.AnswerItem((n, word), ((n + 3,),), groups=(f"{n}",)) for n in range(9) for word in (10, 20)]
    >>> scores = scoring.score(model, items)
    >>> laser.paraphrase_robustness(scoring.compare(scores, scores)).groups
    9

    Source: arXiv:2312.13558.
    """
    groups = [list(members) for members in comparison.before.task.clusters() if len(members) > 1]
    if not groups:
        raise ValueError(
            f"no two items of {comparison.before.task!r} belong together: paraphrases share a group. "
            "Give the items' `groups`, or read them with a reader that does."
        )
    sides = [scores.correct for scores in (comparison.before, comparison.after)]
    right = torch.tensor([[float(side[group].all()) for group in groups] for side in sides], dtype=torch.double)
    wrong = torch.tensor([[float((~side[group]).all()) for group in groups] for side in sides], dtype=torch.double)
    alike = right + wrong
    changes = torch.stack([right[1] - right[0], alike[1] - alike[0]])
    # Each group is a cluster of its own: items of one fact are not drawn apart.
    all_right, consistent = bootstrap(changes, torch.arange(len(groups)), level=level, seed=seed)
    before, after = ((right[side].mean().item(), alike[side].mean().item()) for side in (0, 1))
    return Robustness(len(groups), all_right, consistent, before, after)


def by_frequency(
    comparison: Comparison, frequency: Frequency, *, bins: int = 5, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """A row for each of `bins` equally full ranges of training frequency: accuracy before and after, and what changed.

    `corrected_fraction` is of the items that were wrong before, `broken_fraction` of those that were right. Columns
    that end in `_low` and `_high` are intervals of a bootstrap that draws paraphrases together; where all items of a
    range are right, or all wrong, it has seen nothing else, and the interval has no width.

    Args:
        comparison: any two scorings of the same items, such as `search(...).test`.
        frequency: a function of an item, such as `tasks.frequencies(...)`, one number an item, or numbers by the text
            of the reference answer.
        bins: how many ranges; items of the same frequency stay together, so that there may be fewer.
        level: of the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: if an item has no frequency, or there are fewer than one bin.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> scores = scoring.score(model, items)
    >>> laser.by_frequency(scoring.compare(scores, scores), [float(n) for n in range(30)], bins=3)["items"].tolist()
    [10, 10, 10]

    Source: arXiv:2312.13558: what is corrected is rare in the training data.
    """
    whole(bins, "bins", least=1)
    before, after = (scores.correct.numpy() for scores in (comparison.before, comparison.after))
    frame = pd.DataFrame({"frequency": _frequencies(comparison, frequency), "before": before, "after": after})
    frame = frame.assign(corrected=~before & after, broken=before & ~after)
    rank = frame["frequency"].rank(method="min")
    groups = frame.groupby(((rank - 1) * bins // len(frame)).astype(int))
    clusters = comparison.before.clusters
    intervals = pd.DataFrame([_intervals(part, clusters, level=level, seed=seed) for _, part in groups])
    table = groups.agg(
        **{"from": ("frequency", "min"), "to": ("frequency", "max")},
        items=("before", "size"),
        accuracy_before=("before", "mean"),
        accuracy_after=("after", "mean"),
        corrected=("corrected", "sum"),
        broken=("broken", "sum"),
    ).reset_index(drop=True)
    right = table["accuracy_before"] * table["items"]
    return table.assign(
        corrected_fraction=table["corrected"] / (table["items"] - right).round().clip(lower=1),
        broken_fraction=table["broken"] / right.round().clip(lower=1),
    ).join(intervals)


def _intervals(part: pd.DataFrame, clusters: Int[Tensor, " item"], *, level: float, seed: int) -> dict[str, float]:
    """Of the items in a range: the intervals of both accuracies, the change and its interval."""
    sides = torch.tensor(part[["before", "after"]].to_numpy(float)).T
    values = torch.stack([*sides, sides[1] - sides[0]])
    numbers = clusters[part.index.tolist()].unique(return_inverse=True)[1]
    before, after, change = bootstrap(values, numbers, level=level, seed=seed)
    named = {"accuracy_before": before, "accuracy_after": after, "change": change}
    ends = {f"{name}_{end}": getattr(of, end) for name, of in named.items() for end in ("low", "high")}
    return {**ends, "change": change.difference}


def effective_ranks(
    model: nn.Module, sites: str | Iterable[str] = MLP, *, svds: Decompositions | None = None, progress: bool = True
) -> pd.DataFrame:
    """A row for each matrix: `effective_rank` exp(−Σ p ln p) with p = s/Σs, `stable_rank`, and the full `rank`.

    `fraction` is the effective rank over the full one. The weights are those before any edit.

    Raises:
        SiteError: if a pattern names no editable matrix.

    >>> laser.effective_ranks(model, "blocks.0.mlp.*", progress=False)[["site", "rank"]].to_numpy().tolist()
    [['blocks.0.mlp.W_in', 16], ['blocks.0.mlp.W_out', 16]]
    """
    svds = surgery.decompose(model, sites, basis=SVD(), svds=svds, progress=progress)
    table = svds.ranks_to_dataframe().set_index("site")
    columns = ["effective_rank", "stable_rank", "n_components"]
    rows = [  # a store may hold more matrices than were asked about
        (str(site), site.layer, site.matrix, *table.loc[str(site), columns], svds[str(site)].weight_state)
        for site in map(Site.parse, surgery.sites(model, sites))
    ]
    frame = pd.DataFrame(rows, columns=["site", "layer", "matrix", *columns[:2], "rank", "weights"])
    frame = frame.astype({"rank": int})
    frame.insert(6, "fraction", frame["effective_rank"] / frame["rank"])
    return frame


def layer_task_map(results: Iterable[SearchResult]) -> pd.DataFrame:
    """A row for each task and matrix: the best change of validation accuracy that reducing this matrix alone gave.

    `gain` is against the unedited model, `log_loss_change` in nats per token. Only candidates that saw all validation
    items count, so matrices that a screened search gave up on are missing.

    Raises:
        ValueError: if two results are of tasks of one name.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> result = laser.search(model, tasks.Task("count", tuple(items)), rhos=(0.5,), progress=False)
    >>> len(laser.layer_task_map([result]))
    4
    """
    results = list(results)
    names = [result.task for result in results]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise ValueError(f"two results are named {again!r}: a map has a column for each task. Rename one.")
    best: dict[tuple[int, Site], dict[str, object]] = {}
    for column, result in enumerate(results):
        before = result.unedited.summary
        for trial in sorted(complete(result.unedited, result.trials), key=lambda trial: trial.merit, reverse=True):
            assert trial.candidate is not None
            site, now = trial.candidate.site, trial.summary
            row = {
                "task": result.task,
                "site": str(site),
                "layer": site.layer,
                "matrix": site.matrix,
                "edit": repr(trial.candidate.edit),
                "gain": now.accuracy - before.accuracy,
                "log_loss_change": now.log_loss - before.log_loss,
            }
            best.setdefault((column, site), row)  # the trials come from the best to the worst
    return pd.DataFrame([best[key] for key in sorted(best)])


def published_distance(
    model: nn.Module,
    sites: str | Iterable[str] = MLP,
    *,
    rhos: Sequence[float] = PAPER_RHOS,
    seed: int = 0,
    other_seed: int = 1,
    svds: Decompositions | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """How far the published code's randomised truncation lies from the exact one, for each matrix and ρ.

    `distance` is ‖W̃ − W_r‖_F / ‖W_r‖_F with W_r the truncated SVD; `between_seeds` the same between two seeds;
    `error` and `exact_error` are ‖W − ·‖_F / ‖W‖_F of the two.

    Raises:
        SiteError: if a pattern names no editable matrix.

    >>> frame = laser.published_distance(model, "blocks.0.mlp.W_in", rhos=(0.5,), progress=False)
    >>> bool((frame["error"] > frame["exact_error"]).all())
    True
    """
    rhos, rows = fractions(rhos), []
    exact = surgery.decompose(model, sites, basis=SVD(), svds=svds, progress=progress)
    for site in surgery.sites(model, sites):
        components = exact[site]
        W = _product(components)
        for rho in rhos:
            rank = rank_from_rho(rho, components.n_components)
            truncated = _product(components, rank)
            first, second = (
                _published(model, site, Published(n).edit(rho, components.shape)) for n in (seed, other_seed)
            )
            rows.append(
                {
                    "site": site,
                    "rho": rho,
                    "rank": rank,
                    "distance": _relative(first - truncated, truncated),
                    "between_seeds": _relative(first - second, truncated),
                    "error": _relative(W - first, W),
                    "exact_error": _relative(W - truncated, W),
                }
            )
    return pd.DataFrame(rows)


def _published(model: nn.Module, site: str, edit: Edit) -> Float[Tensor, "d_in d_out"]:
    # A store of its own, since nobody needs these components again.
    store = Decompositions(basis=edit.basis)
    return _product(surgery.decompose(model, site, basis=edit.basis, svds=store, progress=False)[site])


def _product(components: Decomposition, rank: int | None = None) -> Float[Tensor, "d_in d_out"]:
    """The matrix that the strongest components add up to; all of them by default."""
    return (components.U[:, :rank] * components.S[:rank]) @ components.Vh[:rank]


def _relative(difference: Tensor, of: Tensor) -> float:
    size = float(torch.linalg.matrix_norm(of))
    return float(torch.linalg.matrix_norm(difference)) / size if size else 0.0


def _frequencies(comparison: Comparison, frequency: Frequency) -> list[float]:
    """One finite frequency an item."""
    items = comparison.before.task.items
    if callable(frequency):
        values: Sequence[object] = [frequency(item) for item in items]
    elif isinstance(frequency, Mapping):
        missing = next((item.right[0] for item in items if item.right[0] not in frequency), None)
        if missing is not None:
            raise ValueError(
                f"the frequency of {missing!r} is not given: every item's reference answer needs one. Add it, or "
                "give a function of the item."
            )
        values = [frequency[item.right[0]] for item in items]  # type: ignore[index]
    else:
        values = frequency
    if len(values) != len(items):
        given = counted(len(values), "frequency", "frequencies")
        raise ValueError(f"{given} for {counted(len(items), 'item')}: every item needs one. Give one each.")
    numbers = [number(value, "frequency") for value in values]
    infinite = next((value for value in numbers if not isfinite(value)), None)
    if infinite is not None:
        raise ValueError(f"frequency={infinite!r}: every item needs a finite one. Leave out items that have none.")
    return numbers
