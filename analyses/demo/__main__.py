"""The demo: train a small model that learns a mistake, cut the mistake out, and put everything back.

python -m analyses.demo            # or: make demo
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analyses.demo.experiment import Demo, run
from analyses.demo.page import METRICS, page, row_name
from surgery.files import whole_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, print its table and write its page; 1 if something that it claims does not hold, else 0."""
    given = _parser().parse_args(arguments)
    demo = run(seed=given.seed, cache=None if given.no_cache else given.cache, progress=not given.quiet)
    with whole_file(given.out) as file:
        file.write_text(page(demo), encoding="utf-8")
    print(report(demo))
    print(f"\nThe same with figures: {given.out.resolve()}")
    failed = [check for check in demo.checks if not check.holds]
    if failed:
        total = len(demo.checks)
        print(f"{len(failed)} of {total} claims do not hold for seed {demo.seed}, see FAIL above.", file=sys.stderr)
    return 1 if failed else 0


def report(demo: Demo) -> str:
    """The demo's table, what attribution found, and the checked claims, as text."""
    trained = f"{demo.host}, seed {demo.seed}; ready to operate after {demo.seconds:.0f} s"
    lines = ["", f"Noisy in-context recall on a {trained}.", "", *_table(demo), ""]
    lines += ["In brackets: lowest to highest of the random draws.", ""]
    lines += ["Where does p(noise) come from?", repr(demo.exact), ""]
    lines += ["What an edit says of itself:", demo.operation, "", "Checked:"]
    lines += [f"  {'ok  ' if check.holds else 'FAIL'} {check.claim} ({check.evidence})" for check in demo.checks]
    return "\n".join(lines)


def _table(demo: Demo) -> list[str]:
    names = [("  " if row.control else "") + row_name(row) for row in demo.rows]
    width = max(map(len, names))
    head = f"{'on clean sequences':{width}}  {'removed':>14}" + "".join(f"  {name:>19}" for name in METRICS.values())
    lines = [head, "-" * len(head)]
    for name, row in zip(names, demo.rows, strict=True):
        cells = "".join(f"  {_cell(row.values(metric)):>19}" for metric in METRICS)
        lines.append(f"{name:{width}}  {row.removed:>14}{cells}")
    return lines


def _cell(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f}-{max(values):.3f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analyses.demo", description="Cut a mistake out of a small model.")
    out, cache = Path("demo.html"), Path(".surgery-cache")
    parser.add_argument("--out", type=Path, default=out, help="where the page goes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and training (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=cache, help="where training is kept (default: %(default)s)")
    parser.add_argument("--no-cache", action="store_true", help="train again and store nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
