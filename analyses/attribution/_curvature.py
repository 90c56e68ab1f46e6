"""Attribution to second order in the gains: `effect_i ≈ −∂m/∂γ_i + ½ ∂²m/∂γ_i²`.

First order alone misjudges a loss, which curves as soon as a component is gone. The diagonal of the Hessian in the
gains is estimated from its products with random vectors, each the cost of about two forward passes. Three things make
few of them enough:

- every example has gains, and so random vectors, of its own: it costs nothing, and the noise of the off-diagonal terms
  averages out over examples instead of adding up;
- half of the products find the Hessian's leading directions, the other half resolve them, and what is left is
  estimated by leaving one vector out at a time (XDiag: Epperly, Tropp and Webber, arXiv:2301.07825; it
  improves on Hutchinson's `E[z ⊙ H z]`);
- for a loss, the estimate is drawn towards the Fisher diagonal, which is cheap and quiet: as far as its own noise
  demands, and half of the rest of the way, because the curvature that the Fisher leaves out is a local one. It changes
  along the way to the component's removal, and counting it in full predicts the removal less well
  (`benchmarks/attribution_accuracy.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses import metrics
from analyses.attribution.effects import Effects
from analyses.attribution.passes import (
    backward,
    check_connected,
    check_differentiable,
    moved,
    units_of,
)
from analyses.attribution.question import Examples, Question, ask
from analyses.attribution.selections import Sites
from analyses.metrics import Metric
from analyses.metrics.of_tasks import TaskLoss
from analyses.metrics.positions import Mask
from analyses.metrics.references import Loss
from analyses.prompts import Tokens
from analyses.statistics import mean_and_stderr
from hooks import Site
from hooks.running import arithmetic, run
from hooks.temporary import Temporary, together
from surgery import Basis, Decompositions
from surgery.arguments import even, one_of, shown, whole
from surgery.arguments import seed as whole_seed
from surgery.progress import progress_bar

Share = Literal["matrix", "type", "all"]
FISHER_DRAWS = 4
LOCAL_SHARE = 0.5
"""How much of a loss's curvature beyond the Fisher counts for a component's removal."""


def by_curvature(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    draws: int = 16,
    seed: int = 0,
    share: Share = "type",
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """The effect of removing each component to second order, with the Hessian's diagonal from `draws` random probes.

    `share` says which matrices a probe covers at once: one, all of one type (W_Q of every layer, ...), or all. Sharing
    saves passes and adds noise; where there are no more gains than probes, the diagonal is exact. Components of one
    unit share a gain. `noise` of the result is the standard error over probes.

    Raises:
        ValueError: if the metric is not differentiable, `draws` is not even and positive, or as `ask`.
        SiteError: if a pattern names no editable matrix.

    >>> loss = metrics.loss(metrics.next_token_labels(tokens))
    >>> effects = attribution.by_curvature(model, tokens, loss, "blocks.0.mlp.W_out", draws=4, progress=False)
    >>> effects.method
    'curvature (4 probes), drawn towards the Fisher (4 draws)'
    """
    draws = even(draws, "draws")
    question = ask(
        model, tokens, metric, sites,
        basis=basis, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    groups = _groups(question, share)
    generator = torch.Generator().manual_seed(whole_seed(seed))

    def diagonal(slopes: dict[Site, Tensor], gains: dict[Site, Tensor]) -> Iterator[tuple[Site, Tensor]]:
        for group in groups:
            widths = [gains[site].shape[1] for site in group]

            # Defaults, since a closure would see the group of the loop's last turn.
            def product(z: Tensor, group: list[Site] = group, widths: list[int] = widths) -> Tensor:
                parts = [part.to(gains[site]) for part, site in zip(z.split(widths, 1), group, strict=True)]
                return torch.cat(_hessian_product(slopes, gains, group, parts), 1)

            estimates = _diagonals(product, (len(gains[group[0]]), sum(widths)), draws // 2, generator)
            yield from zip(group, estimates.split(widths, -1), strict=True)

    widths = [sum(len(question.targets[site].units) for site in group) for group in groups]
    # Slopes that can be differentiated again cost about four passes, and each product two. As many products as there
    # are gains give the diagonal itself: no group needs more.
    passes = 4.0 + 2 * sum(min(draws, width) for width in widths)
    found = _second_order(question, f"curvature ({draws} probes)", diagonal, passes=passes, progress=progress)
    if not isinstance(question.examples.metric, Loss):
        return found
    fisher = _fisher(question, FISHER_DRAWS, seed, progress=progress)
    return _drawn_towards(found, fisher)


def by_exact_curvature(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """As `by_curvature`, with the exact diagonal: a Hessian-vector product for each component asked about.

    Raises:
        as `by_curvature`.
    """
    question = ask(
        model, tokens, metric, sites,
        basis=basis, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip

    def diagonal(slopes: dict[Site, Tensor], gains: dict[Site, Tensor]) -> Iterator[tuple[Site, Tensor]]:
        for site, target in question.targets.items():
            exact = torch.zeros_like(gains[site])
            for column in range(len(target.units)):
                # Examples have gains of their own: one product, with the same unit vector for each, serves them all.
                z = torch.zeros_like(gains[site])
                z[:, column] = 1
                (product,) = _hessian_product(slopes, gains, [site], [z])
                exact[:, column] = product[:, column]
            yield site, exact.unsqueeze(0)

    n = sum(len(target.units) for target in question.targets.values())
    return _second_order(question, "curvature (exact)", diagonal, passes=4.0 + 2 * n, progress=progress)


def by_fisher(
    model: nn.Module,
    tokens: Tokens,
    labels: Tensor | Metric,
    sites: Sites = "*",
    *,
    draws: int = 4,
    seed: int = 0,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """The effect on the loss, with the Fisher diagonal for the Hessian: `draws + 1` forward and backward passes.

    Labels are drawn from the model's own prediction, and the squares taken position by position:
    `½ n Σ_t s_i² (x_t·u_i)² (v_i·g_t)²`, n the number of labels of the example. Cheaper and rougher than
    `by_curvature`.

    Raises:
        ValueError: if `draws` is not positive, or as `ask`.
        SiteError: if a pattern names no editable matrix.

    >>> labels = metrics.next_token_labels(tokens)
    >>> attribution.by_fisher(model, tokens, labels, "blocks.0.mlp.W_out", progress=False).passes
    10.0
    """
    draws, seed = whole(draws, "draws", least=1), whole_seed(seed)
    if not isinstance(labels, Tensor | Loss | TaskLoss):
        raise ValueError(
            f"labels={shown(labels)}: the Fisher diagonal is that of a loss. Give labels [example pos], such as "
            "metrics.next_token_labels(tokens), or metrics.loss(labels); for another metric use by_curvature."
        )
    question = ask(
        model, tokens, metrics.loss(labels) if isinstance(labels, Tensor) else labels, sites,
        basis=basis, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    if not isinstance(question.examples.metric, Loss):
        raise ValueError(
            "some items accept several answers, whose probabilities add up: the Fisher diagonal is that of one answer "
            "an item. Keep the first of each, or use by_curvature."
        )
    return _fisher(question, draws, seed, progress=progress)


def _fisher(question: Question, draws: int, seed: int, *, progress: bool) -> Effects:
    """`by_fisher` of a question whose metric is a loss."""
    generator = torch.Generator(device=question.examples.inputs.tokens.device).manual_seed(seed)
    check_differentiable(question)
    rows: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    baselines = []
    for chosen in progress_bar("Fisher", list(question.batches()), progress=progress, unit="batch"):
        part = question.examples.take(chosen)
        assert isinstance(part.metric, Loss)
        labels = part.metric.labels.to(part.inputs.tokens.device)
        first = backward(question, part)
        baselines.append(first.values)
        second = {site: torch.zeros(()) for site in question.targets}
        for _ in range(draws):
            drawn = backward(question, Examples(part.inputs, _sampled_loss(labels, generator)))
            for site, target in question.targets.items():
                second[site] = second[site] + units_of(target, drawn.score(target)).square().sum(1) / draws
        # The loss is the mean over n labels, so that the gradient at a position carries 1/n and its square 1/n². The
        # curvature of a mean carries 1/n: n of it is given back.
        n = (labels != metrics.IGNORED).sum(1, keepdim=True)
        for site, target in question.targets.items():
            rows[site].append((units_of(target, first.score(target).sum(1)) + 0.5 * n * second[site]).cpu())
    return question.effects(f"Fisher ({draws} draws)", baselines, rows, passes=2.0 * (draws + 1))


def _drawn_towards(found: Effects, fisher: Effects) -> Effects:
    """Each matrix's estimate at half its distance from the Fisher one, less the share that is noise (James–Stein)."""
    examples, noise = {}, {}
    for site, rows in found.examples.items():
        # Of the mean over examples, since its noise is known, and that of a single example is not.
        apart = rows.mean(0) - fisher.examples[site].mean(0)
        variance = found.noise.get(site, torch.zeros(rows.shape[1])).square().mean()
        # The mean square distance is signal + noise; what is left of it without the noise is the share to believe.
        signal = 1 - variance / apart.square().mean().clamp_min(torch.finfo(apart.dtype).tiny)
        weight = LOCAL_SHARE * signal.clamp(0, 1)
        examples[site] = fisher.examples[site] + weight * (rows - fisher.examples[site])
        noise[site] = weight * found.noise.get(site, torch.zeros(rows.shape[1]))
    method = f"{found.method}, drawn towards the {fisher.method}"
    return replace(found, method=method, examples=examples, noise=noise, passes=found.passes + fisher.passes)


