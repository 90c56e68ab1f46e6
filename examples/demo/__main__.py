"""The demo: train a small model that learns a mistake, cut the mistake out, and put everything back.

python -m examples.demo            # or: make demo
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.demo.experiment import Demo, run
from examples.demo.page import page, table
from surgery.files import whole_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, print its table and write its page; 1 if something that it claims does not hold, else 0."""
    options = _parser().parse_args(arguments)
    demo = run(seed=options.seed, cache=None if options.no_cache else options.cache, progress=not options.quiet)
    with whole_file(options.out) as file:
        file.write_text(page(demo), encoding="utf-8")
    print(report(demo))
    print(f"\nThe same with figures: {options.out.resolve()}")
    failed = [check for check in demo.checks if not check.holds]
    if failed:
        total = len(demo.checks)
        print(f"{len(failed)} of {total} claims do not hold for seed {demo.seed}, see FAIL above.", file=sys.stderr)
    return 1 if failed else 0


def report(demo: Demo) -> str:
    """The demo's table, what attribution found, and the checked claims, as text."""
    trained = f"{demo.host}, seed {demo.seed}; ready to operate after {demo.seconds:.0f} s"
    lines = ["", f"Noisy in-context recall on a {trained}.", "", table(demo).to_string(), ""]
    lines += ["In brackets: lowest to highest of the random draws.", ""]
    lines += ["Where does p(noise) come from?", repr(demo.exact), ""]
    lines += ["What an edit says of itself:", demo.operation, "", "Checked:"]
    lines += [f"  {'ok  ' if check.holds else 'FAIL'} {check.claim} ({check.evidence})" for check in demo.checks]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="Cut a mistake out of a small model.")
    out, cache = Path("demo.html"), Path(".surgery-cache")
    parser.add_argument("--out", type=Path, default=out, help="where the page goes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and training (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=cache, help="where training is kept (default: %(default)s)")
    parser.add_argument("--no-cache", action="store_true", help="train again and store nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
