"""Fair shares of an edit's effect, and how components depend on each other, by running coalitions of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from analyses.attribution._joint_edits import JointEdit, joint_edit
from analyses.attribution.effects import Measure, Shares
from analyses.attribution.selections import Components, selection_of
from analyses.metrics import Metric
from analyses.metrics.positions import Mask
from analyses.prompts import Tokens
from analyses.statistics import mean_and_stderr
from surgery import SVD, Basis, Decompositions, Spec
from surgery.arguments import even
from surgery.arguments import seed as whole_seed


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
    progress: bool = True,
) -> Shares:
    """Shapley shares of the change that a spec makes, from `draws` random orders in which its components are edited.

    In every order the shares of all players sum exactly to the change; a share is its mean over orders. Orders come in
    pairs, one the reverse of the other, which lowers the variance (Castro, Gómez and Tejada 2009; Mitchell et al.,
    arXiv:2104.12199). `noise` is the standard error over pairs. With `players`, units of several components play as
    one: the cost is `draws` times the number of players.

    Raises:
        ValueError: if `draws` is not an even number of at least 2, or as `joint_edit`.
        SiteError: if a pattern names no editable matrix.

    >>> spec = {"blocks.1.mlp.W_out": surgery.Drop([0, 1, 2])}
    >>> shares = attribution.by_shapley(model, tokens, metrics.accuracy(3), spec, draws=4, progress=False)
    >>> shares.units
    {'blocks.1.mlp.W_out': ((0,), (1,), (2,))}
    """
    draws, seed = even(draws, "draws"), whole_seed(seed)
    edit = joint_edit(
        model, tokens, metric, spec, players=players,
        svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    n, generator = len(edit.players), torch.Generator().manual_seed(seed)
    ends = edit.ends()
    shares = torch.zeros(draws // 2, ends.shape[1], n)
    runs = draws * (n - 1) * ends.shape[1]
    with tqdm(total=runs, desc="Shapley", unit="run", delay=1, disable=not progress) as bar:
        for pair in range(draws // 2):
            order = torch.randperm(n, generator=generator)
            for entry in (order, order.flip(0)):
                shares[pair] += 0.5 * _marginals(edit, entry, ends, bar.update)
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
    with tqdm(
        total=len(coalitions) * edit.question.n_examples, desc="interactions", unit="run", delay=1, disable=not progress
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


def _marginals(
    edit: JointEdit, order: Int[Tensor, " player"], ends: Float[Tensor, "2 example"], done: Callable[[int], object]
) -> Float[Tensor, "example player"]:
    """What each player adds when the players enter in this order."""
    n = len(order)
    position = torch.empty_like(order)
    position[order] = torch.arange(n)
    coalitions = position.unsqueeze(0) < torch.arange(1, n).unsqueeze(1)
    between = edit.values(coalitions, done=done) if n > 1 else ends[:0]
    steps = torch.cat([ends[:1], between, ends[1:]]).diff(dim=0)  # [player example], in order of entry
    return steps[position].mT