Diagonal = Callable[[dict[Site, Tensor], dict[Site, Tensor]], Iterator[tuple[Site, Tensor]]]
"""From slopes and gains, one or more estimates `[estimate example component]` of every matrix's diagonal."""


def _second_order(question: Question, method: str, diagonal: Diagonal, *, passes: float, progress: bool) -> Effects:
    """First order plus half the diagonal that `diagonal` draws, one or more times, for every example."""
    check_differentiable(question)
    rows: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    draws: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    baselines = []
    for chosen in progress_bar("curvature", list(question.batches()), progress=progress, unit="batch"):
        part = question.examples.take(chosen)
        with arithmetic(True):
            with _with_gains(question, part) as gains:
                values = part.measured(run(question.model, part.read))
            check_connected(question, values)
            if part.metric.whole_batch:
                _check_separate(part.metric, values, list(gains.values()))
            baselines.append(values.detach())
            # No example's gains reach another's value: the gradient of the sum holds the slopes of each by itself. A
            # matrix that the metric does not depend on has slopes of 0, not None.
            found = torch.autograd.grad(values.sum(), list(gains.values()), create_graph=True, materialize_grads=True)
            slopes = dict(zip(gains, found, strict=True))
            for site, drawn in diagonal(slopes, gains):
                # A removal moves γ from 1 to 0, by −1: −slope + ½ curvature.
                rows[site].append((0.5 * drawn.mean(0) - slopes[site].detach()).cpu())
                draws[site].append(0.5 * drawn.sum(1).cpu())
    noise = {
        site: mean_and_stderr(torch.stack(parts).sum(0) / question.n_examples)[1]
        for site, parts in draws.items()
        if len(parts[0]) > 1
    }
    return question.effects(method, baselines, rows, passes=passes, noise=noise)


