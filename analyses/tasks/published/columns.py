"""What a record of a data set holds, by the name of the column: texts, and classes by name or number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from analyses.tasks._json_csv import Record
from analyses.tasks.published.form import LeftOut
from surgery.arguments import shown

PerLabel: TypeAlias = Literal["sequence", "token", "byte", "first"]
"""How labels of several tokens compare, as in `scoring.Likeliest`."""


def value_of(record: Record, column: str) -> object:
    """What the column holds.

    Raises:
        ItemError: if there is no such column.
    """
    if column not in record.fields:
        raise record.error(
            f"there is no column {column!r}",
            f"this data set has it, and the record has {', '.join(map(repr, record.fields)) or 'none'}",
            "Give the data set of this recipe",
        )
    return record.fields[column]


def text_of(record: Record, column: str) -> str:
    """The column's text, without white space around it.

    Raises:
        ItemError: if there is none.
    """
    value = value_of(record, column)
    if not isinstance(value, str) or not value.strip():
        raise record.error(f"{column!r} is {shown(value)}", "it is a text that is not empty", "Correct it")
    return value.strip()


def texts_of(record: Record, column: str) -> list[str]:
    """The column's list of texts; a single text is a list of one.

    Raises:
        ItemError: if it holds anything else.
    """
    value = value_of(record, column)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise record.error(f"{column!r} is {shown(value)}", "it is a list of texts that are not empty", "Correct it")
    return texts


def ended(text: str, mark: str, *, enough: tuple[str, ...] = (".", "?")) -> str:
    """The text with this mark after it, unless it ends in one that is enough."""
    return text if text.endswith(enough) else text + mark


@final
@dataclass(frozen=True, slots=True)
class Classes:
    """A column that holds a class.

    Args:
        column: its name.
        names: of all classes.
        numbered: whether the data may give a class as its number among the names, from 0.
    """

    column: str
    names: tuple[str, ...]
    numbered: bool = True

    def of(self, record: Record) -> str:
        """The name of the record's class.

        Raises:
            LeftOut: if it has none: −1 or nothing.
            ItemError: if it is none of these classes.
        """
        value = value_of(record, self.column)
        # A table of text has its numbers as text.
        given = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else None
        if value is None or given in ("", "-1"):
            raise LeftOut(f"{self.column!r} is {shown(value)}: no label")
        if given in self.names:
            return given
        if self.numbered and given is not None and given.isdecimal() and int(given) < len(self.names):
            return self.names[int(given)]
        numbers = f", or their numbers from 0 to {len(self.names) - 1}" if self.numbered else ""
        raise record.error(
            f"{self.column!r} is {shown(value)}",
            f"the classes are {', '.join(self.names)}{numbers}",
            "Give the data set of this recipe",
        )


def check_labels(labels: Mapping[str, str], classes: Classes) -> None:
    """Refuse labels of classes that there are not, and fewer than two.

    Raises:
        ValueError: if there are any.
    """
    unknown = next((name for name in labels if name not in classes.names), None)
    if unknown is not None or len(set(labels.values())) < 2:
        given = f"there is no class {unknown!r}" if unknown is not None else "two different labels are needed"
        raise ValueError(
            f"labels={dict(labels)!r}: {given}: the classes of {classes.column!r} are {', '.join(classes.names)}. "
            "Give the label of each class that is to be asked."
        )
