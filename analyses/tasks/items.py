"""The items of a task: a prompt with its answer, a choice among labels, a pair of sentences."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, final

from surgery.arguments import shown

Text: TypeAlias = str | tuple[int, ...]
"""A text that a model reads or says: a string, which the model's tokenizer splits, or token ids, used as they are."""

Kind: TypeAlias = Literal["answer", "choice", "pair"]


class SourcedError(ValueError):
    """An error about something that was read: the message names the source; `reason` is the message without it."""

    def __init__(self, source: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{source}: {reason}" if source else reason)


class ItemError(SourcedError):
    """An item that no model can be asked, or a record that makes no item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(ABC):
    """A question to a model, with the continuations that count as right and as wrong.

    A string and its continuation are one text, in which the space between the two is written out: `"in"` and `"
    Paris"`. Ids are used exactly as given, with no beginning-of-sequence token before them.

    Args:
        groups: names of groups; a split keeps all items of a group together.
        metadata: any facts about the item.
        source: where the item was read, such as `facts.jsonl:7`.

    Attributes:
        kind: `answer`, `choice` or `pair`.
        context: the text that the model reads before each continuation.
        right: the continuations that count as right; the first is the reference.
        wrong: the continuations that are scored too and count as wrong.
    """

    kind: ClassVar[Kind]
    groups: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict, hash=False)
    source: str = ""
    context: Text = field(init=False, repr=False, compare=False)
    right: tuple[Text, ...] = field(init=False, repr=False, compare=False)
    wrong: tuple[Text, ...] = field(init=False, repr=False, compare=False)

    @property
    def identity(self) -> tuple[str, ...]:
        """Texts that tell what is asked: items that share one ask the same. Empty for ids, where only groups tell."""
        texts = (*self.right, *self.wrong) if self.kind == "pair" else (self.context,)
        return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())

    def _ask(self, *, context: Text, right: tuple[Text, ...], wrong: tuple[Text, ...]) -> None:
        """Set the attributes that every kind of item has, after checking the fields that all kinds share."""
        groups: object = self.groups
        if not _is_text(context):
            raise ItemError(
                self.source,
                f"the prompt is {shown(context)}: it is a string, or a tuple of token ids. Give one of these.",
            )
        if not isinstance(groups, tuple) or not all(isinstance(group, str) for group in groups):
            raise ItemError(
                self.source, f"the groups are {shown(groups)}: they are a tuple of names. A single one is ('name',)."
            )
        for name, value in (("context", context), ("right", right), ("wrong", wrong)):
            object.__setattr__(self, name, value)  # the class is frozen


@final
@dataclass(frozen=True, slots=True)
class AnswerItem(Item):
    """A prompt and its accepted answers, the first of which is the reference.

    Args:
        prompt: the text that the model reads.
        answers: the answers that count as right; string answers carry their leading space.
        distractors: wrong answers whose probability is of interest, such as the indirect object's rival.

    >>> item = tasks.AnswerItem("The capital of Peru is", (" Lima",), (" Quito",))
    >>> item.kind, item.right, item.wrong
    ('answer', (' Lima',), (' Quito',))
    """

    kind: ClassVar[Kind] = "answer"
    prompt: Text
    answers: tuple[Text, ...]
    distractors: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        _check_texts(self, "answers", self.answers, at_least=1)
        _check_texts(self, "distractors", self.distractors, at_least=0)
        both = set(self.answers) & set(self.distractors)
        if both:
            raise ItemError(
                self.source,
                f"{min(map(repr, both))} is both an accepted answer and a distractor: an answer is one or the "
                "other. Remove it from one of them.",
            )
        self._ask(context=self.prompt, right=self.answers, wrong=self.distractors)


@final
@dataclass(frozen=True, slots=True)
class ChoiceItem(Item):
    """A prompt and labels; the model chooses the label of the highest log-probability.

    Args:
        prompt: the text that the model reads; may be empty.
        labels: the texts to choose from; string labels carry their leading space.
        correct: the positions of the right labels; the first is the reference.

    >>> item = tasks.ChoiceItem("Is fire cold?", (" yes", " no"), (1,))
    >>> item.kind, item.right, item.wrong
    ('choice', (' no',), (' yes',))
    """

    kind: ClassVar[Kind] = "choice"
    prompt: Text
    labels: tuple[Text, ...]
    correct: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_texts(self, "labels", self.labels, at_least=2)
        n, correct = len(self.labels), self.correct
        distinct = isinstance(correct, tuple) and _is_text(correct) and len(set(correct)) == len(correct)
        if not distinct or not 0 < len(correct) < n or not 0 <= min(correct) <= max(correct) < n:
            raise ItemError(
                self.source,
                f"correct={shown(correct)} with {n} labels: it is a tuple of different positions from 0 to {n - 1}, at "
                "least one and not all. Give the positions of the right labels.",
            )
        right = tuple(self.labels[index] for index in correct)
        wrong = tuple(label for index, label in enumerate(self.labels) if index not in correct)
        self._ask(context=self.prompt, right=right, wrong=wrong)


@final
@dataclass(frozen=True, slots=True)
class MinimalPair(Item):
    """A good and a bad sentence, of which the model should find the good one likelier (Warstadt et al., BLiMP).

    The sentences are read from their beginning, so the context is empty. Ids, and strings for a model without a
    beginning-of-sequence token, are scored from their second token on.

    >>> tasks.MinimalPair("Cats sleep.", "Cats sleeps.").right
    ('Cats sleep.',)
    """

    kind: ClassVar[Kind] = "pair"
    good: Text
    bad: Text

    def __post_init__(self) -> None:
        _check_texts(self, "sentences", (self.good, self.bad), at_least=2)
        self._ask(context="", right=(self.good,), wrong=(self.bad,))


@dataclass(frozen=True, slots=True)
class Unscorable:
    """An item that cannot be scored: where it was read, and why it cannot."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def _check_texts(item: Item, name: str, texts: object, *, at_least: int) -> None:
    if not isinstance(texts, tuple) or not all(map(_is_text, texts)):
        reason = (
            f"the {name} are {shown(texts)}: they are a tuple of texts, each a string or a tuple of token ids. "
            "A single one is (text,)."
        )
    elif len(texts) < at_least:
        reason = (
            f"{len(texts)} {name if len(texts) != 1 else name[:-1]} given: an item of kind {item.kind!r} has at least "
            f"{at_least}. Give the {name} as a tuple of strings or of tuples of token ids."
        )
    elif any(len(text) == 0 for text in texts):
        reason = f"one of the {name} is empty: it needs a token to be scored. Remove or fill it."
    elif len(set(texts)) != len(texts):
        reason = f"the {name} {texts!r} are not all different: give each one once."
    else:
        return
    raise ItemError(item.source, reason)


def _is_text(text: object) -> bool:
    if isinstance(text, str):
        return True
    return isinstance(text, tuple) and all(isinstance(id, int) and not isinstance(id, bool) for id in text)
