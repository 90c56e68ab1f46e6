"""LASER as its paper runs it: the grid, the published split, controls, and a composition where one is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import ClassVar, Literal, final

import pandas as pd
from torch import nn

import surgery
from analyses import laser, plots, scoring
from analyses.laser import MEMORY, PAPER_RHOS, Composition, Controls, SearchResult
from analyses.laser.candidates import MLP, Candidate, candidates
from analyses.papers._estimates import (
    Estimate,
    Measured,
    Work,
    decompositions,
    fraction_from,
    measure,
    memory_of,
    recordings,
)
from analyses.papers._folders import RunFolder
from analyses.papers._items import divided
from analyses.papers._method import Asked, Findings, Method
from analyses.papers._models import short_name
from analyses.papers._published import LASER, published
from analyses.papers._reports import NOT_AT_HAND, Section, percent, write_figures
from analyses.scoring import Comparison, Contains, Scores
from analyses.tasks import Splits
from surgery import Edit, KeepTop
from surgery.arguments import counted
from surgery.controls import Match, matched

_KINDS: dict[Match, str] = {
    "count": "as many random components",
    "energy": "random components of the same energy",
    "spectrum": "the same singular values on random vectors",
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Laser(Method):
    """The search over matrices, layers and ρ: chosen on one part of the items, reported on the other."""

    name: ClassVar[str] = "laser"
    title: ClassVar[str] = "LASER"
    paper: ClassVar[str] = LASER
    kinds: ClassVar[tuple[str, ...]] = ("answer", "choice", "pair")
    sites: tuple[str, ...] = (MLP,)
    rhos: tuple[float, ...] = PAPER_RHOS
    strategy: Literal["exhaustive", "screened"] = "exhaustive"
    compose: bool = False

    def estimate(self, asked: Asked) -> Estimate:
        """Counted as if every candidate ran on all items that choose; a screened search takes less."""
        settings, (parts, _) = asked.settings, self._parts(asked)
        tried = candidates(asked.model, self.sites, self.rhos, [KeepTop])
        sites = list(dict.fromkeys(candidate.site for candidate in tried))
        measured = measure(
            asked.model, asked.task, sites, prepend_bos=settings.prepend_bos, batch_size=settings.batch_size
        )
        work = passes(asked.model, parts, tried, measured, draws=settings.draws, composing=self.compose)
        recorded = recordings(asked.model, measured, len(asked.task), budget=MEMORY)
        memory = memory_of(asked.model, sites, measured, activations=recorded, batch_size=settings.batch_size or 64)
        return Estimate([*decompositions(asked.model, sites, measured), *work], memory)

    def find(self, asked: Asked, folder: RunFolder) -> Findings:
        """Search, look at the test items, draw controls, and compose."""
        settings, (parts, split) = asked.settings, self._parts(asked)
        how = {
            "prepend_bos": settings.prepend_bos, "batch_size": settings.batch_size, "progress": asked.progress,
            "seed": settings.seed,
        }  # fmt: skip
        grid = {"rhos": self.rhos, **how}
        result = laser.search(asked.model, parts, self.sites, strategy=self.strategy, log=folder.log("search"), **grid)
        folder.table("table", result.to_dataframe())
        folder.table("items", result.test.to_dataframe())
        controls = None
        if result.spec:
            surgery.save(result.spec, folder.path / "edit.json", model=asked.model)
            controls = laser.random_controls(
                asked.model, parts.test, result.spec, draws=settings.draws, log=folder.log("controls"), **how
            )
            folder.table("controls", controls.to_dataframe())
        composition, composed = None, None
        if self.compose:
            composition = laser.compose(asked.model, parts, self.sites, log=folder.log("composition"), **grid)
            composed = self._composed(asked, folder, composition)
        return Findings(
            _summary(asked, result, controls, composition, composed),
            _sections(asked, folder, result, controls, composition, composed),
            split,
        )

    def _parts(self, asked: Asked) -> tuple[Splits, str]:
        settings = asked.settings
        return divided(asked.task, settings.split, screen=self.strategy == "screened", seed=settings.seed)

    def _composed(self, asked: Asked, folder: RunFolder, composition: Composition) -> pd.DataFrame | None:
        """The composition and random edits of the same matrices on the test items; None if nothing was kept."""
        folder.table("composition", composition.to_dataframe())
        if not composition.spec:
            return None
        surgery.save(composition.spec, folder.path / "composed.json", model=asked.model)
        rows = [
            _row(
                "the composition itself", composition.test.after.accuracy, composition.test.after.log_loss.mean().item()
            )
        ]
        for seed in range(asked.settings.seed, asked.settings.seed + asked.settings.draws):
            for by, kind in _KINDS.items():
                spec = random_edits(asked.model, composition.spec, by=by, seed=seed)
                said = folder.piece(
                    f"composed control {by} {seed}", lambda spec=spec: _scored(asked, composition.test.before, spec)
                )
                rows.append(_row(kind, said["accuracy"], said["log_loss"]))
        frame = pd.DataFrame(rows)
        folder.table("composed_controls", frame)
        return frame


def passes(
    model: nn.Module, parts: Splits, tried: Sequence[Candidate], measured: Measured, *, draws: int, composing: bool
) -> list[Work]:
    """What the search asks of the model, in items: each trial starts at its matrix's block."""
    v, t = len(parts.screen) + len(parts.validation), len(parts.test)
    trials = sum(fraction_from(model, candidate.site) for candidate in tried)
    n_controls = len(_KINDS) * draws
    work = {
        f"items that choose, unedited and under {counted(len(tried), 'candidate')}": v * (1 + trials),
        "items that report, unedited and edited": 2 * t,
        f"items that report, under {counted(n_controls, 'control')}": t * (2 + n_controls),
    }
    if composing:
        work["items that choose, for the composition"] = v * (1 + trials)
        work["items that report, for the composition and its controls"] = t * (2 + n_controls)
    return [Work(what, times, measured.an_item) for what, times in work.items()]


