"""What the two truncation studies share: which matrices are cut where, and which words are tracked after a prompt."""

from dataclasses import dataclass
from typing import ClassVar

from analyses.papers._method import Asked, Method
from analyses.papers._published import TRUNCATION
from analyses.scoring import rule_for
from analyses.tasks import Task
from analyses.truncation import RHOS, Several, one_token_each
from analyses.truncation import Prompts as TrackedPrompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks(Method):
    """A study of cuts, by what they do to the answers and to a generic word.

    Args:
        sites: the matrices to cut.
        rhos: the fractions of the rank at which they are cut.
        generic: the word that the paper finds where the answer is not yet known; None to track none.
        several: what is done about words of several tokens.
    """

    paper: ClassVar[str] = TRUNCATION
    kinds: ClassVar[tuple[str, ...]] = ("answer",)
    sites: tuple[str, ...] = ("blocks.*.mlp.W_{in,out}",)
    rhos: tuple[float, ...] = RHOS
    generic: str | None = " the"
    several: Several = "refuse"

    def prompts(self, asked: Asked, task: Task) -> TrackedPrompts:
        """The prompts with what is tracked after them; those with words of several tokens as `several` says."""
        return one_token_each(
            asked.model, task, None, generic=self.generic, prepend_bos=asked.settings.prepend_bos, several=self.several
        )[0]


def cuts_of_a_matrix(n_rhos: int, *, generating: bool) -> int:
    """How many edits one matrix is tried under: both ends at each ρ; on prompts also its top dropped, and its MLP."""
    return 2 * n_rhos + (0 if generating else 2)


def generates(task: Task) -> bool:
    """Whether the task is judged by what the model generates."""
    return rule_for(task, None)[0].new_tokens > 0
