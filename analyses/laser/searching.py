"""The search of LASER: every candidate on the validation items, or a race among the promising; the test items once."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

import surgery
from analyses.attribution.question import check_deterministic
from analyses.laser.candidates import PAPER_RHOS, Candidate, Edits, candidates, check_possible
from analyses.laser.evaluation import MEMORY, cost, encoded_text, loss_on
from analyses.laser.log import Log, search_header
from analyses.laser.race import Race, Screened, race
from analyses.laser.reports import TextCost
from analyses.laser.results import SearchResult
from analyses.laser.trials import Bench, Trial, best, trial
from analyses.scoring import Comparison, Rule, compare
from analyses.tasks.items import Item
from analyses.tasks.task import Splits, Task, as_task
from hooks import host_of, match_sites
from surgery import Decompositions, KeepTop, Spec
from surgery.arguments import seed as checked_seed
from surgery.decompositions import store_for

MLP = "blocks.*.mlp.W_{in,out}"
"""The matrices that LASER's search reduces."""


def search(
    model: nn.Module,
    task: Task | Splits | Sequence[Item],
    sites: str | Iterable[str] = MLP,
    *,
    rhos: Sequence[float] = PAPER_RHOS,
    edits: Edits = (KeepTop,),
    seed: int = 0,
    strategy: Literal["exhaustive", "screened"] | Screened = "exhaustive",
    rule: Rule | None = None,
    prepend_bos: bool | None = None,
    text: str | Int[Tensor, " pos"] | Int[Tensor, "batch pos"] | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    log: str | Path | None = None,
    progress: bool = True,
) -> SearchResult:
    """The edit of one matrix with which the model does best on the validation items, then tested.

    Args:
        model: a HookedTransformer or a TransformerBridge; as it was when this returns, or is interrupted.
        task: a task or a list of items, which is split 10 % screen, 20 % validation, 70 % test; or splits of your own.
        sites: a pattern of matrices, or several.
        rhos: fractions of the full rank.
        edits: what to try: cuts such as `KeepTop` or `DropTop` and families such as `ByRho(KeepTop, RowBlocks(4))` or
            `Published(seed=0)`, at every ρ; single edits such as `DropTop(rank=1)`, once.
        seed: of the split, of the order of the items in a race, and of the intervals.
        strategy: `exhaustive` runs every candidate on all validation items; `screened`, or `Screened` with settings,
            lets the gradient on the screen items choose the matrices and drops the losers of a race early.
        rule: what counts as right, as in `scoring.score`.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.
        text: plain text on which the choice's cost is measured.
        svds: decompositions made before; new ones are added.
        batch_size: sequences a pass; as the memory allows by default.
        memory: bytes for activations: what is kept of earlier layers takes at most so much, and a pass about a quarter.
        log: a file to which results go as they are finished, and from which the same search goes on; one with more or
            other candidates begins anew.
        progress: whether to show progress bars.

    Raises:
        LogError: if the log belongs to another search.
        SiteError: if a pattern names no editable matrix.
        UnscorableItems: if there are items that this model cannot be asked.
        ValueError: if a split is empty, an edit or a setting is impossible, or the model has active dropout.

    Source: arXiv:2312.13558; for `screened`, arXiv:2510.20800.
    """
    check_deterministic(model)
    checked_seed(seed)
    settings = _settings(strategy)
    wanted = candidates(model, sites, rhos, edits)
    parts = splits_of(task, seed, needs_screen=settings is not None)
    fixed = {"strategy": settings or "exhaustive", "rule": rule, "prepend_bos": prepend_bos}
    fixed |= {"seed": seed} if settings else {}  # It orders the items of a race; otherwise the parts say it all.
    check_possible(model, wanted, svds=svds, progress=progress)
    kept = open_log(log, model, parts, fixed, wanted)
    bench = Bench(model, kept, rule, prepend_bos, svds, batch_size, memory, progress)
    found = _exhausted(bench, parts.validation, wanted) if settings is None else race(
        bench, parts.screen, parts.validation, wanted, settings, seed=seed
    )  # fmt: skip
    chosen = choice(found.unedited, found.trials)
    spec = {} if chosen is None or chosen.candidate is None else chosen.candidate.spec
    return SearchResult(
        task=parts.validation.name,
        strategy="exhaustive" if settings is None else "screened",
        seed=seed,
        weight_state=host_of(model).weight_state(),
        unedited=found.unedited,
        trials=found.trials,
        chosen=chosen,
        test=tested(bench, parts.test, spec, seed=seed),
        text=text_cost(bench, text, spec),
        promises=found.promises,
        items_run=found.items_run,
    )


