"""All benchmarks, one after the other: a table of every figure, with aims met and missed.

python benchmarks/run.py                      # `make bench`: half an hour on two cores; writes results.md and .json
python benchmarks/run.py --quick              # a first look, written to build/bench; not to be quoted
python benchmarks/run.py --only foundation    # some of them; the other figures of the table stay
python benchmarks/run.py --device cuda        # results-cuda.md and results-cuda.json
python benchmarks/run.py --write-docs         # runs nothing; the pages quote results.json anew

First what is timed, one script at a time with all threads; then what is about accuracy, side by side with one thread
each. A script that fails, or takes much longer than it should, is a row that says so, and the exit status is 1.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pages
import table

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Script:
    """A benchmark, the sizes that fit the half hour, and after how many minutes it is given up."""

    name: str
    flags: tuple[str, ...] = ()
    timed: bool = False
    """Whether its figures are times, which nothing else may disturb."""
    limit: float = 15.0


SCRIPTS = (
    Script("foundation", timed=True),
    Script("attribution_speed", timed=True),
    Script("laser", timed=True),
    Script("generation", timed=True),
    Script("attribution_accuracy"),
    Script("eigenpruning_scores"),
    Script("laser_screening"),
    Script("soak"),
)
"""Everything that `make bench` runs. A new benchmark is a line here."""

OWN = (
    ("python benchmarks/laser_scale.py", "LASER's screened search at 385 candidates and 4,000 items against the loop"),
    ("python benchmarks/large_model.py", "time and memory of everything on a model of the shape of Pythia-1.4B"),
    ("python benchmarks/laser.py --every 1", "LASER's exhaustive search over all matrices of GPT-2 small's shape"),
    ("python benchmarks/reference_numbers.py now.json --against before.json", "whether a rebuild changed any number"),
    ("python benchmarks/soak.py --minutes 60", "random edits, threads and interrupts for as long as you like"),
)
"""What has a command of its own, and what it shows."""


def run_one(script: Script, args: argparse.Namespace, threads: int | None) -> table.Run:
    """One script in a process of its own; `threads` None gives it all of them, and shows what it prints at once."""
    start = time.monotonic()
    flags = ["--quick"] if args.quick else list(script.flags)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        words = [str(HERE / f"{script.name}.py"), *flags, "--device", args.device, "--json", str(file)]
        failed = _process(words, threads, 60 * script.limit, folder=Path(folder))
        found = table.read(file)
    if not found:
        command = shlex.join(["python", f"benchmarks/{script.name}.py", *words[1:-2]])
        found = [table.Run(script.name, command, table.machine("cpu"), (), 0.0)]
        failed = failed or "it wrote no figures"
    return replace(found[0], seconds=time.monotonic() - start, failed=failed)


def _process(words: Sequence[str], threads: int | None, seconds: float, *, folder: Path) -> str:
    """Run Python with these words: why it failed, or "". Progress bars and warnings are not shown."""
    environment = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    said, complained = folder / "out", folder / "err"
    with said.open("w", encoding="utf-8") as out, complained.open("w", encoding="utf-8") as err:
        shown_at_once = None if threads is None else out
        try:
            status = subprocess.run(
                [sys.executable, *words], stdout=shown_at_once, stderr=err, env=environment, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    print(said.read_text(encoding="utf-8"), end="", flush=True)
    if status == 0:
        return ""
    complaint = complained.read_text(encoding="utf-8").rstrip()
    print(complaint, flush=True)
    last = complaint.splitlines()[-1] if complaint else "it did not say why"
    return f"given up after {seconds / 60:g} minutes" if status is None else f"exit status {status}: {last}"


def run_all(scripts: Sequence[Script], args: argparse.Namespace) -> Iterator[table.Run]:
    """Each as it ends: the timed ones by themselves, then the others side by side."""
    start = time.monotonic()
    alone = [script for script in scripts if script.timed or args.device != "cpu"]
    beside = [script for script in scripts if script not in alone]

    def announce(run: table.Run) -> table.Run:
        end = f"FAILED, {run.failed}" if run.failed else f"{len(run.figures)} figures"
        print(f"--- {run.script}: {end}, {run.seconds:.0f} s; {time.monotonic() - start:.0f} s in all", flush=True)
        return run

    for script in alone:
        print(f"\n--- {script.name} begins", flush=True)
        yield announce(run_one(script, args, None))
    if beside:
        print(f"\n--- side by side: {', '.join(script.name for script in beside)}", flush=True)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for future in as_completed([pool.submit(run_one, script, args, 1) for script in beside]):
            yield announce(future.result())


def merged(before: Sequence[table.Run], now: Sequence[table.Run]) -> list[table.Run]:
    """The newest run of every script, in the order of the list."""
    newest = {run.script: run for run in (*before, *now)}
    return [newest[script.name] for script in SCRIPTS if script.name in newest]


def write(folder: Path, stem: str, runs: Sequence[table.Run]) -> None:
    """The table as JSON and as Markdown."""
    table.write(folder / f"{stem}.json", list(runs))
    (folder / f"{stem}.md").write_text(pages.report(runs, OWN), encoding="utf-8")
    print(f"\n{folder / stem}.md and .json", flush=True)


def write_docs() -> list[Path]:
    """The pages that had to be changed to say what results.json says."""
    runs, changed = table.read(HERE / "results.json"), []
    for page in pages.pages():
        before = page.read_text(encoding="utf-8")
        after = pages.quoted(before, runs)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(page)
    return changed


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a script failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[script.name for script in SCRIPTS], help="these scripts")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a first look")
    parser.add_argument(
        "--out", type=Path, help="the folder of the table (default: benchmarks, with --quick build/bench)"
    )
    parser.add_argument("--write-docs", action="store_true", help="run nothing, write results.json into the pages")
    args = parser.parse_args(argv)
    if args.write_docs:
        print("\n".join(f"changed: {page.relative_to(pages.ROOT)}" for page in write_docs()) or "nothing to change")
        return 0
    folder = args.out or (pages.ROOT / "build" / "bench" if args.quick else HERE)
    stem = "results" if args.device == "cpu" else f"results-{args.device.partition(':')[0]}"
    runs = table.read(folder / f"{stem}.json")
    failed = False
    for run in run_all([s for s in SCRIPTS if args.only is None or s.name in args.only], args):
        failed |= bool(run.failed)
        runs = merged(runs, [run])
        write(folder, stem, runs)
    if (folder, stem) == (HERE, "results"):
        write_docs()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
