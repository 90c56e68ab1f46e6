"""The figures of a benchmark: each printed as it is found, and written to a file with what it was measured on.

A script adds `flags` to its parser and does its work in `with table.recorded(__file__, args):`. In there `section`
names what comes next, and `figure` prints a number and keeps it: what is printed and what is written cannot differ.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Literal

import torch
from timing import Call, Timings, peak_memory, verdict

Unit = Literal["s", "ms", "s of processor time", "MiB", "passes", "times", "components", "Spearman", "accuracy", "of 1"]
Words = Literal["x as long", "x as fast", "x less"]
SHARES = ("Spearman", "accuracy", "of 1")
"""Units of numbers around 1."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure should reach: its ratio where it has one, else its value."""

    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether a number reaches it."""
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True, slots=True)
class Against:
    """The other side of a figure, measured in the same run and in the same unit."""

    what: str
    value: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """How the two sides compare; lowest and highest are those of single rounds or parts."""

    value: float
    words: Words
    lowest: float | None = None
    highest: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that was measured, what it is set against, and what it should reach.

    `lowest` and `highest` are those of the value over whatever it is a median or a mean of, which `section` says.
    """

    section: str
    what: str
    value: float
    unit: Unit
    against: Against | None = None
    ratio: Ratio | None = None
    aim: Aim | None = None
    lowest: float | None = None
    highest: float | None = None
    remark: str = ""

    @property
    def judged(self) -> float:
        """What an aim is an aim for."""
        return self.value if self.ratio is None else self.ratio.value

    @property
    def met(self) -> bool | None:
        """Whether the aim was met; None where there is none."""
        return None if self.aim is None else self.aim.met(self.judged)

    @property
    def verdict(self) -> str:
        """The same in words; empty where there is no aim."""
        return "" if self.aim is None else verdict(self.judged, self.aim.bound, at_most=self.aim.at_most)

    def __str__(self) -> str:
        parts = [quantity(self.value, self.unit) + between(self.lowest, self.highest, self.unit)]
        if self.against is not None:
            parts.append(f"{self.against.what} {quantity(self.against.value, self.unit)}")
        if self.ratio is not None:
            parts.append(times(self.ratio))
        parts += [part for part in (self.remark, self.verdict) if part]
        return f"  {self.what:<44} " + "; ".join(parts)


def times(ratio: Ratio) -> str:
    """A ratio in words, with the lowest and the highest."""
    return f"{short(ratio.value)}{between(ratio.lowest, ratio.highest)} {ratio.words}"


def between(lowest: float | None, highest: float | None, unit: Unit = "s") -> str:
    """A range in brackets, or nothing where there is none."""
    if lowest is None or highest is None or lowest == highest:
        return ""
    return f" ({short(lowest, unit)}–{short(highest, unit)})"


def quantity(value: float, unit: Unit) -> str:
    """A number with its unit, where that is not what the section is about."""
    return short(value, unit) if unit in (*SHARES, "passes") else f"{short(value, unit)} {unit}"


def short(value: float, unit: Unit = "s") -> str:
    """A number with the digits that say something."""
    if unit in SHARES:
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) >= 100 or unit in ("passes", "times", "components") else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a script ran on, and when."""

    device: str
    threads: int
    torch: str
    transformer_lens: str
    commit: str
    date: str

    def __str__(self) -> str:
        cores = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return (
            f"{self.device}, {cores}, torch {self.torch}, TransformerLens {self.transformer_lens}, "
            f"commit {self.commit}, {self.date}"
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One script's figures; `failed` says why it ended early, and is empty if it did not."""

    script: str
    command: str
    machine: Machine
    figures: tuple[Figure, ...]
    seconds: float
    failed: str = ""

    @property
    def quick(self) -> bool:
        """Whether it was a first look, which should not be quoted."""
        return "--quick" in self.command.split()


@dataclass(slots=True)
class _Sheet:
    """The run that is being recorded."""

    section: str = ""
    figures: list[Figure] = field(default_factory=list)
    save: Callable[[str], None] = lambda failed: None
    """Writes what there is, and why there is no more."""


_SHEET: ContextVar[_Sheet] = ContextVar("sheet")


