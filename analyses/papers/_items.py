"""The items of a run: read by a recipe or from a file, checked, counted, and divided."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import final

from torch import nn

from analyses import scoring, tasks
from analyses.papers._settings import Settings, Split
from analyses.tasks import Splits, Task
from hooks.vocabulary import Tokenizer
from surgery.arguments import counted, shown

_READERS = {".jsonl": tasks.from_jsonl, ".csv": tasks.from_csv}
_CHOOSE = 0.2
"""The share of the items, the first of the file, on which LASER's published code chooses."""


class TaskError(ValueError):
    """A task that cannot be read, is empty, or is not for the method."""


@final
@dataclass(frozen=True, slots=True)
class Items:
    """A task and where it came from.

    Args:
        task: the items that the run is about.
        origin: the recipe or file, in words.
        file_hash: SHA-256 of the data file; of a folder, of its files; empty where there is none.
        items_hash: SHA-256 of the items as they were read.
        recipe: the name of the recipe that read them; None for a file of the user's own.
        left_out: items that the model cannot be asked, each with the reason.
    """

    task: Task
    origin: str
    file_hash: str
    items_hash: str
    recipe: str | None = None
    left_out: tuple[str, ...] = ()


def read(settings: Settings, *, kinds: tuple[str, ...], method: str, tokenizer: Tokenizer | None = None) -> Items:
    """The items that the settings ask for; a recipe that filters by the model's tokenizer is given it.

    Raises:
        TaskError: if there is no such task or file, it holds no items, or items of a kind that the method cannot take.
        TaskFileError: if the file is not of the form that the task reads.
    """
    path = Path(settings.task).expanduser()
    if path.suffix in _READERS or path.exists():
        task, origin, recipe = _from_file(settings, path), f"file `{path.name}`", None
        files = [path]
    else:
        task, origin, recipe = _from_recipe(settings, tokenizer), f"recipe `{settings.task}`", settings.task
        files = list(_data(settings.data).values())
    if settings.limit is not None:
        task = task[: settings.limit]
    if not len(task):
        odd = f"; {counted(len(task.unscorable), 'record')} made no item, the first: {task.unscorable[0]}" if (
            task.unscorable) else ""  # fmt: skip
        raise TaskError(f"the task '{settings.task}' has no items{odd}. Give a file that has some.")
    if task.kind not in kinds:
        raise TaskError(
            f"the task '{settings.task}' holds items of kind {task.kind!r}, and {method} is for the kinds "
            f"{', '.join(map(repr, kinds))}: {_REMEDY[task.kind]}"
        )
    return Items(task, origin, _hash_of(files), items_hash(task), recipe)


_REMEDY = {
    "answer": "give a task of choices or pairs.",
    "choice": "give a task with one answer an item, such as facts or indirect objects.",
    "pair": "give a task whose items have a prompt and an answer.",
}


def asked(model: nn.Module, items: Items, settings: Settings) -> Items:
    """The items that this model can be asked; the others are left out if the settings say so.

    Raises:
        UnscorableItems: if there are others, and nothing is to be left out.
    """
    if not settings.leave_out:
        return items
    rule, _ = scoring.rule_for(items.task, None)
    rest = scoring.scorable(model, items.task, prepend_bos=settings.prepend_bos, new_tokens=rule.new_tokens)
    if not len(rest):
        raise TaskError(
            f"none of the {counted(len(items.task), 'item')} of '{settings.task}' can be asked of this model; the "
            f"first: {rest.unscorable[len(items.task.unscorable)]}. Give another model or another task."
        )
    left_out = tuple(map(str, rest.unscorable[len(items.task.unscorable) :]))
    return replace(items, task=rest, left_out=left_out)


