"""The metric with any set of components moved at once, many sets in one pass, as Shapley values and interactions need.

A *player* is a unit of components of one matrix, with the gains that an edit gives them; a *coalition* is a set of
players whose edits are in force. Coalitions share a forward pass as rows of a batch, and what lies before the first
edited matrix is recorded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from analyses.attribution.effects import REMOVAL, Shares
from analyses.attribution.passes import moved
from analyses.attribution.question import Examples, Question, Target, ask, selected
from analyses.attribution.selections import Components, Selection, Unit, selection_of
from analyses.metrics import Metric
from analyses.metrics.positions import Mask
from analyses.prompts import Tokens
from hooks import Site
from hooks.recording import Recording, has_hooks
from hooks.running import arithmetic, record, rerun
from hooks.temporary import together
from surgery import SVD, Basis, Decompositions, Gains, Spec
from surgery.specs import Change, combine, plan


@final
@dataclass(frozen=True, slots=True)
class JointEdit:
    """What a spec would do to each component, cut into players; from `joint_edit`."""

    question: Question
    gains: dict[Site, Gains]
    players: tuple[tuple[Site, Unit], ...]
    svds: Decompositions | None

    def values(
        self, coalitions: Bool[Tensor, "coalition player"], *, done: Callable[[int], object] = lambda n: None
    ) -> Float[Tensor, "coalition example"]:
        """The metric under each coalition, on each example."""
        question, values = self.question, []
        for chosen in question.batches():
            part = question.examples.take(chosen)
            with arithmetic(False):
                recording, logits = record(question.model, part.read)
            part.measured(logits)  # refuses what is no metric before the many passes
            rows = _Rows(self, part, recording)
            values.append(torch.cat([rows.values(some, done) for some in coalitions.split(rows.coalitions_per_pass)]))
        return torch.cat(values, dim=1)

    def ends(self) -> Float[Tensor, "2 example"]:
        """The metric with nobody's edit in force, and with everybody's."""
        n = len(self.players)
        return self.values(torch.tensor([[False] * n, [True] * n]))

    def shares(
        self, method: str, rows: Float[Tensor, "example player"], ends: Float[Tensor, "2 example"], *,
        passes: float, noise: Float[Tensor, " player"] | None = None, notes: Sequence[str] = (),
    ) -> Shares:  # fmt: skip
        """A result with a column for each player, whose shares sum to the change between the ends."""
        at: dict[Site, list[int]] = {}
        for number, (site, _) in enumerate(self.players):
            at.setdefault(site, []).append(number)
        effects = self.question.effects(
            method,
            [ends[0]],
            {site: [rows[:, numbers]] for site, numbers in at.items()},
            passes=passes,
            noise={} if noise is None else {site: noise[numbers] for site, numbers in at.items()},
            intervention=REMOVAL if self._removes else "the edit",
        )
        fields = {name: getattr(effects, name) for name in effects.__dataclass_fields__}
        change = self.question.pooled(ends[1] - ends[0]).float().cpu()
        return Shares(**fields, change=change, notes=tuple(notes))

    @property
    def _removes(self) -> bool:
        """Whether the edit takes every player out and puts nothing in its place."""
        return all(
            self.gains[site].constants is None and not bool(self.gains[site].values[list(unit)].any())
            for site, unit in self.players
        )


def joint_edit(
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
) -> JointEdit:
    """The edits of a spec, of which every component that it changes is a player, or every unit of `players`.

    Raises:
        ValueError: if the spec changes nothing, edits anything but singular components, or `players` names components
            that it does not change.
        SiteError: if a pattern names no editable matrix.
    """
    gains, basis = _gains_of(model, spec, svds, progress)
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
        model, tokens, metric, units,
        basis=basis, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    named = tuple((site, unit) for site, target in question.targets.items() for unit in target.units)
    return JointEdit(question, gains, named, svds)


def _gains_of(
    model: nn.Module, spec: Spec, svds: Decompositions | None, progress: bool
) -> tuple[dict[Site, Gains], Basis]:
    """The gains that the spec gives the components of each matrix, and the basis of these.

    Raises:
        ValueError: if matrices are edited in different bases, or in one whose components do not sum to the matrix.
    """
    by_site: dict[Site, list[Change]] = {}
    for change in plan(model, spec, svds=svds, progress=progress):
        by_site.setdefault(change.site, []).append(change)
    bases = {site: changes[0].edit.basis for site, changes in by_site.items()}
    basis = next(iter(bases.values()), SVD())
    for site, own in bases.items():
        if own != basis or not own.complete:
            other = f", another matrix in {basis!r}" if own != basis else ", whose components do not sum to it"
            raise ValueError(
                f"'{site}' is edited in {own!r}{other}: shares are those of components in one basis, which sum to "
                "their matrices. Edit in SVD() or RowBlocks(n), all matrices in the same."
            )
    return {site: combine(changes) for site, changes in by_site.items()}, basis


@dataclass(slots=True)
class _Rows:
    """One batch of examples, run under several coalitions at a time: coalitions outermost."""

    edit: JointEdit
    part: Examples
    recording: Recording

    @property
    def coalitions_per_pass(self) -> int:
        """How many coalitions share a pass."""
        question = self.edit.question
        return 1 if has_hooks(question.model) else max(1, question.rows_per_pass() // len(self.part.inputs))

    def values(
        self, coalitions: Bool[Tensor, "coalition player"], done: Callable[[int], object]
    ) -> Float[Tensor, "coalition example"]:
        """The metric of each coalition on each example of the batch."""
        part, question, n = self.part, self.edit.question, len(coalitions)
        repeated = part.take(torch.arange(part.n_examples).repeat(n))
        n_rows = len(part.inputs)
        taps = (
            moved(
                target,
                self._moves(site, target, coalitions).repeat_interleave(n_rows, 0),
                self.edit.gains[site].constants,
            )
            for site, target in question.targets.items()
        )
        with arithmetic(False):
            logits = rerun(
                question.model, repeated.read, self.recording, min(question.targets),
                rows=torch.arange(n_rows).repeat(n), taps=together(*taps),
            )  # fmt: skip
            values = repeated.measured(logits)
        done(n * part.n_examples)
        return values.view(n, part.n_examples).float().cpu()

    def _moves(
        self, site: Site, target: Target, coalitions: Bool[Tensor, "coalition player"]
    ) -> Float[Tensor, "coalition member"]:
        """`γ − 1` of every component of a player in every coalition."""
        away = self.edit.gains[site].values.detach() - 1
        players = [n for n, (owner, unit) in enumerate(self.edit.players) if owner == site for _ in unit]
        members = [i for unit in target.units for i in unit]
        return coalitions[:, players].to(away) * away[members]
