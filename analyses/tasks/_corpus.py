"""A corpus as documents, read bit by bit: text files and JSON lines, plain or compressed, of any size."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, get_args

from analyses.tasks._json_csv import FilePath, TaskFileError
from surgery.arguments import one_of, shown
from surgery.progress import progress_bar

Document: TypeAlias = Literal["paragraph", "line", "file"]
"""What one document is in a text file; in JSON lines it is a record."""
Stretch: TypeAlias = tuple[str, bool]
"""A part of a document, and whether the document ends with it."""

_SUFFIXES = (".txt", ".jsonl")
_CHUNK = 2**20
"""Characters of a text file that are in memory at a time."""


def corpus_files(files: FilePath | Iterable[FilePath]) -> list[Path]:
    """The files that are named, and those in the folders that are.

    Raises:
        ValueError: if there are none, or one is of another kind.
        FileNotFoundError: if one is not there.
    """
    given = [Path(files)] if not isinstance(files, Iterable) or isinstance(files, str) else list(map(Path, files))
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"there is no corpus file {str(path)!r}: give files and folders that exist.")
        inside = sorted(file for file in path.rglob("*") if _kind(file)) if path.is_dir() else [path]
        found += inside
        if not inside or not _kind(inside[0]):
            raise ValueError(
                f"{str(path)!r} is no corpus: files end in {', '.join(_SUFFIXES)}, or in one of these and .gz. Give "
                "such files, or a folder of them."
            )
    if not found:
        raise ValueError("there is no corpus: give one file or more.")
    return list(dict.fromkeys(found))


def stretches(files: Iterable[Path], *, document: Document, field: str, progress: bool) -> Iterator[Stretch]:
    """All documents of these files, in stretches; memory is that of one chunk, or of one record of JSON lines.

    Raises:
        TaskFileError: if a file is not UTF-8, not JSON lines with this field, or broken; it names file and line.
    """
    one_of(document, "document", get_args(Document))
    files = list(files)
    total = sum(path.stat().st_size for path in files)
    with progress_bar("corpus", progress=progress, total=total, unit="B", unit_scale=True) as bar:
        before = 0  # the bytes of the files that are done
        for path in files:
            with path.open("rb") as raw:
                try:
                    for stretch in _of_file(path, raw, document, field):
                        bar.update(before + raw.tell() - bar.n)
                        yield stretch
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    raise TaskFileError(
                        str(path), f"this is not a whole gzip file ({error}): was it copied to its end? Make it anew."
                    ) from None
            before += path.stat().st_size


def _of_file(path: Path, raw: BinaryIO, document: Document, field: str) -> Iterator[Stretch]:
    unpacked = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
    with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline=None) as text:  # type: ignore[arg-type]
        yield from _of_text(path, text, document, field)


def _of_text(path: Path, text: io.TextIOWrapper, document: Document, field: str) -> Iterator[Stretch]:
    lines = _numbered(path, text)
    if _kind(path) == ".jsonl":
        for number, line in _whole(lines):
            if line.strip():
                yield _text_of(path, number, line, field), True
    elif document == "line":
        for _, line in lines:
            yield line, line.endswith("\n")
        yield "", True
    else:
        yield from _runs(lines, document)


def _numbered(path: Path, text: io.TextIOWrapper) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a line longer than a chunk comes in several."""
    number = 1
    try:
        while line := text.readline(_CHUNK):
            yield number, line
            number += line.endswith("\n")
    except UnicodeDecodeError as error:
        raise TaskFileError(
            f"{path}:{number}",
            f"in or after this line, byte 0x{error.object[error.start]:02x} is not UTF-8: a corpus is UTF-8 text. "
            "Convert the file, for instance with iconv -f LATIN1 -t UTF-8.",
        ) from None


def _whole(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines of JSON, put together again if they came in several."""
    begun: list[str] = []
    number = 0
    for number, line in lines:
        begun.append(line)
        if line.endswith("\n"):
            yield number, "".join(begun)
            begun = []
    if begun:
        yield number, "".join(begun)


def _runs(lines: Iterable[tuple[int, str]], document: Document) -> Iterator[Stretch]:
    """Lines up to a blank one or to the end of the file, as stretches of about a chunk."""
    held: list[str] = []
    size, starts_line = 0, True
    for _, line in lines:
        if document == "paragraph" and starts_line and line.endswith("\n") and not line.strip():
            yield "".join(held), True
            held, size = [], 0
            continue
        starts_line = line.endswith("\n")
        held.append(line)
        size += len(line)
        if size >= _CHUNK:
            yield "".join(held), False
            held, size = [], 0
    yield "".join(held), True


def _text_of(path: Path, number: int, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TaskFileError(
            f"{path}:{number}", f"this line is not JSON ({error}): every line is an object. Is it the file?"
        ) from None
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        there = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
        raise TaskFileError(
            f"{path}:{number}",
            f"no text under {field!r}: the record has {shown(there)}. Name the field that holds it by text_field=...",
        )
    return text


def _kind(path: Path) -> str | None:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in _SUFFIXES and path.is_file() else None
