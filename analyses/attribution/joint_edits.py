"""The metric with any set of components moved at once, many sets in one pass, as Shapley values and interactions need.

A *player* is a unit of components of one matrix, with the gains that an edit gives them; a *coalition* is a set of
players whose edits are in force. Coalitions share a forward pass as rows of a batch, and what lies before the first
edited matrix is recorded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from hooks.replay import Recording, Rows, has_hooks, recorded, replayed
from hooks.unembedding import unembedding_only
from jaxtyping import Bool, Float
from torch import Tensor, nn

from analyses.attribution.effects import REMOVAL, Effects, Selection, Unit
from analyses.attribution.gradients import arithmetic, logits_of, metric_of
from analyses.attribution.question import (
    Components,
    Examples,
    Question,
    Target,
    ask,
    basis_asked,
    selected,
    selection_of,
)
from analyses.metrics import Metric
from analyses.metrics.placement import Mask
from analyses.prompts import Tokens
from hooks import Site, host_of
from hooks.temporary import Temporary, together
from surgery import Decompositions, Gains, Spec
from surgery.specs import combine, plan


@final
@dataclass(frozen=True, slots=True)
class Game:
    """What a spec would do to each component, cut into players; from `game_of`."""

    question: Question
    gains: dict[Site, Gains]
    players: tuple[tuple[Site, Unit], ...]
    svds: Decompositions | None

    def values(
        self, coalitions: Bool[Tensor, "coalition player"], *, done: Callable[[int], object] = lambda n: None
    ) -> Float[Tensor, "coalition example"]:
        """The metric under each coalition, on each example."""
        question, found = self.question, []
        for chosen in question.batches():
            part = question.take(chosen)
            with recorded(question.model, range(host_of(question.model).n_layers)) as recording:
                metric_of(question, part)
            run = _Rows(self, part, recording)
            found.append(torch.cat([run.values(some, done) for some in coalitions.split(run.coalitions_per_pass)]))
        return torch.cat(found, dim=1)

    def effects(
        self, method: str, rows: Float[Tensor, "example player"], baseline: Tensor, change: Tensor, *,
        passes: float, noise: Float[Tensor, " player"] | None = None, notes: Sequence[str] = (),
    ) -> Effects:  # fmt: skip
        """A result with a column for each player."""
        at: dict[Site, list[int]] = {}
        for number, (site, _) in enumerate(self.players):
            at.setdefault(site, []).append(number)
        targets = self.question.targets
        return Effects(
            method,
            self.question.measure(baseline),
            {str(site): tuple(self.players[n][1] for n in numbers) for site, numbers in at.items()},
            {str(site): self.question.pooled(rows[:, numbers]).float().cpu() for site, numbers in at.items()},
            {str(site): targets[site].components.S.cpu() for site in at},
            self.question.weight_state,
            passes,
            {} if noise is None else {str(site): noise[numbers].float().cpu() for site, numbers in at.items()},
            tuple(notes),
            self.question.pooled(change).float().cpu(),
            basis=self.question.basis,
            intervention=REMOVAL if self._removes else "the edit",
        )

    @property
    def _removes(self) -> bool:
        """Whether the edit takes every player out and puts nothing in its place."""
        return all(
            self.gains[site].constants is None and not bool(self.gains[site].values[list(unit)].any())
            for site, unit in self.players
        )


def game_of(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    spec: Spec,
    *,
    players: Components | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Game:
    """The game in which every component that the spec changes is a player, or every unit of `players`.

    Raises:
        ValueError: if the spec changes nothing, edits anything but singular components, or `players` names components
            that it does not change.
        SiteError: if a pattern names no editable matrix.
    """
    gains: dict[Site, Gains] = {}
    basis = basis_asked(svds)
    changes = plan(model, spec, svds=svds, progress=progress)
    for site in dict.fromkeys(change.site for change in changes):
        parts = [change for change in changes if change.site == site]
        if parts[0].edit.basis != basis or not basis.complete:
            raise ValueError(
                f"'{site}' is edited in {parts[0].edit.basis!r}, but shares are asked of components in {basis!r}, and "
                "only of such as sum to the matrix. Edit in that basis, or give svds=Decompositions(basis=...) in the "
                "edit's."
            )
        gains[site] = combine(parts)
    changed = {site: (g.values != 1).nonzero().squeeze(1).tolist() for site, g in gains.items()}
    units = (
        Selection({str(site): members for site, members in changed.items() if members}, basis=basis)
        if players is None
        else selection_of(players, basis, "players")
    )
    if not units.n_components:
        raise ValueError("the spec changes no component (every gain is 1), so there is nothing to attribute.")
    for site, chosen in selected(model, units).items():
        strangers = {i for unit in chosen for i in unit} - set(changed.get(site, []))
        if strangers:
            raise ValueError(
                f"players names component {min(strangers)} of '{site}', which the spec does not change: leave it out, "
                "or edit it too."
            )
    question = ask(
        model, tokens, metric, units, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress
    )
    named = tuple((site, unit) for site, target in question.targets.items() for unit in target.units)
    return Game(question, gains, named, svds)


@dataclass(slots=True)
class _Rows:
    """One batch of examples, run under several coalitions at a time: rows are coalitions, then examples."""

    game: Game
    part: Examples
    recording: Recording
    _inputs: dict[Site, Tensor] = field(default_factory=dict)

    @property
    def coalitions_per_pass(self) -> int:
        question = self.game.question
        return 1 if has_hooks(question.model) else max(1, question.rows_per_pass() // len(self.part.tokens))

    def values(
        self, coalitions: Bool[Tensor, "coalition player"], done: Callable[[int], object]
    ) -> Float[Tensor, "coalition example"]:
        """The metric of each coalition on each example of the batch."""
        part, model, n = self.part, self.game.question.model, len(self.part.tokens)
        examples = torch.arange(n).repeat(len(coalitions))
        here = examples.to(part.tokens.device)
        mask = None if part.attention_mask is None else part.attention_mask[here]
        n_pos, columns = part.tokens.shape[1], None
        metric = part.metric.select(examples)
        if not has_hooks(model):
            columns = metric.needed_positions(n_pos)
            metric = metric.narrow(n_pos)
        first = min(self.game.question.targets)
        moved = (
            self._moved(target, self._moves(site, target, coalitions).repeat_interleave(n, 0))
            for site, target in self.game.question.targets.items()
        )
        replay = replayed(model, self.recording, first, Rows(examples))
        with together(replay, *moved, unembedding_only(model, columns)), arithmetic(False):
            values = metric(logits_of(model, part.tokens[here], mask))
        done(len(coalitions) * n)
        return values.view(len(coalitions), n).float().cpu()

    def _moves(self, site: Site, target: Target, coalitions: Bool[Tensor, "coalition player"]) -> Tensor:
        """`γ − 1` of every component in every coalition, `[coalition component]`."""
        away = self.game.gains[site].values.detach() - 1
        moves = away.new_zeros(len(coalitions), len(away))
        for number, (owner, unit) in enumerate(self.game.players):
            if owner == site:
                at = torch.tensor(unit, device=away.device)
                moves[:, at] = coalitions[:, number, None].to(away) * away[at]
        return moves

    def _moved(self, target: Target, moves: Float[Tensor, "row component"]) -> Temporary[None]:
        place, parts = target.place, target.components
        members = torch.tensor([i for unit in target.units for i in unit], device=parts.S.device)
        U, SVh = parts.U[:, members], parts.S[members, None] * parts.Vh[members]
        constants = self.game.gains[place.site].constants
        moves = moves[:, None, members]

        def read(x: Tensor) -> None:
            coordinates = place.read_input(x).to(U.dtype) @ U
            self._inputs[place.site] = coordinates if constants is None else coordinates - constants[members]

        def add(y: Tensor) -> Tensor:
            return place.add_to_output(y, (self._inputs.pop(place.site) * moves) @ SVh)

        return place.tapped(at_input=read, at_output=add)
