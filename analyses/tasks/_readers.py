"""Tasks from JSON, CSV, records in memory and Hugging Face `datasets`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from analyses.tasks._json_csv import FilePath, Record, read_csv, read_json_lines
from analyses.tasks._parsing import CorrectIs, Schema, task_of
from analyses.tasks.task import Task
from surgery.arguments import shown


def from_jsonl(
    path: FilePath,
    *,
    name: str | None = None,
    rename: Mapping[str, str] | None = None,
    template: str | None = None,
    labels: Sequence[str] | None = None,
    separator: str = " ",
    correct_is: CorrectIs | None = None,
) -> Task:
    """The task in a JSON-lines file, one object a line, or in a JSON array: every object becomes one item.

    - An answer: `prompt`, `answer` (a string, or a list whose first entry is the reference), and if there are any
      `alternatives` and `distractors`.
    - A choice: `prompt`, `labels`, and `correct`, which is a label or its position, or a list of them.
    - A minimal pair: `good` and `bad` (also `sentence_good` and `sentence_bad`).

    Every kind may have `group` (a name or a list of names); all other fields become the item's metadata. A list of
    token ids may replace any string. Labels that are repeated count once. A record that makes no item goes to
    `unscorable`, with its reason.

    Args:
        path: the file, in UTF-8.
        name: the task's name; the file's by default.
        rename: their name for a field → our name, as in `{"question": "prompt"}`.
        template: the prompt made of the record's own fields, as in `"Q: {question}\\nA:"`.
        labels: the labels of every item, where the records bring none.
        separator: what goes between a prompt and its answer or label, unless one of them brings white space.
        correct_is: says of a `correct` that is a label and also the position of another one, which of the two it is.

    Raises:
        TaskFileError: if the file is empty, truncated or not UTF-8, no record makes an item, or `correct` can be read
            in two ways; it names the file and the line, or the item of an array.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "facts.jsonl"
    >>> _ = path.write_text('{"prompt": "The capital of Peru is", "answer": "Lima"}')
    >>> tasks.from_jsonl(path)[0].answers
    (' Lima',)
    """
    schema = Schema(rename or {}, template, labels, separator, correct_is=correct_is)
    return task_of(read_json_lines(path), schema.item, name=name or Path(path).stem, metadata={"source": str(path)})


def from_csv(
    path: FilePath,
    *,
    name: str | None = None,
    rename: Mapping[str, str] | None = None,
    template: str | None = None,
    labels: Sequence[str] | None = None,
    separator: str = " ",
    delimiter: str = ",",
    list_separator: str = "|",
    correct_is: CorrectIs | None = None,
) -> Task:
    """The task in a CSV file with a header, whose columns are the fields of `from_jsonl`.

    Args:
        path: the file, in UTF-8.
        name: the task's name; the file's by default.
        rename: their column → our field.
        template: the prompt made of the row's columns, as in `"Q: {question}\\nA:"`.
        labels: as in `from_jsonl`, like `separator` and `correct_is`.
        delimiter: separates the columns.
        list_separator: separates several alternatives, distractors or labels within a column.

    Raises:
        TaskFileError: as `from_jsonl`.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "facts.csv"
    >>> _ = path.write_text("country,answer\\nPeru,Lima\\n")
    >>> tasks.from_csv(path, template="The capital of {country} is")[0].prompt
    'The capital of Peru is'
    """
    schema = Schema(rename or {}, template, labels, separator, list_separator, correct_is)
    records = read_csv(path, delimiter=delimiter)
    return task_of(records, schema.item, name=name or Path(path).stem, metadata={"source": str(path)})


def from_records(
    records: Iterable[Mapping[str, object]] | pd.DataFrame,
    *,
    name: str = "records",
    rename: Mapping[str, str] | None = None,
    template: str | None = None,
    labels: Sequence[str] | None = None,
    separator: str = " ",
    correct_is: CorrectIs | None = None,
) -> Task:
    """The task in a list of dicts or a DataFrame, whose keys or columns are the fields of `from_jsonl`.

    Args:
        records: one mapping an item, or one row.
        name: the task's name.
        rename: their key or column → our field.
        template: as in `from_jsonl`, like `labels`, `separator` and `correct_is`.

    Raises:
        TaskFileError: if no record makes an item, or `correct` can be read in two ways; it names the record.
        TypeError: if these are no records.

    >>> task = tasks.from_records([{"prompt": "1 + 1 =", "labels": ["2", "3"], "correct": "2"}], correct_is="label")
    >>> task[0].right
    (' 2',)
    """
    schema = Schema(rename or {}, template, labels, separator, correct_is=correct_is)
    return task_of(read_records(records, name), schema.item, name=name, metadata={"source": name})


def from_datasets(
    dataset: Iterable[Mapping[str, object]] | str,
    *,
    config: str | None = None,
    split: str | None = None,
    name: str | None = None,
    rename: Mapping[str, str] | None = None,
    template: str | None = None,
    labels: Sequence[str] | None = None,
    separator: str = " ",
    correct_is: CorrectIs | None = None,
) -> Task:
    """The task in a Hugging Face dataset, whose columns are the fields of `from_jsonl`.

    Where the column that means `correct` is a `ClassLabel`, its numbers are positions, and its names are the labels if
    no others are given.

    Args:
        dataset: a loaded split, or the name or folder of one to load.
        config: the dataset's configuration, when loading by name.
        split: the split to load, when loading by name; "validation" by default.
        name: the task's name; the dataset's by default.
        rename: their column → our field.
        template: as in `from_jsonl`, like `labels`, `separator` and `correct_is`.

    Raises:
        TaskFileError: if no row makes an item, or `correct` can be read in two ways; it names the row.
        TypeError: if this is no dataset, or a dict of several splits.
        ValueError: if a configuration or a split is named for a dataset that is loaded already.

    >>> import datasets
    >>> loaded = datasets.Dataset.from_dict({"prompt": ["Is fire hot?"], "correct": ["yes"]})
    >>> tasks.from_datasets(loaded, labels=["yes", "no"])[0].wrong
    (' no',)
    """
    import datasets  # slow to import, and needed here only

    if isinstance(dataset, str):
        loaded, called = datasets.load_dataset(dataset, config, split=split or "validation"), name or dataset
    else:
        _check_loaded(dataset, config, split)
        loaded, called = dataset, name or "dataset"
    names = _class_names(getattr(loaded, "features", None), rename or {})
    schema = Schema(
        rename or {}, template, labels or names, separator, correct_is=correct_is or ("position" if names else None)
    )
    records = (Record(f"{called}, row {row}", dict(fields)) for row, fields in enumerate(loaded))
    return task_of(records, schema.item, name=called, metadata={"source": called})


def read_records(records: object, name: str) -> Iterator[Record]:
    """The records of a list of dicts or a DataFrame.

    Raises:
        TypeError: if these are no records.
    """
    if isinstance(records, pd.DataFrame):
        records = records.to_dict("records")
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable):
        raise TypeError(
            f"records={shown(records)}: give a list of dicts, one for each item, or a DataFrame. A file is read with "
            "tasks.from_jsonl or tasks.from_csv; columns become a DataFrame with pd.DataFrame(columns)."
        )
    for number, fields in enumerate(records):
        if not isinstance(fields, Mapping):
            raise TypeError(
                f"record {number} of {name!r} is {shown(fields)}: give a dict of named fields for each item, such as "
                "{'prompt': ..., 'answer': ...}."
            )
        yield Record(f"{name}, record {number}", {str(key): plain(value) for key, value in fields.items()})


def plain(value: object) -> object:
    """Numbers and arrays of numpy, pandas and torch as Python's own; a missing value as None."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return None if value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value) else value


def _check_loaded(dataset: object, config: str | None, split: str | None) -> None:
    import datasets

    if config is not None or split is not None:
        raise ValueError(
            f"config={config!r}, split={split!r}: these choose what is loaded by name, and this dataset is loaded "
            "already. Leave them out, or give its name."
        )
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"dataset is a dict with {', '.join(map(repr, dataset))}: a task is made of one split. Give dataset[name] "
            "of one of them."
        )
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        raise TypeError(
            f"dataset={shown(dataset)}: give a loaded Hugging Face dataset or its name. Lists of dicts and DataFrames "
            "are read with tasks.from_records."
        )


def _class_names(features: Mapping[str, object] | None, rename: Mapping[str, str]) -> tuple[str, ...] | None:
    """The names of the classes in the column that means `correct`, if it has any."""
    for column, feature in (features or {}).items():
        names = getattr(feature, "names", None)
        if rename.get(column, column) == "correct" and names:
            return tuple(names)
    return None
