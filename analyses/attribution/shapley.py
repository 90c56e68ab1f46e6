"""Fair shares of an edit's effect, and how components depend on each other, by running coalitions of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses.attribution._joint_edits import JointEdit, joint_edit
from analyses.attribution.effects import Measure, Shares
from analyses.attribution.question import prompts_for
from analyses.attribution.selections import Components, selection_of
from analyses.engines import Work, Workers, carry_out
from analyses.metrics import Metric, as_metric
from analyses.metrics.positions import Mask
from analyses.prompts import Prompts, Tokens
from analyses.statistics import mean_and_stderr
from hooks import host_of
from surgery import SVD, Basis, Decompositions, Spec
from surgery.arguments import even
from surgery.arguments import seed as whole_seed
from surgery.progress import progress_bar


def by_shapley(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    spec: Spec,
    *,
    draws: int = 64,
    seed: int = 0,
    players: Components | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    executor: Workers | None = None,
    progress: bool = True,
) -> Shares:
    """Shapley shares of the change that a spec makes, from `draws` random orders in which its components are edited.

    In every order the shares of all players sum exactly to the change; a share is its mean over orders. Orders come in
    pairs, one the reverse of the other, which lowers the variance (Castro, Gómez and Tejada 2009; Mitchell et al.,
    arXiv:2104.12199). `noise` is the standard error over pairs. With `players`, units of several components play as
    one: the cost is `draws` times the number of players.

    With `executor`, `analyses.engines.Workers`, orders are run elsewhere, with the same results. Workers decompose by
    themselves, so that `svds` is left out.

    Raises:
        WorkerError: if workers do not hold this model, or fail.
        ValueError: if `draws` is not an even number of at least 2, or as `joint_edit`.
        SiteError: if a pattern names no editable matrix.

    >>> spec = {"blocks.1.mlp.W_out": surgery.Drop([0, 1, 2])}
    >>> shares = attribution.by_shapley(model, tokens, metrics.accuracy(3), spec, draws=4, progress=False)
    >>> shares.units
    {'blocks.1.mlp.W_out': ((0,), (1,), (2,))}
    """
    draws, seed = even(draws, "draws"), whole_seed(seed)
    if executor is not None and svds is not None:
        raise ValueError("svds= stays in this process, and workers decompose by themselves: leave out one of both.")
    prompts = prompts_for(model, tokens, as_metric(metric), attention_mask)
    edit = joint_edit(
        model, prompts, metric, spec, players=players, svds=svds, batch_size=batch_size, progress=progress
    )
    n, ends = len(edit.players), edit.ends()
    orders = _orders(n, draws, seed)
    shares = torch.zeros(draws // 2, ends.shape[1], n)
    each = (n - 1) * ends.shape[1]
    with progress_bar("Shapley", progress=progress, total=draws * each, unit="run") as bar:

        def keep(found: Between) -> None:
            number, values = found
            shares[number // 2] += 0.5 * _marginals(orders[number], values, ends)
            bar.update(each)

        asking = Entering(prompts.to("cpu"), metric, spec, players, batch_size)
        pieces = {number: (number, order) for number, order in enumerate(orders)}
        carry_out(asking, pieces, keep, here=partial(_between, edit), executor=executor, model=model)
    noise = mean_and_stderr(shares.mean(1))[1]
    notes = [f"shares of the change {float((ends[1] - ends[0]).mean()):.4g}, from {draws} orders of {n} players"]
    passes = 2.0 + draws * (n - 1)
    return edit.shares(f"Shapley ({draws} orders)", shares.mean(0), ends, passes=passes, noise=noise, notes=notes)


@final
@dataclass(frozen=True, slots=True)
class Interactions:
    """How far the effect of two components together departs from the sum of their effects, mean over examples.

    Positive: together they raise the metric more than apart. The diagonal holds the effects of single components.
    """

    labels: tuple[str, ...]
    matrix: Float[Tensor, "first second"]
    stderr: Float[Tensor, "first second"]
    measure: Measure

    def to_dataframe(self) -> pd.DataFrame:
        """The matrix with its labels."""
        return pd.DataFrame(self.matrix.numpy(), index=list(self.labels), columns=list(self.labels))


def interactions(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    selection: Components,
    *,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Interactions:
    """Pairwise interactions of the selected components: `m(i, j out) − m(i out) − m(j out) + m(now)`.

    Raises:
        ValueError: if fewer than two units are selected, or as `ask`.

    >>> selection = {"blocks.1.mlp.W_out": [0, 1]}
    >>> pairs = attribution.interactions(model, tokens, metrics.logit(3), selection, progress=False)
    >>> pairs.labels
    ('blocks.1.mlp.W_out 0', 'blocks.1.mlp.W_out 1')
    """
    selection = selection_of(selection, basis or SVD(), "selection")
    edit = joint_edit(
        model, tokens, metric, selection.drop(), players=selection,
        svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    n = len(edit.players)
    if n < 2:
        raise ValueError(f"the selection holds {n} unit: two or more are needed for an interaction.")
    pairs = torch.combinations(torch.arange(n))
    coalitions = torch.zeros(1 + n + len(pairs), n, dtype=torch.bool)
    coalitions[1 + torch.arange(n), torch.arange(n)] = True
    coalitions[1 + n + torch.arange(len(pairs)).unsqueeze(1), pairs] = True
    with progress_bar(
        "interactions", progress=progress, total=len(coalitions) * edit.question.n_examples, unit="run"
    ) as bar:
        values = edit.question.pooled(edit.values(coalitions, done=bar.update).mT).mT
    effects = values[1:] - values[0]
    single, joint = effects[:n], effects[n:]
    beyond = joint - single[pairs[:, 0]] - single[pairs[:, 1]]
    rows = torch.zeros(n, n, effects.shape[1])
    rows[torch.arange(n), torch.arange(n)] = single
    rows[pairs[:, 0], pairs[:, 1]] = rows[pairs[:, 1], pairs[:, 0]] = beyond
    labels = tuple(f"{site} {'+'.join(map(str, unit))}" for site, unit in edit.players)
    mean, stderr = mean_and_stderr(rows.movedim(-1, 0))
    return Interactions(labels, mean, stderr, edit.question.measure(values[0]))


Order: TypeAlias = tuple[int, Int[Tensor, " player"]]
"""An order in which players enter, and its number."""
Between: TypeAlias = tuple[int, Float[Tensor, "coalition example"]]
"""The number of an order, and the metric after each player but the last has entered."""


@final
@dataclass(frozen=True, slots=True)
class Entering(Work[Order, Between]):
    """What players enter, as workers are told of it."""

    prompts: Prompts
    metric: Metric | Callable[[Tensor], Tensor]
    spec: Spec
    players: Components | None
    batch_size: int | None

    def on(self, model: nn.Module) -> Callable[[Order], Iterable[Between]]:
        """As `Work.on`."""
        prompts, size = self.prompts.to(host_of(model).device), self.batch_size
        players = self.players
        return partial(
            _between,
            joint_edit(model, prompts, self.metric, self.spec, players=players, batch_size=size, progress=False),
        )


def _orders(n: int, draws: int, seed: int) -> list[Int[Tensor, " player"]]:
    """Random orders of n players, each followed by its reverse."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(n, generator=generator) for _ in range(draws // 2)]
    return [entry for order in drawn for entry in (order, order.flip(0))]


def _between(edit: JointEdit, piece: Order) -> Iterator[Between]:
    """The metric while players enter in this order."""
    number, order = piece
    n, position = len(order), _positions(order)
    coalitions = position.unsqueeze(0) < torch.arange(1, n).unsqueeze(1)
    yield number, edit.values(coalitions) if n > 1 else torch.zeros(0, edit.question.n_examples)


def _marginals(
    order: Int[Tensor, " player"], between: Float[Tensor, "coalition example"], ends: Float[Tensor, "2 example"]
) -> Float[Tensor, "example player"]:
    """What each player adds when the players enter in this order."""
    steps = torch.cat([ends[:1], between, ends[1:]]).diff(dim=0)  # [player example], in order of entry
    return steps[_positions(order)].mT


def _positions(order: Int[Tensor, " player"]) -> Int[Tensor, " player"]:
    """When each player enters."""
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order))
    return position
