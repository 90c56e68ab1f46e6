"""What a component's input does for the answer: the score of Eigenpruning, for every component of every matrix.

On example b at position t, component i scores `E = s_i (Δx·u_i) (v_i·g)`: `Δx = x' − x` from the matrix's true input x
to that on a corrupted example, g the gradient of the answer's cross-entropy (nats) at the matrix's output. Summed over
i it is `g·(WᵀΔx)`. A component that scores low everywhere is one whose input may change without harm to the answer.

Vergara-Browne, Soto, Aizawa, "Eigenpruning" (arXiv:2404.03147).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses import metrics
from analyses.attribution.effects import Effects
from analyses.attribution.passes import backward, inputs_of
from analyses.attribution.question import Question, Target, ask
from analyses.attribution.selections import Selection
from analyses.eigenpruning._given import MeanInput, Score, effects_by, mean_inputs, reduced_effects
from analyses.eigenpruning._reducers import Reduce, check_reduce, running
from analyses.eigenpruning.examples import Corrupt, Per, ScoredExamples, examples_of, rows_of
from analyses.tasks.items import Item
from analyses.tasks.task import Task, as_task
from hooks import Site
from hooks.inputs import Inputs
from surgery import Basis, Compensated, Decompositions, Edit
from surgery import sites as sites_of
from surgery.arguments import counted, one_of
from surgery.arguments import fraction as checked_fraction
from surgery.arguments import seed as checked_seed
from surgery.controls import random_order
from surgery.progress import progress_bar
from surgery.specs import check_compatible

Budget = Literal["global", "type", "matrix"]
"""Where a fraction of the components is counted: among all, among those of a matrix type (W_K), or in each matrix or
head."""
Compensation = Literal["mean", "none"]
"""What stands for a removed component's input: its mean over examples and positions, or nothing."""
Over = Literal["examples and positions", "examples"]
"""What scores are reduced over: effects have been summed over positions before."""
Order = Literal["score", "flipped", "strength", "random"]
"""By what components are removed, lowest first: their score, the score with every E negated, s_i, or at random."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class ComponentScores:
    """The reduced score of every component, by matrix or head, in nats or the unit of the metric that was attributed.

    `effects` holds the scores as effects on the loss, one row for all examples together, and the components' singular
    values; of a metric that should be high, as effects on its negative, so that the lowest go first. `flipped` holds
    the reduced scores of opposite sign, a control. `constants` are the components' mean inputs `mean(x)·u_i` over all
    positions with a token. `over` is what the scores were reduced over.
    """

    effects: Effects
    flipped: dict[str, Float[Tensor, " component"]]
    constants: dict[str, Float[Tensor, " component"]]
    reduce: Reduce
    per: Per = "token"
    over: Over = "examples and positions"

    @property
    def sites(self) -> tuple[str, ...]:
        """The matrices and heads that were scored."""
        return self.effects.sites

    @property
    def basis(self) -> Basis:
        """The basis of the decomposition; every matrix shares it."""
        return self.effects.basis

    @property
    def n_components(self) -> int:
        """How many components were scored, over all matrices."""
        return sum(map(len, self.flipped.values()))

    @property
    def n_examples(self) -> int:
        """How many examples they were scored on."""
        return len(self.effects.measure.baseline)

    def __getitem__(self, site: str) -> Tensor:
        """The scores of a matrix or head, `[component]`; for a final `[*]`, of all its heads, `[head component]`."""
        return self.effects[site]

    def lowest(
        self, fraction: float | int, *, budget: Budget = "global", by: Order = "score", seed: int = 0
    ) -> Selection:
        """The lowest `floor(fraction · n)` components of every group of n that the budget is counted in.

        Among equal scores the weaker component goes first.

        Raises:
            ValueError: if the fraction is not from 0 to 1, or there is no such budget or order.

        >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(6)]
        >>> scores = eigenpruning.attribute(model, items, "blocks.*.mlp.W_out", progress=False)
        >>> scores.lowest(0.25, budget="matrix").n_components, scores.n_components
        (8, 32)
        """
        fraction = checked_fraction(fraction, "fraction")
        frame = self.effects.to_dataframe().assign(by=self._values(by, seed)).sort_values(["by", "strength"])
        groups = frame.groupby([_group(site, budget) for site in frame["site"]])["by"]
        # The tiny addend is for products such as 0.29 · 100 that fall short of their whole number.
        lowest = frame[groups.cumcount() < np.floor(fraction * groups.transform("size").to_numpy() + 1e-9)]
        removed = {site: sorted(lowest.loc[lowest["site"] == site, "component"].tolist()) for site in self.sites}
        return Selection({site: indices for site, indices in removed.items() if indices}, basis=self.basis)

    def spec(self, selection: Selection, *, compensation: Compensation = "mean") -> dict[str, Edit]:
        """The spec that removes the selected components and, unless "none", puts their mean input in their place."""
        one_of(compensation, "compensation", get_args(Compensation))
        if compensation == "none":
            return selection.drop()
        return {site: Compensated(edit, self.constants[site].tolist()) for site, edit in selection.drop().items()}

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each component: site, layer, matrix, head, component, strength, score, flipped, constant.

        Scores are in the unit of `effects.measure`.
        """
        frame = self.effects.to_dataframe().drop(columns=["stderr", "degenerate"]).rename(columns={"effect": "score"})
        columns = {"flipped": self.flipped, "constant": self.constants}
        return frame.assign(
            **{name: np.concatenate([values[site].numpy() for site in self.sites]) for name, values in columns.items()}
        )

    def __repr__(self) -> str:
        frame = self.to_dataframe().sort_values("score", kind="stable")
        ends = pd.concat([frame.head(3), frame.tail(3)])[["site", "component", "strength", "score"]]
        positions = " and their positions" if self.over == "examples and positions" else ""
        return (
            f"scores of {counted(self.n_components, 'component')} of "
            f"{counted(len(self.sites), 'matrix or head', 'matrices or heads')}, {self.effects.measure.label}, by "
            f"{self.effects.method},\n{self.reduce} over {counted(self.n_examples, 'example')}"
            f"{positions}, weights {self.effects.weight_state}; lowest and highest:\n{ends.to_string(index=False)}"
        )

    def _values(self, by: Order, seed: int) -> np.ndarray:
        """A number for each component, by which they are removed, lowest first."""
        checked_seed(seed)
        if one_of(by, "by", get_args(Order)) == "random":
            return np.array(random_order(self.n_components, torch.Generator().manual_seed(seed)))
        values = {"score": self.effects, "flipped": self.flipped, "strength": self.effects.strengths}[by]
        return np.concatenate([values[site].numpy() for site in self.sites])


