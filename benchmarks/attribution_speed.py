"""How fast attribution is, as ratios in one run, on a model shaped like GPT-2 small with random weights.

python benchmarks/attribution_speed.py [--quick] [--device cuda] [sizes, see --help]

A gradient of every component is set against one forward and one backward pass with frozen parameters, and against loops
over components; exact ablation against a loop that overwrites the weight and runs the whole model. Loops are timed on a
sample of components and extrapolated.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from statistics import median

import table
import timing
import torch
from random_model import gpt2_shaped, shape_flags, shape_of
from table import Against, Aim, Ratio
from torch import Tensor, nn

import surgery
from analyses import attribution, metrics
from analyses.attribution.question import LOGITS_PER_PASS, TOKENS_PER_PASS
from analyses.metrics import Metric
from surgery import Decomposition, Decompositions

PASS = "forward + backward, frozen parameters"
OVERWRITING = "overwriting the weight"
MATRICES = ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out")


def gradient(
    model: nn.Module, tokens: Tensor, svds: Decompositions, scored: dict[str, Metric], *, rounds: int, device: str
) -> None:
    """`by_gradient` of everything against a plain forward and backward pass, and against loops over components."""
    n = sum(parts.n_components for parts in svds.values())
    calls: dict[str, timing.Call] = {}
    for name, metric in scored.items():
        calls[f"{name}: {PASS}"] = partial(forward_and_backward, model, tokens, metric)
        calls[f"{name}: ours"] = partial(_by_gradient, model, tokens, metric, svds)
    took = timing.in_turns(calls, rounds=rounds, device=device)
    table.section("by_gradient", f"{n} components of {len(svds)} matrices, {tokens.numel()} tokens, SVDs ready; "
                  f"medians of {rounds} rounds")  # fmt: skip
    for name, metric in scored.items():
        plain, ours = f"{name}: {PASS}", f"{name}: ours"
        aim = Aim(1.4, at_most=True)
        table.compared(name, took, ours, plain, words="x as long", named=PASS, aim=aim)
        table.memory(f"{name}, peak memory", calls[ours], calls[plain], name=PASS, device=device)
        if metric is next(iter(scored.values())):
            _loops(model, tokens, metric, svds, ours=took.median(ours), passed=took.median(plain), device=device)


def _loops(
    model: nn.Module, tokens: Tensor, metric: Metric, svds: Decompositions, *, ours: float, passed: float, device: str
) -> None:
    """Two loops over components: one differentiates each gain by itself, one scores from activations that are kept."""
    n = sum(parts.n_components for parts in svds.values())
    scoring = passed + sum(
        _seconds_to_score(parts, tokens.numel(), device) * parts.n_components for parts in svds.values()
    )
    one = svds["blocks.0.attn.W_Q"]
    found = [timing.timed(partial(_one_gain, model, tokens, metric, one, i), device=device) for i in range(3)]
    alone = n * min(took for took, _ in found)
    effects = _by_gradient(model, tokens, metric, svds)[one.site]
    apart = max(float((slope.cpu() + effects[i]).abs() / effects[i].abs()) for i, (_, slope) in enumerate(found))
    scores_alone = (scoring - passed) / max(ours - passed, 1e-3)
    table.figure(
        "all components, loss", ours, "s", against=Against("each gain's own pass, extrapolated", alone),
        ratio=Ratio(alone / ours, "x as fast"), aim=Aim(50), remark=f"agrees to {apart:.0e}",
    )  # fmt: skip
    table.figure(
        "all components, loss, from one pass", ours, "s", against=Against("a loop of products, extrapolated", scoring),
        ratio=Ratio(scoring / ours, "x as fast"), remark=f"the scores alone {scores_alone:.1f} x as fast",
    )  # fmt: skip


def forward_and_backward(model: nn.Module, tokens: Tensor, metric: Metric) -> Tensor:
    """A backward pass to the embeddings, through parameters that need no gradient."""
    embedded: list[Tensor] = []

    def start(activation: Tensor, hook: object) -> Tensor:
        embedded.append(activation.detach().requires_grad_())
        return embedded[0]

    with model.hooks(fwd_hooks=[("hook_embed", start)]):  # type: ignore[operator]
        value = metric(model(tokens)).sum()
    return torch.autograd.grad(value, embedded)[0]


def _by_gradient(model: nn.Module, tokens: Tensor, metric: Metric, svds: Decompositions) -> attribution.Effects:
    return attribution.by_gradient(model, tokens, metric, list(svds), svds=svds, progress=False)


def _one_gain(model: nn.Module, tokens: Tensor, metric: Metric, parts: Decomposition, i: int) -> Tensor:
    """The slope in one gain, by autograd through a correction of the matrix's output."""
    gain = torch.ones((), device=tokens.device, requires_grad=True)
    place = parts.site.removesuffix("W_Q") + "hook_q"

    def correct(q: Tensor, hook: object) -> Tensor:
        x = held[0]
        return q + (((x @ parts.U[:, i]) * (gain - 1) * parts.S[i]).unsqueeze(-1) * parts.Vh[i]).view(q.shape)

    held: list[Tensor] = []
    read = f"blocks.{parts.site.split('.')[1]}.ln1.hook_normalized"
    with model.hooks(fwd_hooks=[(read, lambda x, hook: held.append(x)), (place, correct)]):  # type: ignore[operator, func-returns-value]
        return torch.autograd.grad(metric(model(tokens)).sum(), gain)[0]


