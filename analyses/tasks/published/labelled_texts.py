"""LASER's questions about a text with a label for each class: FEVER and Bias in Bios."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import final, get_args

from analyses.tasks._benchmarks import check_template
from analyses.tasks._json_csv import Record
from analyses.tasks._parsing import joined
from analyses.tasks.items import ChoiceItem, Item, ItemError
from analyses.tasks.published.columns import Classes, PerLabel, check_labels, ended, text_of
from analyses.tasks.published.form import FromRecords, LeftOut, Parts
from analyses.tasks.rules import NamedRule
from surgery.arguments import one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledText(FromRecords):
    """A text in a prompt, and a choice among the labels of its classes.

    Args:
        text: the column of the text, `{text}` in the prompt.
        classes: the column of the class.
        labels: class → the label that says it; records of other classes are left out.
        ending: what is put after a text that ends in neither "." nor "?"; "" for nothing.
        per: of labels of several tokens: "sequence" compares the sums of their log-probabilities, "token" and "byte"
            divide them by the length, "first" takes the first token alone.
    """

    text: str
    classes: Classes
    labels: Mapping[str, str] = field(hash=False)
    ending: str = "."
    per: PerLabel = "sequence"

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{text}"])
        check_labels(self.labels, self.classes)
        one_of(self.per, "per", get_args(PerLabel))

    @property
    def rule(self) -> NamedRule:
        """The likeliest label."""
        return NamedRule("Likeliest", {"per": self.per})

    def items(self, record: Record) -> list[Item]:
        """The choice among the labels."""
        text, name = text_of(record, self.text), self.classes.of(record)
        if name not in self.labels:
            raise LeftOut(f"{self.classes.column!r} is {name}, which has no label")
        prompt = self.prompt.format(text=ended(text, self.ending))
        labels = tuple(joined(prompt, label, self.separator) for label in self.labels.values())
        metadata = {column: value for column, value in record.fields.items() if column != self.text}
        return [ChoiceItem(prompt, labels, (list(self.labels).index(name),), metadata=metadata)]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Claims(LabelledText):
    """As `LabelledText`, of texts that several records share: those with the same class in all of them, each once."""

    def reader(self, parts: Parts) -> Callable[[Record], list[Item]]:
        """What makes an item of the first record of each text, and of none if its records differ in class."""
        names: dict[str, set[str]] = {}
        for record in self.chosen(parts):
            with suppress(LeftOut, ItemError):
                names.setdefault(text_of(record, self.text), set()).add(self.classes.of(record))
        seen: set[str] = set()

        def read(record: Record) -> list[Item]:
            text = text_of(record, self.text)
            self.classes.of(record)
            if len(names[text]) > 1:
                raise LeftOut(f"its records differ in {self.classes.column!r}")
            if text in seen:
                raise LeftOut(f"an earlier record has the same {self.text!r}")
            items = self.items(record)
            seen.add(text)
            return items

        return read
