"""What else LASER's paper looks at: paraphrases, frequency, effective ranks, layer by task, and its estimator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import final

import pandas as pd
import torch
from torch import Tensor, nn

from analyses.laser.candidates import PAPER_RHOS, Published, fractions
from analyses.laser.results import SearchResult
from analyses.laser.searching import MLP
from analyses.scoring import Change, Comparison, bootstrap
from analyses.tasks.items import Item, Text
from hooks import Site, host_of
from hooks.editor import editor_of
from surgery import SVD, Decompositions
from surgery import sites as sites_of
from surgery.arguments import counted, number, whole
from surgery.decompositions import decomposed
from surgery.ranks import effective_rank, rank_from_rho, stable_rank

Frequency = Mapping[str, float] | Mapping[Text, float] | Sequence[float] | Callable[[Item], float]
"""How often each item's fact was seen in training: by item, by position, or by the reference answer's text."""


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

    Items that share a group or a prompt are wordings of one fact. The intervals draw facts.

    Raises:
        ValueError: if no two items belong together.

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
    numbers = torch.arange(len(groups))
    all_right, consistent = bootstrap(changes, numbers, level=level, seed=seed)
    before, after = ((right[side].mean().item(), alike[side].mean().item()) for side in (0, 1))
    return Robustness(len(groups), all_right, consistent, before, after)


def by_frequency(comparison: Comparison, frequency: Frequency, *, bins: int = 5) -> pd.DataFrame:
    """A row for each of `bins` equally full ranges of training frequency: accuracy before and after, and what changed.

    `corrected_fraction` is of the items that were wrong before, `broken_fraction` of those that were right.

    Args:
        comparison: any two scorings of the same items, such as `search(...).test`.
        frequency: a function of an item, one number an item, or numbers by the text of the reference answer.
        bins: how many ranges; items of the same frequency stay together, so that there may be fewer.

    Raises:
        ValueError: if an item has no frequency, or there are fewer than one bin.

    Source: arXiv:2312.13558: what is corrected is rare in the training data.
    """
    whole(bins, "bins", least=1)
    frame = pd.DataFrame(
        {
            "frequency": _frequencies(comparison, frequency),
            "before": comparison.before.correct.tolist(),
            "after": comparison.after.correct.tolist(),
        }
    )
    ranks = frame["frequency"].rank(method="min", pct=False)
    frame["bin"] = ((ranks - 1) * bins // len(frame)).astype(int)
    rows = [_bin_row(part) for _, part in frame.groupby("bin")]
    return pd.DataFrame(rows)


def effective_ranks(
    model: nn.Module, sites: str | Iterable[str] = MLP, *, svds: Decompositions | None = None, progress: bool = True
) -> pd.DataFrame:
    """A row for each matrix: `effective_rank` exp(−Σ p ln p) with p = s/Σs, `stable_rank`, and the full `rank`.

    `fraction` is the effective rank over the full one. The weights are those before any edit.

    Raises:
        SiteError: if a pattern names no editable matrix.
    """
    matched = [Site.parse(site) for site in sites_of(model, sites)]
    rows = []
    for site, parts in decomposed(model, matched, basis=SVD(), svds=svds, progress=progress).items():
        effective = effective_rank(parts.S)
        rows.append(
            {
                "site": str(site),
                "layer": site.layer,
                "matrix": site.matrix,
                "effective_rank": effective,
                "stable_rank": stable_rank(parts.S),
                "rank": parts.n_components,
                "fraction": effective / parts.n_components,
                "weights": parts.weight_state,
            }
        )
    return pd.DataFrame(rows)


def layer_task_map(results: Iterable[SearchResult]) -> pd.DataFrame:
    """A row for each task and matrix: the best change of validation accuracy that reducing this matrix alone gave.

    `gain` is against the unedited model, `log_loss_change` in nats per token. Only candidates that saw all validation
    items count, so matrices that a screened search gave up on are missing.

    Raises:
        ValueError: if two results are of tasks of one name.
    """
    rows: list[dict[str, object]] = []
    names: list[str] = []
    for result in results:
        if result.task in names:
            raise ValueError(f"two results are named {result.task!r}: a map has a column for each task. Rename one.")
        names.append(result.task)
        before = result.unedited.summary
        best: dict[str, tuple[tuple[float, float], dict[str, object]]] = {}
        for one in result.trials:
            if one.candidate is None or one.summary.n_items != before.n_items:
                continue
            site = one.candidate.site
            row = {
                "task": result.task,
                "site": str(site),
                "layer": site.layer,
                "matrix": site.matrix,
                "edit": repr(one.candidate.edit),
                "gain": one.summary.accuracy - before.accuracy,
                "log_loss_change": one.summary.log_loss - before.log_loss,
            }
            if str(site) not in best or one.merit > best[str(site)][0]:
                best[str(site)] = one.merit, row
        rows += [row for _, row in best.values()]
    return pd.DataFrame(rows)


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
    """
    matched = [Site.parse(site) for site in sites_of(model, sites)]
    rhos = fractions(rhos)
    exact = decomposed(model, matched, basis=SVD(), svds=svds, progress=progress)
    rows = []
    for site, parts in exact.items():
        W = editor_of(model).original(host_of(model).place(site)).to(parts.S)
        for rho in rhos:
            r = rank_from_rho(rho, min(parts.shape))
            truncated = (parts.U[:, :r] * parts.S[:r]) @ parts.Vh[:r]
            found = [_published(W, Published(number), rho) for number in (seed, other_seed)]
            rows.append(
                {
                    "site": str(site),
                    "rho": rho,
                    "rank": r,
                    "distance": _relative(found[0] - truncated, truncated),
                    "between_seeds": _relative(found[0] - found[1], truncated),
                    "error": _relative(W - found[0], W),
                    "exact_error": _relative(W - truncated, W),
                }
            )
    return pd.DataFrame(rows)


