"""Tasks from JSON, CSV, records in memory and Hugging Face `datasets`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from torch import Tensor

from analyses.tasks.files import FilePath, Record, read_csv, read_json_lines
from analyses.tasks.records import CorrectIs, Schema, build, file_task, sift
from analyses.tasks.task import Task
from surgery.arguments import shown


@runtime_checkable
class Rows(Protocol):
    """What is asked of a dataset; those of Hugging Face have it."""

    features: Mapping[str, object] | None

    def __iter__(self) -> Iterator[Mapping[str, object]]: ...


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

    Every kind may have `group` (a name or a list of names); all other fields become the item's metadata. In the place
    of a string there may be a list of token ids. Labels that are repeated count once. A record that makes no item goes
    to `unscorable`, with its reason.

    Args:
        path: the file, in UTF-8.
        name: what to call the task; the file's name by default.
        rename: their name for a field → our name, as in `{"question": "prompt"}`.
        template: the prompt made of the record's own fields, as in `"Q: {question}\\nA:"`.
        labels: the labels of every item, where the records bring none.
        separator: what goes between a prompt and its answer or label, unless one of them brings white space.
        correct_is: says of a `correct` that is a label and also the position of another one, which of the two it is.

    Raises:
        TaskFileError: if the file is empty, truncated or not UTF-8, no record makes an item, or `correct` can be read
            in two ways; it names file and line.
    """
    schema = Schema(rename or {}, template, _labels(labels), separator, correct_is=correct_is)
    return file_task(path, name, sift(read_json_lines(path), schema.item))


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
        name: what to call the task; the file's name by default.
        rename: their column → our field.
        template: the prompt made of the row's columns, as in `"Q: {question}\\nA:"`.
        labels: the labels of every item, where there is no such column.
        separator: what goes between a prompt and its answer or label, unless one of them brings white space.
        delimiter: what separates the columns.
        list_separator: what separates several alternatives, distractors or labels within a column.
        correct_is: as in `from_jsonl`.

    Raises:
        TaskFileError: as `from_jsonl`.
    """
    schema = Schema(rename or {}, template, _labels(labels), separator, list_separator, correct_is)
    return file_task(path, name, sift(read_csv(path, delimiter=delimiter), schema.item))


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
        name: what to call the task.
        rename: their key or column → our field.
        template: the prompt made of the record's own fields, as in `"Q: {question}\\nA:"`.
        labels: the labels of every item, where the records bring none.
        separator: what goes between a prompt and its answer or label, unless one of them brings white space.
        correct_is: as in `from_jsonl`.

    Raises:
        TaskFileError: if no record makes an item, or `correct` can be read in two ways; it names the record.
        TypeError: if these are no records.
    """
    schema = Schema(rename or {}, template, _labels(labels), separator, correct_is=correct_is)
    return build(name, sift(_records(records, name), schema.item), {"source": name})


def from_datasets(
    dataset: Rows | str,
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
        dataset: a loaded split, or the name or folder of one to load (needs the extra `datasets`).
        config: the dataset's configuration, when loading by name.
        split: the split to load, when loading by name; "validation" by default.
        name: what to call the task; the dataset's name by default.
        rename: their column → our field.
        template: the prompt made of the row's columns, as in `"Q: {question}\\nA:"`.
        labels: the labels of every item, where there is no such column.
        separator: what goes between a prompt and its answer or label, unless one of them brings white space.
        correct_is: as in `from_jsonl`.

    Raises:
        TaskFileError: if no row makes an item, or `correct` can be read in two ways; it names the row.
        TypeError: if this is no dataset, or a dict of several splits.
        ValueError: if a configuration or a split is named for a dataset that is loaded already.
        ImportError: if a dataset is to be loaded by name and `datasets` is not installed.
    """
    if not isinstance(dataset, str) and (config is not None or split is not None):
        raise ValueError(
            f"config={config!r}, split={split!r}: these choose what is loaded by name, and this dataset is loaded "
            "already. Leave them out, or give its name."
        )
    loaded = _load(dataset, config, split or "validation") if isinstance(dataset, str) else _rows(dataset)
    called = name or (dataset if isinstance(dataset, str) else "dataset")
    rename = rename or {}
    names = _class_names(loaded, rename)
    meant = correct_is or ("position" if names else None)
    schema = Schema(rename, template, _labels(labels) or names, separator, correct_is=meant)
    records = (Record(f"{called}, row {row}", dict(fields)) for row, fields in enumerate(loaded))
    return build(called, sift(records, schema.item), {"source": called})


def _labels(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(labels, str):
        raise ValueError(f"labels={labels!r} is one string: give a list of labels, such as ['yes', 'no'].")
    return None if labels is None else tuple(labels)


def _records(records: object, name: str) -> Iterator[Record]:
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
        yield Record(f"{name}, record {number}", {str(key): _plain(value) for key, value in fields.items()})


def _plain(value: object) -> object:
    """Numbers and arrays of numpy, pandas and torch as Python's own; what is missing becomes None."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.tolist()
    return None if value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value) else value


def _rows(dataset: object) -> Rows:
    if isinstance(dataset, Rows):
        return dataset
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"dataset is a dict with {', '.join(map(repr, dataset))}: a task is made of one split. Give dataset[name] "
            "of one of them."
        )
    raise TypeError(
        f"dataset={shown(dataset)}: give a loaded Hugging Face dataset or its name. Lists of dicts and DataFrames are "
        "read with tasks.from_records."
    )


def _load(name: str, config: str | None, split: str) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"cannot load {name!r}: reading by name needs the package `datasets`, which is not installed. "
            "Install model-surgery[datasets], or pass a loaded dataset."
        ) from error
    return datasets.load_dataset(name, config, split=split)  # type: ignore[return-value]


def _class_names(dataset: Rows, rename: Mapping[str, str]) -> tuple[str, ...] | None:
    for column, feature in (dataset.features or {}).items():
        names = getattr(feature, "names", None)
        if rename.get(column, column) == "correct" and names:
            return tuple(names)
    return None
