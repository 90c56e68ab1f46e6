"""Attribution to second order in the gains: `effect_i ≈ −∂m/∂γ_i + ½ ∂²m/∂γ_i²`.

First order alone misjudges a loss, which curves as soon as a component is gone. The diagonal of the Hessian in the gains is
estimated by Hutchinson's probes, `E[z ⊙ H z]` with z = ±1 (arXiv:1706.03662; Bekas, Kokiopoulou and Saad 2007), one product of
the Hessian with a vector for each. Every example has gains, and so probes, of its own: it costs nothing, and the noise of the
off-diagonal terms averages out over examples instead of adding up.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from analyses import metrics
from analyses.effects import Effects
from analyses.gradients import backward, check_differentiable, metric_of, units_of
from analyses.metrics import Metric
from analyses.question import Examples, Question, Sites, Target, ask
from hooks import Site
from surgery import Decompositions

Share = Literal["matrix", "type", "all"]


def by_curvature(
    model: nn.Module,
    tokens: Int[Tensor, "example pos"] | str,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    probes: int = 16,
    seed: int = 0,
    share: Share = "type",
    svds: Decompositions | None = None,
    attention_mask: Int[Tensor, "example pos"] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """The effect of removing each component to second order, with the Hessian's diagonal from `probes` random probes.

    `share` says which matrices a probe covers at once: one, all of one type (W_Q of every layer, ...), or all. Fewer share
    less noise; more cost fewer passes. `noise` of the result is the standard error over probes.

    Raises:
        ValueError: if the metric is not differentiable, `probes` is not positive, or as `ask`.
        SiteError: if a pattern names no editable matrix.
    """
    if probes < 1:
        raise ValueError(f"probes={probes!r}: at least one probe is needed (16 is the default; by_gradient uses none).")
    question = ask(model, tokens, metric, sites, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress)
    groups = _groups(question, share)
    generator = torch.Generator().manual_seed(seed)

    def diagonal(slopes: dict[Site, Tensor], gains: dict[Site, Tensor]) -> Iterator[tuple[Site, list[Tensor]]]:
        draws: dict[Site, list[Tensor]] = {site: [] for site in gains}
        for group in groups:
            for _ in range(probes):
                z = [_signs(gains[site], generator) for site in group]
                for site, probe, product in zip(group, z, _hessian_product(slopes, gains, group, z), strict=True):
                    draws[site].append(probe * product)
        yield from draws.items()

    return _second_order(question, f"curvature ({probes} probes)", diagonal, passes=4 + 2 * probes * len(groups), progress=progress)


def by_exact_curvature(
    model: nn.Module,
    tokens: Int[Tensor, "example pos"] | str,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    svds: Decompositions | None = None,
    attention_mask: Int[Tensor, "example pos"] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """As `by_curvature`, with the exact diagonal: a Hessian-vector product for each component asked about.

    Raises:
        as `by_curvature`.
    """
    question = ask(model, tokens, metric, sites, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress)

    def diagonal(slopes: dict[Site, Tensor], gains: dict[Site, Tensor]) -> Iterator[tuple[Site, list[Tensor]]]:
        for site, target in question.targets.items():
            exact = torch.zeros_like(gains[site])
            for unit in target.units:
                z = torch.zeros_like(gains[site])
                z[:, list(unit)] = 1
                (product,) = _hessian_product(slopes, gains, [site], [z])
                exact[:, list(unit)] = product[:, list(unit)]
            yield site, [exact]

    n = sum(len(target.units) for target in question.targets.values())
    return _second_order(question, "curvature (exact)", diagonal, passes=4 + 2 * n, progress=progress)


def by_fisher(
    model: nn.Module,
    tokens: Int[Tensor, "example pos"] | str,
    labels: Int[Tensor, "example pos"],
    sites: Sites = "*",
    *,
    draws: int = 4,
    seed: int = 0,
    svds: Decompositions | None = None,
    attention_mask: Int[Tensor, "example pos"] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """The effect on the loss, with the Fisher diagonal for the Hessian: `draws + 1` forward and backward passes for everything.

    Labels are drawn from the model's own prediction, and the squares taken position by position:
    `½ n Σ_t s_i² (x_t·u_i)² (v_i·g_t)²`, n the number of labels of the example. Cheaper and rougher than `by_curvature`.

    Raises:
        ValueError: if `draws` is not positive, or as `ask`.
        SiteError: if a pattern names no editable matrix.
    """
    if draws < 1:
        raise ValueError(f"draws={draws!r}: at least one draw of labels is needed.")
    question = ask(
        model, tokens, metrics.loss(labels), sites,
        svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    generator = torch.Generator(device=question.examples.tokens.device).manual_seed(seed)
    rows: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    baselines = []
    for chosen in tqdm(list(question.batches()), desc="Fisher", unit="batch", delay=1, disable=not progress):
        part = question.take(chosen)
        first = backward(question, part)
        baselines.append(first.values)
        here = labels.to(part.tokens.device)[chosen.to(part.tokens.device)]
        second = {site: torch.zeros(()) for site in question.targets}
        for _ in range(draws):
            drawn = backward(question, Examples(part.tokens, part.attention_mask, _sampled_loss(here, generator)))
            for site, target in question.targets.items():
                second[site] = second[site] + drawn.score(target).square().sum(1) / draws
        n = (here != metrics.IGNORED).sum(1, keepdim=True)
        for site, target in question.targets.items():
            rows[site].append(units_of(target, first.score(target).sum(1) + 0.5 * n * second[site]).cpu())
    return _effects(question, f"Fisher ({draws} draws)", baselines, rows, {}, passes=2.0 * (draws + 1))


Diagonal = Callable[[dict[Site, Tensor], dict[Site, Tensor]], Iterator[tuple[Site, list[Tensor]]]]


def _second_order(question: Question, method: str, diagonal: Diagonal, *, passes: float, progress: bool) -> Effects:
    """First order plus half the diagonal that `diagonal` draws, one or more times, for every example."""
    check_differentiable(question.examples.metric)
    rows: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    draws: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    baselines = []
    for chosen in tqdm(list(question.batches()), desc="curvature", unit="batch", delay=1, disable=not progress):
        part = question.take(chosen)
        with _with_gains(question, len(chosen)) as gains:
            values = metric_of(question, part, differentiable=True)
        baselines.append(values.detach())
        slopes = dict(zip(gains, torch.autograd.grad(values.sum(), list(gains.values()), create_graph=True), strict=True))
        for site, drawn in diagonal(slopes, gains):
            target, half = question.targets[site], 0.5 * torch.stack(drawn)
            rows[site].append(units_of(target, half.mean(0) - slopes[site].detach()).cpu())
            draws[site].append(torch.stack([units_of(target, one) for one in half]).sum(1).cpu())
    noise = {
        str(site): (sum(parts) / question.n_examples).std(0) / len(parts[0]) ** 0.5  # type: ignore[union-attr]
        for site, parts in draws.items()
        if len(parts[0]) > 1
    }
    return _effects(question, method, baselines, rows, noise, passes=passes)


def _effects(
    question: Question,
    method: str,
    baselines: list[Tensor],
    rows: dict[Site, list[Tensor]],
    noise: dict[str, Tensor],
    *,
    passes: float,
) -> Effects:
    return Effects(
        method,
        question.measure(torch.cat(baselines)),
        {target.address: target.units for target in question.targets.values()},
        {str(site): torch.cat(parts).float() for site, parts in rows.items()},
        {target.address: target.components.S.cpu() for target in question.targets.values()},
        question.weight_state,
        passes,
        noise,
    )


@contextmanager
def _with_gains(question: Question, n_examples: int) -> Iterator[dict[Site, Tensor]]:
    """Gains of 1 on every component of every target, of each example its own, to be differentiated twice."""
    gains: dict[Site, Tensor] = {}
    with ExitStack() as stack:
        for site, target in question.targets.items():
            S = target.components.S
            gains[site] = torch.ones(n_examples, len(S), dtype=S.dtype, device=S.device, requires_grad=True)
            stack.enter_context(_corrected(target, gains[site]))
        yield gains


@contextmanager
def _corrected(target: Target, gains: Float[Tensor, "example component"]) -> Iterator[None]:
    """`y + ((x U) ⊙ (γ − 1) s) Vh`, which is y, but depends on the gains."""
    place, parts = target.place, target.components
    inputs: list[Tensor] = []

    def read(x: Tensor) -> None:
        inputs[:] = [place.read_input(x).to(parts.S.dtype)]

    def add(y: Tensor) -> Tensor:
        return place.add_to_output(y, ((inputs.pop() @ parts.U) * ((gains - 1) * parts.S).unsqueeze(1)) @ parts.Vh)

    handles = [place.input.attach(read), place.output.attach(add)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hessian_product(
    slopes: dict[Site, Tensor], gains: dict[Site, Tensor], group: list[Site], z: list[Tensor]
) -> tuple[Tensor, ...]:
    """The Hessian's block for these matrices times z, for every example at once."""
    products = torch.autograd.grad(
        [slopes[site] for site in group], [gains[site] for site in group], z, retain_graph=True, allow_unused=True
    )
    return tuple(
        torch.zeros_like(gains[site]) if product is None else product for site, product in zip(group, products, strict=True)
    )


