"""A search's finds in words and rows: what happened on the test items, what it cost, what each trial scored."""

from dataclasses import dataclass
from math import isnan, nan
from typing import final

import pandas as pd

from analyses.laser.candidates import Candidate
from analyses.laser.trials import UNEDITED, Trial
from analyses.scoring import Comparison, Scores
from surgery import SVD


@final
@dataclass(frozen=True, slots=True)
class TextCost:
    """The mean next-token loss on the user's plain text, in nats per token, before and after."""

    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.before:.4f} → {self.after:.4f}, {self.after - self.before:+.4f} nats per token"


def test_report(test: Comparison, text: TextCost | None) -> list[str]:
    """The look at the test items in words: gain, baselines, verdict, cost."""
    majority = test.before.majority_accuracy
    lines = [f"test, looked at once: {test!r}"]
    if not isnan(majority):
        always = f"always giving the most frequent answer: accuracy {majority:.3f}"
        better = test.after.accuracy > majority
        lines.append(always if better else f"{always}, which the edited model does not exceed")
    lines.append(f"verdict: {_verdict(test)}")
    if text is not None:
        lines.append(f"loss on the plain text: {text}")
    return lines


def trial_row(one: Trial, before: Scores | None, split: str) -> dict[str, object]:
    """A trial as a row of a table; corrected and broken items are counted against `before`, on the items both have."""
    scores = one.scores
    row = name_of(one.candidate) | {"split": split} | one.summary.as_row()
    row.pop("task")
    return row | _changed(before, scores)


def comparison_rows(test: Comparison, candidate: Candidate | None) -> list[dict[str, object]]:
    """The test items without and with an edit, as rows of a table."""
    rows = []
    for scores, name in ((test.before, None), (test.after, candidate)):
        row = name_of(name) | {"split": "test"} | scores.summary().as_row()
        row.pop("task")
        rows.append(row | _changed(None if scores is test.before else test.before, scores))
    return rows if candidate is not None else rows[:1]


def name_of(candidate: Candidate | None) -> dict[str, object]:
    """A candidate as the first columns of a row."""
    if candidate is None:
        return {
            "candidate": UNEDITED, "site": "", "layer": pd.NA, "matrix": "", "edit": UNEDITED, "basis": "", "rho": 1.0,
        }  # fmt: skip
    edit, rho = candidate.edit, candidate.rho
    return {
        "candidate": str(candidate),
        "site": str(candidate.site),
        "layer": candidate.site.layer,
        "matrix": candidate.site.matrix,
        "edit": type(edit).__name__ if rho is not None and edit.basis == SVD() else repr(edit),
        "basis": repr(edit.basis),
        "rho": nan if rho is None else rho,
    }


def _changed(before: Scores | None, after: Scores) -> dict[str, object]:
    if before is None:
        return {"corrected": 0, "broken": 0}
    was, now = before.correct[: len(after)], after.correct
    return {"corrected": int((~was & now).sum()), "broken": int((was & ~now).sum())}


def _verdict(test: Comparison) -> str:
    if test.accuracy.covers_zero:
        return "no evidence of a gain: the interval of the test gain covers 0"
    return "a gain on unseen items" if test.accuracy.low > 0 else "a loss on unseen items"
