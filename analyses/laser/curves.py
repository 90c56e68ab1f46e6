"""One matrix at many ranks, from both ends of the spectrum, and one edit beside random ones of the same size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import pandas as pd
from torch import nn

from analyses.engines import Workers
from analyses.laser._pieces import try_all
from analyses.laser._resume import Log, search_header
from analyses.laser._trials import MEMORY, Setup, Trial
from analyses.laser.candidates import Candidate, Edits, candidates, gains_of, row_of
from analyses.metrics import Metric
from analyses.scoring import Comparison, Rule, compare
from analyses.tasks.items import Item
from analyses.tasks.task import Task, as_task
from surgery import Decompositions, Edit, KeepBottom, KeepTop
from surgery.arguments import counted, whole
from surgery.arguments import seed as checked_seed
from surgery.controls import Match, matched
from surgery.decompositions import decomposed

FINE_RHOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.0)
"""From the whole matrix to nothing of it."""
_KINDS: dict[Match, str] = {
    "count": "as many random components",
    "energy": "random components of the same energy",
    "spectrum": "the same singular values on random vectors",
}
"""What tables call the controls of each draw, in their order."""


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
        before = self.unedited.summary
        return pd.DataFrame(
            {
                **row_of(trial.candidate),
                "kept": kept,
                **trial.summary.as_row(),
                "corrected": len(change.corrected),
                "broken": len(change.broken),
                "p_value": change.p_value,
                **_change_of_accuracy(change),
                "unedited_accuracy": before.accuracy,
                "unedited_log_loss": before.log_loss,
            }
            for trial, kept, change in zip(self.trials, self.ranks, self.comparisons, strict=True)
        ).drop(columns="candidate")

    def predictions(self, rho: float) -> pd.DataFrame:
        """A row for each item: what the model says unedited and under every edit at this ρ, and whether it is right.

        Under `KeepBottom` that is what the minor components say by themselves (arXiv:2312.13558).

        Raises:
            ValueError: if the curve has no such ρ.
        """
        rhos = [trial.candidate.rho for trial in self.trials if trial.candidate is not None]
        if rho not in rhos:
            known = list(dict.fromkeys(rhos))
            raise ValueError(f"rho={rho!r} is not on this curve, which has {known}: give one of them.")
        items = self.unedited.scores.to_dataframe()
        frame = items[["context", "reference"]].assign(unedited=items["prediction"], unedited_correct=items["correct"])
        for trial in self.trials:
            if trial.candidate is not None and trial.candidate.rho == rho:
                name = str(row_of(trial.candidate)["edit"])
                frame[name] = list(trial.scores.predictions)
                frame[f"{name}_correct"] = trial.scores.correct.tolist()
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
    rule: Rule | Metric | None = None,
    prepend_bos: bool | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    log: str | Path | None = None,
    executor: Workers | None = None,
    progress: bool = True,
) -> RankCurve:
    """What the model does on the task with more and more of one matrix taken away, from the bottom and from the top.

    All items are scored, so a ρ chosen by looking at the curve has to be tested on others. `seed` is of the intervals;
    the package `analyses.laser` says what the other arguments mean.

    Raises:
        LogError: if the log is a folder or belongs to another curve.
        SiteError: if the pattern names no editable matrix.
        ValueError: if it names several, or as `search`.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> curve = laser.rank_curve(model, items, "blocks.1.mlp.W_out", rhos=(1.0, 0.5), progress=False)
    >>> curve.to_dataframe()[["edit", "rho", "kept"]].to_numpy().tolist()
    [['KeepTop', 1.0, 16], ['KeepTop', 0.5, 8], ['KeepBottom', 1.0, 16], ['KeepBottom', 0.5, 8]]

    Source: arXiv:2312.13558.
    """
    wanted = candidates(model, site, rhos, edits)
    sites = list(dict.fromkeys(candidate.site for candidate in wanted))
    if len(sites) > 1:
        raise ValueError(f"site={site!r} names {len(sites)} matrices: a rank curve is of one. Name '{sites[0]}', say.")
    setup = Setup(
        model, rule=rule, prepend_bos=prepend_bos, svds=svds, batch_size=batch_size, memory=memory, progress=progress,
        executor=executor,
    )  # fmt: skip
    unedited, trials, comparisons = _compared(setup, task, wanted, seed, log)
    # Edits in other bases, or by energy, keep another number than ρ times the rank.
    gains = gains_of(model, wanted, svds=svds, progress=False)
    ranks = tuple(int((gains[candidate].values > 0).sum()) for candidate in wanted)
    return RankCurve(str(sites[0]), unedited, trials, ranks, comparisons)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Controls:
    """An edit beside random edits of the same matrix that remove as much."""

    edit: Trial
    unedited: Trial
    controls: tuple[Trial, ...]
    comparisons: tuple[Comparison, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """A row for the edit and each control: `control` says what is equal, `change` is of accuracy."""
        kinds = ["the edit itself", *list(_KINDS.values()) * (len(self.controls) // len(_KINDS))]
        return pd.DataFrame(
            {
                "control": kind,
                "edit": repr(trial.candidate.edit),
                **trial.summary.as_row(),
                **_change_of_accuracy(change),
            }
            for kind, trial, change in zip(kinds, (self.edit, *self.controls), self.comparisons, strict=True)
            if trial.candidate is not None
        )

    @property
    def beaten(self) -> float:
        """The fraction of the controls that the edit is better than, by accuracy and then log-loss."""
        return sum(self.edit.merit > control.merit for control in self.controls) / len(self.controls)

    def __repr__(self) -> str:
        shown = self.to_dataframe().groupby("control", sort=False)["accuracy"].agg(["count", "min", "mean", "max"])
        name = f"{self.edit.candidate}: accuracy {self.edit.summary.accuracy:.3f}, unedited "
        return f"{name}{self.unedited.summary.accuracy:.3f}; better than {self.beaten:.0%} of the controls\n{shown}"


def random_controls(
    model: nn.Module,
    task: Task | Sequence[Item],
    spec: Mapping[str, Edit],
    *,
    draws: int = 5,
    seed: int = 0,
    rule: Rule | Metric | None = None,
    prepend_bos: bool | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    log: str | Path | None = None,
    executor: Workers | None = None,
    progress: bool = True,
) -> Controls:
    """How an edit of one matrix compares with random ones: as many components, as much energy, and a random basis.

    `spec` is one matrix and its edit, such as `search(...).spec`; `draws` is how many controls of each kind there are;
    `seed` is of the first draw, and the others count on from it. The package says what the other arguments mean.

    Raises:
        LogError: if the log is a folder or belongs to other controls.
        ValueError: if the spec does not edit exactly one matrix, or `draws` is below 1.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> edit = {"blocks.1.mlp.W_out": surgery.DropTop(rank=1)}
    >>> len(laser.random_controls(model, items, edit, draws=2, progress=False).controls)
    6
    """
    edited = [candidate for site, edit in spec.items() for candidate in candidates(model, site, (), [edit])]
    if len(edited) != 1 or whole(draws, "draws") < 1:
        raise ValueError(
            f"{counted(len(edited), 'matrix', 'matrices')} edited, draws={draws!r}: controls are drawn for the edit of "
            "one matrix, one or more of each kind. Give one entry of the spec at a time."
        )
    site, edit, seed = edited[0].site, edited[0].edit, checked_seed(seed)
    decomposition = decomposed(model, [site], basis=edit.basis, svds=svds, progress=False)[site]
    gains = edit.gains(decomposition)
    controls = [matched(gains, decomposition, by=by, seed=seed + n) for n in range(draws) for by in _KINDS]
    setup = Setup(
        model, rule=rule, prepend_bos=prepend_bos, svds=svds, batch_size=batch_size, memory=memory, progress=progress,
        executor=executor,
    )  # fmt: skip
    wanted = [*edited, *(Candidate(site, control, None) for control in controls)]
    unedited, trials, comparisons = _compared(setup, task, wanted, seed, log)
    return Controls(trials[0], unedited, trials[1:], comparisons)


def _compared(
    setup: Setup, task: Task | Sequence[Item], wanted: Sequence[Candidate], seed: int, log: str | Path | None
) -> tuple[Trial, tuple[Trial, ...], tuple[Comparison, ...]]:
    """The unedited model, every candidate, and how each compares with it, on all items of the task."""
    task = as_task(task)
    if log is not None:
        fixed = {"rule": setup.rule, "prepend_bos": setup.prepend_bos}
        header = search_header(setup.model, {"all": task}, fixed, [candidate.key for candidate in wanted])
        setup = replace(setup, log=Log(log, header))
    bench = setup.bench("all", task, (candidate.site for candidate in wanted))
    trials = tuple(try_all(bench, wanted, "scoring").values())
    unedited = bench.unedited()
    return unedited, trials, tuple(compare(unedited.scores, trial.scores, seed=seed) for trial in trials)


def _change_of_accuracy(change: Comparison) -> dict[str, float]:
    return {"change": change.accuracy.difference, "low": change.accuracy.low, "high": change.accuracy.high}
