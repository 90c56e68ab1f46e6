"""The records of a data set, split by split: from files, folders, what is in memory, or the hub."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import final

import pandas as pd

from analyses.tasks._json_csv import (
    Record,
    TaskFileError,
    read_csv,
    read_json_lines,
    read_json_object,
    read_text,
)
from analyses.tasks._readers import plain, read_records
from surgery.arguments import shown

_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
HEADER = "header"
"""The field under which a record of a BIG-bench file has what that file says of all its examples."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Hub:
    """A data set on the Hugging Face hub.

    Args:
        name: of the data set.
        config: its configuration, if it has several.
        splits: those that the paper takes, in its order.
    """

    name: str
    config: str | None
    splits: tuple[str, ...]

    def __repr__(self) -> str:
        config = f" ({self.config})" if self.config else ""
        return f"{self.name}{config}, split{'s' * (len(self.splits) > 1)} {', '.join(self.splits)}"


def records_by_split(
    data: object, *, name: str, hub: Hub | None, splits: Sequence[str], source: str, asked: bool
) -> dict[str, list[Record]]:
    """The records of each split in order; of data that have no splits, all of them under the empty name.

    Args:
        data: what the user gave.
        name: of the recipe.
        hub: where to load from if nothing is given.
        splits: that are wanted, in order; none for all.
        source: of the data, in words.
        asked: whether the user named the splits.

    Raises:
        ValueError, TaskFileError, FileNotFoundError, ConnectionError: as `Recipe.task`.
    """
    if data is None:
        if hub is None:
            raise ValueError(f"recipe {name!r} is given no data, and they are in no hub. Give a file of {source}.")
        return {split: _from_hub(hub, split, name, source) for split in splits}
    given = data
    if isinstance(data, str | PathLike) and Path(data).is_dir():
        given = _by_split_of_folder(Path(data), splits, hub and hub.config)
    if not isinstance(given, Mapping):
        if asked:
            raise ValueError(
                f"splits={tuple(splits)!r} are asked of {shown(data)}, which is one table without splits. Leave it "
                "out, or give a table for each split, as in {'validation': ...}."
            )
        return {"": table(given, name)}
    missing = next((split for split in splits if split not in given), None)
    if missing is not None:
        there = ", ".join(map(repr, given)) or "none"
        raise ValueError(
            f"recipe {name!r} takes the splits {', '.join(map(repr, splits))}, and there is no {missing!r}: the data "
            f"have {there}. Give it, or say which to take with splits=(...)."
        )
    return {
        str(split): [replace(record, split=str(split)) for record in table(given[split], f"{name}, {split}")]
        for split in splits or given
    }


def _from_hub(hub: Hub, split: str, name: str, source: str) -> list[Record]:
    import datasets  # slow to import, and needed here only

    try:
        loaded = datasets.load_dataset(hub.name, hub.config, split=split)
    except (OSError, RuntimeError, ValueError) as error:
        # Without network, with a data set that moved, or one that `datasets` reads no longer: a file helps in each.
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise ConnectionError(
            f"recipe {name!r} cannot load split {split!r} of {hub} ({type(error).__name__}: {reason}): without a file "
            f"it loads it by name from the Hugging Face hub. Give a file of {source}, as in "
            f"recipe.task({{{split!r}: 'file.jsonl'}})."
        ) from error
    return [replace(record, split=split) for record in _of_dataset(loaded, f"{hub.name}, {split}")]


def table(data: object, name: str) -> list[Record]:
    """The records of one table: a file or several, a loaded dataset, a DataFrame, or a list of dicts.

    Raises:
        TaskFileError: if a file cannot be read.
        FileNotFoundError: if there is none.
        TypeError: if these are no records.
    """
    if isinstance(data, str | PathLike):
        return _of_file(Path(data))
    if isinstance(data, list | tuple) and data and all(isinstance(part, str | PathLike) for part in data):
        return [record for part in data for record in _of_file(Path(part))]
    if hasattr(data, "features") and isinstance(data, Iterable):
        return _of_dataset(data, name)
    return list(read_records(data, name))