def choice(unedited: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The best of the trials that have seen every item, None if the unedited model is as good."""
    whole = [one for one in trials if one.summary.n_items == unedited.summary.n_items]
    winner = best([unedited, *whole])
    return None if winner is unedited else winner


def splits_of(task: Task | Splits | Sequence[Item], seed: int, *, needs_screen: bool = False) -> Splits:
    """The parts of a task: the user's own, or shuffled ones.

    Raises:
        ValueError: if a part that is needed has no items.
    """
    parts = task if isinstance(task, Splits) else as_task(task, allowed="a Task, Splits,").split(seed=seed)
    needed = {"validation": parts.validation, "test": parts.test} | ({"screen": parts.screen} if needs_screen else {})
    empty = [name for name, part in needed.items() if not len(part)]
    if empty:
        raise ValueError(
            f"the {empty[0]} part has no items: a search chooses on the validation items, reports on the test items, "
            "and takes the gradient of a screened search on the screen items. Split the task with a fraction for each."
        )
    return parts


def open_log(
    path: str | Path | None, model: nn.Module, parts: Splits, fixed: dict[str, object], wanted: Sequence[Candidate]
) -> Log:
    """A log that goes on from the file, if it is of the same search."""
    if path is None:
        return Log()
    named = {"screen": parts.screen, "validation": parts.validation, "test": parts.test}
    return Log(Path(path), search_header(model, named, fixed, [one.key for one in wanted]))


def tested(bench: Bench, task: Task, spec: Spec, *, seed: int) -> Comparison:
    """The unedited and the edited model on the test items."""
    sites = sorted(site for pattern in spec for site in match_sites(bench.model, pattern))
    asked = bench.evaluator(task, sites[:1])
    if not spec:
        scores = asked.scores(bench.unedited(asked, "test"))
        return compare(scores, scores, seed=seed)
    edited = bench.edited(asked, "test", spec, repr(dict(spec)), first=sites[0])
    return compare(asked.scores(bench.unedited(asked, "test")), asked.scores(edited), seed=seed)


def text_cost(
    bench: Bench, text: str | Int[Tensor, " pos"] | Int[Tensor, "batch pos"] | None, spec: Spec
) -> TextCost | None:
    """The loss on a plain text without and with the edits."""
    encoded = encoded_text(bench.model, text, prepend_bos=bench.prepend_bos)
    before = loss_on(bench.model, encoded)
    store = store_for((edit.basis for edit in spec.values()), bench.svds)
    with surgery.apply(bench.model, spec, svds=store, progress=False):
        after = loss_on(bench.model, encoded)
    return None if before is None or after is None else TextCost(before, after)


def _settings(strategy: object) -> Screened | None:
    match strategy:
        case "exhaustive":
            return None
        case "screened":
            return Screened()
        case Screened():
            return strategy
    raise ValueError(f"strategy={strategy!r}: give 'exhaustive', 'screened', or laser.Screened(...) with settings.")


def _exhausted(bench: Bench, validation: Task, wanted: Sequence[Candidate]) -> Race:
    sites = sorted({one.site for one in wanted}, reverse=True)
    asked = bench.evaluator(validation, sites)
    total = sum(cost(bench.model, one.site) for one in wanted) * len(validation)
    with tqdm(total=total, desc="searching", unit="block", delay=1, disable=not bench.progress) as bar:
        found = bench.try_all(asked, "validation", wanted, bar)
    unedited = trial(None, asked.encoded, bench.unedited(asked, "validation"))
    trials = tuple(trial(one, asked.encoded, found[one]) for one in wanted)
    return Race(unedited, trials, {}, len(validation) * (len(wanted) + 1))
