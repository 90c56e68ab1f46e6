"""From a command line to a folder with a report."""

import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

from analyses import tasks
from analyses.laser import LogError, model_fingerprint
from analyses.papers._commands import parsed
from analyses.papers._estimates import spoken
from analyses.papers._folders import FolderError, RunFolder, check
from analyses.papers._items import Items, TaskError, asked, read
from analyses.papers._method import Asked, Findings, Method, page
from analyses.papers._models import ModelError, hash_of_steps, loaded, short_name
from analyses.papers._models import check as check_model
from analyses.papers._provenance import command, section
from analyses.papers._reports import Report, Section
from analyses.papers._settings import Settings
from analyses.scoring import UnscorableItems
from analyses.tasks import TaskFileError
from hooks.vocabulary import tokenizer_of
from surgery import SiteError
from surgery.arguments import counted

Say = Callable[[str], None]
_TOLD = (
    FolderError, LogError, ModelError, SiteError, TaskError, TaskFileError, UnscorableItems, ValueError,
    ConnectionError, FileNotFoundError, IsADirectoryError, FloatingPointError, MemoryError, PermissionError,
)  # fmt: skip
"""What a user can do something about: told in a sentence, without the way through the code."""
_LISTED = 20


def main(arguments: Sequence[str] | None = None, *, say: Say | None = None) -> int:
    """Run a command line; what a shell gets: 0 where all went well, 1 after an error, 130 after an interrupt.

    Args:
        arguments: what follows `python -m analyses.papers`; by default what the program was started with.
        say: what is told, in lines; to the terminal by default.

    Raises:
        SystemExit: after a help text, or for arguments that argparse refuses.

    >>> from analyses.papers import main
    >>> told = []
    >>> main(["tasks"], say=told.append)
    0
    >>> "bios-gender" in told[0]
    True
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    said = _to_terminal if say is None else say
    understood = parsed(given)
    if understood is None:
        said(_tasks())
        return 0
    settings, method = understood
    try:
        _run(settings, method, given, said)
    except KeyboardInterrupt:
        there = f"What is finished is in '{settings.output}', and" if settings.output.exists() else "Nothing is lost;"
        said(f"\ninterrupted. {there} the same command goes on from there:\n  {command(given)}")
        return 130
    except _TOLD as error:
        said(f"error: {error}")
        return 1
    return 0


def _run(settings: Settings, method: Method, given: Sequence[str], say: Say) -> None:
    start = perf_counter()
    check_model(settings)
    items = read(settings, kinds=method.kinds, method=method.name)
    identity = {"method": repr(method), **settings.identity()}
    if not settings.dry_run:
        check(settings.output, identity)
    say(f"{method.name}: {counted(len(items.task), 'item')} of {items.origin}; loading {settings.model}")
    model = loaded(settings)
    items = read(settings, kinds=method.kinds, method=method.name, tokenizer=tokenizer_of(model))
    what = Asked(model, asked(model, items, settings), settings)
    if what.items.left_out:
        say(f"{counted(len(what.items.left_out), 'item')} left out, which this model cannot be asked")
    identity |= {"items": items.items_hash, "weights": model_fingerprint(model)}
    if settings.steps is not None:
        identity["checkpoints"] = hash_of_steps(settings)
    if not settings.dry_run:
        check(settings.output, identity)
    say(str(method.estimate(what)))
    if settings.dry_run:
        return
    if settings.output.exists():
        say(f"'{settings.output}' holds a part of this run, which goes on: it takes less than that")
    folder = RunFolder.opened(settings.output, identity)
    found = method.find(what, folder)
    report = _report(what, method, found, identity=folder.identity, given=given)
    path = folder.text(page(folder).name, report.markdown())
    say("\n".join(["", *found.summary, "", f"took {spoken(perf_counter() - start)}; report: {path}"]))


def _report(
    what: Asked, method: Method, found: Findings, *, identity: Mapping[str, str], given: Sequence[str]
) -> Report:
    repeat = section(
        what.model, what.items, what.settings, split=found.split, fingerprint=identity["weights"], arguments=given
    )
    title = f"{method.title} on {what.task.name}, by {short_name(what.settings.model)}"
    return Report(title, found.summary, [*found.sections, *_about_items(what.items), repeat])


def _about_items(items: Items) -> list[Section]:
    """What was left out of the data and why; nothing where nothing was."""
    lines = []
    note = items.task.metadata.get("note")
    if note:
        lines.append(str(note))
    filtered = items.task.metadata.get("left_out")
    if isinstance(filtered, dict) and filtered:
        lines.append("Left out by the published filter: " + "; ".join(f"{n} × {why}" for why, n in filtered.items()))
    for title, odd in (
        ("Records that made no item", [str(one) for one in items.task.unscorable if str(one) not in items.left_out]),
        ("Items that this model cannot be asked", list(items.left_out)),
    ):
        if odd:
            more = [f"- and {len(odd) - _LISTED} more"] if len(odd) > _LISTED else []
            lines.append("\n".join([f"{title}: {len(odd)}", "", *(f"- {one}" for one in odd[:_LISTED]), *more]))
    return [Section("Left out", lines)] if lines else []


def _tasks() -> str:
    """The papers' own tasks, a line each."""
    frame = tasks.recipes()
    lines = [
        f"  {row['name']:<24} {row['paper']:<32} {row['rule']:<34} {row['source']}" for row in frame.to_dict("records")
    ]
    head = f"  {'name':<24} {'paper':<32} {'what is right':<34} data"
    return "\n".join(["tasks by name; `analyses.tasks.recipe(NAME)` tells all about one:", head, *lines])


def _to_terminal(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