def _seconds_to_score(parts: Decomposition, n_tokens: int, device: str) -> float:
    """Of one component, from the activations at both ends of its matrix: the median of 20."""
    x, g = (torch.randn(n_tokens, width, device=parts.S.device) for width in parts.shape)

    def score(i: int) -> Tensor:
        return parts.S[i] * ((x @ parts.U[:, i]) * (g @ parts.Vh[i])).sum()

    return median(timing.seconds_of(partial(score, i % parts.n_components), device=device) for i in range(20))


def ablation(
    model: nn.Module,
    tokens: Tensor,
    svds: Decompositions,
    scored: dict[str, Metric],
    *,
    sampled: int,
    layers: Sequence[int],
    device: str,
) -> None:
    """`by_ablation` against overwriting the weight and running the whole model, layer by layer."""
    table.section("by_ablation", f"one of {sampled} components of each of {len(MATRICES)} matrices of layers "
                  f"{', '.join(map(str, layers))}; ratios range over layers; at most {TOKENS_PER_PASS} tokens and "
                  f"{LOGITS_PER_PASS:,} logits at a time; the one recording pass is counted in")  # fmt: skip
    for name, metric in scored.items():
        plain, ours, apart = [], [], 0.0
        for layer in layers:
            units = {f"blocks.{layer}.{matrix}": list(range(sampled)) for matrix in MATRICES}
            looped = partial(overwriting, model, tokens, metric, svds)
            first, values = timing.timed(partial(looped, {f"blocks.{layer}.attn.W_Q": [0]}), device=device)
            call = partial(_by_ablation, model, tokens, metric, svds, units)
            took, effects = timing.timed(call, device=device)
            second, more = timing.timed(partial(looped, {f"blocks.{layer}.mlp.W_out": [0]}), device=device)
            apart = max(apart, *(_apart(effects, site, some) for site, some in {**values, **more}.items()))
            ours.append(1000 * took / (sampled * len(units)))
            plain.append(1000 * (first + second) / 2)
        by_layer = [there / here for there, here in zip(plain, ours, strict=True)]
        table.figure(
            name, sum(ours) / len(ours), "ms", against=Against(OVERWRITING, sum(plain) / len(plain)),
            ratio=Ratio(sum(plain) / sum(ours), "x as fast", min(by_layer), max(by_layer)), aim=Aim(2),
            remark=f"the two agree to {apart:.0e}",
        )  # fmt: skip


