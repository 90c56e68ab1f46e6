"""Files of text, JSON, JSON lines and CSV read as records; every record, and every error, knows its line or number."""

import csv
import io
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from analyses.tasks.items import ItemError, SourcedError

FilePath = str | PathLike[str]

_VALUE_BEGINS = re.compile(r"[^ \t\n\r]")


class TaskFileError(SourcedError):
    """A file that cannot be read as a task; the text names the file and the line or the item."""


@dataclass(frozen=True, slots=True)
class Record:
    """Named fields, and where they were read: `file:line`, or the number of the record, counted from 0.

    `repeated` is a name that the record gave to two fields, of which JSON keeps the last; `split` the part of the data
    set that it belongs to, where that is known.
    """

    source: str
    fields: Mapping[str, object]
    repeated: str | None = None
    split: str = ""

    def error(self, given: str, allowed: str, remedy: str) -> ItemError:
        """An error that names the record's source."""
        return ItemError(self.source, f"{given}: {allowed}. {remedy}.")


def read_text(path: FilePath) -> str:
    """The file's text.

    Raises:
        TaskFileError: if it is empty or not UTF-8.
    """
    data = Path(path).read_bytes()
    # Told apart first: as UTF-8 it fails at its first byte, with a message about a byte nobody typed.
    if data[:2] in (BOM_UTF16_LE, BOM_UTF16_BE):
        raise TaskFileError(
            f"{path}:1",
            "the file begins with the mark of UTF-16: task files are UTF-8 text. Convert the file, for instance with "
            "iconv -f UTF-16 -t UTF-8.",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TaskFileError(
            f"{path}:{line}",
            f"byte 0x{data[error.start]:02x} is not UTF-8: task files are UTF-8 text. Convert the file, for instance "
            "with iconv -f LATIN1 -t UTF-8.",
        ) from None
    if not text.strip():
        raise TaskFileError(
            f"{path}:1", "the file is empty: a task file has at least one item. Look at how it was written."
        )
    return text


def read_json_lines(path: FilePath) -> Iterator[Record]:
    """The objects of a JSON-lines file, one a line, or of any JSON: one array, or objects over several lines."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        yield from read_json_array(path)
        return
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not _is_json(lines[0][1]):
        yield from _objects_over_lines(path, text)
        return
    for number, line in lines:
        yield _record(f"{path}:{number}", _parsed(path, line, first_line=number))


def read_json_array(path: FilePath) -> list[Record]:
    """The objects of a JSON file that is one array."""
    value = _parsed(path, read_text(path))
    if not isinstance(value, list):
        raise TaskFileError(
            f"{path}:1", f"the file holds a {type(value).__name__}: this format is one list of objects. Is it the file?"
        )
    return [_record(f"{path}, item {n}", member) for n, member in enumerate(value)]


def read_json_object(path: FilePath, array: str) -> tuple[dict[str, object], list[Record]]:
    """A JSON file that is one object: its fields, and apart from them the objects in the field named `array`."""
    value = _parsed(path, read_text(path))
    header = dict(value) if isinstance(value, dict) else {}
    members = header.pop(array, None)
    if not isinstance(members, list) or not members:
        raise TaskFileError(
            f"{path}:1",
            f"no items under {array!r}: this format is an object that keeps them in a list of that name; the file has "
            f"{', '.join(map(repr, header)) or 'no other field'}. Give a file of one task.",
        )
    return header, [_record(f"{path}, item {n}", member) for n, member in enumerate(members)]


def read_csv(path: FilePath, *, delimiter: str = ",") -> Iterator[Record]:
    """The rows of a CSV file under its header, each with the line it begins in."""
    # pandas tells the line of no row, and Python's DictReader not that of a row after an empty one.
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next(rows)
        repeated = next((name for name in header if header.count(name) > 1), None)
        if repeated is not None:
            raise TaskFileError(
                f"{path}:1",
                f"the header names {repeated!r} more than once: each column has its own name. Rename one.",
            )
        while True:
            line = rows.line_num + 1  # a row with line breaks in quotes ends lines later
            row = next(rows, None)
            if row is None:
                return
            if row and len(row) != len(header):
                raise TaskFileError(
                    f"{path}:{line}",
                    f"{len(row)} fields: the header has {len(header)} ({', '.join(header)}). Quote fields that hold "
                    "the delimiter, or complete the row.",
                )
            if row:
                yield Record(f"{path}:{line}", dict(zip(header, row, strict=True)))
    except csv.Error as error:
        reason = (
            f"a field of this row has more than {csv.field_size_limit()} characters: Python's csv reads no longer "
            "ones. If no quote is missing, allow them with csv.field_size_limit(10**9)."
            if "field larger than field limit" in str(error)
            else f"this row is not CSV ({error}): a quoted field ends with a quote and a delimiter. Is the file "
            "complete?"
        )
        raise TaskFileError(f"{path}:{line}", reason) from None


class _TwiceNamed(dict[str, object]):
    """An object that gave one name to two fields."""

    name: str


def _named(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, marked if it has a name twice."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    # JSON allows the repetition, and Python keeps the last field: the mark lets one record be put aside, not the file.
    marked, names = _TwiceNamed(fields), [name for name, _ in pairs]
    marked.name = next(name for name in names if names.count(name) > 1)
    return marked


_DECODER = json.JSONDecoder(object_pairs_hook=_named)


def _parsed(path: FilePath, text: str, *, first_line: int = 1) -> object:
    try:
        return _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _not_json(path, text, error, first_line=first_line) from None


def _objects_over_lines(path: FilePath, text: str) -> Iterator[Record]:
    """Objects one after the other, each over as many lines as it takes."""
    at = 0
    while beginning := _VALUE_BEGINS.search(text, at):
        line = text.count("\n", 0, beginning.start()) + 1
        try:
            value, at = _DECODER.raw_decode(text, beginning.start())
        except (json.JSONDecodeError, RecursionError) as error:
            raise _not_json(path, text, error) from None
        yield _record(f"{path}:{line}", value)


def _not_json(
    path: FilePath, text: str, error: json.JSONDecodeError | RecursionError, *, first_line: int = 1
) -> TaskFileError:
    at, reason = (error.pos, error.msg) if isinstance(error, json.JSONDecodeError) else (0, "nested too deeply")
    line = first_line + text.count("\n", 0, at)
    return TaskFileError(
        f"{path}:{line}",
        f"this is not JSON of the expected form ({reason}): see the line. Is the file complete, and of this format?",
    )


def _is_json(text: str) -> bool:
    """Whether the text begins with a whole JSON value."""
    try:
        json.JSONDecoder().raw_decode(text.strip())
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


def _record(source: str, value: object) -> Record:
    if not isinstance(value, dict):
        raise TaskFileError(
            source,
            f"this is of type {type(value).__name__}: an item is an object of named fields. Is the file of this "
            "format?",
        )
    return Record(source, value, _repeated(value))


def _repeated(value: object) -> str | None:
    """A name that an object at any depth of the value has twice."""
    match value:
        case _TwiceNamed():
            return value.name
        case dict():
            members = list(value.values())
        case list():
            members = value
        case _:
            return None
    return next((name for member in members if (name := _repeated(member)) is not None), None)
