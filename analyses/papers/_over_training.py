"""Truncation over a training: the same cuts of every checkpoint, and what they do to the words that are tracked."""

from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd

import surgery
from analyses import plots, truncation
from analyses.papers._estimates import Estimate, Work, decompositions, fraction_from, measure, memory_of
from analyses.papers._folders import RunFolder
from analyses.papers._items import TaskError
from analyses.papers._method import Asked, Findings
from analyses.papers._models import ModelError, checkpoints, steps_of
from analyses.papers._reports import Section, write_figures
from analyses.papers._tracking import Tracks, cuts_of_a_matrix, generates
from analyses.truncation import TrainingStudy
from hooks import Site
from hooks.sizes import nbytes
from surgery.arguments import counted

_KEY = ["end", "site", "rho"]
"""What tells one cut from another."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OverTraining(Tracks):
    """Each matrix of every checkpoint cut at both ends of its spectrum. Nothing is chosen, so all items report."""

    name: ClassVar[str] = "over-training"
    title: ClassVar[str] = "Truncation over training"

    def estimate(self, asked: Asked) -> Estimate:
        """Counted in items of the last checkpoint; loading is not counted."""
        settings, steps = asked.settings, steps_of(asked.settings)
        if generates(asked.task):
            raise TaskError(
                f"task {asked.task.name!r} is judged by what is generated, and over a training the probabilities of "
                "words after prompts are read: give facts or indirect objects, or leave --steps out."
            )
        self.prompts(asked, asked.task)
        sites = [Site.parse(site) for site in surgery.sites(asked.model, self.sites)]
        batch_size = settings.batch_size or 32
        measured = measure(asked.model, asked.task, sites, prepend_bos=settings.prepend_bos, batch_size=batch_size)
        cuts = cuts_of_a_matrix(len(self.rhos), generating=False)
        passes = cuts * sum(fraction_from(asked.model, site) for site in sites) + len(sites)
        what = f"items of {counted(len(steps), 'checkpoint')} under {counted(cuts * len(sites), 'cut')}"
        decomposed = [
            Work(work.what, work.times * len(steps), work.seconds_each)
            for work in decompositions(asked.model, sites, measured)
        ]
        memory = memory_of(asked.model, sites, measured, activations=None, batch_size=batch_size)
        memory["weights of the checkpoint in turn"] = nbytes(asked.model)
        return Estimate([*decomposed, Work(what, len(asked.task) * passes * len(steps), measured.an_item)], memory)

    def find(self, asked: Asked, folder: RunFolder) -> Findings:
        """Cut every checkpoint; each is kept in the folder once it is finished."""
        settings = asked.settings
        try:
            study = truncation.over_training(
                checkpoints(settings), asked.task, self.sites, steps=settings.steps or None, rhos=self.rhos,
                generic=self.generic, several=self.several, prepend_bos=settings.prepend_bos,
                batch_size=settings.batch_size or 32, cache=folder.path / "checkpoints", progress=asked.progress,
            )  # fmt: skip
        except OSError as error:
            raise ModelError(f"a checkpoint cannot be loaded, or its result not kept: {error}") from error
        frame = study.to_dataframe()
        folder.table("table", frame)
        names = list(dict.fromkeys(frame["name"]))
        figures = {f"log_p_{name}": plots.truncation.over_training(study, name) for name in names}
        by_step = steps_table(study)
        return Findings(
            [_headline(study, by_step)],
            [
                Section("Every step", [_ABOUT_STEPS], [by_step], write_figures(folder.path, figures)),
                Section("The likeliest right answer", [_ABOUT_BEST], [_best(study)]),
            ],
            f"none: nothing is chosen, so all items report; words of several tokens: {self.several}",
        )


def steps_table(study: TrainingStudy) -> pd.DataFrame:
    """A row for each step: the uncut probabilities, and under how many cuts each of them is higher.

    A cut that keeps all of a matrix is none.
    """
    wide = _probabilities(study)
    rows = []
    for step, frame in wide.groupby("step"):
        uncut = frame.loc[frame["end"] == "full"].iloc[0]
        whole = (frame["end"] == "full") | ((frame["end"] == "keep top") & (frame["rho"] == 1))
        cuts = frame.loc[~whole]
        row: dict[str, object] = {"step": step}
        names = [name for name in frame.columns if name.startswith("p(")]
        row |= {name: float(uncut[name]) for name in names} | {"cuts": len(cuts)}
        row |= {f"{name} higher": int((cuts[name] > uncut[name]).sum()) for name in names}
        if "p(generic)" in names:
            both = (cuts["p(correct)"] > uncut["p(correct)"]) & (cuts["p(generic)"] < uncut["p(generic)"])
            row["correct higher, generic lower"] = int(both.sum())
        rows.append(row)
    return pd.DataFrame(rows)


def _probabilities(study: TrainingStudy) -> pd.DataFrame:
    """A row for each step and cut, the mean probability of each tracked word in a column."""
    frame = study.to_dataframe()
    of_p = frame.loc[frame["quantity"] == "p"].fillna({"site": "", "rho": -1.0})
    wide = of_p.pivot_table(index=["step", *_KEY], columns="name", values="value", sort=False, dropna=False).dropna()
    return wide.rename(columns=lambda name: f"p({name})").reset_index()


def _best(study: TrainingStudy) -> pd.DataFrame:
    """Of each step the cut with the highest p(correct)."""
    wide = _probabilities(study)
    cut = wide.loc[wide["end"] != "full"]
    best = cut.loc[cut.groupby("step")["p(correct)"].idxmax()]
    return best.assign(rho=best["rho"].where(best["rho"] >= 0))


def _headline(study: TrainingStudy, by_step: pd.DataFrame) -> str:
    first, last = by_step.iloc[0], by_step.iloc[-1]
    names = [name for name in by_step.columns if name.startswith("p(") and name.endswith(")")]
    moved = ", ".join(f"{name} {first[name]:.3f} to {last[name]:.3f}" for name in names)
    left_out = f" ({study.left_out} left out)" if study.left_out else ""
    said = (
        f"**{counted(len(by_step), 'checkpoint')}**, step {first['step']:.0f} to {last['step']:.0f}, on "
        f"{counted(study.n_prompts, 'prompt')}{left_out}. Uncut, {moved}. "
    )
    if "p(generic)" not in names:
        return said + f"At the last step p(correct) is higher under {last['p(correct) higher']:.0f} of its cuts."
    return said + (
        f"At the last step {last['correct higher, generic lower']:.0f} of {counted(int(last['cuts']), 'cut')} make the "
        "right word likelier and the generic one less likely."
    )


_ABOUT_STEPS = (
    "Mean probabilities of the uncut model, how many cuts there are, and under how many of them each probability is "
    "higher. All cuts, with standard errors over prompts, log-probabilities, ranks and margins, are in "
    "[table.csv](table.csv). The figures show each layer's change of log-probability, in nats."
)
_ABOUT_BEST = (
    "Of each step the cut with the highest p(correct). It was picked on the prompts that it is shown on, so that its "
    "gain is too high; the same command on one checkpoint, without `--steps`, chooses on other prompts and draws "
    "random controls."
)
