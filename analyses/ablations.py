"""Attribution by doing it: every component taken out by itself, exactly, and the metric measured again.

Removing component i changes a matrix's output by `−s_i (x_t·u_i) v_i`. Many components share a forward pass, as rows of a
batch, and only the part of the model that comes after the matrix runs; what comes before is recorded once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from analyses.effects import Effects, Unit
from analyses.gradients import alike, arithmetic, inputs_kept, logits_of, metric_of
from analyses.metrics import Metric
from analyses.question import Examples, Question, Sites, Target, as_tokens, ask
from hooks import Site, host_of
from hooks.replay import Recording, Rows, has_hooks, is_position_wise_after, recorded, replayed, unembedding_only
from surgery import Decompositions

Replacement = Literal["zero", "mean", "resample"]


def by_ablation(
    model: nn.Module,
    tokens: Int[Tensor, "example pos"] | str,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    replacement: Replacement = "zero",
    seed: int = 0,
    corrupted: Int[Tensor, "example pos"] | str | None = None,
    svds: Decompositions | None = None,
    attention_mask: Int[Tensor, "example pos"] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """The exact effect of removing each component by itself (of each unit of a selection together).

    `replacement` says what stands for the component's coordinate `x·u` when it is out: nothing (``"zero"``), its mean over all
    examples and real positions (``"mean"``), or the coordinate of another example at the same position (``"resample"``: of its
    `corrupted` counterpart where given, else of one drawn with `seed`, never itself).

    `batch_size` is the number of sequences that run at a time, an example once for each component. Where hooks of your own
    are active, components run one at a time on the whole batch, so that the hooks see what they were written for.

    Raises:
        ValueError: if there is only one example to resample from, the metric gives the wrong shape or NaN, or as `ask`.
        SiteError: if a pattern names no editable matrix.
    """
    question = ask(model, tokens, metric, sites, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress)
    substitute = _substitute(question, replacement, seed, None if corrupted is None else as_tokens(model, corrupted))
    layers = range(host_of(model).n_layers)
    baselines: list[Tensor] = []
    rows: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    total = question.n_examples * sum(len(target.units) for target in question.targets.values())
    with tqdm(total=total, desc="ablation", unit="run", delay=1, disable=not progress) as bar:
        for chosen in question.batches():
            part = question.take(chosen)
            with recorded(model, layers) as recording, inputs_kept(question) as kept:
                baseline = metric_of(question, part)
            inputs = kept()
            baselines.append(baseline)
            for site, target in question.targets.items():
                run = _Suffix(question, part, target, recording, substitute(target, inputs[site], chosen))
                rows[site].append(run.all_units(bar.update).sub_(baseline.unsqueeze(1)).cpu())
    return Effects(
        f"ablation ({replacement})",
        question.measure(torch.cat(baselines)),
        {target.address: target.units for target in question.targets.values()},
        {str(site): torch.cat(parts) for site, parts in rows.items()},
        {target.address: target.components.S.cpu() for target in question.targets.values()},
        question.weight_state,
        passes=1.0 + sum(len(t.units) * (len(layers) - s.layer) / len(layers) for s, t in question.targets.items()),
    )


@dataclass(slots=True)
class _Suffix:
    """The part of the model after one matrix, for one batch of examples; `moves` is the change of every coordinate."""

    question: Question
    part: Examples
    target: Target
    recording: Recording
    moves: Float[Tensor, "example pos component"]

    def all_units(self, done: Callable[[int], object]) -> Float[Tensor, "example unit"]:
        """The metric with each unit out, in chunks of units that share a pass."""
        n_pos = self.part.tokens.shape[1]
        needed = self.part.metric.needed_positions(n_pos)
        hooked = has_hooks(self.question.model)
        short = None if hooked or len(needed) == n_pos else needed
        columns = short if is_position_wise_after(self.question.model, self.target.place.site) else None
        kept_positions = n_pos if columns is None else len(columns)
        n_examples = len(self.part.tokens)
        size = 1 if hooked else max(1, self.question.rows_per_pass(kept_positions, len(needed)) // n_examples)
        found = []
        for start in range(0, len(self.target.units), size):
            units = self.target.units[start : start + size]
            found.append(self._run(units, columns, short).view(len(units), n_examples))
            done(len(units) * n_examples)
        return torch.cat(found).mT.float()

    def _run(
        self, units: tuple[Unit, ...], columns: tuple[int, ...] | None, short: tuple[int, ...] | None
    ) -> Float[Tensor, " row"]:
        """The metric of every unit on every example, units outermost."""
        part, target, model = self.part, self.target, self.question.model
        examples = torch.arange(len(part.tokens)).repeat(len(units))
        rows = Rows(examples, columns)
        change = self._change(units, columns)
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
        ):
            if ends_half:
                return metric(logits_of(model, tokens, mask))
            handle = target.place.output.attach(add)
            try:
                return metric(logits_of(model, tokens, mask))
            finally:
                handle.remove()

    def _change(self, units: tuple[Unit, ...], columns: tuple[int, ...] | None) -> Float[Tensor, "row pos d_out"]:
        """What taking each unit out adds to the matrix's output."""
        moves = self.moves if columns is None else self.moves[:, list(columns)]
        members = [i for unit in units for i in unit]
        writes = self.target.components.S[members].unsqueeze(1) * self.target.components.Vh[members]
        taken = moves[..., members].permute(2, 0, 1).unsqueeze(-1)  # [member example pos 1]
        if len(members) == len(units):
            return (taken * writes[:, None, None]).flatten(0, 1)
        owner = torch.tensor([n for n, unit in enumerate(units) for _ in unit], device=writes.device)
        summed = writes.new_zeros(len(units), *taken.shape[1:3], writes.shape[1])
        return summed.index_add_(0, owner, taken * writes[:, None, None]).flatten(0, 1)


