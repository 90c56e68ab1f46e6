"""Attribution by one backward pass: every component of every matrix at once, to first order.

With gain γ_i on component i, `∂m/∂γ_i = Σ_t s_i (x_t·u_i) (g_t·v_i)`, x the matrix's input and g the gradient at its
output. To first order, removing it changes the metric by `−∂m/∂γ_i`.
"""

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor, nn

from analyses.attribution.effects import REMOVAL, Effects
from analyses.attribution.passes import backward, check_differentiable, inputs_of, units_of
from analyses.attribution.question import Question, ask, counterparts
from analyses.attribution.selections import Sites
from analyses.metrics import Metric
from analyses.metrics.positions import Mask
from analyses.prompts import Tokens
from hooks import Site
from hooks.inputs import Inputs
from surgery import Basis, Decompositions
from surgery.progress import progress_bar


def by_gradient(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    corrupted: Tokens | None = None,
    keep_positions: bool = False,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Effects:
    """The first-order effect of removing each component, from one forward and one backward pass over the examples.

    `−Σ_t s_i (x_t·u_i) (g_t·v_i)`. With `corrupted` tokens, instead of removal, the effect of giving a component the
    coordinate it has on the corrupted example, as in attribution patching: `Σ_t s_i ((x'_t − x_t)·u_i) (g_t·v_i)`.

    A good guide for a logit, a poor one for a loss, where the second order counts (`by_curvature`).
    `keep_positions` keeps the terms of the sum over t too, as `effects.positions[site]`, `[example, pos, unit]`.

    Raises:
        ValueError: if the metric is not differentiable or gives the wrong shape or NaN, if `corrupted` has another
            shape than `tokens`, or as `ask`.
        SiteError: if a pattern names no editable matrix.

    >>> effects = attribution.by_gradient(model, tokens, metrics.log_prob(3), "blocks.*.mlp.W_out", progress=False)
    >>> effects.sites, effects["blocks.0.mlp.W_out"].shape
    (('blocks.0.mlp.W_out', 'blocks.1.mlp.W_out'), torch.Size([16]))
    """
    question = ask(
        model, tokens, metric, sites,
        basis=basis, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    check_differentiable(question)
    other = None if corrupted is None else counterparts(question, corrupted)
    if keep_positions:
        _check_positions(question)
    baselines: list[Tensor] = []
    rows: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    by_position: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    for chosen in progress_bar("gradients", list(question.batches()), progress=progress, unit="batch"):
        part = question.examples.take(chosen)
        pass_ = backward(question, part)
        baselines.append(pass_.values)
        reference = None if other is None else _inputs_at(question, other, chosen)
        for site, target in question.targets.items():
            score = pass_.score(target, None if reference is None else reference[site])
            rows[site].append(part.summed(units_of(target, score.sum(1))).cpu())
            if keep_positions:
                by_position[site].append(units_of(target, score).cpu())
    return question.effects(
        "gradient" if other is None else "gradient, clean to corrupted",
        baselines,
        rows,
        passes=2.0 + (corrupted is not None),
        positions=by_position if keep_positions else None,
        intervention=REMOVAL if other is None else "patching, clean to corrupted",
    )


def _inputs_at(
    question: Question, other: Int[Tensor, "row pos"], chosen: Int[Tensor, " example"]
) -> dict[Site, Tensor]:
    """What every target multiplies on the counterparts of some examples."""
    rows = question.examples.rows_of(chosen)
    return inputs_of(question, Inputs(other[rows.to(other.device)], question.examples.take(chosen).inputs.mask))


def _check_positions(question: Question) -> None:
    if question.examples.owner is not None:
        raise ValueError(
            "keep_positions=True with items that are read in several rows of tokens, which share no positions: leave "
            "it out, or attribute one text an item."
        )
