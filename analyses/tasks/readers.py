"""Tasks from JSON lines, CSV and Hugging Face `datasets`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from analyses.tasks.files import FilePath, Record, read_csv, read_json_lines
from analyses.tasks.records import Schema, build, file_task
from analyses.tasks.task import Task


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
) -> Task:
    """The task in a JSON-lines file: one object a line, which becomes one item.

    - An answer: `prompt`, `answer` (a string, or a list whose first entry is the reference), and if there are any
      `alternatives` and `distractors`.
    - A choice: `prompt`, `labels`, and `correct`, which is a label or its position, or a list of them.
    - A minimal pair: `good` and `bad` (also `sentence_good` and `sentence_bad`).

    Every kind may have `group` (a name or a list of names); all other fields become the item's metadata. In the place
    of a string there may be a list of token ids.

    Args:
        path: the file, in UTF-8.
        name: what to call the task; the file's name by default.
        rename: their name for a field → our name, as in `{"question": "prompt"}`.
        template: the prompt made of the record's own fields, as in `"Q: {question}\\nA:"`.
        labels: the labels of every item, where the records bring none.
        separator: what goes between a prompt and its answer or label, unless one of them brings white space.

    Raises:
        TaskFileError: if the file is empty, truncated, not UTF-8, or an item lacks something; it names file and line.
    """
    schema = Schema(rename or {}, template, _labels(labels), separator)
    return file_task(path, name, map(schema.item, read_json_lines(path)))


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

    Raises:
        TaskFileError: if the file is empty, truncated, not UTF-8, or an item lacks something; it names file and line.
    """
    schema = Schema(rename or {}, template, _labels(labels), separator, list_separator)
    return file_task(path, name, map(schema.item, read_csv(path, delimiter=delimiter)))


def from_datasets(
    dataset: Rows | str,
    *,
    config: str | None = None,
    split: str = "validation",
    name: str | None = None,
    rename: Mapping[str, str] | None = None,
    template: str | None = None,
    labels: Sequence[str] | None = None,
    separator: str = " ",
) -> Task:
    """The task in a Hugging Face dataset, whose columns are the fields of `from_jsonl`.

    Where no labels are given and the column that means `correct` is a `ClassLabel`, its names are the labels.

    Args:
        dataset: a loaded split, or the name or folder of one to load (needs the extra `datasets`).
        config: the dataset's configuration, when loading by name.
        split: the split to load, when loading by name.
        name: what to call the task; the dataset's name by default.
        rename: their column → our field.
        template: the prompt made of the row's columns, as in `"Q: {question}\\nA:"`.
        labels: the labels of every item, where there is no such column.
        separator: what goes between a prompt and its answer or label, unless one of them brings white space.

    Raises:
        TaskFileError: if an item lacks something; it names the row.
        ImportError: if a dataset is to be loaded by name and `datasets` is not installed.
    """
    loaded = _load(dataset, config, split) if isinstance(dataset, str) else dataset
    called = name or (dataset if isinstance(dataset, str) else "dataset")
    rename = rename or {}
    schema = Schema(rename, template, _labels(labels) or _class_names(loaded, rename), separator)
    records = (Record(f"{called}, row {row}", dict(fields)) for row, fields in enumerate(loaded))
    return build(called, map(schema.item, records), {"source": called})


def _labels(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if labels is None else tuple(labels)


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
