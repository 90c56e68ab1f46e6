"""The command line: what can be typed, and the settings that it means."""

import argparse
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, get_args

from analyses.eigenpruning import Per
from analyses.laser import PAPER_RHOS
from analyses.laser.candidates import MLP
from analyses.papers._eigenpruning import By, Eigenpruning
from analyses.papers._laser import Laser
from analyses.papers._method import Method
from analyses.papers._models import DTYPES, short_name
from analyses.papers._over_training import OverTraining
from analyses.papers._settings import Settings, Split
from analyses.papers._truncation import Truncation
from analyses.truncation import RHOS, Several
from hooks.loading import HostName
from surgery.arguments import seed as checked_seed

PROGRAM = "python -m analyses.papers"
_EPILOG = """\
A run writes a folder: report.md, tables (CSV), figures (HTML), the edit (JSON), and logs. The same command again goes
on where it was stopped; other settings are refused there. Nothing is downloaded but what --model and a recipe without
--data ask for. Start with --dry-run, which prints what the run will cost.
"""
_EXAMPLES = {
    "laser": "laser --model EleutherAI/gpt-j-6b --dtype float16 --no-prepend-bos --task bios-gender --compose",
    "eigenpruning": "eigenpruning --model microsoft/phi-2 --task int-mult --finetune",
    "truncation": "truncation --model EleutherAI/pythia-1b --task facts.jsonl",
}