def last_matrix(
    model: nn.Module, tokens: Tensor, svds: Decompositions, metric: Metric, site: str, *, sampled: int, device: str
) -> None:
    """Every component of the last W_out, where only one position and the unembedding are left to compute."""
    units = {site: list(range(svds[site].n_components))}
    call = partial(_by_ablation, model, tokens, metric, svds, units)
    ours = median(timing.seconds_of(call, device=device) for _ in range(3)) / len(units[site])
    plain = (
        timing.seconds_of(
            partial(overwriting, model, tokens, metric, svds, {site: list(range(sampled))}), device=device
        )
        / sampled
    )
    table.section(
        "by_ablation of the last matrix", f"all {len(units[site])} components of {site}, metric at the last position"
    )
    table.figure(
        "logit difference at the last", 1000 * ours, "ms",
        against=Against(f"{OVERWRITING}, {sampled} timed", 1000 * plain),
        ratio=Ratio(plain / ours, "x as fast"), aim=Aim(100),
    )  # fmt: skip
    table.memory("peak memory", call, device=device)


def _by_ablation(
    model: nn.Module, tokens: Tensor, metric: Metric, svds: Decompositions, units: dict[str, list[int]]
) -> attribution.Effects:
    return attribution.by_ablation(model, tokens, metric, attribution.Selection(units), svds=svds, progress=False)


def _apart(effects: attribution.Effects, site: str, values: list[Tensor]) -> float:
    """How far the metric with the first component out is from what the loop measured."""
    ours = effects.measure.baseline + effects.examples[site][:, 0]
    return float((ours - values[0].cpu()).abs().max())


@torch.no_grad()
def overwriting(
    model: nn.Module, tokens: Tensor, metric: Metric, svds: Decompositions, units: dict[str, list[int]]
) -> dict[str, list[Tensor]]:
    """What one would write without the library: subtract the component, run the model, put the weight back."""
    values: dict[str, list[Tensor]] = {}
    for site, components in units.items():
        weight, parts = model.get_parameter(site), svds[site]
        before = weight.clone()
        for i in components:
            term = parts.S[i] * torch.outer(parts.U[:, i], parts.Vh[i])
            weight.sub_(_like_stored(term, weight))
            values.setdefault(site, []).append(metric(model(tokens)))
            weight.copy_(before)
    return values


def _like_stored(term: Tensor, weight: Tensor) -> Tensor:
    """A matrix in the layout of HookedTransformer: W_Q `[head, d_model, d_head]`, W_O `[head, d_head, d_model]`."""
    if weight.ndim == 2:
        return term
    heads, rows, _ = weight.shape
    return term.view(rows, heads, -1).transpose(0, 1) if rows == term.shape[0] else term.view(weight.shape)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    shape_flags(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sampled", type=int, default=2, help="components of each matrix to take out in every layer")
    parser.add_argument("--every", type=int, default=3, help="take components out in every so many layers")
    args = parser.parse_args(argv)
    shape, device = shape_of(args), args.device
    rounds, every = (1, max(shape.layers // 2, 1)) if args.quick else (args.rounds, args.every)
    with table.recorded(__file__, args):
        model = gpt2_shaped(shape, device)
        tokens = torch.randint(shape.vocab, (1, shape.positions), generator=torch.Generator().manual_seed(0)).to(device)
        scored = {
            "loss at every position": metrics.loss(metrics.next_token_labels(tokens)),
            "logit difference at the last": metrics.logit_difference(3, 5),
        }
        print(f"Attribution in a model of {shape}")
        svds = surgery.decompose(model, progress=False)
        gradient(model, tokens, svds, scored, rounds=rounds, device=device)
        layers = range((every - 1) // 2, shape.layers, every)  # their mean is that of all layers, or just below
        ablation(model, tokens, svds, scored, sampled=args.sampled, layers=layers, device=device)
        last = f"blocks.{shape.layers - 1}.mlp.W_out"
        last_matrix(model, tokens, svds, scored["logit difference at the last"], last, sampled=5, device=device)


if __name__ == "__main__":
    main()
