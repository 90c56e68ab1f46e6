"""The papers' own numbers, as far as their text was at hand; everything else is said not to be."""

from dataclasses import dataclass
from typing import final

LASER, EIGENPRUNING, TRUNCATION = "arXiv:2312.13558", "arXiv:2404.03147", "arXiv:2406.03068"


@final
@dataclass(frozen=True, slots=True)
class Published:
    """What a paper reports for one of its tasks: the model, accuracies as fractions, and which edit was made.

    Args:
        paper: by its number.
        task: the recipe's name.
        model: that the paper asked.
        before: accuracy of the model as it was.
        after: accuracy under the paper's one edit.
        composed: accuracy under several reductions together; None where it is not at hand.
        edit: which edit it was; empty where it is not at hand.
    """

    paper: str
    task: str
    model: str
    before: float
    after: float
    composed: float | None = None
    edit: str = ""


PUBLISHED = (
    Published(LASER, "counterfact", "GPT-J 6B", 0.131, 0.240, 0.292, "U_in of layer 27, ρ = .01"),
    Published(LASER, "bios-gender", "GPT-J 6B", 0.709, 0.975),
    Published(
        EIGENPRUNING, "int-mult", "Phi-2", 0.1375, 0.975, None, "lowest 20 % of the components of W_K, 80 test items"
    ),
)


def published(paper: str, task: str) -> Published | None:
    """What the paper reports for this task; None where its text was not at hand.

    >>> from analyses.papers._published import LASER, published
    >>> published(LASER, "bios-gender").after
    0.975
    """
    return next((entry for entry in PUBLISHED if (entry.paper, entry.task) == (paper, task)), None)
