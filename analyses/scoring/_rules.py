"""What counts as right: an answer that comes first, one found in a generated text, the likeliest of several texts."""

# All rules share their unit and direction, and are named after their settings: class variables and a property stand
# where other metrics have fields.
# pyright: reportIncompatibleVariableOverride=false

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final, get_args

from jaxtyping import Float
from torch import Tensor

from analyses.metrics import Metric
from analyses.metrics.of_tasks import OfTask
from analyses.metrics.readings import Readings, amax_by, place_of, summed, worst_rank
from analyses.prompts import Continuations
from analyses.tasks.items import Kind
from analyses.tasks.task import Task
from analyses.tokens.items import TokenisedItem
from analyses.tokens.tokenizer import Vocabulary
from surgery.arguments import counted, one_of, shown, whole

Per: TypeAlias = Literal["sequence", "token", "byte", "first"]


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

    def undecided(self, item: TokenisedItem, words: Vocabulary) -> str:
        """Why the rule cannot tell the item's right texts from its wrong ones; empty if it can."""
        return ""


@final
@dataclass(frozen=True, slots=True, repr=False)
class StartsWith(Rule):
    """Right if greedy generation begins with an accepted answer.

    It does if and only if every token of the answer is the likeliest after those before it, so that one forward pass
    tells. The answer's own tokenisation is asked for; another spelling of the same text is another alternative.

    Args:
        n_tokens: how many of an answer's tokens have to come, from the first on; None for all. Eigenpruning
            (arXiv:2404.03147) asks for 1.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("answer",)
    n_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.n_tokens is not None:
            whole(self.n_tokens, "StartsWith was given n_tokens", least=1)

    def __repr__(self) -> str:
        return "StartsWith()" if self.n_tokens is None else f"StartsWith(n_tokens={self.n_tokens})"

    def undecided(self, item: TokenisedItem, words: Vocabulary) -> str:
        """Why, where an answer and a distractor begin with the same tokens, of which no others are looked at."""
        return "" if self.n_tokens is None else _alike(item, self.n_tokens, words)

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """1 where every token of an accepted answer that counts is the likeliest, else 0."""
        return (worst_rank(table, readings.rank, n_tokens=self.n_tokens) == 0).float()


@final
@dataclass(frozen=True, slots=True)
class SaysNext(Rule):
    """Right if the likeliest next token says an accepted answer, whatever its case and the white space around it.

    Its text is compared with the whole answer, so that an answer of several tokens is never right. `Scores.top` counts
    the answer's own tokens, in its own case.

    Source: the accuracy of LASER (arXiv:2312.13558) on CounterFact.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("answer",)

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """Raises: the text of a token is no function of the logits."""
        raise ValueError(
            f"{self!r} compares the text of the likeliest token, which is no function of the logits alone. Take "
            "StartsWith() or a metric, such as metrics.log_prob()."
        )

    def says(self, answer: str, text: str) -> bool:
        """Whether the token's text says the answer."""
        return text.strip().casefold() == answer.strip().casefold()


@final
@dataclass(frozen=True, slots=True)
class Contains(Rule):
    """Right if an accepted answer is found among the first tokens generated greedily, the prompt not being looked at.

    String answers are looked for in the generated text up to the end-of-text token, ids in the generated ids.
    Generation goes on from the prompt exactly as it is given, spaces at its end included. Every token takes a whole
    forward pass, of which nothing is kept: the speed-ups of `laser` are those of rules that read an answer off one
    forward pass, such as `StartsWith`, and generation has none of them.

    Args:
        n_tokens: how many tokens to generate.
        whole_words: whether a letter or digit right before or after the answer speaks against it: "he" is not in "the".
            Turn it off for languages that do not separate words.
        ignore_case: if True, compare without regard to case.

    Source: the generation accuracy of LASER (arXiv:2312.13558).
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("answer",)
    n_tokens: int = 10
    whole_words: bool = True
    ignore_case: bool = True

    def __post_init__(self) -> None:
        whole(self.n_tokens, "Contains was given n_tokens", least=1)

    @property
    def new_tokens(self) -> int:
        """How many tokens are generated."""
        return self.n_tokens

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """Raises: what is generated is no function of the logits of one pass."""
        raise ValueError(
            f"{self!r} has the model generate {counted(self.n_tokens, 'token')}, which is no function of the logits of "
            "one pass. Take StartsWith() or a metric, such as metrics.log_prob()."
        )

    def find(self, answer: str, text: str) -> int | None:
        """Where in the text the answer is, or None."""
        edge = r"(?<!\w){}(?!\w)" if self.whole_words else "{}"
        found = re.search(edge.format(re.escape(answer.strip())), text, re.IGNORECASE if self.ignore_case else 0)
        return None if found is None else found.start()


@final
@dataclass(frozen=True, slots=True)
class Likeliest(Rule):
    """Right if a right text has a higher log-probability than every wrong one; equal does not count.

    Args:
        per: what the sum of the tokens' log-probabilities is divided by: nothing, their number, or the text's bytes;
            or "first": the first token counts alone.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("choice", "pair")
    per: Per = "sequence"

    def __post_init__(self) -> None:
        one_of(self.per, "Likeliest was given per", get_args(Per))

    def compared(self, table: Continuations, log_prob: Float[Tensor, " target"]) -> Float[Tensor, " continuation"]:
        """What the continuations are compared by, from the log-probability of every target."""
        if self.per == "first":
            return log_prob[(place_of(table) == 0).to(log_prob.device)]
        divisor = {"sequence": 1, "token": table.length, "byte": table.n_bytes}[self.per]
        return summed(table, log_prob) / divisor

    def undecided(self, item: TokenisedItem, words: Vocabulary) -> str:
        """Why, where a right and a wrong text begin with the same token and no other is looked at."""
        return _alike(item, 1, words) if self.per == "first" else ""

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """1 where a right text is likelier than every wrong one, else 0."""
        values = self.compared(table, readings.log_prob.cpu())
        right, wrong = (amax_by(values, table.item, side, table.n_items) for side in (table.right, ~table.right))
        return (right > wrong).float()


