"""Moving components one at a time and measuring each time: what ablation and patching have in common.

Moving the coordinate `x·u_i` by δ changes a matrix's output by `s_i δ v_i`. Many such patches share a forward pass, as
rows of a batch, and only the part of the model that comes after the matrix runs; what comes before is recorded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from hooks.replay import Recording, Rows, has_hooks, is_position_wise_after, recorded, replayed
from hooks.unembedding import unembedding_only
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from analyses.attribution.effects import Unit
from analyses.attribution.gradients import arithmetic, inputs_kept, logits_of, metric_of
from analyses.attribution.question import Examples, Question, Target
from hooks import Site, host_of

Substitute = Callable[[Target, Tensor, Tensor], Tensor]
"""How far every coordinate `x·u` moves when its component is out: a function of target, input and example indices."""


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """The metric with nothing moved, and what moving each unit by itself adds to it, at each of some positions."""

    baseline: Float[Tensor, " example"]
    effects: dict[Site, Float[Tensor, "example position unit"]]
    passes: float


def one_at_a_time(
    question: Question,
    substitute: Substitute,
    *,
    positions: Sequence[int] | None = None,
    work: str,
    progress: bool,
) -> Moved:
    """Move every unit by itself and measure: at all positions together, or at each of `positions` by itself."""
    model, at = question.model, (None,) if positions is None else tuple(positions)
    layers = range(host_of(model).n_layers)
    baselines: list[Tensor] = []
    rows: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    total = question.n_examples * len(at) * sum(len(target.units) for target in question.targets.values())
    passes = 1.0
    with tqdm(total=total, desc=work, unit="run", delay=1, disable=not progress) as bar:
        for chosen in question.batches():
            part = question.take(chosen)
            with recorded(model, layers) as recording, inputs_kept(question) as kept:
                baseline = metric_of(question, part)
            inputs = kept()
            baselines.append(baseline)
            for site, target in question.targets.items():
                run = _Suffix(question, part, target, recording, baseline, substitute(target, inputs[site], chosen))
                patches = [(unit, position) for position in at for unit in target.units]
                effects = run.effects(patches, bar.update)
                rows[site].append(effects.view(len(chosen), len(at), -1).float().cpu())
                share = (len(layers) - site.layer) / len(layers) * len(chosen) / question.n_examples
                passes += share * len(run.reaching(patches))
    return Moved(torch.cat(baselines), {site: torch.cat(parts) for site, parts in rows.items()}, passes)


Patch = tuple[Unit, int | None]
"""Components that move together, and the one position at which they do (None: at all of them)."""


@dataclass(slots=True)
class _Suffix:
    """The part of the model after one matrix, for one batch of examples; `moves` is the change of every coordinate."""

    question: Question
    part: Examples
    target: Target
    recording: Recording
    baseline: Float[Tensor, " example"]
    moves: Float[Tensor, "example pos component"]

    def effects(self, patches: Sequence[Patch], done: Callable[[int], object]) -> Float[Tensor, "example patch"]:
        """What each patch adds to the metric, in chunks of patches that share a pass."""
        short, columns = self._short, self._columns
        reaching, n_examples = self.reaching(patches), len(self.part.tokens)
        n_kept, n_logits = (self.part.tokens.shape[1] if cut is None else len(cut) for cut in (columns, short))
        hooked = has_hooks(self.question.model)
        size = 1 if hooked else max(1, self.question.rows_per_pass(n_kept, n_logits) // n_examples)
        effects = self.baseline.new_zeros(n_examples, len(patches))
        for start in range(0, len(reaching), size):
            some = reaching[start : start + size]
            values = self._run([patches[n] for n in some], columns, short).view(len(some), n_examples)
            effects[:, some] = values.mT - self.baseline.unsqueeze(1)
            done(len(some) * n_examples)
        done((len(patches) - len(reaching)) * n_examples)
        return effects

    def reaching(self, patches: Sequence[Patch]) -> list[int]:
        """The patches that can change the metric: not those at a position that nothing read mixes with."""
        columns = self._columns
        return [n for n, (_, at) in enumerate(patches) if at is None or columns is None or at in columns]

    @property
    def _short(self) -> tuple[int, ...] | None:
        """The positions of the logits that the metric reads, None if all are computed."""
        n_pos = self.part.tokens.shape[1]
        needed = self.part.metric.needed_positions(n_pos)
        return None if has_hooks(self.question.model) or len(needed) == n_pos else needed

    @property
    def _columns(self) -> tuple[int, ...] | None:
        """The positions that run, None if all do."""
        return self._short if is_position_wise_after(self.question.model, self.target.place.site) else None

    def _run(
        self, patches: Sequence[Patch], columns: tuple[int, ...] | None, short: tuple[int, ...] | None
    ) -> Float[Tensor, " row"]:
        """The metric under every patch on every example, patches outermost."""
        part, target, model = self.part, self.target, self.question.model
        examples = torch.arange(len(part.tokens)).repeat(len(patches))
        rows = Rows(examples, columns)
        change = self._change(patches, columns)
        here = examples.to(part.tokens.device)
        tokens, mask = part.tokens[here], None if part.attention_mask is None else part.attention_mask[here]
        if columns is not None:
            tokens, mask = tokens[:, : len(columns)], None
        metric = part.metric.select(examples)
        if short is not None:
            metric = metric.narrow(part.tokens.shape[1])

        def add(activation: Tensor) -> Tensor:
            return target.place.add_to_output(activation, change)

        ends_half = target.place.site.matrix in ("W_O", "W_out")
        with (
            replayed(model, self.recording, target.place.site, rows, change=add if ends_half else None),
            unembedding_only(model, None if columns is not None else short),
            arithmetic(False),
            target.place.tapped(at_output=None if ends_half else add),
        ):
            return metric(logits_of(model, tokens, mask))

    def _change(self, patches: Sequence[Patch], columns: tuple[int, ...] | None) -> Float[Tensor, "row pos d_out"]:
        """What each patch adds to the matrix's output."""
        moves = self.moves if columns is None else self.moves[:, list(columns)]
        members = [i for unit, _ in patches for i in unit]
        writes = self.target.components.S[members].unsqueeze(1) * self.target.components.Vh[members]
        taken = moves[..., members].permute(2, 0, 1)  # [member example pos]
        where = [at for unit, at in patches for _ in unit]
        if None not in where:
            kept = torch.tensor(columns or range(self.moves.shape[1])) == torch.tensor(where).unsqueeze(1)
            taken = taken * kept.unsqueeze(1).to(taken)
        added = taken.unsqueeze(-1) * writes[:, None, None]
        if len(members) == len(patches):
            return added.flatten(0, 1)
        owner = torch.tensor([n for n, (unit, _) in enumerate(patches) for _ in unit], device=writes.device)
        summed = added.new_zeros(len(patches), *added.shape[1:])
        return summed.index_add_(0, owner, added).flatten(0, 1)