def attribute(
    model: nn.Module,
    task: Task | Sequence[Item],
    sites: str | Iterable[str] = "blocks.*.attn.W_K[*]",
    *,
    reduce: Reduce = "max",
    corrupt: Corrupt = "shuffle",
    per: Per = "token",
    score: Score | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> ComponentScores:
    """The score of every component of the sites on the task, reduced over examples and positions.

    Every batch takes one forward and one backward pass on the clean and one forward pass on the corrupted examples (a
    quantile takes four rounds of it); the memory needed does not depend on the number of examples. Of an answer of
    several tokens the mean cross-entropy is taken (`per="token"`), so that a long answer weighs no more than a short
    one; or their sum ("sequence"), or the first token alone ("first"), as in the released script.
    `prepend_bos` overrides `model.cfg.default_prepend_bos`.

    With `score`, an attribution or effects that it gave, components are scored by their effects instead: lowest is
    whose removal helps most, by `attribution.by_ablation` for instance. Nothing is then corrupted, and effects have
    been summed over positions before they are reduced.

    Raises:
        ValueError: if there is only one example to shuffle, a pair does not fit, a word is unknown, or effects are not
            of these components and weights, or on a metric without direction.
        TypeError: if `score` gives no effects.
        UnscorableItems: if there are items that this model cannot be asked.
        SiteError: if a pattern names no editable matrix.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(6)]
    >>> scores = eigenpruning.attribute(model, items, "blocks.*.attn.W_K[*]", progress=False)
    >>> tuple(scores["blocks.1.attn.W_K[*]"].shape)
    (2, 8)
    """
    check_reduce(reduce)
    one_of(per, "per", get_args(Per))
    task = as_task(task)
    if score is not None:
        rows = rows_of(model, task, prepend_bos, per)
        question, found = effects_by(
            score, model, rows, sites_of(model, sites), per=per, basis=basis, svds=svds, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip
        return ComponentScores(*reduced_effects(found, reduce), mean_inputs(question, rows), reduce, per, "examples")
    examples = examples_of(model, task, corrupt=corrupt, seed=checked_seed(seed), prepend_bos=prepend_bos, per=per)
    question = ask(
        # Every component of the matrices is scored: `sites_of` refuses a selection of some.
        model, examples.clean.tokens, metrics.loss(examples.clean.labels), sites_of(model, sites), basis=basis,
        svds=svds, attention_mask=examples.clean.mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return _first_order(question, examples, reduce, per, progress)


def _first_order(
    question: Question, examples: ScoredExamples, reduce: Reduce, per: Per, progress: bool
) -> ComponentScores:
    """The paper's score of every component, batch by batch."""
    check_compatible([(site, target.components.basis) for site, target in question.targets.items()])
    states = {site: _State(target, reduce) for site, target in question.targets.items()}
    rounds, losses = next(iter(states.values())).score.passes, []
    batches = list(question.batches())
    with progress_bar("eigenpruning scores", progress=progress, total=rounds * len(batches)) as bar:
        for turn in range(rounds):
            for batch in batches:
                losses.append(_take_in(question, examples, batch, states, per=per, first=turn == 0))
                bar.update()
            for state in states.values():
                state.score.end_of_pass()
                state.flipped.end_of_pass()
    effects, flipped = _reduced(question, states, torch.cat(losses[: len(batches)]), reduce, 3.0 * rounds)
    return ComponentScores(effects, flipped, {str(site): s.mean.constants() for site, s in states.items()}, reduce, per)


class _State:
    """What is kept of one matrix between batches."""

    def __init__(self, target: Target, reduce: Reduce) -> None:
        self.target = target
        self.score, self.flipped = (running(reduce, target.components.n_components) for _ in range(2))
        self.mean = MeanInput(target)


def _take_in(
    question: Question,
    examples: ScoredExamples,
    batch: Int[Tensor, " example"],
    states: dict[Site, _State],
    *,
    per: Per,
    first: bool,
) -> Float[Tensor, " example"]:
    """Reduce the scores of one batch of examples; the losses of its clean rows. Mean inputs are taken at first only."""
    clean, comparable = question.examples.take(batch), examples.comparable(batch)
    passed, device = backward(question, clean), clean.inputs.tokens.device
    tokens, mask = (part[batch].to(device) for part in examples.corrupted[:2])
    references = inputs_of(question, Inputs(tokens, mask))
    has_token = examples.clean.mask[batch].bool().to(device)
    weights = examples.clean.weights(per)[batch]
    for site, state in states.items():
        scores = passed.score(state.target, examples.aligned(references[site], batch))
        rows = (scores * weights.to(scores)[:, None, None])[comparable.to(scores.device)]
        state.score.update(rows)
        state.flipped.update(-rows)
        if first:
            place = state.target.place
            state.mean.update(place.read_input(passed.inputs[place.site.joint]).detach()[has_token])
    return passed.values


def _reduced(
    question: Question, states: dict[Site, _State], losses: Float[Tensor, " example"], reduce: Reduce, passes: float
) -> tuple[Effects, dict[str, Float[Tensor, " component"]]]:
    """The scores as effects, and those of opposite sign."""
    effects = question.effects(
        "gradients at corrupted inputs",
        [losses],
        {site: [state.score.result()[None]] for site, state in states.items()},
        passes=passes,
        intervention=f"corrupted inputs ({reduce} over examples and positions)",
    )
    return effects, {str(site): state.flipped.result() for site, state in states.items()}


def _group(site: str, budget: str) -> str:
    """The name of the group in which a matrix's components are counted."""
    one_of(budget, "budget", get_args(Budget))
    return {"global": "", "type": Site.parse(site).matrix, "matrix": site}[budget]
