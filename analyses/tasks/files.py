"""Reading text, JSON, JSON lines and CSV so that every record, and every error, knows its line."""

import csv
import io
import json
import re
from bisect import bisect_right
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NoReturn

FilePath = str | PathLike[str]

_SPACE = re.compile(r"[ \t\n\r]*")


class TaskFileError(ValueError):
    """A file that cannot be read as a task; the text names the file and the line."""


class OddRecord(TaskFileError):
    """One record that makes no item, while others may; `reason` is the text without the place."""

    def __init__(self, where: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{where}: {reason}")


@dataclass(frozen=True, slots=True)
class Record:
    """What one place of a file holds: named fields, and `file:line`; `repeated` is a name that stood there twice."""

    where: str
    fields: Mapping[str, object]
    repeated: str | None = None

    def error(self, given: str, allowed: str, remedy: str) -> OddRecord:
        """An error that begins with the record's place."""
        return OddRecord(self.where, f"{given}: {allowed}. {remedy}.")


def read_text(path: FilePath) -> str:
    """The file's text.

    Raises:
        TaskFileError: if it is empty or not UTF-8.
    """
    data = Path(path).read_bytes()
    if data[:2] in (BOM_UTF16_LE, BOM_UTF16_BE):
        raise TaskFileError(
            f"{path}:1: the file begins with the mark of UTF-16: task files are UTF-8 text. "
            "Convert the file, for instance with iconv -f UTF-16 -t UTF-8."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TaskFileError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8: task files are UTF-8 text. "
            "Convert the file, for instance with iconv -f LATIN1 -t UTF-8."
        ) from None
    if not text.strip():
        raise TaskFileError(
            f"{path}:1: the file is empty: a task file has at least one item. Look at how it was written."
        )
    return text


def read_json_lines(path: FilePath) -> Iterator[Record]:
    """The objects of a JSON-lines file, one a line, or of any JSON: one array, or objects over several lines."""
    text = read_text(path)
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if text.lstrip().startswith("["):
        yield from read_json_array(path)
    elif not _is_json(lines[0][1]):
        scanner = _Scanner(path, text)
        while scanner.peek():
            line = scanner.line(scanner.at)
            yield scanner.record(line, scanner.value())
    else:
        for number, line in lines:
            scanner = _Scanner(path, line, first_line=number)
            yield scanner.record(number, scanner.whole())


def read_json_array(path: FilePath) -> list[Record]:
    """The objects of a JSON file that is one array."""
    scanner = _Scanner(path, read_text(path))
    records = [scanner.record(line, value) for line, value in scanner.array()]
    scanner.end()
    return records


def read_json_object(path: FilePath, array: str) -> tuple[dict[str, object], list[Record]]:
    """A JSON file that is one object: its fields, and apart from them the objects in the field named `array`."""
    scanner = _Scanner(path, read_text(path))
    header: dict[str, object] = {}
    records: list[Record] = []
    for key in scanner.keys():  # noqa: SIM118  (a scanner is not a mapping: it stops at each value)
        if key == array:
            records = [scanner.record(line, value) for line, value in scanner.array()]
        else:
            header[key] = scanner.value()
    scanner.end()
    if not records:
        raise TaskFileError(
            f"{path}:1: no items under {array!r}: this format keeps them in a list of that name; the file has "
            f"{', '.join(map(repr, header)) or 'nothing'}. Give a file of one task."
        )
    return header, records


def read_csv(path: FilePath, *, delimiter: str = ",") -> Iterator[Record]:
    """The rows of a CSV file under its header, each with the line it begins in."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next(rows)
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise TaskFileError(
                f"{path}:1: the header names {twice[0]!r} more than once: each column has its own name. Rename one."
            )
        while True:
            line = rows.line_num + 1
            row = next(rows, None)
            if row is None:
                return
            if row and len(row) != len(header):
                raise TaskFileError(
                    f"{path}:{line}: {len(row)} fields: the header has {len(header)} ({', '.join(header)}). "
                    "Quote fields that hold the delimiter, or complete the row."
                )
            if row:
                yield Record(f"{path}:{line}", dict(zip(header, row, strict=True)))
    except csv.Error as error:
        if "field larger than field limit" in str(error):
            raise TaskFileError(
                f"{path}:{line}: a field of this row has more than {csv.field_size_limit()} characters: Python's csv "
                "reads no longer ones. If no quote is missing, allow them with csv.field_size_limit(10**9)."
            ) from None
        raise TaskFileError(
            f"{path}:{line}: this row is not CSV ({error}): a quoted field ends with a quote and a delimiter. "
            "Is the file complete?"
        ) from None


class _Scanner:
    """Walks through a JSON text value by value and keeps the line."""

    def __init__(self, path: FilePath, text: str, *, first_line: int = 1) -> None:
        self.path, self.text, self.at = path, text, 0
        self.first_line = first_line
        self.decoder = json.JSONDecoder(object_pairs_hook=self.named)
        self.repeated: str | None = None
        self.breaks = [match.start() for match in re.finditer("\n", text)]

    def named(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        """An object; a name that it has twice is noted until the next value."""
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated = next(name for name in names if names.count(name) > 1)
        return found

    def record(self, line: int, value: object) -> Record:
        """The value that was just read, as a record."""
        if not isinstance(value, dict):
            raise TaskFileError(
                f"{self.path}:{line}: this is of type {type(value).__name__}: an item is an object of named fields. "
                "Is the file of this format?"
            )
        return Record(f"{self.path}:{line}", value, self.repeated)

    def line(self, at: int) -> int:
        return self.first_line + bisect_right(self.breaks, at - 1)

    def peek(self) -> str:
        match = _SPACE.match(self.text, self.at)
        assert match is not None, "the pattern matches the empty string"
        self.at = match.end()
        return self.text[self.at : self.at + 1]

    def value(self) -> object:
        self.peek()
        try:
            self.repeated = None
            value, self.at = self.decoder.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self.fail(error.pos, error.msg)
        except RecursionError:
            self.fail(self.at, "nested too deeply")
        return value

    def take(self, allowed: str) -> str:
        found = self.peek()
        if not found or found not in allowed:
            self.fail(
                self.at,
                f"expected {' or '.join(map(repr, allowed))}, found {found!r}" if found else "the text ends early",
            )
        self.at += 1
        return found

    def fail(self, at: int, reason: str) -> NoReturn:
        raise TaskFileError(
            f"{self.path}:{self.line(at)}: this is not JSON of the expected form ({reason}): see the line. "
            "Is the file complete, and of this format?"
        )

    def end(self) -> None:
        if self.peek():
            self.fail(self.at, "there is more after the end")

    def whole(self) -> object:
        value = self.value()
        self.end()
        return value

    def array(self) -> Iterator[tuple[int, object]]:
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            self.peek()
            line = self.line(self.at)
            yield line, self.value()
            if self.take(",]") == "]":
                return

    def keys(self) -> Iterator[str]:
        self.take("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            key = self.value()
            self.take(":")
            yield str(key)
            if self.take(",}") == "}":
                return


def _is_json(text: str) -> bool:
    """Whether the text begins with a whole JSON value."""
    try:
        json.JSONDecoder().raw_decode(text.strip())
    except (json.JSONDecodeError, RecursionError):
        return False
    return True
