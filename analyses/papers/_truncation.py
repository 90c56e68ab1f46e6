"""The truncation study on a pretrained model: every matrix cut at every ρ, chosen on one half of the prompts.

After a prompt with one answer, probabilities are read. Where the rule generates, as on GSM8K, it is the accuracy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import surgery
from analyses import laser, plots, truncation
from analyses.laser import MEMORY
from analyses.papers._estimates import Estimate, Work, decompositions, fraction_from, measure, memory_of, recordings
from analyses.papers._folders import RunFolder
from analyses.papers._items import TaskError
from analyses.papers._laser import random_edits
from analyses.papers._method import Asked, Findings
from analyses.papers._models import short_name
from analyses.papers._reports import NOT_AT_HAND, Section, percent, write_figures
from analyses.papers._tracking import Tracks, cuts_of_a_matrix, generates
from analyses.statistics import bootstrap_interval
from analyses.tasks import Task
from analyses.truncation import Curve
from analyses.truncation import Prompts as TrackedPrompts
from hooks import Site, host_of
from hooks.inputs import Inputs, Reads
from hooks.running import run
from surgery import DropTop, Edit, KeepTop, Zero
from surgery.arguments import counted

_CHOOSE = 0.5
_KINDS = {
    "count": "as many random components",
    "energy": "random components of the same energy",
    "spectrum": "the same singular values on random vectors",
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation(Tracks):
    """Each matrix cut at both ends of its spectrum; the best cut is chosen on one half, reported on the other."""

    name: ClassVar[str] = "truncation"
    title: ClassVar[str] = "Truncation"

    def estimate(self, asked: Asked) -> Estimate:
        """Counted in items; every cut starts at its matrix's block."""
        settings = asked.settings
        choosing, reporting = self._parts(asked)
        if not generates(asked.task):
            self.prompts(asked, asked.task)
        sites = [Site.parse(site) for site in surgery.sites(asked.model, self.sites)]
        measured = measure(
            asked.model, asked.task, sites, prepend_bos=settings.prepend_bos, batch_size=settings.batch_size
        )
        whole = sum(fraction_from(asked.model, site) for site in sites)
        halves = 1 if generates(asked.task) else 2
        cuts = cuts_of_a_matrix(len(self.rhos), generating=halves == 1)
        n_cut = len(choosing) if halves == 1 else len(asked.task)
        n_controls = len(_KINDS) * settings.draws
        counts = {
            f"items under {counted(cuts * len(sites), 'cut')}": n_cut * (cuts * whole + len(sites)),
            f"items that report, under {counted(n_controls, 'control')}": len(reporting) * (2 + n_controls),
        }
        work = [Work(what, times, measured.an_item) for what, times in counts.items()]
        recorded = recordings(asked.model, measured, len(asked.task), budget=MEMORY)
        memory = memory_of(asked.model, sites, measured, activations=recorded, batch_size=settings.batch_size or 32)
        return Estimate([*decompositions(asked.model, sites, measured), *work], memory)

    def find(self, asked: Asked, folder: RunFolder) -> Findings:
        """Cut on the items that choose, then on those that report, and draw controls for the best cut."""
        choosing, reporting = self._parts(asked)
        said = (
            f"{len(choosing)} items drawn at random choose the cut, the other {len(reporting)} report; items that "
            f"belong together stay together; words of several tokens: {self.several}"
        )
        if generates(asked.task):
            return self._generated(asked, folder, choosing, reporting, said)
        chosen_on = self._curve(asked, folder, choosing, "choosing")
        curve = self._curve(asked, folder, reporting, "reporting")
        folder.table("choosing", chosen_on.to_dataframe())
        folder.table("table", curve.to_dataframe())
        site, edit, name = best_cut(chosen_on)
        surgery.save({site: edit}, folder.path / "edit.json", model=asked.model)
        controls = self._controls(asked, folder, reporting, {site: edit})
        folder.table("controls", controls)
        figures = {f"curve_{at}": plots.truncation.curve(curve, site=at) for at in _few(curve, site)}
        written = write_figures(folder.path, figures)
        return Findings(
            [_headline(name, site, controls, curve.n_prompts), _strongest(controls)],
            [
                _beside(asked),
                Section("Every cut", [_ABOUT_CUTS], [_widest(curve)], written),
                Section("Controls", [_ABOUT_CONTROLS], [controls]),
            ],
            said,
        )

    def _parts(self, asked: Asked) -> tuple[Task, Task]:
        if len(asked.task) < 4:
            raise TaskError(
                f"the task has {counted(len(asked.task), 'item')}: one half chooses, the other reports. Give 4 or more."
            )
        parts = asked.task.split(screen=0.0, validation=_CHOOSE, test=1 - _CHOOSE, seed=asked.settings.seed)
        return parts.validation, parts.test

    def _curve(self, asked: Asked, folder: RunFolder, task: Task, part: str) -> Curve:
        """The curve of all matrices, each of which is kept in the folder once it is finished."""
        prompts = self.prompts(asked, task)
        frames = []
        for site in surgery.sites(asked.model, self.sites):

            def cut(site: str = site) -> dict:
                one = truncation.curve(
                    asked.model, prompts, site, rhos=self.rhos, batch_size=asked.settings.batch_size or 32,
                    progress=asked.progress,
                )  # fmt: skip
                return {"rows": one.to_dataframe().to_dict("records")}

            frames.append(pd.DataFrame(folder.piece(f"{part} {site}", cut)["rows"]))
        # The uncut model, and a layer without its MLP, come with each matrix.
        frame = pd.concat(frames).drop_duplicates(["end", "site", "rho", "name"], ignore_index=True)
        return Curve(frame, len(prompts))

    def _controls(self, asked: Asked, folder: RunFolder, task: Task, spec: Mapping[str, Edit]) -> pd.DataFrame:
        """The uncut model, the cut and random edits of the same matrix: probabilities after the prompts that report.

        `low` and `high` are the 95 % interval of the change of p(correct) against the uncut model, over prompts.
        """
        prompts, settings = self.prompts(asked, task), asked.settings
        uncut = after(asked, prompts, {})
        specs: dict[str, tuple[str, Mapping[str, Edit]]] = {"cut": ("the cut itself", spec)}
        for seed in range(settings.seed, settings.seed + settings.draws):
            for by, kind in _KINDS.items():
                specs[f"{by} {seed}"] = kind, random_edits(asked.model, spec, by=by, seed=seed)  # type: ignore[arg-type]

        def row(kind: str, edits: Mapping[str, Edit]) -> dict:
            p = after(asked, prompts, edits)
            change = (p - uncut)[:, [list(prompts.track).index("correct")]]
            low, high = bootstrap_interval(change, seed=settings.seed)[:, 0].tolist()
            means = dict(zip((f"p({name})" for name in prompts.track), p.mean(0).tolist(), strict=True))
            return {"control": kind, **means, "change": change.mean().item(), "low": low, "high": high}

        rows = [row("uncut", {})]
        rows += [folder.piece(f"control {key}", lambda made=made: row(*made)) for key, made in specs.items()]
        return pd.DataFrame(rows)

    def _generated(self, asked: Asked, folder: RunFolder, choosing: Task, reporting: Task, said: str) -> Findings:
        """Accuracy of what is generated, under every cut."""
        settings = asked.settings
        how = {"prepend_bos": settings.prepend_bos, "batch_size": settings.batch_size, "progress": asked.progress,
               "seed": settings.seed}  # fmt: skip
        curves = [
            laser.rank_curve(
                asked.model, choosing, site, rhos=self.rhos, edits=(KeepTop, DropTop),
                log=folder.log(f"curve_{site}"), **how,
            )
            for site in surgery.sites(asked.model, self.sites)
        ]  # fmt: skip
        frame = pd.concat([curve.to_dataframe() for curve in curves], ignore_index=True)
        folder.table("table", frame)
        trials = [trial for curve in curves for trial in curve.trials]
        best = max(trials, key=lambda trial: trial.merit).candidate
        assert best is not None, "a curve's trials are of candidates"
        surgery.save(best.spec, folder.path / "edit.json", model=asked.model)
        controls = laser.random_controls(
            asked.model, reporting, best.spec, draws=settings.draws, log=folder.log("controls"), **how
        )
        folder.table("controls", controls.to_dataframe())
        shown = {
            f"curve_{curve.site}": plots.laser.rank_curve(curve) for curve in curves if curve.site == str(best.site)
        }
        columns = ["control", "accuracy", "log_loss", "change", "low", "high"]
        table = pd.DataFrame(controls.to_dataframe(), columns=columns)
        itself, *others = table.to_dict("records")
        strongest = max(others, key=lambda row: row["accuracy"])
        summary = [
            f"**{best}**, chosen among {counted(len(trials), 'cut')} on {counted(len(choosing), 'item')}, changes the "
            f"accuracy of what is generated on {counted(len(reporting), 'other item')} from "
            f"{percent(controls.unedited.scores.accuracy)} to {percent(controls.edit.scores.accuracy)} (95 % interval "
            f"{100 * itself['low']:+.1f} to {100 * itself['high']:+.1f} points).",
            f"The strongest control, {strongest['control']}, has {percent(float(strongest['accuracy']))}.",
        ]
        top = frame.sort_values(["accuracy", "log_loss"], ascending=[False, True]).head(10)
        shown_columns = ["site", "edit", "rho", "accuracy", "low", "high", "log_loss", "corrected", "broken"]
        best_cuts = pd.DataFrame(top, columns=shown_columns)
        about = "The ten best cuts, on the items that choose; all are in [table.csv](table.csv)."
        return Findings(
            summary,
            [
                _beside(asked),
                Section("The best cuts", [about], [best_cuts], write_figures(folder.path, shown)),
                Section("Controls, on the items that report", [], [table]),
            ],
            said,
        )


