"""From a record of named fields to an item; every complaint names the record's source."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, TypeGuard, get_args

from analyses.tasks._json_csv import Record, TaskFileError
from analyses.tasks.items import AnswerItem, ChoiceItem, Item, ItemError, MinimalPair, Text, Unscorable
from analyses.tasks.task import Task
from surgery.arguments import one_of, shown

CorrectIs: TypeAlias = Literal["label", "position"]

_ALIASES = {"answers": "answer", "groups": "group", "sentence_good": "good", "sentence_bad": "bad"}
_FIELDS = ("prompt", "answer", "alternatives", "distractors", "labels", "correct", "good", "bad", "group")
_NEEDED = "'prompt' and 'answer', or 'prompt', 'labels' and 'correct', or 'good' and 'bad'"


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
    labels: Sequence[str] | None = None
    separator: str = " "
    list_separator: str | None = None
    correct_is: CorrectIs | None = None

    def __post_init__(self) -> None:
        one_of(self.correct_is, "correct_is", (None, *get_args(CorrectIs)))
        if isinstance(self.labels, str):
            raise ValueError(f"labels={self.labels!r} is one string: give a list of labels, such as ['yes', 'no'].")
        if self.labels is not None and not all(isinstance(label, str) for label in self.labels):
            raise ValueError(f"labels={shown(self.labels)}: give a list of strings, such as ['yes', 'no'].")

    def item(self, record: Record) -> list[Item]:
        """The item that the record describes.

        Raises:
            ItemError: if a field is missing or of the wrong type, or the item cannot be scored.
            TaskFileError: if a field can be read in two ways.
        """
        reader = _Reader(self, record, self._our_fields(record))
        if "good" in reader.fields or "bad" in reader.fields:
            return [reader.pair()]
        if "labels" in reader.fields or "correct" in reader.fields:
            return [reader.choice()]
        return [reader.answer()]

    def pair(self, record: Record) -> list[Item]:
        """The minimal pair that the record describes; raises as `item` does, also for a record of another kind."""
        return [_Reader(self, record, self._our_fields(record)).pair()]

    def _our_fields(self, record: Record) -> dict[str, object]:
        """The record's fields under our names, with the labels of every item."""
        names = f"it has {_names(record.fields)}"
        missing = next((name for name in self.rename if name not in record.fields), None)
        if missing is not None:
            raise record.error(f"there is no field {missing!r}", names, "Correct `rename`, or the record")
        fields: dict[str, object] = {}
        for name, value in record.fields.items():
            ours = self.rename.get(name, name)
            ours = _ALIASES.get(ours, ours)
            if ours in fields:
                raise record.error(f"two fields mean {ours!r}", names, "Keep one of them, or rename the other")
            fields[ours] = value
        return fields if self.labels is None else {"labels": list(self.labels), **fields}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one record, whose `fields` have our names."""

    schema: Schema
    record: Record
    fields: Mapping[str, object]

    def answer(self) -> AnswerItem:
        """The item of a record with a prompt and an answer."""
        prompt, value = self.prompt(), self.needed("answer")
        self.refuse_fields_besides("prompt", "answer", "alternatives", "distractors")
        # After ids, a list of numbers can only be one answer in ids.
        if isinstance(prompt, str) and _is_ids(value):
            raise TaskFileError(
                self.record.source,
                f"'answer' is {shown(value)} after a prompt that is text: it may be one answer in token ids, or "
                "several numbers. Write [[5, 6]] for token ids, and strings for numbers.",
            )
        answers = list(value) if _is_list(value) and not _is_ids(value) else [value]
        return AnswerItem(
            prompt,
            self.continuations("answer", prompt, [*answers, *self.listed("alternatives")]),
            self.continuations("distractors", prompt, self.listed("distractors")),
            groups=self.groups(),
            metadata=self.metadata(),
        )

    def choice(self) -> ChoiceItem:
        """The item of a record with a prompt and labels."""
        prompt = self.prompt()
        self.needed("labels")
        labels, correct = self.listed("labels"), self.needed("correct")
        self.refuse_fields_besides("prompt", "labels", "correct")
        right = [self.position(value, labels) for value in self.right_labels(correct, labels)]
        # A label that is repeated is right wherever it stands.
        right += [at for at, label in enumerate(labels) if label in [labels[known] for known in right]]
        texts = [joined(prompt, self.text("labels", label), self.schema.separator) for label in labels]
        distinct, correct = without_repeats(self.record, texts, right)
        return ChoiceItem(prompt, distinct, correct, groups=self.groups(), metadata=self.metadata())

    def pair(self) -> MinimalPair:
        self.refuse_fields_besides("good", "bad")
        good, bad = (self.text(name, self.needed(name)) for name in ("good", "bad"))
        return MinimalPair(good, bad, groups=self.groups(), metadata=self.metadata())

    def prompt(self) -> Text:
        """The prompt, from the template if there is one."""
        template = self.schema.template
        if template is None:
            return self.text("prompt", self.needed("prompt"))
        # A field without a value would be written into the prompt as "None".
        values = {name: value for name, value in self.record.fields.items() if value is not None}
        try:
            return template.format_map(values)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise self.record.error(
                f"the template {template!r} cannot be filled ({type(error).__name__}: {error})",
                f"the record has the fields {_names(self.record.fields)}",
                "Name fields in braces and double every other brace",
            ) from None

    def continuations(self, name: str, prompt: Text, values: Iterable[object]) -> tuple[Text, ...]:
        # Sources repeat an answer among its alternatives: once is enough.
        return tuple(dict.fromkeys(joined(prompt, self.text(name, value), self.schema.separator) for value in values))

    def text(self, name: str, value: object) -> Text:
        """The value of a field as a text: a string, token ids, or a whole number spelled out."""
        if _is_ids(value):
            return tuple(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        given, remedy = f"field {name!r} is {shown(value)}", f"Correct {name!r}"
        if not isinstance(value, str):
            raise self.record.error(given, "a text is a string, or a list of token ids", remedy)
        if not value:
            raise self.record.error(
                f"a text in {name!r} is empty", "it needs a token to be scored", "Fill or remove it"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.record.error(given, "a text has no lone surrogates", remedy) from None
        return value

    def listed(self, name: str) -> list[object]:
        """The entries of a field that holds a list, none where it is empty."""
        value = self.fields.get(name)
        if value is None or value == "":
            return []
        if isinstance(value, str) and self.schema.list_separator is not None:
            parts = value.split(self.schema.list_separator)
            # An empty label stays, for the error: without it the positions of the labels after it would be others.
            return list(parts) if name == "labels" else [part for part in parts if part]
        if not _is_list(value) or _is_ids(value):
            raise self.record.error(
                f"field {name!r} is {value!r}", "it is a list of strings, or of lists of token ids", f"Correct {name!r}"
            )
        return list(value)

    def right_labels(self, correct: object, labels: Sequence[object]) -> Sequence[object]:
        """The entries of `correct`, each a label or a position; a list of numbers may be one label in token ids."""
        if not _is_list(correct):
            return [correct]
        meant = self.schema.correct_is
        if meant == "position" or not _is_ids(correct) or tuple(correct) not in map(_comparable, labels):
            return correct
        if meant is None and all(0 <= at < len(labels) for at in correct):
            raise self.two_readings(correct, labels, correct)
        return [correct]

    def position(self, value: object, labels: Sequence[object]) -> int:
        """The position of the right label, where `value` is the label or its position.

        Raises:
            TaskFileError: if it may be the one or the other, and they differ.
            ItemError: if it is neither.
        """
        # Labels such as "1", "2", "3" make `correct` ambiguous: 2 is a label, and the position of another one.
        readings: dict[CorrectIs, int] = {}
        wanted, comparable = _comparable(value), [_comparable(label) for label in labels]
        if self.schema.correct_is != "position" and wanted in comparable:
            readings["label"] = comparable.index(wanted)
        if self.schema.correct_is != "label" and str(wanted).isdecimal() and int(str(wanted)) < len(labels):
            readings["position"] = int(str(wanted))
        if len({comparable[at] for at in readings.values()}) == 2:
            raise self.two_readings(value, labels, [readings["position"]])
        if not readings:
            raise self.record.error(
                f"'correct' is {value!r}",
                f"the {len(labels)} labels are {shown(labels)}",
                "Give one of the labels, or its position from 0",
            )
        return next(iter(readings.values()))

    def two_readings(self, correct: object, labels: Sequence[object], positions: Sequence[int]) -> TaskFileError:
        """The error for a `correct` that is a label and also the position of another one."""
        others = ", ".join(repr(labels[at]) for at in positions)
        return TaskFileError(
            self.record.source,
            f"'correct' is {correct!r}: that is one of the labels {shown(labels)}, and it is the position of {others}. "
            "Say what it is with correct_is='label' or correct_is='position'.",
        )

    def refuse_fields_besides(self, *names: str) -> None:
        """Refuse fields that mean something for items of another kind, and would be passed over here."""
        filled = [name for name in _FIELDS if self.fields.get(name) not in (None, "", []) and name != "group"]
        other = next((name for name in filled if name not in names), None)
        if other is not None and not (other == "prompt" and self.schema.template is not None):
            raise self.record.error(
                f"there are {', '.join(map(repr, filled))} together",
                f"an item has {_NEEDED}",
                f"Remove {other!r}, or rename it",
            )

    def groups(self) -> tuple[str, ...]:
        value = self.fields.get("group")
        if value is None or value == "":
            return ()
        return tuple(map(str, value)) if _is_list(value) else (str(value),)

    def metadata(self) -> dict[str, object]:
        return {name: value for name, value in self.fields.items() if name not in _FIELDS}

    def needed(self, name: str) -> object:
        """The value of a field that the item cannot do without."""
        value = self.fields.get(name)
        if value is None or value == "":
            raise self.record.error(
                f"there is no {name!r}" if value is None else f"{name!r} is empty",
                f"the record has the fields {_names(self.record.fields)}",
                f"An item needs {_NEEDED}; `rename` gives other fields these names",
            )
        return value


def joined(prompt: Text, continuation: Text, separator: str = " ") -> Text:
    """The continuation with the separator before it, unless white space is there already or one of the two is ids."""
    if not isinstance(prompt, str) or not isinstance(continuation, str) or not prompt:
        return continuation
    if prompt[-1].isspace() or continuation[:1].isspace():
        return continuation
    return separator + continuation


def without_repeats(
    record: Record, texts: Sequence[Text], right: Iterable[int]
) -> tuple[tuple[Text, ...], tuple[int, ...]]:
    """The labels, each once, and the positions of the right ones among these.

    Raises:
        ItemError: if a right and a wrong label are the same text.
    """
    positions = dict.fromkeys(right)
    right_texts = dict.fromkeys(texts[at] for at in positions)
    both = next((text for at, text in enumerate(texts) if at not in positions and text in right_texts), None)
    if both is not None:
        raise record.error(
            f"a right and a wrong label are the same text {both!r}",
            "the model's choice between them could not be told",
            "Make them differ",
        )
    # Positions count among the labels without repeats, so they are looked up again.
    labels = tuple(dict.fromkeys(texts))
    return labels, tuple(labels.index(text) for text in right_texts)


def task_of(
    records: Iterable[Record],
    read: Callable[[Record], Iterable[Item]],
    *,
    name: str,
    metadata: Mapping[str, object],
) -> Task:
    """The items of the records as a task; records that make no item become its `unscorable`, with their reasons.

    Raises:
        TaskFileError: if no record makes an item: then the file, not a record, is of another form.
        ValueError: if there are no records.
    """
    items: list[Item] = []
    unscorable: list[Unscorable] = []
    for record in records:
        try:
            if record.repeated is not None:
                raise record.error(
                    f"{record.repeated!r} stands there twice", "only the last would count", "Give every name once"
                )
            # A list, not a generator, so that a record makes all its items or none.
            items.extend([replace(item, source=record.source) for item in read(record)])
        except ItemError as error:
            unscorable.append(Unscorable(record.source, error.reason))
    if unscorable and not items:
        n = len(unscorable) - 1
        others = f" None of the other {n} records makes an item either." if n else ""
        raise TaskFileError(unscorable[0].where, f"{unscorable[0].reason}{others}")
    if not items:
        raise ValueError(f"{name!r} holds no item that can be scored. Look at the file or the filter.")
    return Task(name, tuple(items), metadata, tuple(unscorable))


def _comparable(label: object) -> object:
    """A label in the form in which labels are compared: a number as the text that it becomes, ids as a tuple."""
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