def _of_file(path: Path) -> list[Record]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file. Give one that is there, or a list of records.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: each split is one file, or a list of files. Give these.")
    match path.suffix.lower():
        case ".parquet":
            try:
                frame = pd.read_parquet(path)
            except (OSError, ValueError) as error:
                raise TaskFileError(f"{path}", f"this is no parquet file ({error}). Is it complete?") from None
            return [Record(f"{path}, row {n}", row.fields) for n, row in enumerate(read_records(frame, str(path)))]
        case ".csv" | ".tsv":
            return list(read_csv(path, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
        case ".json" | ".jsonl" | ".ndjson":
            return _of_bigbench(path) if _is_bigbench(path) else list(read_json_lines(path))
    raise TaskFileError(
        f"{path}", f"the suffix {path.suffix!r} tells no format: these are read: {', '.join(_SUFFIXES)}. Rename it."
    )


def _is_bigbench(path: Path) -> bool:
    """Whether the file is one object that keeps its items under "examples"."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError):
        return False  # JSON lines, or broken: whoever reads it says where
    return isinstance(value, dict) and isinstance(value.get("examples"), list)


def _of_bigbench(path: Path) -> list[Record]:
    """The examples of a BIG-bench task.json, each with what the file says of all."""
    header, records = read_json_object(path, "examples")
    return [replace(record, fields={**record.fields, HEADER: header}) for record in records]


def _of_dataset(dataset: object, name: str) -> list[Record]:
    """The rows of a loaded dataset, with the names of classes in the place of their numbers."""
    features = getattr(dataset, "features", None) or {}
    classes = {column: feature.names for column, feature in features.items() if getattr(feature, "names", None)}

    def named(column: str, value: object) -> object:
        known = column in classes and isinstance(value, int) and 0 <= value < len(classes[column])
        return classes[column][value] if known else plain(value)

    return [
        Record(f"{name}, row {n}", {column: named(column, value) for column, value in row.items()})
        for n, row in enumerate(dataset)  # type: ignore[arg-type]
    ]


def _by_split_of_folder(folder: Path, splits: Sequence[str], config: str | None) -> object:
    """The files of the folder by the split in their name; if there is one file that names none, that file.

    Of a copy of a data set with several configurations, each in a folder of its own, only this one's are taken.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"{folder}: no file in this folder ends in {', '.join(_SUFFIXES)}. Give a folder with such files."
        )

    files = [path for path in files if config in path.relative_to(folder).parts[:-1]] or files

    def of(split: str) -> list[Path]:
        word = re.compile(rf"(?<![a-z0-9]){re.escape(split.lower())}(?![a-z0-9])")
        return [path for path in files if word.search(path.relative_to(folder).as_posix().lower())]

    by_split = {split: of(split) for split in splits if of(split)}
    _check_told_apart(by_split)
    if len(files) == 1 and not by_split:
        return files[0]
    return by_split or {path.stem: path for path in files}


def _check_told_apart(by_split: Mapping[str, Sequence[Path]]) -> None:
    """Refuse files that would be read twice, and those of a split that seem to be of several data sets.

    Raises:
        ValueError: if a path names two splits, or the files of one are in several folders.
    """
    seen: set[Path] = set()
    for split, files in by_split.items():
        twice = next((path for path in files if path in seen), None)
        if twice is not None:
            raise ValueError(
                f"{twice}: its path names more than one of the splits {', '.join(by_split)}, and it would be read for "
                f"each. Rename it, or name the files, as in {{{split!r}: file}}."
            )
        folders = sorted({str(path.parent) for path in files})
        if len(folders) > 1:
            raise ValueError(
                f"the files of the split {split!r} are in several folders: {', '.join(folders)}. Give the one that is "
                f"meant, or name the files, as in {{{split!r}: [file, file]}}."
            )
        seen.update(files)