def _published(W: Tensor, family: Published, rho: float) -> Tensor:
    U, S, Vh = family.edit(rho, (W.shape[0], W.shape[1])).basis.decompose(W)
    return (U * S) @ Vh


def _relative(difference: Tensor, of: Tensor) -> float:
    size = float(torch.linalg.matrix_norm(of))
    return float(torch.linalg.matrix_norm(difference)) / size if size else 0.0


def _frequencies(comparison: Comparison, frequency: Frequency) -> list[float]:
    items = comparison.before.task.items
    if callable(frequency):
        return [_finite(frequency(item)) for item in items]
    if isinstance(frequency, Mapping):
        missing = next((item.right[0] for item in items if item.right[0] not in frequency), None)
        if missing is not None:
            raise ValueError(
                f"the frequency of {missing!r} is not given: every item's reference answer needs one. Add it, or "
                "give a function of the item."
            )
        return [_finite(frequency[item.right[0]]) for item in items]  # type: ignore[index]
    if len(frequency) != len(items):
        given = counted(len(frequency), "frequency", "frequencies")
        raise ValueError(f"{given} for {counted(len(items), 'item')}: every item needs one. Give one each.")
    return [_finite(value) for value in frequency]


def _finite(value: object) -> float:
    if not isfinite(number(value, "frequency")):
        raise ValueError(f"frequency={value!r}: every item needs a finite one. Leave out items that have none.")
    return number(value, "frequency")


def _bin_row(part: pd.DataFrame) -> dict[str, float | int]:
    before, after = part["before"].to_numpy(bool), part["after"].to_numpy(bool)
    corrected, broken = int((~before & after).sum()), int((before & ~after).sum())
    return {
        "from": float(part["frequency"].to_numpy(float).min()),
        "to": float(part["frequency"].to_numpy(float).max()),
        "items": len(part),
        "accuracy_before": float(before.mean()),
        "accuracy_after": float(after.mean()),
        "corrected": corrected,
        "broken": broken,
        "corrected_fraction": corrected / max(1, int((~before).sum())),
        "broken_fraction": broken / max(1, int(before.sum())),
    }
