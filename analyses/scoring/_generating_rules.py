"""What counts as right of a text that the model generates: an answer found in it, or its last number."""

# All rules share their unit and direction, and are named after their settings: class variables and a property stand
# where other metrics have fields.
# pyright: reportIncompatibleVariableOverride=false

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from analyses.metrics.readings import Readings
from analyses.prompts import Continuations
from analyses.scoring._rules import Rule
from analyses.tasks.items import Kind, Text
from analyses.tasks.task import Task
from analyses.tokens.tokenizer import Ids
from surgery.arguments import counted, finite, shown, whole
from surgery.arguments import seed as checked_seed

_WORD = re.compile(r"\w+|[^\w\s]")
_NUMBER = re.compile(
    # A minus between two things is a difference or a range, and no sign.
    r"((?<![\w.)\]])[-\u2212])?\$?"
    # Commas belong to a number where they part thousands; a full stop where a digit follows.
    r"(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+)"
)


class Generates(Rule):
    """A rule about what the model says after a prompt: `n_tokens` tokens at most, up to the end of text or a stop."""

    __slots__ = ()
    kinds: ClassVar[tuple[Kind, ...]] = ("answer",)
    n_tokens: int
    stop: tuple[str, ...]
    samples: int
    temperature: float
    seed: int

    @property
    def new_tokens(self) -> int:
        """How many tokens are generated at most."""
        return self.n_tokens

    @property
    def n_generated(self) -> int:
        """How many texts are generated for each item."""
        return self.samples

    def quantity(self, table: Continuations, readings: Readings) -> Float[Tensor, " item"]:
        """Raises: what is generated is no function of the logits of one pass."""
        raise ValueError(
            f"{self!r} has the model generate {counted(self.n_tokens, 'token')}, which is no function of the logits of "
            "one pass. Take StartsWith() or a metric, such as metrics.log_prob()."
        )

    def has_stopped(self, text: str) -> bool:
        """Whether a stop string ends the text."""
        return any(stop in text for stop in self.stop)

    def before_stop(self, text: str) -> str:
        """The text up to the first stop string in it."""
        return text[: min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=None)]

    @abstractmethod
    def settled(self, right: Sequence[Text], ids: Ids, text: str) -> bool:
        """Whether nothing that may follow changes the verdict on an item with these answers."""


def _check_generates(rule: Generates) -> None:
    name = type(rule).__name__
    whole(rule.n_tokens, f"{name} was given n_tokens", least=1)
    if not isinstance(rule.stop, tuple) or not all(isinstance(text, str) and text for text in rule.stop):
        raise ValueError(f"{name} was given stop={shown(rule.stop)}: give a tuple of texts, such as ('\\n',).")


@final
@dataclass(frozen=True, slots=True)
class Contains(Generates):
    """Right if an accepted answer is found among the first tokens generated greedily, the prompt not being looked at.

    String answers are looked for in the generated text up to the end-of-text token or a stop string, ids in the
    generated ids. Generation goes on from the prompt exactly as it is given, spaces at its end included. It ends when
    an answer is found and nothing that follows could change the verdict, unless the whole text is asked for.

    Args:
        n_tokens: how many tokens to generate at most.
        whole_words: whether a letter or digit right before or after the answer speaks against it: "he" is not in "the".
            Turn it off for languages that do not separate words.
        ignore_case: if True, compare without regard to case.
        stop: texts, at the first of which the generated text ends.
        complete: if True, generate all tokens although the verdict is sure, which `Scores.word_overlap` takes.

    Source: the generation accuracy of LASER (arXiv:2312.13558).
    """

    n_tokens: int = 10
    whole_words: bool = True
    ignore_case: bool = True
    stop: tuple[str, ...] = ()
    complete: bool = False
    samples: ClassVar[int] = 1
    temperature: ClassVar[float] = 0.0
    seed: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _check_generates(self)

    def find(self, answer: str, text: str) -> int | None:
        """Where in the text the answer is, or None."""
        edge = r"(?<!\w){}(?!\w)" if self.whole_words else "{}"
        found = re.search(edge.format(re.escape(answer.strip())), text, re.IGNORECASE if self.ignore_case else 0)
        return None if found is None else found.start()

    def overlap(self, answer: str, text: str) -> tuple[float, float, float]:
        """Precision, recall and F1 of the text's distinct words and punctuation marks against the answer's."""
        said, wanted = (
            set(_WORD.findall(one.casefold() if self.ignore_case else one)) for one in (self.before_stop(text), answer)
        )
        shared = len(said & wanted)
        return shared / max(1, len(said)), shared / max(1, len(wanted)), 2 * shared / max(1, len(said) + len(wanted))

    def settled(self, right: Sequence[Text], ids: Ids, text: str) -> bool:
        """Whether an answer is there that the next tokens can neither make part of a longer word nor cut off."""
        if self.complete:
            return False
        # The last character may be the beginning of one, of several bytes.
        whole = text.rstrip("\ufffd")
        margin = max([1, *map(len, self.stop)])
        for answer in right:
            if isinstance(answer, str):
                at = self.find(answer, whole)
                if at is not None and at + len(answer.strip()) + margin <= len(whole):
                    return True
            elif find_ids(answer, ids) is not None:
                return True
        return False