def best_cut(curve: Curve) -> tuple[str, Edit, str]:
    """The cut with the highest p(correct): its matrix, its edit, and what it is called."""
    frame = curve.to_dataframe()
    cuts = frame.loc[(frame["name"] == "correct") & (frame["end"] != "full")]
    best = cuts.loc[cuts["p"].idxmax()]
    site, rho = str(best["site"]), float(best["rho"])
    match best["end"]:
        case "keep top":
            return site, KeepTop(rho=rho), f"only the top {rho:g} of the components kept"
        case "drop top":
            return site, DropTop(rho=rho), f"the top {rho:g} of the components dropped"
        case "top component dropped":
            return site, DropTop(rank=1), "the top component dropped"
    return site, Zero(), "the MLP dropped"


@torch.no_grad()
def after(asked: Asked, prompts: TrackedPrompts, spec: Mapping[str, Edit]) -> Float[Tensor, "example name"]:
    """The probability of every tracked token after each prompt, under the spec."""
    device, rows = host_of(asked.model).device, []
    with surgery.apply(asked.model, spec, progress=False):
        for examples in torch.arange(len(prompts)).split(asked.settings.batch_size or 32):
            inputs, reads = prompts.inputs.take(examples), prompts.inputs.reads
            assert reads is not None, "prompts are read at their last tokens"
            mask = None if inputs.mask is None else inputs.mask.to(device)
            at = Reads(torch.arange(len(examples)), reads.pos[examples])
            logits = run(asked.model, Inputs(inputs.tokens.to(device), mask, at)).double().cpu()
            ids = torch.stack([ids[examples] for ids in prompts.track.values()], 1)
            rows.append(logits.softmax(1).gather(1, ids))
    return torch.cat(rows)


