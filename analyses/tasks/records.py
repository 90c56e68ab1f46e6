"""From a record of named fields to an item, with every complaint at the record's place."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeGuard

from analyses.tasks.files import FilePath, OddRecord, Record, TaskFileError
from analyses.tasks.items import AnswerItem, ChoiceItem, ImpossibleItem, Item, MinimalPair, Text, Unscorable
from analyses.tasks.task import Task
from surgery.arguments import shown

_ALIASES = {"answers": "answer", "groups": "group", "sentence_good": "good", "sentence_bad": "bad"}
CorrectIs: TypeAlias = Literal["label", "position"]
_OURS = ("prompt", "answer", "alternatives", "distractors", "labels", "correct", "good", "bad", "group")


@dataclass(frozen=True, slots=True)
class Schema:
    """How the fields of a record become an item.

    Args:
        rename: their name for a field → our name.
        template: the prompt, with the record's own fields in braces.
        labels: the labels of every item, where a record does not bring its own.
        separator: what goes between a prompt and a string that continues it, unless one of them brings white space.
        list_separator: splits strings into lists, for formats that have no lists.
        correct_is: how `correct` is to be read where it can be both, a label and the position of another one.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    labels: tuple[str, ...] | None = None
    separator: str = " "
    list_separator: str | None = None
    correct_is: CorrectIs | None = None

    def __post_init__(self) -> None:
        if self.correct_is not in (None, "label", "position"):
            raise ValueError(
                f"correct_is={self.correct_is!r}: 'correct' is a 'label' or a 'position'. Give one of them."
            )
        labels: object = self.labels
        if labels is not None and (not isinstance(labels, tuple) or not all(isinstance(one, str) for one in labels)):
            raise ValueError(f"labels={shown(labels)}: give a list of strings, such as ['yes', 'no'].")

    def item(self, record: Record) -> list[Item]:
        """The item that the record describes.

        Raises:
            OddRecord: if a field is missing or of the wrong type.
            ImpossibleItem: if the item cannot be scored.
            TaskFileError: if a field can be read in two ways.
        """
        reader = _Reader(self, record, self._ours(record))
        if "good" in reader.fields or "bad" in reader.fields:
            return [reader.pair()]
        if "labels" in reader.fields or "correct" in reader.fields:
            return [reader.choice()]
        return [reader.answer()]

    def _ours(self, record: Record) -> dict[str, object]:
        missing = [name for name in self.rename if name not in record.fields]
        if missing:
            raise record.error(
                f"there is no field {missing[0]!r}",
                f"it has {_names(record.fields)}",
                "Correct `rename`, or the record",
            )
        fields: dict[str, object] = {}
        for name, value in record.fields.items():
            ours = self.rename.get(name, name)
            ours = _ALIASES.get(ours, ours)
            if ours in fields:
                raise record.error(
                    f"two fields mean {ours!r}",
                    f"it has {_names(record.fields)}",
                    "Keep one of them, or rename the other",
                )
            fields[ours] = value
        if self.labels is not None and "labels" not in fields:
            fields["labels"] = list(self.labels)
        return fields