def section(name: str, detail: str = "") -> None:
    """Print a heading; the figures after it belong to it."""
    print(f"\n{name}" + (f" ({detail})" if detail else ""), flush=True)
    if (sheet := _SHEET.get(None)) is not None:
        sheet.section = name


def figure(
    what: str,
    value: float,
    unit: Unit,
    *,
    against: Against | None = None,
    ratio: Ratio | None = None,
    aim: Aim | None = None,
    lowest: float | None = None,
    highest: float | None = None,
    remark: str = "",
) -> Figure:
    """Print a figure, and keep it if a run is being recorded."""
    sheet = _SHEET.get(None) or _Sheet()
    made = Figure(sheet.section, what, float(value), unit, against, ratio, aim, lowest, highest, remark)
    sheet.figures.append(made)
    sheet.save("it was stopped")
    print(made, flush=True)
    return made


def compared(
    what: str,
    took: Timings,
    ours: str,
    other: str,
    *,
    words: Words,
    aim: Aim | None = None,
    share: float = 1.0,
    named: str = "",
) -> Figure:
    """The figure of two calls that were timed in turns.

    `share` of the time is that of one unit of the work; the other side is called `named`, or what it was timed as.
    """
    over, under = (ours, other) if words == "x as long" else (other, ours)
    lowest, highest = took.extremes(over, under)
    return figure(
        what, share * took.median(ours), "s", against=Against(named or other, share * took.median(other)),
        ratio=Ratio(took.ratio(over, under), words, lowest, highest), aim=aim,
    )  # fmt: skip


def memory(what: str, ours: Call, other: Call | None = None, *, name: str = "", device: str) -> None:
    """Peak memory of a call, and of the other side's; nothing where the system does not tell it."""
    mine, theirs = (None if call is None else peak_memory(call, device=device) for call in (ours, other))
    if mine is not None:
        figure(what, mine, "MiB", against=None if theirs is None else Against(name, theirs))


def flags(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark takes: the device, and where to write its figures."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")


@contextmanager
def recorded(script: str, args: argparse.Namespace) -> Iterator[None]:
    """Keep the figures of a block, and write them where `--json` says: each at once, in case there is no next."""
    name, start, where = Path(script).stem, monotonic(), machine(args.device)
    sheet = _Sheet()

    def save(failed: str) -> None:
        if args.json is not None:
            write(args.json, [Run(name, command(name), where, tuple(sheet.figures), monotonic() - start, failed)])

    sheet.save = save
    print(f"{name}: {where}", flush=True)
    token = _SHEET.set(sheet)
    try:
        yield
        save("")
    except Exception as error:
        save(f"{type(error).__name__}: {error}")
        raise
    finally:
        _SHEET.reset(token)


def command(name: str) -> str:
    """What one types to run this again."""
    words = [word for word in sys.argv[1:] if Path(sys.argv[0]).stem == name]
    if "--json" in words:
        del words[words.index("--json") : words.index("--json") + 2]
    return shlex.join(["python", f"benchmarks/{name}.py", *words])


def write(path: Path, runs: list[Run]) -> None:
    """Write runs as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(run) for run in runs], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> list[Run]:
    """The runs that were written there; none if there is no such file."""
    if not path.exists():
        return []
    return [
        Run(**{**run, "machine": Machine(**run["machine"]), "figures": tuple(_figure(f) for f in run["figures"])})
        for run in json.loads(path.read_text(encoding="utf-8"))
    ]


def _figure(found: dict) -> Figure:
    for name, kind in (("against", Against), ("ratio", Ratio), ("aim", Aim)):
        if found.get(name) is not None:
            found = {**found, name: kind(**found[name])}
    return Figure(**found)


def machine(device: str) -> Machine:
    """What figures are measured on now."""
    on_cuda = torch.device(device).type == "cuda"
    return Machine(
        device=torch.cuda.get_device_name(device) if on_cuda else f"{processor()}, {os.cpu_count()} cores",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformer_lens=version("transformer-lens"),
        commit=commit(),
        date=datetime.now().strftime("%-d %B %Y %H:%M"),
    )


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit() -> str:
    """The version of the code, with a plus if files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()  # fmt: skip

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
