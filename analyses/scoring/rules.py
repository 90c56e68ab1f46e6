"""What counts as right: an answer that comes first, one found in a generated text, the likeliest of several texts."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, final, get_args

from analyses.tasks.items import Kind
from analyses.tasks.task import Task
from surgery.arguments import whole

Per: TypeAlias = Literal["sequence", "token", "byte"]


class Rule(ABC):
    """When an item counts as right."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of items it is for."""

    @property
    @abstractmethod
    def new_tokens(self) -> int:
        """How many tokens the model has to generate."""


@final
@dataclass(frozen=True, slots=True)
class StartsWith(Rule):
    """Right if greedy generation begins with an accepted answer.

    It does if and only if every token of the answer is the likeliest after those before it, so that one forward pass
    tells. The answer's own tokenisation is asked for; another spelling of the same text is another alternative.
    """

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Answers."""
        return ("answer",)

    @property
    def new_tokens(self) -> int:
        """None: the answer's own tokens are looked at."""
        return 0


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
        ignore_case: whether capitals matter not.

    Source: the generation accuracy of LASER (arXiv:2312.13558).
    """

    n_tokens: int = 10
    whole_words: bool = True
    ignore_case: bool = True

    def __post_init__(self) -> None:
        whole(self.n_tokens, "Contains was given n_tokens", least=1)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Answers."""
        return ("answer",)

    @property
    def new_tokens(self) -> int:
        """How many tokens are generated."""
        return self.n_tokens

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
        per: what the sum of the tokens' log-probabilities is divided by: nothing, their number, or the text's bytes.
    """

    per: Per = "sequence"

    def __post_init__(self) -> None:
        if self.per not in get_args(Per):
            raise ValueError(f"Likeliest was given per={self.per!r}: give one of {', '.join(get_args(Per))}.")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Choices and pairs."""
        return ("choice", "pair")

    @property
    def new_tokens(self) -> int:
        """None."""
        return 0


def rule_for(task: Task, rule: Rule | None) -> Rule:
    """The rule, or the task's default one if there is none.

    Raises:
        ValueError: if the task is empty, or the rule is not for items of its kind.
    """
    if rule is None:
        rule = StartsWith() if task.kind == "answer" else Likeliest()
    if not isinstance(rule, Rule):
        raise TypeError(f"rule={rule!r}: give a rule, such as StartsWith() or Contains(10), or None.")
    if task.kind not in rule.kinds:
        raise ValueError(
            f"{rule!r} is given for task {task.name!r}, whose items are of kind {task.kind!r}: "
            f"it is for the kinds {' and '.join(rule.kinds)}. "
            f"{'StartsWith and Contains are' if task.kind == 'answer' else 'Likeliest is'} for {task.kind}."
        )
    texts = (text for item in task.items for text in (*item.right, *item.wrong))
    if isinstance(rule, Likeliest) and rule.per == "byte" and not _all_strings(texts):
        raise ValueError(
            f"{rule!r} is given for task {task.name!r}, which has token ids: only strings have a length in bytes. "
            "Take per='token'."
        )
    return rule


def _all_strings(texts: Iterable[object]) -> bool:
    return all(isinstance(text, str) for text in texts)
