"""What the demo measures: a model that learnt noise, operated on in several ways, against controls, and restored."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

import surgery
from analyses import attribution, metrics, recall
from analyses.recall import RecallScores, RecallTask
from surgery import Decomposition, Decompositions, DropTop, Edit, KeepTop, Operation, Scale, Spec, Zero
from surgery.arguments import whole
from surgery.controls import Match, matched
from surgery.progress import progress_bar

W_IN, W_OUT = "blocks.1.mlp.W_in", "blocks.1.mlp.W_out"
TRAINED = ("blocks.*.attn.W_[KVO]", "blocks.1.mlp.W_*")
"""The matrices that attribution searches: all that training changed."""

EDITS: dict[str, Spec] = {
    "full model": {},
    "second MLP removed": {"blocks.1.mlp.W_{in,out}": Zero()},
    "W_in at ρ = .05": {W_IN: KeepTop(rho=0.05)},
    "W_out: only its top component": {W_OUT: KeepTop(rank=1)},
    "W_out: without its top component": {W_OUT: DropTop(rank=1)},
}
Control = Literal["same count", "same energy", "same spectrum"]
_EQUAL: dict[Control, Match] = {"same count": "count", "same energy": "energy", "same spectrum": "spectrum"}
CONTROLS: dict[str, tuple[Control, ...]] = {
    "second MLP removed": ("same spectrum",),
    "W_in at ρ = .05": ("same count",),
    "W_out: only its top component": ("same count",),
    "W_out: without its top component": ("same count", "same energy"),
}
"""What each edit is held against. Where all of the MLP goes, nothing is left to draw from: there, W_out keeps its
singular values and gets random singular vectors instead."""

GAINS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: an edit, or a control of one, with the scores of each of its random draws."""

    label: str
    removed: str
    control: Control | None
    scores: tuple[RecallScores, ...]

    def mean(self, metric: str) -> float:
        """The metric's mean over draws."""
        return fmean(self.values(metric))

    def values(self, metric: str) -> list[float]:
        """The metric, a value for each draw."""
        return [getattr(scores, metric) for scores in self.scores]


@final
@dataclass(frozen=True, slots=True)
class Check:
    """A claim, whether this run bears it out, and the numbers it was decided on."""

    claim: str
    holds: bool
    evidence: str


@final
@dataclass(frozen=True, slots=True)
class Demo:
    """The results that the demo shows.

    `decomposition` is W_out's, `dial` has the scores with the gain of its top component at each of `GAINS`. `estimated`
    are the effects on p(noise) of all components of all trained matrices by one gradient, `exact` those of the best of
    them by ablation, both on sequences that no score is taken on. `operation` is the table that an edit prints.
    `seconds` is the training's time, near 0 from the cache.
    """

    task: RecallTask
    host: str
    seed: int
    rows: tuple[Row, ...]
    decomposition: Decomposition
    dial: tuple[RecallScores, ...]
    estimated: attribution.Effects
    exact: attribution.Effects
    operation: str
    checks: tuple[Check, ...]
    seconds: float

    def row(self, label: str, control: Control | None = None) -> Row:
        """One line of the table."""
        return next(row for row in self.rows if (row.label, row.control) == (label, control))