@dataclass(frozen=True, slots=True)
class _Reader:
    schema: Schema
    record: Record
    fields: dict[str, object]

    def answer(self) -> AnswerItem:
        prompt = self.prompt()
        value = self.need("answer")
        self.only("prompt", "answer", "alternatives", "distractors")
        if isinstance(prompt, str) and _is_ids(value):
            raise TaskFileError(
                f"{self.record.where}: 'answer' is {shown(value)} after a prompt that is text: it may be one answer in "
                "token ids, or several numbers. Write [[5, 6]] for token ids, and strings for numbers."
            )
        given = list(value) if _is_list(value) and not _is_ids(value) else [value]
        answers = [*given, *self.listed("alternatives")]
        return AnswerItem(
            prompt=prompt,
            answers=self.continuations("answer", prompt, answers),
            distractors=self.continuations("distractors", prompt, self.listed("distractors")),
            groups=self.groups(),
            metadata=self.metadata(),
            source=self.record.where,
        )

    def choice(self) -> ChoiceItem:
        prompt = self.prompt()
        self.need("labels")
        labels = self.listed("labels")
        given = self.need("correct")
        self.only("prompt", "labels", "correct")
        right = [self.position(value, labels) for value in self.each(given, labels)]
        # A label that is repeated is right wherever it stands.
        right += [at for at, label in enumerate(labels) if label in [labels[place] for place in right]]
        texts = [joined(prompt, self.text("labels", label), self.schema.separator) for label in labels]
        labels_once, correct = once(self.record, texts, right)
        return ChoiceItem(
            prompt=prompt,
            labels=labels_once,
            correct=correct,
            groups=self.groups(),
            metadata=self.metadata(),
            source=self.record.where,
        )

    def pair(self) -> MinimalPair:
        self.only("good", "bad")
        return MinimalPair(
            good=self.text("good", self.need("good")),
            bad=self.text("bad", self.need("bad")),
            groups=self.groups(),
            metadata=self.metadata(),
            source=self.record.where,
        )

    def prompt(self) -> Text:
        if self.schema.template is None:
            return self.text("prompt", self.need("prompt"))
        try:
            return self.schema.template.format_map(
                {name: value for name, value in self.record.fields.items() if value is not None}
            )
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise self.record.error(
                f"the template {self.schema.template!r} cannot be filled ({type(error).__name__}: {error})",
                f"the record has the fields {_names(self.record.fields)}",
                "Name fields in braces and double every other brace",
            ) from None

    def continuations(self, name: str, prompt: Text, values: Iterable[object]) -> tuple[Text, ...]:
        # Sources repeat an answer among its alternatives: once is enough.
        texts = [joined(prompt, self.text(name, value), self.schema.separator) for value in values]
        return tuple(dict.fromkeys(texts))

    def text(self, name: str, value: object) -> Text:
        if _is_ids(value):
            return tuple(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.record.error(
                f"field {name!r} is {shown(value)}", "a text is a string, or a list of token ids", f"Correct {name!r}"
            )
        if not value:
            raise self.record.error(
                f"a text in {name!r} is empty", "it needs a token to be scored", "Fill or remove it"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.record.error(
                f"field {name!r} is {value!r}", "a text has no lone surrogates", f"Correct {name!r}"
            ) from None
        return value

    def listed(self, name: str) -> list[object]:
        value = self.fields.get(name)
        if value is None or value == "":
            return []
        if isinstance(value, str) and self.schema.list_separator is not None:
            parts = value.split(self.schema.list_separator)
            # An empty label is not dropped: the positions of those after it would be others.
            return list(parts) if name == "labels" else [part for part in parts if part]
        if not _is_list(value) or _is_ids(value):
            raise self.record.error(
                f"field {name!r} is {value!r}", "it is a list of strings, or of lists of token ids", f"Correct {name!r}"
            )
        return list(value)

    def each(self, given: object, labels: Sequence[object]) -> Sequence[object]:
        """The right labels one by one; a list of numbers may be a single label in token ids."""
        if not _is_list(given):
            return [given]
        if self.schema.correct_is == "position" or not _is_ids(given) or tuple(given) not in map(_written, labels):
            return given
        if self.schema.correct_is is None and all(0 <= at < len(labels) for at in given):
            raise self.two_readings(given, labels, given)
        return [given]

    def position(self, value: object, labels: Sequence[object]) -> int:
        """Where the right label is, which is given as itself or by its position.

        Raises:
            TaskFileError: if it may be the one or the other, and they differ.
            OddRecord: if it is neither.
        """
        readings: dict[str, int] = {}
        written = [_written(label) for label in labels]
        if self.schema.correct_is != "position" and _written(value) in written:
            readings["label"] = written.index(_written(value))
        if self.schema.correct_is != "label" and str(_written(value)).isdecimal():
            at = int(str(_written(value)))
            readings |= {"position": at} if at < len(labels) else {}
        if len({written[at] for at in readings.values()}) == 2:
            raise self.two_readings(value, labels, [readings["position"]])
        for at in readings.values():
            return at
        raise self.record.error(
            f"'correct' is {value!r}",
            f"the {len(labels)} labels are {shown(labels)}",
            "Give one of the labels, or its position from 0",
        )

    def two_readings(self, given: object, labels: Sequence[object], at: Sequence[int]) -> TaskFileError:
        """An error for what is one label, and the position of another."""
        there = ", ".join(repr(labels[place]) for place in at)
        return TaskFileError(
            f"{self.record.where}: 'correct' is {given!r}: that is one of the labels {shown(labels)}, and it is the "
            f"position of {there}. Say what it is with correct_is='label' or correct_is='position'."
        )

    def only(self, *names: str) -> None:
        """Refuse fields that mean something for items of another kind, and would be passed over here."""
        found = [name for name in _OURS if self.fields.get(name) not in (None, "", []) and name != "group"]
        other = next((name for name in found if name not in names), None)
        if other is not None and not (other == "prompt" and self.schema.template is not None):
            raise self.record.error(
                f"there are {', '.join(map(repr, found))} together",
                "an item has 'prompt' and 'answer', or 'prompt', 'labels' and 'correct', or 'good' and 'bad'",
                f"Remove {other!r}, or rename it",
            )

    def groups(self) -> tuple[str, ...]:
        value = self.fields.get("group")
        if value is None or value == "":
            return ()
        return tuple(map(str, value)) if _is_list(value) else (str(value),)

    def metadata(self) -> dict[str, object]:
        return {name: value for name, value in self.fields.items() if name not in _OURS}

    def need(self, name: str) -> object:
        value = self.fields.get(name)
        if value is None or value == "":
            raise self.record.error(
                f"there is no {name!r}" if value is None else f"{name!r} is empty",
                f"the record has the fields {_names(self.record.fields)}",
                "An item needs 'prompt' and 'answer', or 'prompt', 'labels' and 'correct', or 'good' and 'bad'; "
                "`rename` gives other fields these names",
            )
        return value


def joined(prompt: Text, continuation: Text, separator: str = " ") -> Text:
    """The continuation with the separator before it, unless white space is there already or one of the two is ids."""
    if not isinstance(prompt, str) or not isinstance(continuation, str) or not prompt:
        return continuation
    if prompt[-1].isspace() or continuation[:1].isspace():
        return continuation
    return separator + continuation


def once(record: Record, texts: Sequence[Text], right: Iterable[int]) -> tuple[tuple[Text, ...], tuple[int, ...]]:
    """The labels, each once, and the positions of the right ones among these.

    Raises:
        OddRecord: if a right and a wrong label are the same text.
    """
    at_right = dict.fromkeys(right)
    chosen = dict.fromkeys(texts[at] for at in at_right)
    both = next((text for at, text in enumerate(texts) if at not in at_right and text in chosen), None)
    if both is not None:
        raise record.error(
            f"a right and a wrong label are the same text {both!r}",
            "the model's choice between them could not be told",
            "Make them differ",
        )
    labels = tuple(dict.fromkeys(texts))
    return labels, tuple(labels.index(text) for text in chosen)


def sift(
    records: Iterable[Record], read: Callable[[Record], Iterable[Item]]
) -> tuple[tuple[Item, ...], tuple[Unscorable, ...]]:
    """The items of the records, and apart from them the records that make none, with their reasons.

    Raises:
        TaskFileError: if no record makes an item: then it is the file that is of another form.
    """
    items: list[Item] = []
    aside: list[Unscorable] = []
    for record in records:
        try:
            if record.repeated is not None:
                raise record.error(
                    f"{record.repeated!r} stands there twice", "only the last would count", "Give every name once"
                )
            items.extend(list(read(record)))
        except (OddRecord, ImpossibleItem) as problem:
            aside.append(Unscorable(record.where, problem.reason))
    if aside and not items:
        others = f" None of the other {len(aside) - 1} records makes an item either." if len(aside) > 1 else ""
        raise TaskFileError(f"{aside[0]}{others}")
    return tuple(items), tuple(aside)


def build(
    name: str,
    found: tuple[tuple[Item, ...], tuple[Unscorable, ...]],
    metadata: Mapping[str, object],
) -> Task:
    """The task of what was sifted.

    Raises:
        ValueError: if there is nothing in it.
    """
    items, unscorable = found
    if not items:
        raise ValueError(f"{name!r} holds no item that can be scored. Look at the file or the filter.")
    return Task(name, items, metadata, unscorable)


def file_task(path: FilePath, name: str | None, found: tuple[tuple[Item, ...], tuple[Unscorable, ...]]) -> Task:
    """The task of a file's items, called after the file unless it is given a name."""
    return build(name or Path(path).stem, found, {"source": str(path)})


def _written(label: object) -> object:
    """A label as it is compared: a number is the text that it becomes."""
    if _is_list(label):
        return tuple(label)
    return str(label) if isinstance(label, int) and not isinstance(label, bool) else label


def _is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    return isinstance(value, list | tuple)


def _is_ids(value: object) -> TypeGuard[list[int] | tuple[int, ...]]:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    )


def _names(fields: Mapping[str, object]) -> str:
    return ", ".join(map(repr, fields)) or "none"
