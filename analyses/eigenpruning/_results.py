"""What Eigenpruning gives: what was removed, why, and what it did to items that were not scored."""

from dataclasses import dataclass
from typing import final

import pandas as pd
from torch import nn

from analyses.attribution.effects import Selection
from analyses.eigenpruning._settings import Method
from analyses.eigenpruning.scores import ComponentScores
from analyses.scoring import Comparison, Scores, compare
from surgery import Edit
from surgery.arguments import counted


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
    "pruned", the controls ("random 1", …, "smallest s", "sign flipped") and, if asked for, "fine-tuned" and "fine-tuned
    + pruned". `validation` has a row for each fraction that was tried.
    """

    spec: dict[str, Edit]
    attribution: ComponentScores
    chosen: Selection
    fraction: float
    method: Method
    scores: dict[str, Scores]
    validation: pd.DataFrame | None = None
    fine_tuned: FineTuned | None = None

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

        Changes come with 95 % intervals.
        """
        rows = []
        for name in self.scores:
            row: dict[str, str | int | float] = {"variant": name} | self.scores[name].summary().as_row()
            changes = self.compare(name)
            for quantity in ("accuracy", "log_loss"):
                change = getattr(changes, quantity)
                row[f"{quantity}_change"] = change.difference
                row |= {f"{quantity}_low": change.low, f"{quantity}_high": change.high}
            rows.append(row)
        return pd.DataFrame(rows).drop(columns=["task", "n_unscorable"])

    def __repr__(self) -> str:
        lines = [
            f"eigenpruning: {self.chosen.n_components} of {counted(self.attribution.n_components, 'component')} "
            f"removed ({self.fraction:.3g}, budget {self.method.budget}), compensation {self.method.compensation}",
            f"scored on {counted(self.attribution.n_examples, 'item')} by {self.attribution.reduce}, "
            f"reported on {counted(len(self.scores['base']), 'other')}; 95 % intervals",
        ]
        sums = pd.DataFrame({name: scores.summary().as_row() for name, scores in self.scores.items()}).T
        table = sums[["accuracy", "log_loss", "p_correct", "p_wrong"]].astype(float)
        changes = ["" if name == "base" else str(self.compare(name).accuracy) for name in self.scores]
        table.insert(1, "change of accuracy", changes)
        return "\n".join([*lines, table.to_string(float_format="%.3f")])
