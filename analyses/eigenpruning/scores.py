"""What a component's input does for the answer: the score of Eigenpruning, for every component of every matrix.

On example b at position t, component i scores `E = s_i (Δx·u_i) (v_i·g)`: `Δx = x' − x` from the matrix's true input x
to that on a corrupted example, g the gradient of the answer's cross-entropy (nats) at the matrix's output. Summed over
i it is `g·(WᵀΔx)`. A component that scores low everywhere is one whose input may change without harm to the answer.

Vergara-Browne, Soto, Aizawa, "Eigenpruning" (arXiv:2404.03147).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import floor
from typing import Literal, final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from analyses import metrics
from analyses.attribution.effects import Selection
from analyses.attribution.gradients import Backward, backward, inputs_of
from analyses.attribution.question import Question, Target, ask
from analyses.eigenpruning.examples import Corrupt, ScoredExamples, examples_of
from analyses.eigenpruning.reducers import Reduce, Running, check_reduce, running
from analyses.tasks.items import Item
from analyses.tasks.task import Task, as_task
from hooks import Site
from surgery import SVD, Basis, Compensated, Decompositions, Edit
from surgery import sites as sites_of
from surgery.arguments import counted
from surgery.arguments import fraction as checked_fraction
from surgery.arguments import seed as checked_seed
from surgery.specs import check_compatible

_SVD = SVD()

Budget = Literal["global", "type", "matrix"]
"""Where a fraction of the components is counted: among all, among those of a matrix type (W_K), or in each matrix or
head."""
Compensation = Literal["mean", "none"]
"""What stands for a removed component's input: its mean over examples and positions, or nothing."""
Order = Literal["score", "flipped", "strength", "random"]
"""By what components are removed, lowest first: their score, the score with every E negated, s_i, or at random."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class ComponentScores:
    """The reduced score of every component, in nats, by matrix or head.

    `flipped` holds the reduced scores of −E, a control. `constants` are the components' mean inputs `mean(x)·u_i` over
    all positions with a token, `strengths` their singular values.
    """

    scores: dict[str, Float[Tensor, " component"]]
    flipped: dict[str, Float[Tensor, " component"]]
    strengths: dict[str, Float[Tensor, " component"]]
    constants: dict[str, Float[Tensor, " component"]]
    reduce: Reduce
    n_examples: int
    weight_state: str
    basis: Basis = _SVD

    @property
    def sites(self) -> tuple[str, ...]:
        """The matrices and heads that were scored."""
        return tuple(self.scores)

    @property
    def n_components(self) -> int:
        """How many components were scored, over all matrices."""
        return sum(len(score) for score in self.scores.values())

    def __getitem__(self, site: str) -> Tensor:
        """The scores of a matrix or head, `[component]`; for a final `[*]`, of all its heads, `[head component]`."""
        if site.endswith("[*]"):
            heads = sorted(Site.parse(s) for s in self.scores if s.startswith(f"{site[:-3]}["))
            if heads:
                return torch.stack([self.scores[str(head)] for head in heads])
        if site not in self.scores:
            raise KeyError(f"{site!r} was not scored; there are {', '.join(self.scores)}.")
        return self.scores[site]

    def lowest(
        self, fraction: float | int, *, budget: Budget = "global", by: Order = "score", seed: int = 0
    ) -> Selection:
        """The lowest `floor(fraction · n)` components of every group of n that the budget is counted in.

        Among equal scores the weaker component goes first.

        Raises:
            ValueError: if the fraction is not from 0 to 1, or there is no such budget.
        """
        fraction = checked_fraction(fraction, "fraction")
        value, places = self._order(by, seed), self._places()
        strength = np.concatenate([self.strengths[site].numpy() for site in self.scores])
        order = np.lexsort((strength, value))
        groups = [_group(site, budget) for site, _ in places]
        left = {group: floor(fraction * groups.count(group) + 1e-9) for group in set(groups)}
        chosen: dict[str, list[int]] = {}
        for at in order:
            site, component = places[at]
            if left[groups[at]]:
                left[groups[at]] -= 1
                chosen.setdefault(site, []).append(component)
        return Selection({site: sorted(chosen[site]) for site in self.scores if site in chosen}, basis=self.basis)

    def spec(self, chosen: Selection, *, compensation: Compensation = "mean") -> dict[str, Edit]:
        """The spec that removes the chosen components and, unless "none", puts their mean input in their place."""
        check_compensation(compensation)
        if compensation == "none":
            return chosen.drop()
        return {site: Compensated(edit, self.constants[site].tolist()) for site, edit in chosen.drop().items()}

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each component: site, layer, matrix, head, component, strength, score, flipped (nats), constant."""
        frames = []
        for site, score in self.scores.items():
            parsed = Site.parse(site)
            frames.append(pd.DataFrame({
                "site": site, "layer": parsed.layer, "matrix": parsed.matrix, "head": parsed.head,
                "component": range(len(score)), "strength": self.strengths[site].numpy(), "score": score.numpy(),
                "flipped": self.flipped[site].numpy(), "constant": self.constants[site].numpy(),
            }))  # fmt: skip
        frame = pd.concat(frames, ignore_index=True)
        return frame.assign(head=frame["head"].astype("Int64"))

    def __repr__(self) -> str:
        frame = self.to_dataframe().sort_values("score", kind="stable")
        ends = pd.concat([frame.head(3), frame.tail(3)])[["site", "component", "strength", "score"]]
        shown = ends.to_string(index=False)
        return (
            f"scores of {counted(self.n_components, 'component')} of "
            f"{counted(len(self.sites), 'matrix or head', 'matrices or heads')}, nats, {self.reduce} "
            f"over {counted(self.n_examples, 'example')} and their positions, weights {self.weight_state}; lowest and "
            f"highest:\n{shown}"
        )

    def _places(self) -> list[tuple[str, int]]:
        return [(site, i) for site, score in self.scores.items() for i in range(len(score))]

    def _order(self, by: Order, seed: int) -> np.ndarray:
        if by not in ("score", "flipped", "strength", "random"):
            raise ValueError(f"by={by!r}: components are removed by 'score', 'flipped', 'strength' or at 'random'.")
        checked_seed(seed)
        if by == "random":
            return torch.randperm(self.n_components, generator=torch.Generator().manual_seed(seed)).numpy()
        values = {"score": self.scores, "flipped": self.flipped, "strength": self.strengths}[by]
        return np.concatenate([values[site].numpy() for site in self.scores])