def _groups(question: Question, share: Share) -> list[list[Site]]:
    keys: dict[Share, Callable[[Site], object]] = {
        "matrix": lambda site: site,
        "type": lambda site: site.matrix,
        "all": lambda site: None,
    }
    if share not in keys:
        raise ValueError(f"share={share!r}: probes are shared by 'matrix', by 'type' or by 'all'.")
    groups: dict[object, list[Site]] = {}
    for site in question.targets:
        groups.setdefault(keys[share](site), []).append(site)
    return list(groups.values())


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """±1, drawn on the CPU so that a seed means the same on every device."""
    return torch.randint(2, like.shape, generator=generator).mul_(2).sub_(1).to(like)


def _sampled_loss(labels: Int[Tensor, "example pos"], generator: torch.Generator) -> Metric:
    """The loss on labels drawn from the prediction itself, where `labels` has one."""

    def sampled(logits: Float[Tensor, "example pos d_vocab"]) -> Float[Tensor, " example"]:
        draw = torch.multinomial(logits.detach().float().softmax(-1).flatten(0, 1), 1, generator=generator)
        drawn = torch.where(labels == metrics.IGNORED, labels, draw.view(labels.shape))
        return metrics.loss(drawn)(logits)

    return metrics.custom(sampled, name="loss on sampled labels", unit="nats", higher_is_better=None)