def random_edits(model: nn.Module, spec: Mapping[str, Edit], *, by: Match, seed: int) -> dict[str, Edit]:
    """For each edit of the spec a random one of the same matrix that removes as much."""
    made = {}
    for site, edit in spec.items():
        components = surgery.decompose(model, site, progress=False)[site]
        made[site] = matched(edit.gains(components), components, by=by, seed=seed)
    return made


def _scored(asked: Asked, before: Scores, spec: Mapping[str, Edit]) -> dict[str, float]:
    """Accuracy and log-loss on the items of an earlier scoring, under the spec."""
    settings = asked.settings
    with surgery.apply(asked.model, spec, progress=False):
        scores = scoring.score(
            asked.model, before.task, prepend_bos=settings.prepend_bos, batch_size=settings.batch_size or 32
        )
    return {"accuracy": scores.accuracy, "log_loss": scores.log_loss.mean().item()}


def _row(control: str, accuracy: float, log_loss: float) -> dict[str, object]:
    return {"control": control, "accuracy": accuracy, "log_loss": log_loss}


def _summary(
    asked: Asked,
    result: SearchResult,
    controls: Controls | None,
    composition: Composition | None,
    composed: pd.DataFrame | None,
) -> list[str]:
    test, n = result.test, len(result.test.before)
    if result.chosen is None or result.chosen.candidate is None:
        lines = [
            f"**No reduction was better than the model as it is** on the {len(result.unedited.scores)} items that "
            f"choose, so none was made. Accuracy on {counted(n, 'other item')}: {percent(test.before.accuracy)}."
        ]
    else:
        lines = [
            f"**{result.chosen.candidate}**, chosen among {counted(len(result.trials), 'candidate')} on "
            f"{counted(len(result.unedited.scores), 'item')}, changes the accuracy on {counted(n, 'other item')} from "
            f"{_change(test)}. Log-loss: {_losses(test)}. {_verdict(test)}"
        ]
        if result.chosen.scores.accuracy == result.unedited.scores.accuracy and result.chosen.scores.values is None:
            lines.append("It was chosen by its log-loss: on the items that choose, no candidate was more accurate.")
    if controls is not None:
        lines.append(_against(test.after.accuracy, controls.to_dataframe(), "The reduction"))
    if composition is not None:
        kept = counted(len(composition.spec), "matrix", "matrices")
        lines.append(
            f"**Composed**, reductions of {kept}: accuracy {_change(composition.test)}. Log-loss: "
            f"{_losses(composition.test)}. {_verdict(composition.test)}"
            if composition.spec
            else "**Composed**: no reduction was kept."
        )
    if composed is not None and composition is not None:
        lines.append(_against(composition.test.after.accuracy, composed, "The composition"))
    rule = test.before.encoded.rule
    if isinstance(rule, Contains) and rule.complete:
        before, after = (side.word_overlap().mean().to_dict() for side in (test.before, test.after))
        said = (f"{name} {percent(before[name])} to {percent(after[name])}" for name in before)
        lines.append(f"Words that the generated texts share with the answers, mean over items: {', '.join(said)}.")
    majority = test.before.majority_accuracy
    if not isnan(majority):
        lines.append(f"Always giving the most frequent answer would get {percent(majority)}.")
    return lines


def _sections(
    asked: Asked,
    folder: RunFolder,
    result: SearchResult,
    controls: Controls | None,
    composition: Composition | None,
    composed: pd.DataFrame | None,
) -> list[Section]:
    sections = [Section("Beside the paper", *_beside(asked, result, composition))]
    figures = {
        "accuracy": plots.laser.laser_heatmap(result),
        "log_loss": plots.laser.laser_heatmap(result, value="log_loss"),
        "corrected": plots.laser.corrected_broken(result if composition is None else [result, composition]),
    }
    written = write_figures(folder.path, figures)
    best = _best(result)
    sections.append(
        Section(
            "The search",
            [
                f"The ten best of {counted(len(result.trials), 'candidate')} on the items that choose; all are in "
                "[table.csv](table.csv), and every item of the rest in [items.csv](items.csv). `corrected` and "
                "`broken` count items against the unedited model; log-loss is in nats per token. Weights: "
                + result.weight_state
                + "."
            ],
            [best],
            written,
        )
    )
    if controls is not None:
        sections.append(_control_section("Controls of the reduction", controls.to_dataframe(), "controls.csv"))
    if composition is not None:
        steps = composition.to_dataframe()
        columns = ["step", "site", "edit", "rho", "accuracy", "log_loss"]
        kept = pd.DataFrame(steps.loc[steps["accepted"]], columns=columns)
        said = f"{len(kept)} of {counted(len(steps), 'step')} were kept; all are in [composition.csv](composition.csv)."
        sections.append(Section("The composition", [said], [kept]))
    if composed is not None:
        sections.append(_control_section("Controls of the composition", composed, "composed_controls.csv"))
    return sections


