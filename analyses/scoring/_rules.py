"""What counts as right by the logits of one pass: an answer that comes first, the likeliest of several texts."""

# All rules share their unit and direction, and are named after their settings: class variables and a property stand
# where other metrics have fields.
# pyright: reportIncompatibleVariableOverride=false

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final, get_args

from jaxtyping import Float
from torch import Tensor

from analyses.metrics import Metric, of_tasks
from analyses.metrics.of_tasks import OfTask
from analyses.metrics.readings import Readings, amax_by, summed
from analyses.prompts import Continuations
from analyses.tasks.items import Kind
from analyses.tasks.task import Task
from surgery.arguments import one_of, shown

Per: TypeAlias = Literal["sequence", "token", "byte"]


class Rule(OfTask):
    """When an item counts as right. A rule is a metric of a task: 1 where an item is right, 0 where it is wrong."""

    __slots__ = ()
    kinds: tuple[Kind, ...]
    unit: ClassVar[str] = "fraction"
    higher_is_better: ClassVar[bool | None] = True
    differentiable: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        return f"accuracy by {self!r}"

    @property
    def new_tokens(self) -> int:
        """How many tokens the model has to generate."""
        return 0

    @property
    def n_generated(self) -> int:
        """How many texts the model has to generate for each item."""
        return 0

    def check(self, task: Task) -> None:
        """Refuse a task that this rule cannot judge.

        Raises:
            ValueError: if there is something about its items.
        """


@final
@dataclass(frozen=True, slots=True)
class StartsWith(Rule):
    """Right if greedy generation begins with an accepted answer.

    It does if and only if every token of the answer is the likeliest after those before it, so that one forward pass
    tells. The answer's own tokenisation is asked for; another spelling of the same text is another alternative.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("answer",)

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """1 where every token of an accepted answer is the likeliest, else 0."""
        return of_tasks.first(table, readings)


@final
@dataclass(frozen=True, slots=True)
class Likeliest(Rule):
    """Right if a right text has a higher log-probability than every wrong one; equal does not count.

    Args:
        per: what the sum of the tokens' log-probabilities is divided by: nothing, their number, or the text's bytes.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("choice", "pair")
    per: Per = "sequence"

    def __post_init__(self) -> None:
        one_of(self.per, "Likeliest was given per", get_args(Per))

    def check(self, task: Task) -> None:
        """Refuse to divide by the bytes of token ids."""
        texts = (text for item in task.items for text in (*item.right, *item.wrong))
        if self.per == "byte" and not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{self!r} is given for task {task.name!r}, which has token ids: only strings have a length in bytes. "
                "Take per='token'."
            )

    def compared(self, table: Continuations, log_p: Float[Tensor, " continuation"]) -> Float[Tensor, " continuation"]:
        """What the continuations are compared by."""
        return log_p / {"sequence": 1, "token": table.length, "byte": table.n_bytes}[self.per]

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """1 where a right text is likelier than every wrong one, else 0."""
        values = self.compared(table, summed(table, readings.log_prob.cpu()))
        right, wrong = (amax_by(values, table.item, side, table.n_items) for side in (table.right, ~table.right))
        return (right > wrong).float()


def rule_for(task: Task, rule: Rule | Metric | None) -> tuple[Rule, Metric | None]:
    """The rule, or the task's default one, and what else is measured: the metric that was given in a rule's place.

    Raises:
        ValueError: if the task is empty, or the rule is not for items of its kind.
        TypeError: if it is neither a rule nor a metric.
    """
    if rule is not None and not isinstance(rule, Metric):
        raise TypeError(
            f"rule={shown(rule)}: give a rule, such as StartsWith() or Contains(10), a metric, such as "
            "metrics.log_prob(), or None."
        )
    if not isinstance(rule, Rule):
        return (StartsWith() if task.kind == "answer" else Likeliest()), rule
    if task.kind not in rule.kinds:
        raise ValueError(
            f"{rule!r} is given for task {task.name!r}, whose items are of kind {task.kind!r}: "
            f"it is for the kinds {' and '.join(rule.kinds)}. "
            f"{'StartsWith and Contains are' if task.kind == 'answer' else 'Likeliest is'} for {task.kind}."
        )
    rule.check(task)
    return rule, None
