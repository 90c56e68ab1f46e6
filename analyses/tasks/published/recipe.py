"""A recipe: a paper's own task, from the data set to items, rule and parts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from os import PathLike
from typing import TypeAlias, final

import pandas as pd

from analyses.tasks._json_csv import Record, TaskFileError
from analyses.tasks._parsing import task_of
from analyses.tasks.items import Item
from analyses.tasks.published.data import Hub, records_by_split
from analyses.tasks.published.divisions import Division
from analyses.tasks.published.form import Form, FromRecords, LeftOut, Made
from analyses.tasks.rules import NamedRule
from analyses.tasks.task import Splits, Task
from surgery.arguments import shown

FilePath: TypeAlias = str | PathLike[str]
Table: TypeAlias = FilePath | Sequence[FilePath] | pd.DataFrame | Iterable[Mapping[str, object]]
"""One table of records: a file or several, a folder, a DataFrame, a loaded dataset, or a list of dicts."""
Option: TypeAlias = object
"""The value of an option; which ones a recipe has, and of which type, is told by the fields of its form."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Recipe:
    """How a paper makes its task: which data, which prompt, what counts as right, which part chooses and reports.

    Args:
        name: by which `tasks.recipe` finds it.
        paper: that ran it.
        title: what is asked.
        source: where the data are from, in words.
        hub: where `datasets` finds them; None where they are in no hub, or made here.
        kept: which records are kept.
        form: how records become items; its fields are the options of `task`.
        division: which items choose and which report.
        wording: how the prompt was established: "as published", or which part is ours.
        size: how many items there are, where that is known for sure.
        licence: of the data, where that is known for sure.

    >>> recipe = tasks.recipe("bios-gender")
    >>> recipe.rule, recipe.hub
    (Likeliest(per='sequence'), LabHC/bias_in_bios, split dev)
    >>> task = recipe.task([{"hard_text": "She teaches in Lima", "profession": 26, "gender": 1}])
    >>> task[0].prompt[-66:], task[0].right
    ('person in this text a male or female? The gender of this person is', (' female',))
    """

    name: str
    paper: str
    title: str
    source: str
    hub: Hub | None
    kept: str
    form: Form
    division: Division
    wording: str = "as published"
    size: str = "not known here"
    licence: str = "not known here"

    @property
    def rule(self) -> NamedRule:
        """What counts as right, as published."""
        return self.form.rule

    @property
    def prompt(self) -> str:
        """The template of the prompt."""
        return self.form.prompt

    @property
    def options(self) -> dict[str, object]:
        """Every option of `task`, and its published value."""
        return {option.name: getattr(self.form, option.name) for option in fields(self.form)}

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}: {self.title}, {self.paper}, by {self.rule})"

    def task(self, data: Table | Mapping[str, Table] | None = None, **options: Option) -> Task:
        """The paper's task, which carries its rule; every departure from the published form is an option.

        Args:
            data: a file (JSON, JSON lines, CSV, TSV, parquet), a folder of them, a list of records, a DataFrame, a
                loaded dataset, or one of these for each split, as in `{"validation": "validation.jsonl"}`; None loads
                the published splits from the hub.
            options: see `recipe.options`, which has them with their published values.

        What was left out by the published filter is counted in the task's metadata, under "left_out"; a record that
        makes no item goes to `unscorable`.

        Raises:
            ValueError: if there is no such option or split, or no item is left.
            TaskFileError: if a file cannot be read, or none of its records makes an item.
            FileNotFoundError: if there is no such file, or the folder has none.
            ConnectionError: if the data cannot be loaded from the hub.
        """
        form = self._form(options)
        about = {"recipe": self.name, "paper": self.paper, "source": _described(data, self.hub), "options": options}
        match form:
            case Made():
                if data is not None:
                    raise ValueError(f"recipe {self.name!r} makes its items: leave out data={shown(data)}.")
                task = Task(self.name, form.made(), about)
                if not len(task):
                    raise _nothing_left(self, Counter())
            case FromRecords():
                task = self._read(form, data, about)
            case _:
                raise TypeError(f"{form!r} neither makes items nor reads them: derive it from Made or FromRecords.")
        note = form.note(task.items)
        return replace(task, metadata=dict(task.metadata) | ({"note": note} if note else {}), rule=form.rule)

    def split(self, task: Task, *, seed: int = 0) -> Splits:
        """The task in the paper's parts: what chooses is `validation` (or `screen`), what reports is `test`.

        Items that belong together are not kept together where the paper does not: `Task.split` does that.

        Args:
            task: from this recipe.
            seed: of parts that are drawn at random; the paper's own are not known.

        Raises:
            ValueError: if a part would have no items.
        """
        return self.division.parts(task, seed=seed)

    def _read(self, form: FromRecords, data: object, about: Mapping[str, object]) -> Task:
        """The task without its rule, from the records of the data."""
        parts = records_by_split(
            data, name=self.name, hub=self.hub, splits=form.read_splits, source=self.source,
            asked=form.splits != self.options["splits"],
        )  # fmt: skip
        items_of, left_out = form.reader(parts), Counter[str]()

        def read(record: Record) -> list[Item]:
            try:
                items = items_of(record)
            except LeftOut as reason:
                left_out[str(reason)] += 1
                return []
            return [replace(item, metadata={**item.metadata, "split": record.split}) for item in items]

        try:
            task = task_of(form.ordered(parts), read, name=self.name, metadata=about)
        except TaskFileError:
            raise
        except ValueError:
            raise _nothing_left(self, left_out) from None
        return replace(task, metadata={**about, "left_out": dict(left_out)})

    def _form(self, options: Mapping[str, object]) -> Form:
        """The form with these options."""
        allowed = self.options
        unknown = next((name for name in options if name not in allowed), None)
        if unknown is not None:
            near = get_close_matches(unknown, allowed, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"recipe {self.name!r} has no option {unknown!r}: it has {', '.join(sorted(allowed))}.{guess}"
            )
        return replace(self.form, **{name: _like(allowed[name], value, name) for name, value in options.items()})


