"""One matrix at many ranks, from both ends of the spectrum: what stays right, what is corrected, what is broken."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from analyses.attribution.question import check_deterministic
from analyses.laser.candidates import Candidate, Edits, candidates, gains_of
from analyses.laser.evaluation import MEMORY, cost
from analyses.laser.log import Log
from analyses.laser.reports import name_of
from analyses.laser.trials import Bench, Trial, trial
from analyses.scoring import Comparison, Rule, compare
from analyses.tasks.items import Item
from analyses.tasks.task import Task, as_task
from surgery import Decompositions, KeepBottom, KeepTop, RandomBasis, RandomComponents
from surgery.arguments import counted, whole
from surgery.arguments import seed as checked_seed
from surgery.decompositions import decomposed
from surgery.edits import Edit

FINE_RHOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.0)
"""From the whole matrix to nothing of it."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class RankCurve:
    """A matrix under several edits, on all items of a task; nothing is chosen by it.

    Args:
        site: the matrix.
        unedited: the model as it was given.
        trials: one for each edit and ρ.
        ranks: how many components each of them keeps.
        comparisons: each against the unedited model, on the same items.
    """

    site: str
    unedited: Trial
    trials: tuple[Trial, ...]
    ranks: tuple[int, ...]
    comparisons: tuple[Comparison, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each edit and ρ: scores, corrected and broken items, and the interval of the change of accuracy."""
        rows = []
        for one, kept, change in zip(self.trials, self.ranks, self.comparisons, strict=True):
            assert one.candidate is not None
            row = name_of(one.candidate) | {"kept": kept} | one.summary.as_row()
            row |= {"corrected": len(change.corrected), "broken": len(change.broken), "p_value": change.p_value}
            row |= {"change": change.accuracy.difference, "low": change.accuracy.low, "high": change.accuracy.high}
            row["unedited_accuracy"] = self.unedited.summary.accuracy
            row["unedited_log_loss"] = self.unedited.summary.log_loss
            rows.append(row)
        return pd.DataFrame(rows).drop(columns="candidate")

    def predictions(self, rho: float) -> pd.DataFrame:
        """A row for each item: what the model says unedited and under every edit at this ρ, and whether it is right.

        Under `KeepBottom` that is what the minor components say by themselves (arXiv:2312.13558).

        Raises:
            ValueError: if the curve has no such ρ.
        """
        chosen = [one for one in self.trials if one.candidate is not None and one.candidate.rho == rho]
        if not chosen:
            known = dict.fromkeys(one.candidate.rho for one in self.trials if one.candidate is not None)
            raise ValueError(f"rho={rho!r} is not on this curve, which has {list(known)}: give one of them.")
        frame = self.unedited.scores.to_dataframe()
        frame = pd.DataFrame(
            {
                "context": frame["context"],
                "reference": frame["reference"],
                "unedited": frame["prediction"],
                "unedited_correct": frame["correct"],
            }
        )
        for one in chosen:
            assert one.candidate is not None
            name, scores = str(name_of(one.candidate)["edit"]), one.scores
            frame[name], frame[f"{name}_correct"] = list(scores.predictions), scores.correct.tolist()
        return frame

    def __repr__(self) -> str:
        columns = ["edit", "rho", "kept", "accuracy", "log_loss", "corrected", "broken"]
        before = self.unedited.summary
        head = f"rank curve of {self.site} on {counted(before.n_items, 'item')}; unedited: "
        table = self.to_dataframe()[columns].to_string(index=False)
        return f"{head}accuracy {before.accuracy:.3f}, log-loss {before.log_loss:.3f}\n{table}"


def rank_curve(
    model: nn.Module,
    task: Task | Sequence[Item],
    site: str,
    *,
    rhos: Sequence[float] = FINE_RHOS,
    edits: Edits = (KeepTop, KeepBottom),
    rule: Rule | None = None,
    prepend_bos: bool | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    progress: bool = True,
) -> RankCurve:
    """What the model does on the task with more and more of one matrix taken away, from the bottom and from the top.

    Args:
        model: a HookedTransformer or a TransformerBridge; left as it was.
        task: all of its items are scored; a ρ chosen by looking at them has to be tested on others.
        site: one matrix or head.
        rhos: fractions of the full rank that are kept.
        edits: as in `search`.
        rule: what counts as right, as in `scoring.score`.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.
        svds: decompositions made before; new ones are added.
        batch_size: sequences a pass; as the memory allows by default.
        memory: bytes for activations.
        seed: of the intervals.
        progress: whether to show a progress bar.

    Raises:
        SiteError: if the pattern names no editable matrix.
        ValueError: if it names several, or as `search`.

    Source: arXiv:2312.13558.
    """
    wanted = candidates(model, site, rhos, edits)
    sites = list(dict.fromkeys(one.site for one in wanted))
    if len(sites) > 1:
        raise ValueError(f"site={site!r} names {len(sites)} matrices: a rank curve is of one. Name '{sites[0]}', say.")
    bench = Bench(model, Log(), rule, prepend_bos, svds, batch_size, memory, progress)
    unedited, trials, comparisons = _tried(bench, task, wanted, seed)
    gains = gains_of(model, wanted, svds=svds, progress=False)
    ranks = tuple(int((gains[one].values > 0).sum()) for one in wanted)
    return RankCurve(str(sites[0]), unedited, trials, ranks, comparisons)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Controls:
    """An edit beside edits of the same matrix that remove as much, but nothing in particular."""

    edit: Trial
    unedited: Trial
    controls: tuple[Trial, ...]
    comparisons: tuple[Comparison, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """A row for the edit and each control: `control` says what is equal, and the change is with its interval."""
        rows = []
        for one, change in zip((self.edit, *self.controls), self.comparisons, strict=True):
            assert one.candidate is not None
            row = {"control": _kind(one.candidate.edit), "edit": repr(one.candidate.edit)} | one.summary.as_row()
            row |= {"change": change.accuracy.difference, "low": change.accuracy.low, "high": change.accuracy.high}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def beaten(self) -> float:
        """The fraction of the controls that the edit is better than, by accuracy and then log-loss."""
        return sum(self.edit.merit > one.merit for one in self.controls) / len(self.controls)

    def __repr__(self) -> str:
        shown = self.to_dataframe().groupby("control", sort=False)["accuracy"].agg(["count", "min", "mean", "max"])
        name = f"{self.edit.candidate}: accuracy {self.edit.summary.accuracy:.3f}, unedited "
        return f"{name}{self.unedited.summary.accuracy:.3f}; better than {self.beaten:.0%} of the controls\n{shown}"


def random_controls(
    model: nn.Module,
    task: Task | Sequence[Item],
    spec: dict[str, Edit],
    *,
    draws: int = 5,
    seed: int = 0,
    rule: Rule | None = None,
    prepend_bos: bool | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    progress: bool = True,
) -> Controls:
    """How an edit of one matrix compares with random ones: as many components, as much energy, and a random basis.

    Args:
        model: a HookedTransformer or a TransformerBridge; left as it was.
        task: all of its items are scored.
        spec: one matrix and its edit, such as `search(...).spec`.
        draws: how many controls of each kind.
        seed: of the first draw; the others count on from it.
        rule: what counts as right, as in `scoring.score`.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.
        svds: decompositions made before; new ones are added.
        batch_size: sequences a pass; as the memory allows by default.
        memory: bytes for activations.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the spec does not edit exactly one matrix, or `draws` is below 1.
    """
    wanted = [one for site, edit in spec.items() for one in candidates(model, site, (), [edit])]
    if len(wanted) != 1 or whole(draws, "draws") < 1:
        raise ValueError(
            f"{counted(len(wanted), 'matrix', 'matrices')} edited, draws={draws!r}: controls are drawn for the edit of "
            "one matrix, one or more of each kind. Give one entry of the spec at a time."
        )
    (chosen,) = wanted
    checked_seed(seed)
    parts = decomposed(model, [chosen.site], basis=chosen.edit.basis, svds=svds, progress=False)[chosen.site]
    removed = (1 - chosen.edit.gains(parts).values).clamp_min(0)
    count, energy = round(float(removed.sum())), float((removed * parts.energy).sum())
    edits: list[Edit] = []
    for number in range(seed, seed + draws):
        edits += [RandomComponents(seed=number, count=count), RandomComponents(seed=number, energy=min(1.0, energy))]
        edits += [RandomBasis(seed=number)]
    every = [chosen, *(Candidate(chosen.site, edit, None) for edit in edits)]
    bench = Bench(model, Log(), rule, prepend_bos, svds, batch_size, memory, progress)
    unedited, trials, comparisons = _tried(bench, task, every, seed)
    return Controls(trials[0], unedited, trials[1:], comparisons)


def _tried(
    bench: Bench, task: Task | Sequence[Item], wanted: Sequence[Candidate], seed: int
) -> tuple[Trial, tuple[Trial, ...], tuple[Comparison, ...]]:
    check_deterministic(bench.model)
    task = as_task(task)
    asked = bench.evaluator(task, sorted({one.site for one in wanted}, reverse=True))
    total = sum(cost(bench.model, one.site) for one in wanted) * len(task)
    with tqdm(total=total, desc="scoring", unit="block", delay=1, disable=not bench.progress) as bar:
        found = bench.try_all(asked, "all", wanted, bar)
    unedited = trial(None, asked.encoded, bench.unedited(asked, "all"))
    trials = tuple(trial(one, asked.encoded, found[one]) for one in wanted)
    before = unedited.scores
    return unedited, trials, tuple(compare(before, one.scores, seed=seed) for one in trials)


def _kind(edit: Edit) -> str:
    match edit:
        case RandomComponents(count=int()):
            return "as many random components"
        case RandomComponents():
            return "random components of the same energy"
        case RandomBasis():
            return "the same singular values on random vectors"
    return "the edit itself"