def _alike(item: TokenisedItem, n_tokens: int, words: Vocabulary) -> str:
    """Which right and wrong text begin with the same tokens, or which right one with a space alone; empty if none."""
    # Some tokenizers have a token for the space before a number, which is then the first one of every number.
    beginnings = ((one.text, one.ids[:n_tokens]) for one in item.continuations if one.right and one.ids[n_tokens:])
    blank = next((text for text, ids in beginnings if not words.decode(ids).strip()), None)
    if blank is not None:
        return f"{blank!r} begins with a token of white space, which says nothing of the rest"
    first_with = {one.ids[:n_tokens]: one.text for one in item.continuations if one.right}
    alike = next((one for one in item.continuations if not one.right and one.ids[:n_tokens] in first_with), None)
    if alike is None:
        return ""
    ids = alike.ids[:n_tokens]
    return f"{first_with[ids]!r}, which is right, and {alike.text!r}, which is wrong, begin with the same tokens {ids}"


def check_decided(task: Task, rule: Rule, items: Sequence[TokenisedItem], words: Vocabulary) -> None:
    """Refuse items whose right texts the rule cannot tell from the wrong ones.

    Raises:
        ValueError: if there are any.
    """
    reasons = [(at, reason) for at, item in enumerate(items) if (reason := rule.undecided(item, words))]
    if reasons:
        at, reason = reasons[0]
        raise ValueError(
            f"{rule!r} cannot judge {len(reasons)} of the {counted(len(task), 'item')} of task {task.name!r}, such as "
            f"{task.where(at)}: {reason}. Take a rule that reads all tokens, such as "
            f"{'StartsWith()' if task.kind == 'answer' else 'Likeliest()'}, or other labels."
        )


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
        return _checked(task, _default(task)), rule
    return _checked(task, rule), None


def _default(task: Task) -> Rule:
    """The rule that the task names, or the usual one for items of its kind."""
    named = task.rule
    if named is None:
        return StartsWith() if task.kind == "answer" else Likeliest()
    # A dataclass with slots is made twice, and the class that is used comes second: the later of a name is kept.
    rules = {rule.__name__: rule for rule in Rule.__subclasses__()}
    if named.name not in rules:
        raise ValueError(
            f"task {task.name!r} is scored by {named}, and there is no rule {named.name!r}: there are "
            f"{', '.join(sorted(rules))}. Give one of them as rule=, or name it in the task."
        )
    try:
        return rules[named.name](**named.settings)
    except TypeError as error:
        raise ValueError(f"task {task.name!r} is scored by {named}: {error}. Correct the settings.") from None


def _checked(task: Task, rule: Rule) -> Rule:
    """The rule, if it can judge the task's items."""
    if task.kind not in rule.kinds:
        raise ValueError(
            f"{rule!r} is given for task {task.name!r}, whose items are of kind {task.kind!r}: "
            f"it is for the kinds {' and '.join(rule.kinds)}. "
            f"{'StartsWith, SaysNext and Contains are' if task.kind == 'answer' else 'Likeliest is'} for {task.kind}."
        )
    texts = (text for item in task.items for text in (*item.right, *item.wrong))
    if isinstance(rule, Likeliest) and rule.per == "byte" and not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{rule!r} is given for task {task.name!r}, which has token ids: only strings have a length in bytes. "
            "Take per='token'."
        )
    return rule