@final
@dataclass(frozen=True, slots=True)
class LastNumber(Generates):
    """Right if the last number of the generated text is the answer's: of several samples, the number that most end in.

    Commas between thousands and a "$" before a number are not looked at, nor is a full stop after it; "-3" and "2.50"
    are numbers, "10-3" are two. The text ends before the first stop string. The item's answers have to be numbers,
    written as texts. Where samples are equally many for two numbers, the one that came first counts; samples without a
    number do not vote.

    Args:
        n_tokens: how many tokens to generate at most.
        stop: texts, at the first of which the generated text ends.
        samples: how many texts to generate for each item.
        temperature: what the logits are divided by before tokens are drawn; 0 takes the likeliest token.
        seed: which texts are drawn. They do not depend on the batch, nor on the other items.
    """

    n_tokens: int = 256
    stop: tuple[str, ...] = ("\nQuestion",)
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_generates(self)
        whole(self.samples, "LastNumber was given samples", least=1)
        finite(self.temperature, "LastNumber was given temperature", least=0)
        checked_seed(self.seed)
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"LastNumber was given samples={self.samples} at temperature 0, where all of them are the same: give a "
                "temperature, such as 0.7, or leave samples out."
            )

    def check(self, task: Task) -> None:
        """Refuse answers that are no numbers."""
        for index, item in enumerate(task.items):
            for answer in item.right:
                if not isinstance(answer, str) or self.reference(answer) is None:
                    raise ValueError(
                        f"{task.where(index)}: the answer {answer!r} is no number, and {self!r} compares numbers. "
                        "Give answers such as ' 72' or '1,250.50'."
                    )

    def settled(self, right: Sequence[Text], ids: Ids, text: str) -> bool:
        """Never: another number may follow."""
        return False

    def reference(self, answer: str) -> Decimal | None:
        """The number that an answer is; None if it is none."""
        found = _NUMBER.fullmatch(answer.strip().removesuffix("."))
        return None if found is None else _value(found)

    def number(self, text: str) -> Decimal | None:
        """The last number in a text before its stop; None if there is none."""
        *_, last = (None, *_NUMBER.finditer(self.before_stop(text)))
        return None if last is None else _value(last)

    def vote(self, numbers: Sequence[Decimal | None]) -> Decimal | None:
        """The number that most samples end in."""
        votes = Counter(number for number in numbers if number is not None)
        return max(votes, key=votes.__getitem__, default=None)  # of equals the first


def find_ids(answer: Ids, ids: Ids) -> int | None:
    """Where the answer is in what was generated, in tokens."""
    return next((at for at in range(len(ids) - len(answer) + 1) if ids[at : at + len(answer)] == answer), None)


def _value(found: re.Match[str]) -> Decimal:
    sign, digits = found.groups()
    value = Decimal(digits.replace(",", ""))
    return -value if sign else value
