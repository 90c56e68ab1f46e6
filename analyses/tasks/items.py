"""The items of a task: a prompt with its answer, a choice among labels, a pair of sentences."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

from surgery.arguments import shown

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
    def identity(self) -> tuple[str, ...]:
        """The texts of which two items share one if they ask the same; empty for ids, where only groups say so."""
        return _texts_of(self.context)


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
        _check_rest(self)
        _check_texts(self, "answers", self.answers, at_least=1)
        _check_texts(self, "distractors", self.distractors, at_least=0)
        both = set(self.answers) & set(self.distractors)
        if both:
            raise ImpossibleItem(
                self,
                f"{sorted(map(repr, both))[0]} is both an accepted answer and a distractor: an answer is one or the "
                "other. Remove it from one of them.",
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
        _check_rest(self)
        _check_texts(self, "labels", self.labels, at_least=2)
        n, correct = len(self.labels), self.correct
        whole = isinstance(correct, tuple) and _is_text(correct) and len(set(correct)) == len(correct)
        if not whole or not 0 < len(correct) < n or not 0 <= min(correct) <= max(correct) < n:
            raise ImpossibleItem(
                self,
                f"correct={shown(correct)} with {n} labels: it is a tuple of different positions from 0 to {n - 1}, at "
                "least one and not all. Give the positions of the right labels.",
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
        _check_rest(self)
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
    def identity(self) -> tuple[str, ...]:
        """Both sentences, if they are text."""
        return _texts_of(self.good) + _texts_of(self.bad)


@dataclass(frozen=True, slots=True)
class Unscorable:
    """An item that cannot be scored: where it stands and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class ImpossibleItem(ValueError):
    """An item that no model can be asked; `reason` says why, the text also where it was read."""

    def __init__(self, item: Item, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{item.source}: {reason}" if item.source else reason)


def _texts_of(text: Text) -> tuple[str, ...]:
    """The text without the spaces around it, unless it is ids or nothing is left."""
    return (text.strip(),) if isinstance(text, str) and text.strip() else ()


def _check_texts(item: Item, what: str, texts: object, *, at_least: int) -> None:
    if not isinstance(texts, tuple) or not all(map(_is_text, texts)):
        raise ImpossibleItem(
            item,
            f"the {what} are {shown(texts)}: they are a tuple of texts, each a string or a tuple of token ids. "
            "A single one is (text,).",
        )
    if len(texts) < at_least:
        raise ImpossibleItem(
            item,
            f"{len(texts)} {what if len(texts) != 1 else what[:-1]} given: an item of kind {item.kind!r} has at least "
            f"{at_least}. Give the {what} as a tuple of strings or of tuples of token ids.",
        )
    if any(len(text) == 0 for text in texts):
        raise ImpossibleItem(item, f"one of the {what} is empty: it needs a token to be scored. Remove or fill it.")
    if len(set(texts)) != len(texts):
        raise ImpossibleItem(item, f"the {what} {texts!r} are not all different: give each one once.")


def _check_rest(item: Item) -> None:
    if not _is_text(item.context):
        raise ImpossibleItem(
            item, f"the prompt is {shown(item.context)}: it is a string, or a tuple of token ids. Give one of these."
        )
    groups: object = item.groups
    if not isinstance(groups, tuple) or not all(isinstance(group, str) for group in groups):
        raise ImpossibleItem(
            item, f"the groups are {shown(groups)}: they are a tuple of names. A single one is ('name',)."
        )


def _is_text(text: object) -> bool:
    if isinstance(text, str):
        return True
    return isinstance(text, tuple) and all(isinstance(id, int) and not isinstance(id, bool) for id in text)
