"""What Eigenpruning gives: what was removed, why, and what it did to items that were not scored."""

from dataclasses import dataclass
from math import nan
from typing import final

import pandas as pd
from torch import nn

from analyses.attribution.effects import Effects, Selection
from analyses.eigenpruning._settings import Method
from analyses.eigenpruning._verdict import Verdict, decided
from analyses.eigenpruning.examples import Per
from analyses.eigenpruning.scores import ComponentScores
from analyses.scoring import Change, Comparison, Scores, compare
from surgery import Edit
from surgery.arguments import counted

FINE_TUNED = "fine-tuned + "
"""What the names of variants of the fine-tuned copy begin with."""
CONTROLS = ("random ", "smallest s", "sign flipped")
"""What the names of controls begin with."""
_ASKED: dict[Per, str] = {
    "token": "the mean cross-entropy over an answer's tokens",
    "sequence": "the cross-entropy of an answer, summed over its tokens",
    "first": "the cross-entropy of an answer's first token",
}


@final
@dataclass(frozen=True, slots=True)
class FineTuned:
    """A fine-tuned copy of the model, and what was pruned from it."""

    model: nn.Module
    spec: dict[str, Edit]
    attribution: ComponentScores


@final
@dataclass(frozen=True, slots=True, repr=False)
class Pruning:
    """What was removed, why, and what it did to the held-out items.

    `chosen` are the removed components, `fraction` how many of all they are. `scores` holds, on the test part, "base",
    "pruned", the controls ("random 1", …, "smallest s", "sign flipped") and, if asked for, "fine-tuned", "fine-tuned +
    pruned" and controls of that, "fine-tuned + random 1" and so on. `validation` has a row for each fraction that was
    tried. `split` is the seed by which the task was split here, None where its parts were given.
    """

    spec: dict[str, Edit]
    attribution: ComponentScores
    chosen: Selection
    fraction: float
    method: Method
    scores: dict[str, Scores]
    validation: pd.DataFrame | None = None
    fine_tuned: FineTuned | None = None
    split: int | None = None

    def verdict(
        self,
        variant: str = "pruned",
        *,
        margin: float | int = 0.05,
        level: float = 0.95,
        resamples: int = 10_000,
        seed: int = 0,
    ) -> Verdict:
        """Whether the score's choice shows anything beyond its controls, on the items that are reported on.

        `variant` is "pruned" or "fine-tuned + pruned". A control does as well where a lead of more than `margin` (a
        fraction of the items) over it can be excluded.

        Raises:
            KeyError: if there is no such variant, or nothing was held against it.
        """
        controls = self._controls(variant)
        if not controls:
            raise KeyError(f"{variant!r} is held against no control; there are {', '.join(self._judged)}.")
        return decided(
            variant, self.scores[variant], controls, margin=margin, level=level, resamples=resamples, seed=seed
        )

    def compare(self, variant: str = "pruned", *, to: str = "base", seed: int = 0) -> Comparison:
        """A variant held against another, with intervals over clusters of items.

        Raises:
            KeyError: if there is no such variant.
        """
        for name in (variant, to):
            if name not in self.scores:
                raise KeyError(f"{name!r} is no variant of this result; there are {', '.join(self.scores)}.")
        return compare(self.scores[to], self.scores[variant], seed=seed)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each variant: accuracy, log-loss (nats per token), probabilities, and what changed from "base".

        Changes come with 95 % intervals. `lead` is the accuracy of "pruned" ("fine-tuned + pruned") less that of its
        control, with intervals that hold for all its controls together; missing for other variants.
        """
        rows, leads = [], self._leads()
        for name in self.scores:
            row: dict[str, str | int | float] = {"variant": name} | self.scores[name].summary().as_row()
            changes = self.compare(name)
            for quantity in ("accuracy", "log_loss"):
                change = getattr(changes, quantity)
                row[f"{quantity}_change"] = change.difference
                row |= {f"{quantity}_low": change.low, f"{quantity}_high": change.high}
            lead = leads.get(name, Change(nan, nan, nan))
            rows.append(row | {"lead": lead.difference, "lead_low": lead.low, "lead_high": lead.high})
        return pd.DataFrame(rows).drop(columns=["task", "n_unscorable"])

    def __repr__(self) -> str:
        scored, leads = self.attribution, self._leads()
        split = "in given parts" if self.split is None else f"split with seed {self.split}, groups whole"
        found_before = isinstance(self.method.score, Effects)
        asked = scored.effects.measure.label if found_before else _ASKED[self.method.per]
        bos = {None: "as the model has it", True: "prepended", False: "not prepended"}[self.method.prepend_bos]
        lines = [
            f"eigenpruning: {self.chosen.n_components} of {counted(scored.n_components, 'component')} "
            f"removed ({self.fraction:.3g}, budget {self.method.budget}), compensation {self.method.compensation}",
            f"scored on {counted(scored.n_examples, 'item')} by {scored.effects.method},",
            f"  {scored.reduce} over {scored.over}; asked: {asked}",
            f"reported on {counted(len(self.scores['base']), 'other')} ({split}; BOS {bos});",
            f"  right by {self.scores['base'].encoded.rule!r}; 95 % intervals",
        ]
        sums = pd.DataFrame({name: scores.summary().as_row() for name, scores in self.scores.items()}).T
        sums = sums.assign(loss=sums["log_loss"])
        table = sums[["accuracy", "loss", "p_correct", "p_wrong"]].astype(float)
        changes = {name: self.compare(name).accuracy for name in self.scores if name != "base"}
        table.insert(1, "change of accuracy", [_shown(changes.get(name), 3) for name in self.scores])
        table["lead over it"] = [_shown(leads.get(name), 2) for name in self.scores]
        verdicts = [str(self.verdict(variant)) for variant in self._judged]
        if not self.chosen.n_components:
            verdicts = ["nothing was removed, so there is nothing to hold against controls"]
        return "\n".join([*lines, table.to_string(float_format="%.3f"), *verdicts])

    @property
    def _judged(self) -> tuple[str, ...]:
        """The variants that are held against controls."""
        return tuple(name for name in ("pruned", FINE_TUNED + "pruned") if name in self.scores)

    def _controls(self, variant: str) -> dict[str, Scores]:
        """What a variant is held against: as many components of the same model, chosen otherwise."""
        if variant not in self._judged:
            return {}
        prefix = variant.removesuffix("pruned")
        names = [name for name in self.scores if name.removeprefix(prefix).startswith(CONTROLS)]
        return {name: self.scores[name] for name in names if name.startswith(prefix)}

    def _leads(self) -> dict[str, Change]:
        """The lead of the score's choice over every control."""
        return {name: lead for variant in self._judged for name, lead in self.verdict(variant).leads.items()}


def _shown(change: Change | None, digits: int) -> str:
    """A difference and its interval, for a table; nothing where there is none."""
    if change is None:
        return ""
    return f"{change.difference:+.{digits}f} [{change.low:+.{digits}f}, {change.high:+.{digits}f}]"
