"""The items of a task: a prompt with its answer, a choice among labels, a pair of sentences."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

Text: TypeAlias = str | tuple[int, ...]
"""What a model reads or says: a string, which the model's tokenizer will split, or token ids, which are taken as they
are."""

Kind: TypeAlias = Literal["answer", "choice", "pair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(ABC):
    """What every item has: the groups that a split keeps together, metadata, and where it was read.

    A string and what continues it are one text, in which the space between the two is written out: `"in"` and `"
    Paris"`. Ids are used exactly as given, with no beginning-of-sequence token put before them.
    """

    groups: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict, hash=False)
    source: str = ""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """`answer`, `choice` or `pair`."""

    @property
    @abstractmethod
    def context(self) -> Text:
        """What the model reads before the texts it is asked about."""

    @property
    @abstractmethod
    def right(self) -> tuple[Text, ...]:
        """The continuations that count as right; the first is the reference."""

    @property
    @abstractmethod
    def wrong(self) -> tuple[Text, ...]:
        """The continuations that are looked at and count as wrong."""

    @property
    def identity(self) -> tuple[Text, ...]:
        """The text that two items have in common if they ask the same; empty for ids, where only groups say so."""
        return (self.context,) if isinstance(self.context, str) and self.context else ()


@final
@dataclass(frozen=True, slots=True)
class AnswerItem(Item):
    """A prompt and its accepted answers, the first of which is the reference.

    Args:
        prompt: what the model reads.
        answers: what it may say; string answers carry their leading space.
        distractors: wrong answers whose probability is of interest, such as the indirect object's rival.
    """

    prompt: Text
    answers: tuple[Text, ...]
    distractors: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        _check_texts(self, "answers", self.answers, at_least=1)
        _check_texts(self, "distractors", self.distractors, at_least=0)
        both = set(self.answers) & set(self.distractors)
        if both:
            raise ValueError(
                f"{_place(self)}{sorted(map(repr, both))[0]} is both an accepted answer and a distractor: "
                "an answer is one or the other. Remove it from one of them."
            )

    @property
    def kind(self) -> Kind:
        """Always `answer`."""
        return "answer"

    @property
    def context(self) -> Text:
        """The prompt."""
        return self.prompt

    @property
    def right(self) -> tuple[Text, ...]:
        """The accepted answers."""
        return self.answers

    @property
    def wrong(self) -> tuple[Text, ...]:
        """The distractors."""
        return self.distractors


@final
@dataclass(frozen=True, slots=True)
class ChoiceItem(Item):
    """A prompt and labels, of which the model chooses the one it gives the highest log-probability.

    Args:
        prompt: what the model reads; may be empty.
        labels: what it chooses from; string labels carry their leading space.
        correct: the positions of the right labels; the first is the reference.
    """

    prompt: Text
    labels: tuple[Text, ...]
    correct: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_texts(self, "labels", self.labels, at_least=2)
        outside = [index for index in self.correct if not 0 <= index < len(self.labels)]
        if outside or len(set(self.correct)) != len(self.correct) or not 0 < len(self.correct) < len(self.labels):
            raise ValueError(
                f"{_place(self)}correct={self.correct} with {len(self.labels)} labels: it names different positions "
                f"from 0 to {len(self.labels) - 1}, at least one and not all. Give the positions of the right labels."
            )

    @property
    def kind(self) -> Kind:
        """Always `choice`."""
        return "choice"

    @property
    def context(self) -> Text:
        """The prompt."""
        return self.prompt

    @property
    def right(self) -> tuple[Text, ...]:
        """The right labels."""
        return tuple(self.labels[index] for index in self.correct)

    @property
    def wrong(self) -> tuple[Text, ...]:
        """The other labels, in their order."""
        return tuple(label for index, label in enumerate(self.labels) if index not in self.correct)


@final
@dataclass(frozen=True, slots=True)
class MinimalPair(Item):
    """A good and a bad sentence, of which the model should find the good one likelier (Warstadt et al., BLiMP).

    Ids, and strings for a model without a beginning-of-sequence token, are scored from their second token on.
    """

    good: Text
    bad: Text

    def __post_init__(self) -> None:
        _check_texts(self, "sentences", (self.good, self.bad), at_least=2)

    @property
    def kind(self) -> Kind:
        """Always `pair`."""
        return "pair"

    @property
    def context(self) -> Text:
        """Nothing: the sentences are read from their beginning."""
        return ""

    @property
    def right(self) -> tuple[Text, ...]:
        """The good sentence."""
        return (self.good,)

    @property
    def wrong(self) -> tuple[Text, ...]:
        """The bad sentence."""
        return (self.bad,)

    @property
    def identity(self) -> tuple[Text, ...]:
        """Both sentences, if they are text."""
        return (self.good, self.bad) if isinstance(self.good, str) else ()


@dataclass(frozen=True, slots=True)
class Unscorable:
    """An item that cannot be scored: where it stands and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def _place(item: Item) -> str:
    return f"{item.source}: " if item.source else ""


def _check_texts(item: Item, what: str, texts: tuple[Text, ...], *, at_least: int) -> None:
    if len(texts) < at_least:
        raise ValueError(
            f"{_place(item)}{len(texts)} {what} given: an item of kind {item.kind!r} has at least {at_least}. "
            f"Give the {what} as a tuple of strings or of tuples of token ids."
        )
    if any(len(text) == 0 for text in texts):
        raise ValueError(f"{_place(item)}one of the {what} is empty: it needs a token to be scored. Remove or fill it.")
    if len(set(texts)) != len(texts):
        raise ValueError(f"{_place(item)}the {what} {texts!r} are not all different: give each one once.")