def parsed(arguments: list[str]) -> tuple[Settings, Method] | None:
    """The settings and the method that the arguments ask for; None where they ask for the list of tasks.

    Raises:
        SystemExit: after the help, or after what is wrong with the arguments.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command == "tasks":
        return None
    if given.command == "eigenpruning" and given.corrupt and given.score != "paper":
        parser.error(
            f"--corrupt {given.corrupt} goes with the paper's score, and --score is {given.score}: leave it out."
        )
    method = _method(given)
    output = given.output or Path("results") / f"{method.name}-{short_name(given.model)}-{Path(given.task).stem}"
    return (
        Settings(
            model=given.model, task=given.task, output=output, data=tuple(given.data), options=dict(given.option),
            revision=given.revision, host=given.host, dtype=given.dtype, device=given.device,
            prepend_bos=given.prepend_bos, split=given.split, limit=given.limit, leave_out=given.leave_out,
            draws=given.draws, seed=given.seed, batch_size=given.batch_size, dry_run=given.dry_run, quiet=given.quiet,
            steps=getattr(given, "steps", None),
        ),
        method,
    )  # fmt: skip


def _method(given: argparse.Namespace) -> Method:
    sites, rhos = tuple(given.sites), tuple(getattr(given, "rhos", ()))
    match given.command:
        case "laser":
            return Laser(sites=sites, rhos=rhos, strategy=given.strategy, compose=given.compose)
        case "eigenpruning":
            return Eigenpruning(
                sites=sites, fraction=given.fraction, score=given.score, corrupt=given.corrupt or "previous",
                per=given.per, finetune=given.finetune, learning_rate=given.learning_rate,
            )  # fmt: skip
    kind = Truncation if given.steps is None else OverTraining
    return kind(sites=sites, rhos=rhos, generic=given.generic or None, several=given.several)


def _parser() -> argparse.ArgumentParser:
    description = "The experiments of three papers on a model and a task, from the data to a report."
    parser = _plain(argparse.ArgumentParser, prog=PROGRAM, description=description, epilog=_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_laser, _eigenpruning, _truncation):
        add(commands)
    commands.add_parser("tasks", help="list the papers' own tasks, which --task takes by name")
    return parser


def _laser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    about = "Search the layer, the matrix and the rank whose reduction helps (LASER, arXiv:2312.13558)."
    own = _command(commands, "laser", about, sites=[MLP])
    _add_rhos(own, PAPER_RHOS)
    own.add_argument("--strategy", choices=("exhaustive", "screened"), default="exhaustive",
                     help="every candidate, or a race that gradients begin (default: %(default)s)")  # fmt: skip
    own.add_argument("--compose", action="store_true", help="also compose several reductions greedily")


def _eigenpruning(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    about = "Remove the components whose input matters least for the answers (Eigenpruning, arXiv:2404.03147)."
    own = _command(commands, "eigenpruning", about, sites=["blocks.*.attn.W_K[*]"])
    own.add_argument("--fraction", type=_share, default=0.2, metavar="F",
                     help="of the components to remove (default: %(default)s)")  # fmt: skip
    own.add_argument("--score", choices=get_args(By), default="paper",
                     help="the paper's, or the mean effect by an attribution (default: %(default)s)")  # fmt: skip
    own.add_argument("--corrupt", choices=("previous", "shuffle"),
                     help="whose input stands in for the paper's score: the item before, or any other "
                     "(default: previous)")  # fmt: skip
    own.add_argument("--per", choices=get_args(Per), default="first",
                     help="how much of an answer is asked: its first token, as in the released script, each of them, "
                     "or all together (default: %(default)s)")  # fmt: skip
    own.add_argument("--finetune", action="store_true",
                     help="also fine-tune a copy for one epoch, five items a step, and prune that")  # fmt: skip
    own.add_argument("--learning-rate", type=_positive, default=0.01, metavar="LR",
                     help="of the fine-tuning, by SGD (default: %(default)s)")  # fmt: skip


def _truncation(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    about = "Cut every matrix at both ends of its spectrum, and read what is likely then (arXiv:2406.03068)."
    own = _command(commands, "truncation", about, sites=[MLP])
    _add_rhos(own, RHOS)
    own.add_argument("--generic", default=" the", metavar="TEXT",
                     help="a word that fits anywhere, tracked too; '' for none (default: '%(default)s')")  # fmt: skip
    own.add_argument("--steps", type=_steps, metavar="STEP,STEP,...|all",
                     help="cut the checkpoints of a training: --model names them all, or a folder with a folder for "
                     "each, and --revision says how one is called (default: 'step{step}')")  # fmt: skip
    own.add_argument("--several", choices=get_args(Several), default="refuse",
                     help="what to do with words of several tokens (default: %(default)s)")  # fmt: skip


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str, *, sites: list[str]
) -> "argparse._ArgumentGroup":
    """A command with the options that all three have; the group for those of its own."""
    epilog = f"For example:\n  {PROGRAM} {_EXAMPLES[name]}\n\n{_EPILOG}"
    command = _plain(commands.add_parser, name, help=about, description=about, epilog=epilog)
    _add_model(command.add_argument_group("the model"))
    _add_items(command.add_argument_group("the items"))
    _add_run(command.add_argument_group("the run"))
    method = command.add_argument_group("the method")
    method.add_argument("--sites", nargs="+", default=sites, metavar="PATTERN",
                         help=f"matrices, as surgery.sites names them (default: {' '.join(sites)})")  # fmt: skip
    return method


def _add_model(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--model", required=True, metavar="NAME|FOLDER",
                       help="a name on the hub, or a folder that save_pretrained wrote")  # fmt: skip
    group.add_argument("--revision", help="a branch, tag or commit of the hub's repository")
    group.add_argument("--host", choices=get_args(HostName), default="bridge",
                       help="TransformerLens's bridge or HookedTransformer (default: %(default)s)")  # fmt: skip
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    group.add_argument("--device", help="such as cuda:0 (default: what TransformerLens chooses)")
    group.add_argument("--prepend-bos", action=argparse.BooleanOptionalAction, default=None,
                       help="begin texts with that token, or not (default: the model's own setting)")  # fmt: skip


def _add_items(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--task", required=True, metavar="NAME|FILE",
                       help="a recipe's name (list them: `tasks`), or a file of items, .jsonl or .csv")  # fmt: skip
    group.add_argument("--data", action="append", default=[], metavar="[SPLIT=]FILE",
                       help="the recipe's data, once for each split (default: fetch them from the hub)")  # fmt: skip
    group.add_argument("--option", action="append", default=[], type=_option, metavar="NAME=VALUE",
                       help="an option of the recipe, as often as there are any")  # fmt: skip
    group.add_argument("--limit", type=_count, metavar="N", help="take the first N items only")
    group.add_argument("--leave-out", action="store_true",
                       help="leave out, and list, what this model cannot be asked, such as too long items")  # fmt: skip
    group.add_argument("--split", choices=get_args(Split), default="published",
                       help="which items choose and which report (default: %(default)s)")  # fmt: skip


def _add_run(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--output", type=Path, metavar="FOLDER",
                       help="where everything goes (default: results/COMMAND-MODEL-TASK)")  # fmt: skip
    group.add_argument("--seed", type=_seed, default=0, help="of whatever is random (default: %(default)s)")
    group.add_argument("--draws", type=_count, default=5, metavar="N",
                       help="random controls of each kind (default: %(default)s)")  # fmt: skip
    group.add_argument("--batch-size", type=_count, metavar="N", help="sequences in a pass")
    group.add_argument("--dry-run", action="store_true", help="print what it will cost, and stop")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def _add_rhos(method: "argparse._ArgumentGroup", rhos: tuple[float, ...]) -> None:
    method.add_argument("--rhos", nargs="+", type=_share, default=rhos, metavar="RHO",
                         help=f"fractions of the rank to try (default: {' '.join(map(str, rhos))})")  # fmt: skip


def _plain(make: Callable[..., argparse.ArgumentParser], *given: str, **settings: object) -> argparse.ArgumentParser:
    """A parser that keeps the line breaks of its texts and takes no abbreviations, which scripts would rely on."""
    formatter = argparse.RawDescriptionHelpFormatter
    return make(*given, formatter_class=formatter, allow_abbrev=False, **settings)


def _refuse(text: str, allowed: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"'{text}' is not {allowed}")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        _refuse(text, "a whole number, 1 or more")
    return int(text)


def _steps(text: str) -> tuple[int, ...]:
    """The steps; none for all that there are."""
    if text == "all":
        return ()
    if not all(part.isdecimal() for part in text.split(",")):
        _refuse(text, "'all', or whole numbers with commas between them, such as 0,512,4000")
    return tuple(int(part) for part in text.split(","))


def _seed(text: str) -> int:
    try:
        return checked_seed(int(text))
    except ValueError:
        _refuse(text, "a whole number, from 0 to 2⁶³ − 1")


def _share(text: str) -> float:
    value = _float(text)
    if value is None or not 0 <= value <= 1:
        _refuse(text, "a fraction, from 0 to 1")
    return value


def _positive(text: str) -> float:
    value = _float(text)
    if value is None or not 0 < value < float("inf"):
        _refuse(text, "a number above 0")
    return value


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _option(text: str) -> tuple[str, object]:
    """NAME=VALUE; the value as Python reads it, or as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        _refuse(text, "of the form NAME=VALUE")
    try:
        return name, literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
