"""Whether a score chose better than its controls: decided from paired differences, and said in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch

from analyses.scoring import Change, Scores
from analyses.statistics import bounded_interval, check_level
from surgery.arguments import counted, fraction

Outcome = Literal["beyond", "as good", "behind", "undecided"]


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What the score's choice shows beyond as many components chosen by the controls.

    `leads` holds, for each control, the accuracy with the score's choice removed less that with the control's, paired
    item by item, on the items that are reported on. Its intervals hold at `level` for all controls together.

    | outcome | when |
    |---|---|
    | "behind" | a control is better: a lead's interval lies below 0 |
    | "beyond" | better than every control: all intervals lie above 0 |
    | "as good" | a control does as well: a lead of more than `margin` over it is outside its interval |
    | "undecided" | otherwise: more items are needed |

    Args:
        variant: what was held against the controls.
        outcome: one of the four.
        control: the strongest control, the one that decides: the interval that ends lowest, or for "beyond" the one
            that begins lowest.
        leads: the paired differences of accuracy.
        n_items: how many items they are means over.
        n_clusters: how many clusters these items make, which are drawn as one (i x j and j x i, paraphrases).
        level: of the intervals, for all controls together.
        margin: the largest lead that counts as none, a fraction of the items.
    """

    variant: str
    outcome: Outcome
    control: str
    leads: dict[str, Change]
    n_items: int
    n_clusters: int
    level: float
    margin: float

    @property
    def lead(self) -> Change:
        """The lead over the strongest control."""
        return self.leads[self.control]

    def __str__(self) -> str:
        lead, other = self.lead, f"'{self.control.removeprefix(self.variant.removesuffix('pruned'))}'"
        match self.outcome:
            case "beyond":
                said = f"the score chooses better than every control; the strongest is {other}"
            case "behind":
                said = f"the score shows nothing beyond {other}, which does better"
            case "as good":
                said = f"the score shows nothing beyond {other}, which does as well"
            case "undecided" if lead.difference <= 0:
                said = f"the score shows nothing beyond {other} here; too few items to rule it out"
            case "undecided":
                said = f"undecided whether the score shows anything beyond {other}: too few items"
        return (
            f"{self.variant}: {said}\n"
            f"  (lead in accuracy {lead}; {counted(self.n_items, 'item')}, "
            f"{counted(self.n_clusters, 'cluster')}; {self.level:.0%} for {counted(len(self.leads), 'control')}; "
            f"margin {self.margin:g})"
        )


def decided(
    variant: str,
    chosen: Scores,
    controls: Mapping[str, Scores],
    *,
    margin: float | int = 0.05,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """The verdict on a choice of components, from the same items under the choice and under every control.

    Intervals are of `analyses.statistics.bounded_interval` over clusters of items, each at 1 − (1 − level)/m for m
    controls (Bonferroni), so that the strongest may be picked afterwards.

    Raises:
        ValueError: if there is no control, or the margin, the level or the number of resamples is impossible.
    """
    margin = fraction(margin, "margin")
    check_level(level)
    if not controls:
        raise ValueError(f"{variant!r} has no control to be held against: only a choice beside others is judged.")
    rows = torch.stack([chosen.correct.double() - scores.correct.double() for scores in controls.values()], 1)
    low, high = bounded_interval(
        rows, clusters=chosen.clusters, level=1 - (1 - level) / len(controls), resamples=resamples, seed=seed
    ).tolist()
    leads = {name: Change(*ends) for name, *ends in zip(controls, rows.mean(0).tolist(), low, high, strict=True)}
    by_end = min(leads, key=lambda name: leads[name].high)
    outcome: Outcome = "undecided"
    if leads[by_end].high < 0:
        outcome = "behind"
    elif min(low) > 0:
        outcome, by_end = "beyond", min(leads, key=lambda name: leads[name].low)
    elif leads[by_end].high <= margin:
        outcome = "as good"
    n_clusters = int(chosen.clusters.max()) + 1
    return Verdict(variant, outcome, by_end, leads, len(rows), n_clusters, level, margin)
