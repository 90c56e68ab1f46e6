"""Attribution by the readout: the body of the model to first order, what comes after it exactly or to second order.

Removing one component hardly bends what the blocks compute. What bends is the end: the final normalisation divides by
a length that the removal changes, and the softmax by a sum. Both are functions of the final residual x, and of the
change δ of x they need few numbers, each of which one backward pass gives for all components of all matrices: started
from a vector c in the place of x, it ends in `c·δ = −Σ_t s_i (x_t·u_i)(g_t·v_i)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses.attribution._readout_curvature import LogitCurvature, Pair, norm_pair
from analyses.attribution._readout_position import Known, Link, Numbers, Ray
from analyses.attribution.effects import Effects
from analyses.attribution.passes import Trace, check_connected, check_differentiable, traced, units_of
from analyses.attribution.question import Examples, Question, ask
from analyses.attribution.selections import Sites
from analyses.metrics import Metric
from analyses.metrics.positions import Mask
from analyses.prompts import Tokens
from analyses.statistics import mean_and_stderr
from hooks import Site
from hooks.readout import Norm, Readout, Stages, read_out
from hooks.running import arithmetic
from surgery import Basis, Decompositions
from surgery.arguments import seed as whole_seed
from surgery.arguments import whole
from surgery.progress import progress_bar

AT_ONE, AT_SEVERAL = 4, 8
"""Draws, unless `draws` says otherwise, where an example is read at one position, and at several."""
_NOTHING = 1e-2
"""The smaller vector of a pair is left out where its largest entry is at most this fraction of the other's: its square
is then about a ten-thousandth of the other's, or less."""
Moves = dict[Site, Tensor]
"""Numbers of every matrix, `[example unit]`."""