def attribute(
    model: nn.Module,
    task: Task | Sequence[Item],
    sites: str | Iterable[str] = "blocks.*.attn.W_K[*]",
    *,
    reduce: Reduce = "max",
    corrupt: Corrupt = "shuffle",
    seed: int = 0,
    prepend_bos: bool | None = None,
    svds: Decompositions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> ComponentScores:
    """The score of every component of the sites on the task, reduced over examples and positions.

    Every batch takes one forward and one backward pass on the clean and one forward pass on the corrupted examples (a
    quantile takes four rounds of it); the memory needed does not depend on the number of examples. Of an answer of
    several tokens the mean cross-entropy is taken, so that a long answer weighs no more than a short one.
    `prepend_bos` overrides `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: if there is only one example to shuffle, a pair does not fit, or the reduction is unknown.
        UnscorableItems: if there are items that this model cannot be asked.
        SiteError: if a pattern names no editable matrix.
    """
    check_reduce(reduce)
    task = as_task(task)
    examples = examples_of(model, task, corrupt=corrupt, seed=checked_seed(seed), prepend_bos=prepend_bos)
    loss = metrics.loss(examples.labels)
    patterns = list(sites) if isinstance(sites, Iterable) and not isinstance(sites, str | Mapping) else sites
    sites_of(model, patterns)  # Every component of the matrices is scored: chosen ones are refused here.
    question = ask(
        model, examples.tokens, loss, patterns, svds=svds, attention_mask=examples.mask, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    check_compatible([(site, target.components.basis) for site, target in question.targets.items()])
    states = {site: _State(target, reduce) for site, target in question.targets.items()}
    rounds = next(iter(states.values())).score.passes
    total = rounds * len(list(question.batches()))
    with tqdm(total=total, desc="eigenpruning scores", unit="batch", delay=1, disable=not progress) as bar:
        for turn in range(rounds):
            for chosen in question.batches():
                _take_in(question, examples, chosen, states, first=turn == 0)
                bar.update()
            for state in states.values():
                state.score.end_of_pass()
                state.flipped.end_of_pass()
    return ComponentScores(
        {str(site): state.score.result() for site, state in states.items()},
        {str(site): state.flipped.result() for site, state in states.items()},
        {str(site): target.components.S.float().cpu() for site, target in question.targets.items()},
        {str(site): state.mean() for site, state in states.items()},
        reduce,
        len(examples),
        question.weight_state,
        question.basis,
    )


class _State:
    """What is kept of one matrix between batches."""

    def __init__(self, target: Target, reduce: Reduce) -> None:
        start: Callable[[], Running] = partial(running, reduce, target.components.n_components)
        self.target, self.score, self.flipped = target, start(), start()
        self.input = torch.zeros(target.place.d_in, dtype=torch.float64)
        self.count = 0

    def mean(self) -> Float[Tensor, " component"]:
        """The mean input of every component."""
        U = self.target.components.U
        return ((self.input / self.count).to(U) @ U).float().cpu()


def _take_in(
    question: Question, examples: ScoredExamples, chosen: Tensor, states: Mapping[Site, _State], *, first: bool
) -> None:
    """One batch of examples."""
    clean, comparable = question.take(chosen), examples.comparable(chosen)
    real = examples.mask[chosen].bool()
    found = backward(question, clean)
    device = clean.tokens.device
    corrupted = replace(
        clean, tokens=examples.corrupted[chosen].to(device), attention_mask=examples.corrupted_mask[chosen].to(device)
    )
    references = inputs_of(question, corrupted)
    for site, state in states.items():
        scores = found.score(state.target, examples.aligned(references[site], chosen))
        rows = scores[comparable.to(scores.device)]
        state.score.update(rows)
        state.flipped.update(-rows)
        if first:
            x = _input(found, state.target)[real.to(device)]
            state.input += x.double().sum(0).cpu()
            state.count += len(x)


def _input(found: Backward, target: Target) -> Tensor:
    return target.place.read_input(found.inputs[target.place.site.joint]).detach()


def check_compensation(compensation: str) -> None:
    """Refuse what is no compensation.

    Raises:
        ValueError: if it is none.
    """
    if compensation not in ("mean", "none"):
        raise ValueError(
            f"compensation={compensation!r}: what is removed is replaced by its 'mean', or by nothing, 'none'. Give "
            "one of these."
        )


def check_budget(budget: str) -> None:
    """Refuse what is no budget.

    Raises:
        ValueError: if it is none.
    """
    if budget not in ("global", "type", "matrix"):
        raise ValueError(
            f"budget={budget!r}: the fraction is counted over all components ('global'), those of a matrix type "
            "('type'), or in each matrix or head ('matrix')."
        )


def _group(site: str, budget: str) -> str:
    check_budget(budget)
    return {"global": "", "type": Site.parse(site).matrix, "matrix": site}[budget]