def _few(curve: Curve, site: str) -> list[str]:
    """The chosen matrix, and those of the first and the last layer: one page for each would be too many to read."""
    sites = list(dict.fromkeys(curve.of()["site"]))
    return list(dict.fromkeys([site, *sites[:2], *sites[-2:]]))


def _widest(curve: Curve) -> pd.DataFrame:
    """The uncut model, and of each matrix the cut with the highest p(correct), in the words of the table."""
    frame = curve.to_dataframe()
    wide = frame.pivot_table(index=["site", "end", "rho"], columns="name", values="p", sort=False, dropna=False)
    wide = wide.dropna().rename(columns=lambda name: f"p({name})").reset_index()
    uncut = wide.loc[wide["end"] == "full"]
    best = wide.loc[wide.loc[wide["end"] != "full"].groupby("site", sort=False)["p(correct)"].idxmax()]
    return pd.concat([uncut.assign(site="uncut"), best])


_ABOUT_CUTS = (
    "Mean probabilities after the prompts that report: uncut, and of each matrix the cut with the highest p(correct). "
    "All cuts, with standard errors, are in [table.csv](table.csv); those on the prompts that chose in "
    "[choosing.csv](choosing.csv). Only the cut named above was chosen on other prompts than these."
)
_ABOUT_CONTROLS = (
    "On the prompts that report. `change` is of p(correct) against the uncut model, `low` and `high` its 95 % interval "
    "over prompts. In the files: [controls.csv](controls.csv)."
)


def _headline(name: str, site: str, controls: pd.DataFrame, n: int) -> str:
    uncut, cut = controls.iloc[0], controls.iloc[1]
    names = [column for column in controls.columns if column.startswith("p(")]
    changes = ", ".join(f"{column} {uncut[column]:.3f} to {cut[column]:.3f}" for column in names)
    verdict = "The interval covers 0." if cut["low"] <= 0 <= cut["high"] else "The interval does not cover 0."
    rise = cut["p(correct)"] - uncut["p(correct)"]
    along = [name for name in names[1:] if cut[name] - uncut[name] >= rise > 0]
    if along:
        verdict += f" But {' and '.join(along)} rose as much or more: the cut does not favour the right answer."
    return (
        f"**{site}: {name}**, chosen for its p(correct) on other prompts, changes on {counted(n, 'prompt')} {changes}. "
        f"Change of p(correct): {cut['change']:+.3f} (95 % interval {cut['low']:+.3f} to {cut['high']:+.3f}). {verdict}"
    )


def _strongest(controls: pd.DataFrame) -> str:
    cut, others = controls.iloc[1], controls.iloc[2:]
    best = others.loc[others["p(correct)"].idxmax()]
    better = int((others["p(correct)"] < cut["p(correct)"]).sum())
    return (
        f"Its p(correct) is higher than that of {better} of {counted(len(others), 'random control')}; the strongest, "
        f"{best['control']}, has p(correct) {best['p(correct)']:.3f}."
    )


def _beside(asked: Asked) -> Section:
    rows = [["the paper", "", NOT_AT_HAND], ["here", short_name(asked.settings.model), "in the tables below"]]
    note = (
        "No figures of the paper's experiments on pretrained models were at hand. Its claim: cutting the feed-forward "
        "weights lowers the generic answer and lifts the one that the context asks for."
    )
    return Section("Beside the paper", [note], [pd.DataFrame(rows, columns=["", "model", "probabilities"])])
