"""The search of LASER: every candidate on the validation items, or a race among the promising; the test items once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Literal, final

import pandas as pd
from jaxtyping import Int
from torch import Tensor, nn

from analyses.engines import Executor
from analyses.laser._pieces import try_all
from analyses.laser._race import POOL, Screened, race
from analyses.laser._resume import Log, search_header
from analyses.laser._trials import MEMORY, Setup, Trial
from analyses.laser.candidates import MLP, PAPER_RHOS, UNEDITED, Candidate, Edits, candidates, gains_of, row_of
from analyses.metrics import Metric
from analyses.scoring import Comparison, Rule, Scores, compare, encode_text, text_loss_encoded
from analyses.tasks.items import Item
from analyses.tasks.task import Splits, Task, as_splits
from hooks import Site, host_of
from hooks.running import run
from surgery import Decompositions, Edit, KeepTop
from surgery.arguments import counted
from surgery.arguments import seed as checked_seed


@final
@dataclass(frozen=True, slots=True)
class TextCost:
    """The mean next-token loss on the user's plain text, in nats per token, before and after."""

    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.before:.4f} → {self.after:.4f}, {self.after - self.before:+.4f} nats per token"


@final
@dataclass(frozen=True, slots=True, repr=False)
class SearchResult:
    """Every trial of a search, the choice on the validation items, and the one look at the test items.

    Args:
        task: the task's name.
        strategy: `exhaustive` or `screened`.
        seed: of the split and the order of the race.
        weight_state: which form of the weights was decomposed.
        unedited: the model as it was given, on the validation items.
        trials: every candidate tried, in the order given. In a screened search the items stand in the order of the
            race, and some candidates have seen only the first of them, among which undecided items are frequent.
        chosen: the best on all validation items, by accuracy, then log-loss, or by the metric in the rule's place; None
            if that is the unedited model.
        test: the unedited and the chosen model on the test items.
        text: the cost of the choice on the user's plain text, if one was given.
        promises: in a screened search, by how much each candidate could lower the loss to first order, in nats.
    """

    task: str
    strategy: str
    seed: int
    weight_state: str
    unedited: Trial
    trials: tuple[Trial, ...]
    chosen: Trial | None
    test: Comparison
    text: TextCost | None
    promises: Mapping[Candidate, float]

    @property
    def spec(self) -> dict[str, Edit]:
        """The chosen edit as `surgery.apply` takes it; empty if none was better than the unedited model."""
        return _spec_of(self.chosen)

    @property
    def items_run(self) -> int:
        """How many times a validation item was asked, of a candidate or of the unedited model."""
        n = len(self.unedited.scores)
        # A race runs the unedited model along with the candidates, and before that on the pool of its first items.
        before = 0 if self.strategy == "exhaustive" else min(n, POOL)
        return sum(len(trial.scores) for trial in self.trials) + n + before

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each candidate and split it was tried on: site, rho, split, accuracy, log_loss and the rest.

        Unedited rows have an empty site. `n_items` is smaller than the split where a screened search gave up on a
        candidate. `corrected` and `broken` count items against the unedited model.
        """
        before, chosen = self.unedited.scores, None if self.chosen is None else self.chosen.candidate
        rows = [_row(None, "validation", before, before)]
        rows += [_row(trial.candidate, "validation", trial.scores, before) for trial in self.trials]
        rows += [_row(None, "test", self.test.before, self.test.before)]
        if chosen is not None:
            rows += [_row(chosen, "test", self.test.after, self.test.before)]
        frame = pd.DataFrame(rows)
        frame.insert(0, "task", self.task)
        promises = {str(candidate): value for candidate, value in self.promises.items()}
        frame["promise"] = [promises.get(name, nan) for name in frame["candidate"]]
        frame["chosen"] = frame["candidate"] == (UNEDITED if chosen is None else str(chosen))
        return frame.drop(columns="candidate")

    def __repr__(self) -> str:
        n, n_complete = len(self.unedited.scores), len(complete(self.unedited, self.trials))
        lines = [
            f"LASER search of {self.task!r}, {self.strategy}: {counted(len(self.trials), 'candidate')} tried, "
            f"{n_complete} of them on all {counted(n, 'validation item')}; seed {self.seed}, "
            f"weights {self.weight_state}",
            f"chosen on validation: {self._choice()}",
            *test_report(self.test, self.text),
        ]
        return "\n".join(lines)

    def _choice(self) -> str:
        was, metric = self.unedited.summary, self.unedited.scores.encoded.metric
        if self.chosen is None:
            by = "" if metric is None else f"{metric.name} {was.value:.4g}, "
            return f"nothing, no candidate was better than {by}accuracy {was.accuracy:.3f}, log-loss {was.log_loss:.3f}"
        now = self.chosen.summary
        by = "" if metric is None else f"{metric.name} {was.value:.4g} → {now.value:.4g}, "
        return (
            f"{self.chosen.candidate}, {by}accuracy {was.accuracy:.3f} → {now.accuracy:.3f}, "
            f"log-loss {was.log_loss:.3f} → {now.log_loss:.3f} nats per token"
        )


def search(
    model: nn.Module,
    task: Task | Splits | Sequence[Item],
    sites: str | Iterable[str] = MLP,
    *,
    rhos: Sequence[float] = PAPER_RHOS,
    edits: Edits = (KeepTop,),
    seed: int = 0,
    strategy: Literal["exhaustive", "screened"] | Screened = "exhaustive",
    rule: Rule | Metric | None = None,
    prepend_bos: bool | None = None,
    text: str | Int[Tensor, " pos"] | Int[Tensor, "batch pos"] | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    log: str | Path | None = None,
    executor: Executor = None,
    progress: bool = True,
) -> SearchResult:
    """The edit of one matrix with which the model does best on the validation items, then tested on the test items.

    `strategy="exhaustive"` runs every candidate on all validation items. `"screened"`, or `Screened` with settings,
    lets the gradient on the screen items choose the matrices and drops the losers of a race early. The package
    `analyses.laser` says what the other arguments mean.

    Raises:
        LogError: if the log is a folder or belongs to another search.
        SiteError: if a pattern names no editable matrix.
        UnscorableItems: if there are items that this model cannot be asked.
        WorkerError: if workers do not hold this model, or fail; what was finished is in the log.
        ValueError: if a split is empty, an edit or a setting is impossible, or the model has active dropout.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> result = laser.search(model, items, rhos=(0.5, 0.1), progress=False)
    >>> len(result.trials), len(result.test.after)
    (8, 21)

    Source: arXiv:2312.13558; for `screened`, arXiv:2510.20800.
    """
    settings, tried = _settings(strategy), candidates(model, sites, rhos, edits)
    setup = Setup(
        model, rule=rule, prepend_bos=prepend_bos, svds=svds, batch_size=batch_size, memory=memory, progress=progress,
        executor=executor,
    )  # fmt: skip
    fixed = {"strategy": settings, "seed": seed} if settings else {"strategy": "exhaustive"}
    setup, parts = prepared(setup, task, tried, fixed, text=text, log=log, seed=seed)
    unedited, trials, promises = _tried(setup, parts, tried, settings, seed)
    chosen = _best(unedited, trials)
    return SearchResult(
        task=parts.validation.name,
        strategy="exhaustive" if settings is None else "screened",
        seed=seed,
        weight_state=host_of(model).weight_state(),
        unedited=unedited,
        trials=trials,
        chosen=chosen,
        test=tested(setup, parts.test, _spec_of(chosen), seed=seed),
        text=text_cost(setup, text, _spec_of(chosen)),
        promises=promises,
    )


def _best(unedited: Trial, trials: Iterable[Trial]) -> Trial | None:
    """The best trial on all items, of equals the first; None if the unedited model is as good."""
    best = max([unedited, *complete(unedited, trials)], key=lambda trial: trial.merit)
    return None if best is unedited else best


def complete(unedited: Trial, trials: Iterable[Trial]) -> list[Trial]:
    """The trials that have seen every item that the unedited model has seen."""
    return [trial for trial in trials if len(trial.scores) == len(unedited.scores)]


def prepared(
    setup: Setup,
    task: Task | Splits | Sequence[Item],
    tried: Sequence[Candidate],
    fixed: Mapping[str, object],
    *,
    text: str | Tensor | None,
    log: str | Path | None,
    seed: int,
) -> tuple[Setup, Splits]:
    """The setup with its log, and the parts of the task, after every check that needs no forward pass.

    Args:
        setup: the model and how it is asked.
        task: the task, or its parts.
        tried: every candidate.
        fixed: what else the numbers depend on, for the log.
        text: the plain text.
        log: the file to go on from.
        seed: of the split.

    Raises:
        LogError: if the log is a folder or belongs to another search.
        ValueError: if a part that is needed has no items, an edit is impossible, or the text cannot be read.
    """
    checked_seed(seed)
    # Only a race takes the gradient on the screen items.
    needed = ("screen", "validation", "test") if "seed" in fixed else ("validation", "test")
    parts = as_splits(task, needed=needed, seed=seed)
    if text is not None:
        encode_text(setup.model, text, prepend_bos=setup.prepend_bos)
    # A cut by ρ fits every matrix; an edit that names components may name too many, which is told before any run.
    single = [candidate for candidate in tried if candidate.rho is None]
    gains_of(setup.model, single, svds=setup.svds, progress=setup.progress)
    if log is None:
        return setup, parts
    named = {name: getattr(parts, name) for name in ("screen", "validation", "test")}
    fixed = {**fixed, "rule": setup.rule, "prepend_bos": setup.prepend_bos}
    header = search_header(setup.model, named, fixed, [candidate.key for candidate in tried])
    return replace(setup, log=Log(log, header)), parts


def tested(setup: Setup, task: Task, spec: Mapping[str, Edit], *, seed: int) -> Comparison:
    """The unedited and the edited model on the test items."""
    first = sorted(map(Site.parse, spec))[:1]
    bench = setup.bench("test", task, first)
    # The edited model first: the unedited one comes along with its recording.
    after = bench.try_spec(spec, key=repr(dict(spec)), first=first[0]) if spec else bench.unedited()
    return compare(bench.unedited().scores, after.scores, seed=seed)


def text_cost(setup: Setup, text: str | Tensor | None, spec: Mapping[str, Edit]) -> TextCost | None:
    """The loss on a plain text without and with the edits; None without a text."""
    if text is None:
        return None
    encoded, forward = encode_text(setup.model, text, prepend_bos=setup.prepend_bos), partial(run, setup.model)
    before = text_loss_encoded(encoded, forward)
    with setup.under(spec):
        return TextCost(before, text_loss_encoded(encoded, forward))


def test_report(test: Comparison, text: TextCost | None) -> list[str]:
    """The look at the test items in words: gain, baselines, verdict, cost."""
    majority = test.before.majority_accuracy
    lines = [f"test, looked at once: {test!r}"]
    if not isnan(majority):
        always = f"always giving the most frequent answer: accuracy {majority:.3f}"
        better = test.after.accuracy > majority
        lines.append(always if better else f"{always}, which the edited model does not exceed")
    metric, change = test.before.encoded.metric, test.metric or test.accuracy
    if change.covers_zero:
        lines.append("verdict: no evidence of a gain: the interval of the test gain covers 0")
    else:
        is_gain = (change.low > 0) == (metric is None or metric.higher_is_better is True)
        lines.append(f"verdict: a {'gain' if is_gain else 'loss'} on unseen items")
    if text is not None:
        lines.append(f"loss on the plain text: {text}")
    return lines


def _tried(
    setup: Setup, parts: Splits, tried: Sequence[Candidate], settings: Screened | None, seed: int
) -> tuple[Trial, tuple[Trial, ...], dict[Candidate, float]]:
    if settings is not None:
        return race(setup, parts.screen, parts.validation, tried, settings, seed=seed)
    bench = setup.bench("validation", parts.validation, (candidate.site for candidate in tried))
    trials = tuple(try_all(bench, tried, "searching").values())
    return bench.unedited(), trials, {}


def _settings(strategy: object) -> Screened | None:
    match strategy:
        case "exhaustive":
            return None
        case "screened":
            return Screened()
        case Screened():
            return strategy
    raise ValueError(f"strategy={strategy!r}: give 'exhaustive', 'screened', or laser.Screened(...) with settings.")


def _spec_of(chosen: Trial | None) -> dict[str, Edit]:
    return {} if chosen is None or chosen.candidate is None else chosen.candidate.spec


def _row(candidate: Candidate | None, split: str, scores: Scores, unedited: Scores) -> dict[str, object]:
    """A trial as a row; corrected and broken items are counted on the items that both models have seen."""
    summary = scores.summary().as_row()
    summary.pop("task")
    was, now = unedited.correct[: len(scores)], scores.correct
    changed = {"corrected": int((~was & now).sum()), "broken": int((was & ~now).sum())}
    return row_of(candidate) | {"split": split} | summary | changed
