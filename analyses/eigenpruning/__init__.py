"""Eigenpruning: remove the components whose input does nothing for the answers, and see whether the answers get better.

    result = eigenpruning.prune(model, task, sites="blocks.*.attn.W_K[*]", fraction=0.2)
    with surgery.apply(model, result.spec):
        ...

Components are scored on one part of the task (`eigenpruning.scores`), the lowest are removed, what they gave is
replaced by its mean, and everything is reported on another part, beside controls that remove as many. `Method` has the
choices of the paper, `Best` tries several fractions, `Report` says what else is reported.

Vergara-Browne, Soto, Aizawa, "Eigenpruning" (arXiv:2404.03147).
"""

from analyses.eigenpruning._finetuning import FineTuning
from analyses.eigenpruning._given import Score as Score
from analyses.eigenpruning._pruning import prune, published
from analyses.eigenpruning._reducers import Reduce as Reduce
from analyses.eigenpruning._results import FineTuned as FineTuned
from analyses.eigenpruning._results import Pruning as Pruning
from analyses.eigenpruning._settings import Best, Method, Report
from analyses.eigenpruning._verdict import Verdict as Verdict
from analyses.eigenpruning.examples import Corrupt as Corrupt
from analyses.eigenpruning.examples import Per as Per
from analyses.eigenpruning.scores import Budget as Budget
from analyses.eigenpruning.scores import Compensation as Compensation
from analyses.eigenpruning.scores import ComponentScores as ComponentScores
from analyses.eigenpruning.scores import attribute

__all__ = [
    "Best", "FineTuning", "Method", "Report", "attribute", "prune", "published",
]  # fmt: skip
