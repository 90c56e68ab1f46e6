"""From a record of named fields to an item, with every complaint at the record's place."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from analyses.tasks.files import FilePath, Record, TaskFileError
from analyses.tasks.items import AnswerItem, ChoiceItem, Item, MinimalPair, Text, Unscorable
from analyses.tasks.task import Task

_ALIASES = {"answers": "answer", "groups": "group", "sentence_good": "good", "sentence_bad": "bad"}
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
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    labels: tuple[str, ...] | None = None
    separator: str = " "
    list_separator: str | None = None

    def item(self, record: Record) -> Item:
        """The item that the record describes.

        Raises:
            TaskFileError: if a field is missing or of the wrong type.
        """
        reader = _Reader(self, record, self._ours(record))
        try:
            if "good" in reader.fields or "bad" in reader.fields:
                return reader.pair()
            if "labels" in reader.fields or "correct" in reader.fields:
                return reader.choice()
            return reader.answer()
        except ValueError as error:
            # What the item itself refuses already begins with its place.
            raise TaskFileError(str(error)) from None

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
        correct = [self.position(value, labels) for value in (given if _is_list(given) else [given])]
        return ChoiceItem(
            prompt=prompt,
            labels=self.continuations("labels", prompt, labels),
            correct=tuple(correct),
            groups=self.groups(),
            metadata=self.metadata(),
            source=self.record.where,
        )

    def pair(self) -> MinimalPair:
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
            return self.schema.template.format_map(self.record.fields)
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
                f"field {name!r} is {value!r}", "a text is a string, or a list of token ids", f"Correct {name!r}"
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
            return [part for part in value.split(self.schema.list_separator) if part]
        if not _is_list(value) or _is_ids(value):
            raise self.record.error(
                f"field {name!r} is {value!r}", "it is a list of strings, or of lists of token ids", f"Correct {name!r}"
            )
        return list(value)

    def position(self, value: object, labels: Sequence[object]) -> int:
        """Where the right label is; a string that is no label is read as a position."""
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if value in labels:
            return labels.index(value)
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        raise self.record.error(
            f"'correct' is {value!r}", f"the labels are {labels!r}", "Give one of the labels, or its position from 0"
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


def build(
    name: str, items: Iterable[Item], metadata: Mapping[str, object], unscorable: Iterable[Unscorable] = ()
) -> Task:
    """The task of these items.

    Raises:
        ValueError: if there is nothing in it.
    """
    task = Task(name, tuple(items), metadata, tuple(unscorable))
    if not task.items:
        left_out = f"; left out: {task.unscorable[0]}" if task.unscorable else ""
        raise ValueError(f"{name!r} holds no item that can be scored{left_out}. Look at the file or the filter.")
    return task


def file_task(path: FilePath, name: str | None, items: Iterable[Item]) -> Task:
    """The task of a file's items, called after the file unless it is given a name."""
    return build(name or Path(path).stem, items, {"source": str(path)})


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
