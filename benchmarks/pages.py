"""The figures as Markdown: the table of a whole run, and the places where README and documentation quote it.

A page quotes figures between two comments; `python benchmarks/run.py --write-docs` writes what stands between them:

    <!-- bench: SCRIPT -->                        a table for each section of the script
    <!-- bench: SCRIPT / SECTION -->              the table of one section
    <!-- bench: SCRIPT / SECTION | SECTION -->    one table, a column for each section (SECTION = TITLE to rename it)
    <!-- bench: SCRIPT / SECTION / WHAT -->       a single figure, within a line

each closed by `<!-- /bench -->`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from table import Figure, Run, between, quantity, short, times

ROOT = Path(__file__).resolve().parent.parent
QUOTING = ("README.md", "benchmarks/README.md", "docs/*.md")
"""Pages that may quote figures."""
QUOTE = re.compile(r"<!-- bench: (?P<of>[^\n]*?) -->(?P<shown>.*?)<!-- /bench -->", re.DOTALL)
HEAD = ("", "measured", "against", "ratio", "remark", "aim")
NOT_MEASURED = "not measured yet"


def pages() -> Iterator[Path]:
    """Every page that may quote figures."""
    for pattern in QUOTING:
        yield from sorted(ROOT.glob(pattern))


def quoted(page: str, runs: Sequence[Run]) -> str:
    """A page with every quote as these runs have it; what they lack, such as a model that was not there, it says."""

    def one(found: re.Match[str]) -> str:
        try:
            text = shown(found["of"], runs)
        except KeyError:
            text = _not_measured(found["of"])
        return f"<!-- bench: {found['of']} -->{text}<!-- /bench -->"

    return QUOTE.sub(one, page)


def shown(of: str, runs: Sequence[Run]) -> str:
    """What stands between the comments of a quote.

    Raises:
        KeyError: if the script was run and has no such figure.
    """
    script, *rest = (part.strip() for part in of.split(" / "))
    run = next((run for run in runs if run.script == script), None)
    if run is None or run.failed or run.quick:
        return _not_measured(of)
    if len(rest) == 2:
        return _cell(_of_section(run, rest[0], of), what=rest[1], of=of)
    if rest and "|" in rest[0]:
        return f"\n\n{_side_by_side(run, rest[0], of)}\n\n"
    names = rest or list(dict.fromkeys(figure.section for figure in run.figures))
    tables = [_titled(name, _table(_of_section(run, name, of)), alone=bool(rest)) for name in names]
    return "\n\n" + "\n\n".join(tables) + "\n\n"


def _not_measured(of: str) -> str:
    return NOT_MEASURED if of.count(" / ") == 2 else f"\n\n*{of.split(' = ')[0]}: {NOT_MEASURED}.*\n\n"


def _of_section(run: Run, section: str, of: str) -> list[Figure]:
    found = [figure for figure in run.figures if figure.section == section]
    if not found:
        sections = ", ".join(repr(name) for name in dict.fromkeys(figure.section for figure in run.figures))
        raise KeyError(f"<!-- bench: {of} -->: no section {section!r}; {run.script} has {sections}")
    return found


def _cell(figures: Sequence[Figure], *, what: str, of: str) -> str:
    found = [figure for figure in figures if figure.what == what]
    if not found:
        raise KeyError(f"<!-- bench: {of} -->: no figure {what!r}; there are {[figure.what for figure in figures]}")
    return _measured(found[0]) if found[0].ratio is None else times(found[0].ratio)


def _titled(name: str, table: str, *, alone: bool) -> str:
    return table if alone else f"**{name}**\n\n{table}"


def _side_by_side(run: Run, sections: str, of: str) -> str:
    """A row for everything that is measured in any of the sections, a column for each of them."""
    columns = [[part.strip() for part in column.partition(" = ")[::2]] for column in sections.split("|")]
    cells = {(name, f.what): _measured(f) for name, _ in columns for f in _of_section(run, name, of)}
    rows = [
        [what, *(cells.get((name, what), "") for name, _ in columns)] for what in dict.fromkeys(k[1] for k in cells)
    ]
    return markdown(["", *(title or name for name, title in columns)], rows)


def _table(figures: Sequence[Figure]) -> str:
    return markdown(HEAD, [_row(figure) for figure in figures])


def _row(figure: Figure) -> list[str]:
    against = "" if figure.against is None else f"{figure.against.what}, {quantity(figure.against.value, figure.unit)}"
    ratio = "" if figure.ratio is None else times(figure.ratio)
    return [figure.what, _measured(figure), against, ratio, figure.remark, _verdict(figure)]


def _measured(figure: Figure) -> str:
    return quantity(figure.value, figure.unit) + between(figure.lowest, figure.highest, figure.unit)


def _verdict(figure: Figure) -> str:
    if figure.aim is None:
        return ""
    bound = f"{'≤' if figure.aim.at_most else '≥'} {figure.aim.bound:g}"
    return f"{bound}: met" if figure.met else f"{bound}: **MISSED**"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, without the columns that are empty in all rows."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [
        [head[i] for i in kept],
        ["---"] * len(kept),
        *([row[i].replace("|", "\\|") for i in kept] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(runs: Sequence[Run], own: Sequence[tuple[str, str]]) -> str:
    """The page of all runs: machine, aims met and missed, every figure, and what has a command of its own."""
    figures = [(run, figure) for run in runs for figure in run.figures]
    missed = [(run, figure) for run, figure in figures if figure.met is False]
    failed = [run for run in runs if run.failed]
    aims = sum(figure.aim is not None for _, figure in figures)
    lines = [
        "# What the benchmarks found",
        "",
        "Written by `python benchmarks/run.py` (`make bench`), not by hand.",
        "",
    ]
    if any(run.quick for run in runs):
        lines += ["**A first look with `--quick`: not to be quoted.**", ""]
    lines += [*_machines(runs), "", f"**Of {aims} aims {aims - len(missed)} were met and {len(missed)} missed.**", ""]
    lines += [f"- MISSED: {run.script}, {f.section}, {f.what}: {short(f.judged)}, {_verdict(f)}" for run, f in missed]
    lines += [f"- FAILED: {run.script}: {run.failed}" for run in failed]
    rows = [[run.script, figure.section, *_row(figure)] for run, figure in figures]
    lines += ["", markdown(["script", "section", "what", *HEAD[1:]], rows), ""]
    took = [[run.script, f"`{run.command}`", f"{run.seconds:.0f} s", f"FAILED: {run.failed}" if run.failed else ""]
            for run in runs]  # fmt: skip
    lines += ["Each by itself:", "", markdown(["script", "command", "took", "failed"], took), ""]
    if own:
        lines += ["Not part of it, because they take longer or compare with an earlier run:", ""]
        lines += [markdown(["command", "what it shows"], [[f"`{command}`", shows] for command, shows in own]), ""]
    return "\n".join(lines)


def _machines(runs: Sequence[Run]) -> list[str]:
    """What was measured on what, in a line where it is the same for all."""
    where: dict[str, list[Run]] = {}
    for run in runs:
        m = run.machine
        text = f"{m.device}, torch {m.torch}, TransformerLens {m.transformer_lens}, commit {m.commit}"
        where.setdefault(text, []).append(run)
    lines = []
    for text, of in where.items():
        names = "" if len(where) == 1 else f" ({', '.join(run.script for run in of)})"
        lines.append(f"{text}, from {of[0].machine.date} on{names}.")
    return lines