Substitute = Callable[[Target, Tensor, Tensor], Tensor]


def _substitute(
    question: Question, replacement: Replacement, seed: int, corrupted: Int[Tensor, "example pos"] | None
) -> Substitute:
    """How far every coordinate moves when its component goes out: a function of target, input and example indices."""
    match replacement:
        case "zero":
            if corrupted is not None:
                raise ValueError('corrupted examples go with replacement="resample"; zero ablation uses none.')
            return lambda target, x, chosen: -_coordinates(target, x)
        case "mean":
            means = _mean_coordinates(question)
            return lambda target, x, chosen: means[target.place.site] - _coordinates(target, x)
        case "resample":
            if corrupted is None and question.n_examples < 2:
                raise ValueError("one example cannot be resampled from another: give two or more, or corrupted=.")
            other = question.examples.tokens[_derangement(question.n_examples, seed)] if corrupted is None else alike(question, corrupted)
            return _Resample(question, other)
        case _:
            raise ValueError(f"replacement={replacement!r}: it is 'zero', 'mean' or 'resample'.")


class _Resample:
    """Coordinates of other examples, computed once for each batch."""

    def __init__(self, question: Question, other: Int[Tensor, "example pos"]) -> None:
        self.question, self.other = question, other
        self.batch: Tensor | None = None
        self.inputs: dict[Site, Tensor] = {}

    def __call__(self, target: Target, x: Tensor, chosen: Tensor) -> Tensor:
        if self.batch is None or not torch.equal(self.batch, chosen):
            self.batch = chosen
            part = self.question.take(chosen)
            with inputs_kept(self.question) as kept, arithmetic(False):
                logits_of(self.question.model, self.other[chosen.to(self.other.device)], part.attention_mask)
            self.inputs = kept()
        return _coordinates(target, self.inputs[target.place.site]) - _coordinates(target, x)


def _coordinates(target: Target, x: Float[Tensor, "example pos d_in"]) -> Float[Tensor, "example pos component"]:
    return x.to(target.components.U.dtype) @ target.components.U


def _mean_coordinates(question: Question) -> dict[Site, Float[Tensor, " component"]]:
    """The mean of `x·u` over all examples and all positions that are not padding."""
    sums: dict[Site, Tensor] = {}
    count = 0.0
    for chosen in question.batches():
        part = question.take(chosen)
        with inputs_kept(question) as kept, arithmetic(False):
            logits_of(question.model, part.tokens, part.attention_mask)
        weights = torch.ones_like(part.tokens) if part.attention_mask is None else part.attention_mask
        count += float(weights.sum())
        for site, x in kept().items():
            real = (x * weights.unsqueeze(-1).to(x)).sum((0, 1))
            sums[site] = sums.get(site, torch.zeros_like(real)) + real
    return {site: _coordinates(question.targets[site], total / count) for site, total in sums.items()}


def _derangement(n: int, seed: int) -> Int[Tensor, " example"]:
    """Another example for each: a random cycle through all of them."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