def _beside(
    asked: Asked, result: SearchResult, composition: Composition | None
) -> tuple[list[str], list[pd.DataFrame]]:
    """The paper's numbers, where they are at hand, over ours."""
    known = published(LASER, asked.task.name)
    paper = ["the paper", "", NOT_AT_HAND, NOT_AT_HAND, NOT_AT_HAND, NOT_AT_HAND]
    note = "The paper's own figures for this task were not at hand."
    if known is not None:
        composed = NOT_AT_HAND if known.composed is None else percent(known.composed)
        edit = known.edit or NOT_AT_HAND
        paper = ["the paper", known.model, percent(known.before), percent(known.after), composed, edit]
        note = (
            f"The paper's figures are those of {known.model} on its own choice of items. Another model, prompt, split "
            "or version of the data is another experiment."
        )
    chosen = "none" if result.chosen is None else str(result.chosen.candidate)
    together = "not asked for" if composition is None else percent(composition.test.after.accuracy)
    ours = [
        "here", short_name(asked.settings.model), percent(result.test.before.accuracy),
        percent(result.test.after.accuracy), together, chosen,
    ]  # fmt: skip
    columns = ["", "model", "accuracy before", "one reduction", "composed", "which reduction"]
    return [note], [pd.DataFrame([paper, ours], columns=columns)]


def _best(result: SearchResult) -> pd.DataFrame:
    frame = result.to_dataframe()
    frame = frame.loc[frame["split"] == "validation"].sort_values(["accuracy", "log_loss"], ascending=[False, True])
    frame = pd.concat([frame.loc[frame["site"] != ""].head(10), frame.loc[frame["site"] == ""]])
    frame["site"] = frame["site"].replace("", "unedited")
    return pd.DataFrame(frame, columns=["site", "rho", "n_items", "accuracy", "log_loss", "corrected", "broken"])


def _control_section(title: str, frame: pd.DataFrame, file: str) -> Section:
    named = {"draws": "count", "min": "min", "mean": "mean", "max": "max"}
    grouped = frame.groupby("control", sort=False)
    losses = {f"log-loss, {name}": ("log_loss", name) for name in ("min", "mean")}
    table = grouped.agg(**{name: ("accuracy", how) for name, how in named.items()}, **losses).reset_index()
    table = table.rename(columns={name: f"accuracy, {name}" for name in ("min", "mean", "max")})
    said = f"On the items that report; log-loss in nats per token. Every draw is in [{file}]({file})."
    return Section(title, [said], [table])


def _against(accuracy: float, frame: pd.DataFrame, what: str) -> str:
    """The edit beside the strongest of its controls, which are the rows after the first."""
    controls, log_loss = frame.iloc[1:], float(frame["log_loss"].iloc[0])
    strongest = controls.sort_values(["accuracy", "log_loss"], ascending=[False, True]).iloc[0]
    less, as_much = (
        int(n) for n in ((controls["accuracy"] < accuracy).sum(), (controls["accuracy"] == accuracy).sum())
    )
    worse = int((controls["log_loss"] > log_loss).sum())
    return (
        f"{what} is more accurate than {less} of {counted(len(controls), 'random control')}, and as accurate as "
        f"{as_much}; its log-loss is lower than that of {worse}. The strongest control, {strongest['control']}, has "
        f"{percent(float(strongest['accuracy']))} and a log-loss of {float(strongest['log_loss']):.3f}; the lowest "
        f"log-loss of a control is {float(controls['log_loss'].min()):.3f}."
    )


def _change(test: Comparison) -> str:
    low, high = 100 * test.accuracy.low, 100 * test.accuracy.high
    return (
        f"{percent(test.before.accuracy)} to {percent(test.after.accuracy)} "
        f"({100 * test.accuracy.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}; "
        f"{len(test.corrected)} corrected, {len(test.broken)} broken)"
    )


def _losses(test: Comparison) -> str:
    was, now, change = test.before.log_loss.mean().item(), test.after.log_loss.mean().item(), test.log_loss
    return f"{was:.3f} to {now:.3f} nats per token ({change.low:+.3f} to {change.high:+.3f})"


def _verdict(test: Comparison) -> str:
    if test.accuracy.covers_zero:
        return "The interval of the change of accuracy covers 0: no evidence of a gain in accuracy."
    return f"A {'gain' if test.accuracy.low > 0 else 'loss'} of accuracy on items that nothing was chosen on."