def _check_separate(metric: Metric, values: Float[Tensor, " example"], gains: list[Tensor]) -> None:
    """Refuse a function that mixes examples: the second derivatives between them would be left out.

    Raises:
        ValueError: if the gains of one example move the value of another.
    """
    # Where a value depends on its own gains only, weighting the values weights the rows of slopes and no more.
    weights = torch.linspace(1, 2, len(values), device=values.device, dtype=values.dtype)
    slopes = [
        torch.autograd.grad(values, gains, weight, retain_graph=True, materialize_grads=True)
        for weight in (weights, torch.ones_like(weights))
    ]
    for weighted, plain in zip(*slopes, strict=True):
        expected = weights.to(plain).unsqueeze(1) * plain
        # Rounding stays orders of magnitude below; a mean over the batch is off by as much as the slopes themselves.
        if float((weighted - expected).abs().max()) > 1e-3 * float(expected.abs().max()):
            raise ValueError(
                f"{metric.name} gives an example a value that depends on other examples, as a mean over them does, and "
                "curvature is measured for each by itself. Return each example's own value, [batch]."
            )


def _with_gains(question: Question, part: Examples) -> Temporary[dict[Site, Tensor]]:
    """Gains of 1 on every unit of every target, of each example its own, to be differentiated twice."""
    gains: dict[Site, Tensor] = {}
    corrections = []
    for site, target in question.targets.items():
        S = target.components.S
        gains[site] = S.new_ones(part.n_examples, len(target.units)).requires_grad_()
        # A metric may read an example in several rows, all of which have the gains of their example.
        own = gains[site] if part.owner is None else gains[site][part.owner.to(S.device)]
        unit_of = [number for number, unit in enumerate(target.units) for _ in unit]
        # Added to the output, it is 0, but depends on the gains.
        corrections.append(moved(target, (own if target.is_whole else own[:, unit_of]) - 1))
    return Temporary(together(*corrections).things, gains)