def run(
    *,
    seed: int = 0,
    steps: int = 400,
    sequences: int = 512,
    draws: int = 8,
    cache: str | Path | None = ".surgery-cache",
    progress: bool = True,
) -> Demo:
    """Train the recall model (or take it from the cache), operate, attribute, and check what is claimed.

    `sequences` clean sequences score every edit, half as many every one of the `draws` draws of a control. The model is
    a HookedTransformer where transformer-lens has it, else a TransformerBridge with the same weights.

    Raises:
        ValueError: if a number is out of its range, or a file of the cache is damaged.
    """
    whole(draws, "draws", least=1)
    whole(sequences, "sequences", least=2)
    task = RecallTask.synthetic()
    model, start = _new_model(task, seed), perf_counter()
    recall.train(model, task, steps=steps, seed=seed, cache=cache, progress=progress)
    seconds = perf_counter() - start
    tokens = task.sample(32, seed=2, alpha=0.0).tokens
    before = _state(model, tokens)

    svds = surgery.decompose(model, "blocks.1.mlp.W_{in,out}", progress=False)
    rows = tuple(_rows(model, task, svds, sequences, draws, progress))
    dial = tuple(_dial(model, task, svds, sequences // 2))
    estimated, exact = find_noise(model, task)
    with surgery.apply(model, EDITS["W_out: without its top component"], svds=svds, progress=False) as operation:
        table = repr(operation)
    claims = [*_claims_of_study(rows), _claim_of_attribution(exact), *_claims_of_host(model, tokens, before)]
    host = f"{type(model).__name__} (transformer-lens {version('transformer-lens')})"
    return Demo(task, host, seed, rows, svds[W_OUT], dial, estimated, exact, table, tuple(claims), seconds)


def find_noise(
    model: nn.Module, task: RecallTask, *, sequences: int = 32, candidates: int = 64
) -> tuple[attribution.Effects, attribution.Effects]:
    """Effects on p(noise): of every component of every trained matrix by one gradient, and of the best few exactly."""
    batch = task.sample(sequences, seed=1, alpha=0.0)
    metric = p_noise(task, batch.scored)
    estimated = attribution.by_gradient(model, batch.tokens, metric, TRAINED, progress=False)
    return estimated, attribution.by_ablation(model, batch.tokens, metric, estimated.top(candidates), progress=False)


def p_noise(task: RecallTask, scored: Bool[Tensor, "batch pos"]) -> metrics.Metric:
    """The probability of the noise token, averaged over each sequence's scored positions; lower is better."""

    def mean_p_noise(logits: Tensor, scored: Tensor) -> Tensor:
        p = logits.softmax(-1)[..., task.noise_token]
        return (p * scored).sum(-1) / scored.sum(-1)

    return metrics.custom(mean_p_noise, scored, name="p(noise)", unit="probability", higher_is_better=False)


def control_spec(control: Control, operation: Operation, seed: int) -> dict[str, Edit]:
    """A random edit of the same matrices that removes as much as `operation` does, by the measure of `control`."""
    return {
        str(change.site): matched(change.gains, change.decomposition, by=_EQUAL[control], seed=seed)
        for change in operation.changes
        if control != "same spectrum" or str(change.site) == W_OUT
    }


def _new_model(task: RecallTask, seed: int) -> nn.Module:
    try:
        return recall.model(task, seed=seed)
    except ImportError:  # transformer-lens 4 has the bridge only
        return recall.bridge(task, seed=seed)


def _rows(
    model: nn.Module, task: RecallTask, svds: Decompositions, sequences: int, draws: int, progress: bool
) -> Iterator[Row]:
    total = len(EDITS) + draws * sum(map(len, CONTROLS.values()))
    with progress_bar("operate", progress=progress, total=total, unit="edit") as bar:
        for label, spec in EDITS.items():
            with surgery.apply(model, spec, svds=svds, progress=False) as operation:
                yield Row(label, _removed(operation), None, (_scores(model, task, sequences),))
            bar.update()
            for control in CONTROLS.get(label, ()):
                specs = [control_spec(control, operation, seed) for seed in range(draws)]
                yield _drawn(label, control, specs, model, task, sequences // 2)
                bar.update(draws)


def _drawn(
    label: str, control: Control, specs: list[dict[str, Edit]], model: nn.Module, task: RecallTask, sequences: int
) -> Row:
    scores, operations = [], []
    for spec in specs:
        with surgery.apply(model, spec, progress=False) as operation:
            scores.append(_scores(model, task, sequences))
            operations.append(operation)
    removed = "random vectors" if control == "same spectrum" else _removed(*operations)
    return Row(label, removed, control, tuple(scores))


def _removed(*operations: Operation) -> str:
    """How many components go, of how many; a range where draws differ."""
    tables = [operation.to_dataframe() for operation in operations]
    total = sum(tables[0]["of"].tolist())
    counts = sorted({total - sum(table["kept"].tolist()) for table in tables})
    return f"{'-'.join(map(str, counts[:1] + counts[1:][-1:]))} of {total}" if total else "nothing"


def _scores(model: nn.Module, task: RecallTask, sequences: int) -> RecallScores:
    return recall.evaluate(model, task, sequences=sequences, progress=False)


def _dial(model: nn.Module, task: RecallTask, svds: Decompositions, sequences: int) -> Iterator[RecallScores]:
    for gain in GAINS:
        with surgery.apply(model, {W_OUT: Scale({0: gain})}, svds=svds, progress=False):
            yield _scores(model, task, sequences)


def _claims_of_study(rows: tuple[Row, ...]) -> Iterator[Check]:
    """The pattern that Chen, Bruna and Bietti describe, with the bounds this setting keeps for every seed tried."""
    of_edits = {row.label: row for row in rows if row.control is None}
    bounds = [
        ("full model", "p_correct", 0.42, 0.58, "the full model splits its probability: p(correct) near .5"),
        ("full model", "p_noise", 0.42, 0.58, "… and p(noise) near .5"),
        ("full model", "accuracy_without_noise", 0.99, 1, "… though noise token aside it is always right"),
        ("second MLP removed", "p_correct", 0.85, 1, "without the second MLP p(correct) > .85"),
        ("second MLP removed", "p_noise", 0, 0.02, "… and p(noise) < .02"),
        ("W_in at ρ = .05", "p_correct", 0.85, 1, "W_in at ρ = .05: p(correct) > .85"),
        ("W_out: only its top component", "p_noise", 0.75, 1, "only W_out's top component: p(noise) > .75"),
        ("W_out: without its top component", "p_correct", 0.95, 1, "without W_out's top component p(correct) > .95"),
    ]
    for label, metric, low, high, claim in bounds:
        value = of_edits[label].mean(metric)
        yield Check(claim, low <= value <= high, f"{value:.3f}")
    best = of_edits["W_out: without its top component"].mean("p_correct")
    controls = [row for row in rows if row.label == "W_out: without its top component" and row.control]
    drawn = max(median(row.values("p_correct")) for row in controls)  # single draws may hold the top component
    yield Check("… and the median random control comes nowhere near", best > drawn + 0.2, f"{drawn:.3f}")
    drawn = next(row for row in rows if (row.label, row.control) == ("W_in at ρ = .05", "same count")).mean("p_correct")
    near = abs(of_edits["W_in at ρ = .05"].mean("p_correct") - drawn) < 0.05
    yield Check("in W_in, as many random components do as well", near, f"{drawn:.3f}")


def _claim_of_attribution(exact: attribution.Effects) -> Check:
    ((site, units),) = exact.most_harmful(1).items()
    component = units[0][0]
    holds = (site, component) == (W_OUT, 0)
    return Check(f"attribution names {W_OUT}, component 0", holds, f"{site}, component {component}")


State = tuple[dict[str, Tensor], Float[Tensor, "batch pos d_vocab"]]


def _state(model: nn.Module, tokens: Tensor) -> State:
    """A copy of every parameter and buffer, and the logits."""
    with torch.no_grad():
        logits = model(tokens, return_type="logits")
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, logits


def _claims_of_host(model: nn.Module, tokens: Tensor, before: State) -> Iterator[Check]:
    (tensors, logits), (tensors_now, logits_now) = before, _state(model, tokens)
    same = tensors.keys() == tensors_now.keys() and all(
        torch.equal(t, tensors_now[name]) for name, t in tensors.items()
    )
    evidence = f"{len(tensors)} tensors and the logits of {len(tokens)} sequences compared"
    yield Check("the model is as before, bit for bit", same and torch.equal(logits, logits_now), evidence)
    bridged = recall.as_bridge(model)
    for what, spec in (("", {}), (", edited", EDITS["W_out: without its top component"])):
        with surgery.apply(model, spec, progress=False), surgery.apply(bridged, spec, progress=False), torch.no_grad():
            gap = float((model(tokens, return_type="logits") - bridged(tokens, return_type="logits")).abs().max())
        claim = f"the same weights on a TransformerBridge{what}: the same logits"
        yield Check(claim, gap < 1e-5, f"max difference {gap:g}")
