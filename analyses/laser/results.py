"""What a search found: every trial, the choice on the validation items, the one look at the test items."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import final

import pandas as pd

from analyses.laser.candidates import Candidate
from analyses.laser.reports import TextCost, comparison_rows, test_report, trial_row
from analyses.laser.trials import UNEDITED, Trial
from analyses.scoring import Comparison
from surgery import Edit
from surgery.arguments import counted


@final
@dataclass(frozen=True, slots=True, repr=False)
class SearchResult:
    """What a search found.

    Args:
        task: the task's name.
        strategy: `exhaustive` or `screened`.
        seed: of the split and the order of the race.
        weight_state: which form of the weights was decomposed.
        unedited: the model as it was given, on the validation items.
        trials: every candidate tried, in the order given. In a screened search the items stand in the order of the
            race, and some candidates have seen the first of them only, among which undecided items are frequent.
        chosen: the best on all validation items, by accuracy, then log-loss; None if that is the unedited model.
        test: the unedited and the chosen model on the test items.
        text: the cost of the choice on the user's plain text, if one was given.
        promises: in a screened search, by how much each candidate could lower the loss to first order, in nats.
        items_run: how many times a validation item was asked, of a candidate or of the unedited model.
    """

    task: str
    strategy: str
    seed: int
    weight_state: str
    unedited: Trial
    trials: tuple[Trial, ...]
    chosen: Trial | None
    test: Comparison
    text: TextCost | None
    promises: Mapping[Candidate, float]
    items_run: int

    @property
    def spec(self) -> dict[str, Edit]:
        """The chosen edit as `surgery.apply` takes it; empty if none was better than the unedited model."""
        return {} if self.chosen is None or self.chosen.candidate is None else self.chosen.candidate.spec

    @property
    def is_improvement(self) -> bool:
        """Whether the interval of the test gain lies above 0."""
        return self.test.accuracy.low > 0

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each candidate and split it was tried on: site, rho, split, accuracy, log_loss and the rest.

        Unedited rows have an empty site. `n_items` is smaller than the split where a screened search gave up on a
        candidate. `corrected` and `broken` count items against the unedited model.
        """
        before = self.unedited.scores
        rows = [trial_row(self.unedited, None, "validation")]
        rows += [trial_row(one, before, "validation") for one in self.trials]
        rows += comparison_rows(self.test, None if self.chosen is None else self.chosen.candidate)
        frame = pd.DataFrame(rows)
        chosen = None if self.chosen is None else str(self.chosen.candidate)
        frame.insert(0, "task", self.task)
        promised = {str(one): value for one, value in self.promises.items()}
        frame["promise"] = [promised.get(name, nan) for name in frame["candidate"]]
        frame["chosen"] = [name == (chosen or UNEDITED) for name in frame["candidate"]]
        return frame.drop(columns="candidate")

    def __repr__(self) -> str:
        n = self.unedited.summary.n_items
        whole = [one for one in self.trials if one.summary.n_items == n]
        lines = [
            f"LASER search of {self.task!r}, {self.strategy}: {counted(len(self.trials), 'candidate')} tried, "
            f"{len(whole)} of them on all of {counted(n, 'validation item')}; seed {self.seed}, "
            f"weights {self.weight_state}",
            f"chosen on validation: {_choice(self.unedited, self.chosen)}",
            *test_report(self.test, self.text),
        ]
        return "\n".join(lines)


def _choice(unedited: Trial, chosen: Trial | None) -> str:
    was = unedited.summary
    if chosen is None:
        return f"nothing, no candidate was better than accuracy {was.accuracy:.3f}, log-loss {was.log_loss:.3f}"
    now = chosen.summary
    return (
        f"{chosen.candidate}, accuracy {was.accuracy:.3f} → {now.accuracy:.3f}, "
        f"log-loss {was.log_loss:.3f} → {now.log_loss:.3f} nats per token"
    )