def divided(task: Task, split: Split, *, screen: bool, choose: float = _CHOOSE, seed: int) -> tuple[Splits, str]:
    """The parts of the task and how they were made, in words.

    With `split="published"` the first fifth chooses and the rest reports; where a screen is needed, it is the first
    third of those that choose. Items of the rest that are among the first fifth too are left out.

    Raises:
        TaskError: if a part would have no items.
    """
    if split == "random":
        fractions = {"screen": choose / 3, "validation": choose * 2 / 3} if screen else {"validation": choose}
        parts = task.split(**{"screen": 0.0, **fractions, "test": 1 - choose}, seed=seed)
        return parts, f"{choose:.0%} drawn at random choose, the rest report; items that belong together stay together"
    n = int(choose * len(task) + 1e-9)
    n_screen = n // 3 if screen else 0
    if n - n_screen < 1 or (screen and not n_screen):
        raise TaskError(
            f"of the {counted(len(task), 'item')} of task {task.name!r} the first {choose:.0%} choose, which are "
            f"{n}{' and have to be screened too' if screen else ''}: too few. Give more items."
        )
    known = set(task[:n].items)
    rest = [at for at in range(n, len(task)) if task.items[at] not in known]
    if not rest:
        raise TaskError(f"every item of task {task.name!r} that would report is among those that choose.")
    said = f"the first {n} of {len(task)} items choose, the other {len(rest)} report, as in the published code"
    repeated = len(task) - n - len(rest)
    if repeated:
        said += f"; {counted(repeated, 'item')} of the rest stood among the first too and were left out"
    crossing = _crossing(task, n)
    if crossing:
        lie = "lies" if crossing == 1 else "lie"
        said += f"; {counted(crossing, 'group')} of items that belong together {lie} on both sides of the cut"
    return Splits(task[:n_screen], task[n_screen:n], task.take(rest)), said


def file_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder, of the names and hashes of its files."""
    if path.is_file():
        return sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256("".join(f"{f.relative_to(path)} {file_hash(f)}\n" for f in files).encode()).hexdigest()


def items_hash(task: Task) -> str:
    """SHA-256 of what the items ask, in their order."""
    asked = [(item.kind, item.context, item.right, item.wrong, item.groups) for item in task.items]
    return sha256(repr(asked).encode("utf-8", "surrogatepass")).hexdigest()


def _crossing(task: Task, n: int) -> int:
    """How many groups of items that belong together have members before and after the cut."""
    return sum(min(members) < n <= max(members) for members in task.clusters())


def _hash_of(files: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, of their hashes in order; empty without any."""
    hashes = [file_hash(file) for file in files]
    return "".join(hashes) if len(hashes) < 2 else sha256("".join(hashes).encode()).hexdigest()


def _data(given: Sequence[str]) -> dict[str, Path]:
    """The files by split, as SPLIT=FILE names them; a single one without a split under the empty name.

    Raises:
        TaskError: if there is no such file, or several come without their splits.
    """
    files: dict[str, Path] = {}
    for text in given:
        split, _, name = ("", "", text) if Path(text).expanduser().exists() else text.rpartition("=")
        path = Path(name).expanduser()
        if not path.exists():
            raise TaskError(f"there is no file '{name}': give the file that holds the task's data.")
        if split in files or (files and not (split and all(files))):
            raise TaskError(f"--data is given as {', '.join(given)}: of several files give each once, as SPLIT=FILE.")
        files[split] = path
    return files


def _from_file(settings: Settings, path: Path) -> Task:
    if settings.data or settings.options:
        raise TaskError(
            f"--task '{settings.task}' is a file itself, and --data or --option goes with a recipe: leave it out."
        )
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise TaskError(
            f"--task '{settings.task}' is a file that does not end in {' or '.join(_READERS)}: give one of these, or a "
            "recipe's name, and this file by --data."
        )
    if not path.exists():
        raise TaskError(f"there is no file '{settings.task}': give the file that holds the items, or a recipe's name.")
    return reader(path)


def _from_recipe(settings: Settings, tokenizer: Tokenizer | None) -> Task:
    names = list(tasks.recipes()["name"])
    if settings.task not in names:
        near = get_close_matches(settings.task, names, n=3, cutoff=0.5)
        raise TaskError(
            f"there is no task {shown(settings.task)}{'; near it: ' + ', '.join(near) if near else ''}. List them with "
            "`python -m analyses.papers tasks`, or give a file of your own that ends in .jsonl or .csv."
        )
    files = _data(settings.data)
    data = files.get("", files or None)
    recipe, options = tasks.recipe(settings.task), dict(settings.options)
    if tokenizer is not None and "tokenizer" in recipe.options:
        options.setdefault("tokenizer", tokenizer)
    try:
        return recipe.task(data, **options)
    except TypeError as error:
        raise TaskError(
            f"the recipe '{settings.task}' cannot be read with {', '.join(settings.options) or 'no option'} ({error}): "
            f"its options are {', '.join(recipe.options)}. Look at their values with tasks.recipe('{settings.task}')."
        ) from error