def by_readout(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    draws: int | None = None,
    seed: int = 0,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """The effect of removing each component where the blocks are linear and the readout is what it is.

    Read at one position, a metric of the logits is taken exactly in the length of the residual, and to second order in
    its direction (logits are linear in it; what is made of one probability goes by way of its log-odds). That takes
    `draws + 3` passes for a logit (`draws` random vectors for `|δ|²`; None: 4), and `draws + 4` for a probability,
    half of the draws for its curvature. Read at several positions, it is taken to second order in the residuals, with
    `2 + 2 draws` passes (None: 8). `noise` of the result is the standard error over draws.

    Raises:
        ValueError: if the metric is not differentiable, or a plain function of all examples together; if the final
            normalisation is of no known kind; or as `ask`.
        SiteError: if a pattern names no editable matrix.

    >>> effects = attribution.by_readout(model, tokens, metrics.logit(3), progress=False)
    >>> effects.method, effects.passes
    ('readout (4 draws)', 7.0)
    """
    question = ask(
        model, tokens, metric, sites,
        basis=basis, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    check_differentiable(question)
    _check_separate(question.examples.metric)
    one = _reads_once(question.examples)
    draws = draws_of(question.examples) if draws is None else whole(draws, "draws", least=1)
    seed, results = whole_seed(seed), []
    for chosen in progress_bar("readout", list(question.batches()), progress=progress, unit="batch"):
        with arithmetic(True):
            end = _End.of(question, question.examples.take(chosen), [(seed, int(i)) for i in chosen], one=one)
            results.append((_at_one if one else _at_several)(end, draws))
    return question.effects(
        f"readout ({draws} draws)",
        [result.values for result in results],
        {site: [result.rows[site] for result in results] for site in question.targets},
        passes=float(max(result.passes for result in results)),
        noise=_noise(question, results, jackknife=one),
    )


def draws_of(examples: Examples) -> int:
    """The usual number of draws."""
    return AT_ONE if _reads_once(examples) else AT_SEVERAL


def passes_of(examples: Examples, draws: int) -> int:
    """How many passes so many draws take at most."""
    return draws + 4 if _reads_once(examples) else 2 + 2 * draws


@final
@dataclass(frozen=True, slots=True)
class _Result:
    """What a batch gives: the metric, the effects, and for each draw their sums over examples, `[draw unit]`."""

    values: Float[Tensor, " example"]
    rows: Moves
    by_draw: Moves
    passes: int


def _noise(question: Question, results: list[_Result], *, jackknife: bool) -> Moves:
    """The standard error of the mean effects over draws; from estimates that each lack a draw, by the jackknife."""
    noise: Moves = {}
    for site in question.targets:
        estimates = torch.stack([result.by_draw[site] for result in results]).sum(0) / question.n_examples
        if len(estimates) > 1:
            noise[site] = mean_and_stderr(estimates)[1] * (len(estimates) - 1 if jackknife else 1)
    return noise


def _check_separate(metric: Metric) -> None:
    if metric.whole_batch:
        raise ValueError(
            f"{metric.name} is a plain function, which may mix examples, and the readout is followed for each by "
            "itself. Make it metrics.custom(function, *per_example, ...), or use by_gradient or by_ablation."
        )


def _reads_once(examples: Examples) -> bool:
    """Whether every example is read at one position only."""
    reads, inputs = examples.read.reads, examples.inputs
    if reads is None:
        return inputs.n_pos == 1 and examples.owner is None
    pairs = (reads.row * inputs.n_pos + reads.pos).unique()
    owner = examples.owner
    rows = pairs // inputs.n_pos
    return len(pairs) == examples.n_examples and len((rows if owner is None else owner[rows]).unique()) == len(pairs)


@final
@dataclass(slots=True)
class _End:
    """The end of a model on some examples: the readout at their reads, and the way back from there to the matrices."""

    question: Question
    part: Examples
    trace: Trace
    readout: Readout
    norm: Norm | None
    x: Float[Tensor, "read d_model"]
    stages: Stages
    link: Link
    generators: list[tuple[torch.Generator, int]]
    v: Float[Tensor, "read d_model"]
    bias: Float[Tensor, "read d_model"]
    passes: int = 1

    @staticmethod
    def of(question: Question, part: Examples, seeds: list[tuple[int, int]], *, one: bool) -> "_End":
        """After one forward pass."""
        found: list[Readout] = []

        def output() -> Tensor:
            found.append(read_out(question.model, part.read))
            return found[0].residual

        trace, readout = traced(question, output), found[0]
        x = readout.at_reads.requires_grad_()
        rows = readout.reads.row
        example = rows if part.owner is None else part.owner[rows]
        counts = torch.bincount(example, minlength=part.n_examples).tolist()
        # Each example has its own, so that what is drawn for it does not depend on its batch.
        states = [int(np.random.SeedSequence(one).generate_state(1)[0]) for one in seeds]
        generators = [
            (torch.Generator().manual_seed(state), count) for state, count in zip(states, counts, strict=True)
        ]
        link = Link(part.metric.of_probability if one else None)
        norm, stages = readout.norm(), readout.stages(x)
        bias = torch.zeros_like(x) if norm is None else readout.stages(torch.zeros_like(x)).normalised
        v = (stages.normalised - bias).detach()
        return _End(question, part, trace, readout, norm, x, stages, link, generators, v, bias.detach())

    def metric(self, logits: Float[Tensor, "read d_vocab"]) -> Float[Tensor, " example"]:
        """What is followed: the metric, or the log-odds of the probability it is made of."""
        return self.link.inner(self.measured(logits.double()))

    def measured(self, logits: Float[Tensor, "read d_vocab"]) -> Float[Tensor, " example"]:
        """The metric of each example."""
        everywhere = self.part.read.reads is None
        return self.part.measured(logits.unflatten(0, self.part.inputs.tokens.shape) if everywhere else logits)

    def signs(self, width: int) -> Float[Tensor, "read width"]:
        """Random signs, drawn on the CPU, so that a seed means the same on every device."""
        drawn = [torch.randint(2, (count, width), generator=generator) for generator, count in self.generators]
        return (2 * torch.cat(drawn) - 1).to(self.x)

    def moves(self, vectors: Float[Tensor, "read d_model"]) -> Moves:
        """The products of these vectors with what every component's removal does to x, by one backward pass."""
        self.passes += 1
        found = self.trace.pulled(self.readout.spread(vectors), keep=True)
        return {
            site: self.part.summed(units_of(target, found.score(target).sum(1))).double()
            for site, target in self.question.targets.items()
        }

    def squares(self, pair: Pair) -> Moves:
        """The square of the one minus the square of the other, leaving out what is next to nothing."""
        sizes = [float(vectors.abs().amax()) for vectors in pair]
        total = {site: torch.zeros((), dtype=torch.float64) for site in self.question.targets}
        for vectors, size, sign in zip(pair, sizes, (1, -1), strict=True):
            if size > _NOTHING * max(sizes):
                total = {site: total[site] + sign * moved.square() for site, moved in self.moves(vectors).items()}
        return total

    def straight(self, vectors: Float[Tensor, "read d_model"]) -> Float[Tensor, "read d_model"]:
        """Vectors at the output of the normalisation brought back to its input, as if it divided by a constant."""
        (back,) = torch.autograd.grad(self.stages.normalised, self.x, vectors, retain_graph=True)
        if self.norm is None:
            return back
        x = self.x.detach()
        bent = (vectors * self.v).sum(-1, keepdim=True) / (self.norm.scale(x).square() * x.shape[-1])
        return back + bent * self.norm.centre(x)

    def curvature(self, slope: Tensor) -> LogitCurvature | None:
        """The second derivative in the logits of what has this slope there."""
        unembedded = self.stages.unembedded
        p = self.stages.logits.softmax(-1)
        if self.link.of is not None:  # the log-odds of an answer fall with all other tokens, as far as these are likely
            others = (-slope.detach()).clamp_min(0)
            p = others / others.sum(-1, keepdim=True).clamp_min(torch.finfo(others.dtype).tiny)
        return LogitCurvature.of(slope, unembedded, p, self.signs(unembedded.shape[-1]))

    def logit_pair(self, curvature: LogitCurvature, to: Tensor) -> Pair:
        """A random pair for that, brought back to an earlier stage."""
        pair = curvature.draw(self.signs(self.stages.unembedded.shape[-1] + 1))
        return Pair(*(torch.autograd.grad(self.stages.unembedded, to, one, retain_graph=True)[0] for one in pair))


def _at_one(end: _End, draws: int) -> _Result:
    """Where each example is read at one position: exact in the length of the residual."""
    values, v = end.metric(end.stages.logits), end.stages.normalised
    check_connected(end.question, values)
    slope_u, slope_v = torch.autograd.grad(values.sum(), [end.stages.unembedded, v], create_graph=True)
    curvature, norm, x = end.curvature(slope_u), end.norm, end.x.detach()
    draws = draws if norm is None or curvature is None else max(1, draws // 2)
    vectors = [end.straight(slope_v.detach())]
    if curvature is not None:
        vectors.append(end.straight(torch.autograd.grad(slope_v, v, end.v, retain_graph=True)[0]))
    if norm is not None:
        vectors = [norm.centre(x), *map(norm.centre, vectors)]
    moves = [end.moves(one) for one in vectors]
    rest, bend, known = [], [], Known.of(vectors)
    for _ in range(draws):
        if norm is not None:
            rest.append(end.moves(known.without(norm.centre(end.signs(x.shape[-1])))))
        if curvature is not None:
            pair = end.logit_pair(curvature, v)
            bend.append(end.squares(Pair(*map(end.straight, pair))))
    numbers = {
        site: _numbers(
            [one[site] for one in moves], [one[site] for one in rest], [one[site] for one in bend], known, norm
        )
        for site in end.question.targets
    }
    return _result(end, numbers, values.detach(), (slope_v * end.v).sum(-1).detach() if curvature is None else None)


def _numbers(moves: list[Tensor], rest: list[Tensor], bend: list[Tensor], known: Known, norm: Norm | None) -> Numbers:
    """The numbers of one matrix, from products with known vectors (first x, if it is normalised) and random ones."""
    zero, empty = torch.zeros_like(moves[0]), moves[0].new_empty(0, *moves[0].shape)
    along, *others = moves if norm is not None else [zero, *moves]
    return Numbers(
        slope=others[0],
        turn=others[1] if len(others) > 1 else zero,
        along=along,
        square=zero if norm is None else known.square(moves),
        rest=torch.stack([one.square() for one in rest]) if rest else empty,
        bend=torch.stack(bend) if bend else empty,
    )


def _result(end: _End, numbers: dict[Site, Numbers], inner: Tensor, linear: Tensor | None) -> _Result:
    """The effects, and those without each draw; `linear` is the slope along v where the metric is linear."""
    x = end.x.detach()
    n = torch.ones_like(x[:, :1]) if end.norm is None else end.norm.scale(x)
    all_of = {site: [own, *own.left_out()] for site, own in numbers.items()}
    lengths = {site: [one.log_length(end.norm, n, x.shape[-1]) for one in several] for site, several in all_of.items()}
    if linear is not None or end.norm is None:
        ray = Ray.flat(torch.zeros_like(inner) if linear is None else linear)
    else:
        low = min(float(one.amin()) for several in lengths.values() for one in several)
        high = max(float(one.amax()) for several in lengths.values() for one in several)
        ray = Ray.run(end.readout, end.bias, end.v, end.metric, low, high)
    rows, by_draw = {}, {}
    for site, several in all_of.items():
        changes = [one.change(ray, length) for one, length in zip(several, lengths[site], strict=True)]
        effect, *without = (end.link.change(inner.unsqueeze(1), change) for change in changes)
        rows[site] = effect.float().cpu()
        by_draw[site] = torch.stack([one.sum(0) for one in without]).float().cpu()
    return _Result(end.measured(end.stages.logits).detach(), rows, by_draw, end.passes)


def _at_several(end: _End, draws: int) -> _Result:
    """Where examples are read at several positions: to second order in the residuals there."""
    values, x = end.metric(end.stages.logits), end.x
    check_connected(end.question, values)
    stages = [end.stages.unembedded, end.stages.normalised, x]
    slope_u, slope_v, slope_x = torch.autograd.grad(values.sum(), stages, create_graph=True)
    curvature, at = end.curvature(slope_u), x.detach()
    first = end.moves(slope_x.detach())
    G = None if end.norm is None else end.straight(slope_v.detach()) * end.norm.scale(at)
    seconds: list[Moves] = []
    for _ in range(draws if curvature is not None or end.norm is not None else 0):
        pair = Pair(torch.zeros_like(at), torch.zeros_like(at))
        if curvature is not None:
            pair = end.logit_pair(curvature, x)
        if end.norm is not None and G is not None:
            of_norm = norm_pair(end.norm, at, G, end.signs(at.shape[-1] + 2))
            # Drawn apart, the two do not correlate, and the squares of their sums are on average sums of squares.
            pair = Pair(pair.plus + of_norm.plus, pair.minus + of_norm.minus)
        seconds.append(end.squares(pair))
    rows, by_draw = {}, {}
    for site in end.question.targets:
        drawn = [0.5 * one[site] for one in seconds] or [torch.zeros_like(first[site])]
        rows[site] = (first[site] + torch.stack(drawn).mean(0)).float().cpu()
        by_draw[site] = torch.stack([one.sum(0) for one in drawn]).float().cpu()
    return _Result(values.detach().float(), rows, by_draw, end.passes)