def _like(published: object, value: object, name: str) -> object:
    """The value of an option, a list or a single text as a tuple where the published value is one.

    Raises:
        ValueError: if it is of another type than the published value.
    """
    match published:
        case tuple():
            value = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
            fits = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
        case bool() | str():
            fits = isinstance(value, type(published))
        case int():
            fits = isinstance(value, int) and not isinstance(value, bool)
        case float():
            value = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            fits = isinstance(value, float)
        case Mapping():
            fits = isinstance(value, Mapping) and all(isinstance(one, str) for pair in value.items() for one in pair)
        case _:
            fits = True  # the form itself looks at it
    if not fits:
        raise ValueError(f"{name}={shown(value)}: it is of the form of the published {published!r}. Give such a one.")
    return value


def _described(data: object, hub: Hub | None) -> str:
    """Where the records came from, in a few words."""
    match data:
        case None:
            return str(hub) if hub is not None else "made here"
        case str() | PathLike():
            return str(data)
        case dict() if all(isinstance(part, str | PathLike) for part in data.values()):
            return ", ".join(f"{split}: {part}" for split, part in data.items())
    return f"a {type(data).__name__}"


def _nothing_left(recipe: Recipe, left_out: Counter[str]) -> ValueError:
    reasons = "; ".join(f"{n} × {reason}" for reason, n in left_out.most_common(5))
    given = f"all {left_out.total()} records were left out ({reasons})" if left_out else "there is no item"
    data = "" if isinstance(recipe.form, Made) else f"the data of {recipe.source}, or "
    return ValueError(
        f"recipe {recipe.name!r}: {given}. It keeps: {recipe.kept}. Give {data}another option for what is kept."
    )