def _hessian_product(
    slopes: dict[Site, Tensor], gains: dict[Site, Tensor], group: list[Site], z: list[Tensor]
) -> tuple[Tensor, ...]:
    """The Hessian's block for these matrices times z, for every example at once."""
    curved = [(slopes[site], one) for site, one in zip(group, z, strict=True) if slopes[site].requires_grad]
    if not curved:  # the metric is linear in these gains
        return tuple(torch.zeros_like(gains[site]) for site in group)
    # The gradient of slopes · z, z held fixed, is H z: one backward pass through the graph of the first one.
    outputs, vectors = zip(*curved, strict=True)
    return torch.autograd.grad(
        outputs, [gains[site] for site in group], vectors, retain_graph=True, materialize_grads=True
    )


def _groups(question: Question, share: Share) -> list[list[Site]]:
    one_of(share, "share", get_args(Share))
    groups: dict[object, list[Site]] = {}
    for site in question.targets:
        key = {"matrix": site, "type": site.matrix, "all": None}[share]
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def _diagonals(
    product: Callable[[Tensor], Tensor], shape: tuple[int, int], k: int, generator: torch.Generator
) -> Float[Tensor, "estimate example gain"]:
    """k estimates of the diagonal of every example's Hessian, each leaving out another of k random vectors.

    With `Y = H Ω = Q R`, the estimate without vector i is `diag(Q_i Q_iᵀ H) + ω_i ⊙ (I − Q_i Q_iᵀ) H ω_i`, Q_i a
    basis of the other columns of Y, which the inverse of R gives without a new factorisation (arXiv:2301.07825).
    It takes 2 k products; as many give the whole diagonal of 2 k gains or fewer, and then there is one exact
    estimate. Vectors are drawn on the CPU, so that a seed means the same on every device.
    """
    n_examples, n = shape
    if 2 * k >= n:  # unit vectors cost no more, and leave nothing to estimate
        columns = [product(one.expand(n_examples, n))[:, i] for i, one in enumerate(torch.eye(n))]
        return torch.stack(columns, 1).float().unsqueeze(0)
    # Signs ±1, of each example its own: a product with all examples at once costs no more than with one.
    omega = torch.randint(2, (k, *shape), generator=generator).mul_(2).sub_(1).double()
    # In fp64 from here on: the factorisation separates columns that may point nearly the same way.
    Y = torch.stack([product(z) for z in omega], dim=-1).double()
    omega = omega.to(Y.device)
    # Q holds the leading directions of H that the products have met, and H Q resolves them.
    Q, R = torch.linalg.qr(Y)
    HQ = torch.stack([product(Q[..., j]) for j in range(k)], dim=-1).double()
    # Where a Hessian has a rank below k, R is singular: a ridge far below its entries keeps the inverse finite.
    scale = R.abs().amax((1, 2), keepdim=True)
    tilt = torch.linalg.inv(R + (1e-10 * scale + 1e-30) * torch.eye(k, dtype=R.dtype, device=R.device)).mT
    # Column i of R⁻ᵀ is orthogonal to every column of R but the i-th: the direction within Q that only vector i spans.
    tilt = tilt / tilt.norm(dim=1, keepdim=True)
    # Q_i Q_iᵀ = Q Qᵀ less that direction, so that leaving vector i out is a rank-one change of what all k give.
    alone, seen = Q @ tilt, (tilt * R).sum(1)
    resolved = (Q * HQ).sum(-1).unsqueeze(-1) - alone * (HQ @ tilt)
    estimates = resolved + omega.permute(1, 2, 0) * alone * seen.unsqueeze(1)
    return estimates.permute(2, 0, 1).float()


def _sampled_loss(labels: Int[Tensor, "example pos"], generator: torch.Generator) -> Metric:
    """The loss on labels drawn from the prediction itself, where `labels` has one."""

    def sampled(logits: Float[Tensor, "example pos d_vocab"]) -> Float[Tensor, " example"]:
        # Without a graph: the labels are drawn, and then held fixed, as those of the loss are.
        draw = torch.multinomial(logits.detach().float().softmax(-1).flatten(0, 1), 1, generator=generator)
        # One row of labels may serve all examples; where it ignores a position, so does the draw.
        given = labels.expand(len(logits), -1)
        drawn = torch.where(given == metrics.IGNORED, given, draw.view(given.shape))
        return metrics.loss(drawn)(logits)

    return metrics.custom(sampled, name="loss on sampled labels", unit="nats", higher_is_better=None)
