"""Attribution by one backward pass: every component of every matrix at once, to first order.

With gain γ_i on component i, `∂m/∂γ_i = Σ_t s_i (x_t·u_i) (g_t·v_i)`, x the matrix's input and g the gradient at its
output. To first order, removing it changes the metric by `−∂m/∂γ_i`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from analyses.attribution.effects import REMOVAL, Effects
from analyses.attribution.question import Examples, Question, Sites, Target, ask, counterparts
from analyses.metrics import Metric
from analyses.metrics.placement import Mask
from analyses.prompts import Tokens
from hooks import Place, Site
from hooks.replay import has_hooks
from hooks.temporary import Hook, Temporary, together
from hooks.unembedding import unembedding_only
from surgery import SVD, Decompositions


def by_gradient(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    corrupted: Tokens | None = None,
    keep_positions: bool = False,
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
    """
    question = ask(
        model, tokens, metric, sites, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress
    )
    check_differentiable(question.examples.metric)
    other = None if corrupted is None else counterparts(question, corrupted)
    baselines: list[Tensor] = []
    rows: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    by_position: dict[Site, list[Tensor]] = {site: [] for site in question.targets}
    for chosen in tqdm(list(question.batches()), desc="gradients", unit="batch", delay=1, disable=not progress):
        part = question.take(chosen)
        pass_ = backward(question, part)
        baselines.append(pass_.values)
        reference = None if other is None else inputs_of(question, replace(part, tokens=other[chosen.to(other.device)]))
        for site, target in question.targets.items():
            score = pass_.score(target, None if reference is None else reference[site])
            rows[site].append(units_of(target, score.sum(1)).cpu())
            if keep_positions:
                by_position[site].append(units_of(target, score.flatten(0, 1)).unflatten(0, score.shape[:2]).cpu())
    return Effects(
        "gradient" if other is None else "gradient, clean to corrupted",
        question.measure(torch.cat(baselines)),
        {target.address: target.units for target in question.targets.values()},
        {str(site): question.pooled(torch.cat(parts)) for site, parts in rows.items()},
        {target.address: target.components.S.cpu() for target in question.targets.values()},
        question.weight_state,
        passes=2.0 + (corrupted is not None),
        positions={str(site): question.pooled(torch.cat(parts)) for site, parts in by_position.items() if parts},
        basis=question.basis,
        intervention=REMOVAL if other is None else "patching, clean to corrupted",
    )


@dataclass(slots=True)
class Backward:
    """Inputs, outputs and their gradients at every target, after one forward and one backward pass."""

    values: Float[Tensor, " example"]
    inputs: dict[Site, Tensor] = field(default_factory=dict)
    outputs: dict[Site, Tensor] = field(default_factory=dict)
    input_gradients: dict[Site, Tensor] = field(default_factory=dict)
    output_gradients: dict[Site, Tensor] = field(default_factory=dict)

    direct: bool = False

    def score(
        self, target: Target, reference: Tensor | None = None, *, constants: Tensor | None = None
    ) -> Float[Tensor, "example pos component"]:
        """`−s_i (x_t·u_i) (g_t·v_i)`, or `s_i ((x'_t − x_t)·u_i) (g_t·v_i)` from a reference input x'.

        Constants `c_i` stand for `x'·u_i` in the second.

        Each factor is taken from the smaller side of the matrix, `s (x·u) = (y − b)·v` and `s (g·v) = (∂m/∂x)·u`,
        unless `direct`: both hold with the gains in force only.
        """
        site, parts = target.place.site, target.components
        dtype = parts.S.dtype
        U, V = parts.U, parts.Vh.mT
        if site.joint in self.input_gradients:
            x = target.place.read_input(self.inputs[site.joint]).detach()
            dx = target.place.read_input(self.input_gradients[site.joint])
            read = -x if reference is None else reference - x
            return (read.to(dtype) @ U) * (dx.to(dtype) @ U)
        g = target.place.read_output(self.output_gradients[site.joint]).to(dtype) @ V
        if reference is None and not self.direct and target.place.d_out < target.place.d_in:
            y = target.place.read_output(self.outputs[site.joint]).detach()
            bias = bias_of(target)
            return ((-y if bias is None else bias - y).to(dtype) @ V) * g
        x = target.place.read_input(self.inputs[site.joint]).detach()
        read = (-x if reference is None else reference - x).to(dtype) @ U
        return ((read if constants is None else read + constants) * parts.S) * g


def backward(question: Question, part: Examples, *, direct: bool = False) -> Backward:
    """One forward and one backward pass, without gradients of any parameter.

    With `direct`, the scores may be read with other gains than are in force in the pass.

    Raises:
        ValueError: if the metric does not depend differentiably on the logits.
    """
    direct = direct or question.basis != SVD()  # Only singular vectors are orthogonal on both sides.
    found = Backward(torch.empty(0), direct=direct)
    wanted: list[tuple[dict[Site, Tensor], Site, Tensor]] = []
    places = places_of(question)
    taps = (
        _tapped(joint, places[joint], narrow_input and not direct, found, wanted)
        for joint, narrow_input in _routes(question).items()
    )
    _check_trainable(question.model)
    with together(*taps), arithmetic(True):
        found.values = metric_of(question, part, differentiable=True)
        check_connected(question, found.values)
        gradients = torch.autograd.grad(found.values.sum(), [tensor for _, _, tensor in wanted], allow_unused=True)
    for (store, joint, tensor), gradient in zip(wanted, gradients, strict=True):
        store[joint] = torch.zeros_like(tensor) if gradient is None else gradient
    found.values = found.values.detach()
    return found


def metric_of(question: Question, part: Examples, *, differentiable: bool = False) -> Float[Tensor, " example"]:
    """The metric on some examples, computing logits only where it reads them."""
    n_pos = part.tokens.shape[1]
    columns: tuple[int, ...] | None = part.metric.needed_positions(n_pos)
    if columns is None or len(columns) == n_pos or has_hooks(question.model):
        columns = None
    metric = part.metric if columns is None else part.metric.narrow(n_pos)
    with unembedding_only(question.model, columns), arithmetic(differentiable):
        return metric(logits_of(question.model, part.tokens, part.attention_mask))


def logits_of(
    model: nn.Module, tokens: Int[Tensor, "example pos"], attention_mask: Int[Tensor, "example pos"] | None
) -> Float[Tensor, "example kept d_vocab"]:
    """The model's logits, on either host, at the positions that are unembedded."""
    return model(tokens) if attention_mask is None else model(tokens, attention_mask=attention_mask)


@contextmanager
def arithmetic(differentiable: bool) -> Iterator[None]:
    """With or without a graph, whatever the caller's mode; attention in the form that can be differentiated twice."""
    # The outer block changes nothing on the way in; on the way out it restores the mode where an interrupt strikes
    # within the exit of the inner one, which would leave autograd off for good.
    with (
        torch.set_grad_enabled(torch.is_grad_enabled()),
        torch.inference_mode(False),
        torch.set_grad_enabled(differentiable),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


def _check_trainable(model: nn.Module) -> None:
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the model's parameters were made in inference mode, where torch computes no gradients: use by_ablation, "
            "or load the model outside torch.inference_mode()."
        )


def inputs_of(question: Question, part: Examples) -> dict[Site, Float[Tensor, "example pos d_in"]]:
    """What every target multiplies on these examples, from one forward pass."""
    with inputs_kept(question) as kept, arithmetic(False), unembedding_only(question.model, (0,)):
        logits_of(question.model, part.tokens, part.attention_mask)
    return kept()


def inputs_kept(question: Question) -> Temporary[Callable[[], dict[Site, Tensor]]]:
    """Keep the input of every target in the forward pass inside the `with` block; call what it gives to read them."""
    kept: dict[Site, Tensor] = {}

    def keeping(joint: Site, place: Place) -> Hook:
        def keep(x: Tensor) -> None:
            kept[joint] = x.detach()

        return place.input.tap(keep)

    taps = [keeping(joint, place) for joint, place in places_of(question).items()]
    return Temporary(
        taps, lambda: {site: target.place.read_input(kept[site.joint]) for site, target in question.targets.items()}
    )


def places_of(question: Question) -> dict[Site, Place]:
    """A place for each matrix that is asked about, whole or by its heads."""
    return {site.joint: target.place for site, target in question.targets.items()}


def check_differentiable(metric: Metric) -> None:
    """Refuse a metric that has no useful gradient.

    Raises:
        ValueError: naming the methods that do without.
    """
    if not metric.differentiable:
        raise ValueError(
            f"the metric {metric.name!r} is not differentiable, so no gradient can attribute it: use by_ablation or "
            "by_shapley, "
            "or a smooth metric such as log_prob or logit_difference."
        )


def check_connected(question: Question, values: Float[Tensor, " example"]) -> None:
    """Refuse values that nothing can be differentiated through, whatever the metric says of itself.

    Raises:
        ValueError: if they carry no graph.
    """
    if not values.requires_grad:
        raise ValueError(
            f"the metric {question.examples.metric.name!r} does not depend on the attributed matrices through anything "
            "differentiable: check that it uses the logits it is given, without .detach() or .item()."
        )


def bias_of(target: Target) -> Tensor | None:
    """What is added to this matrix's output now: the bias, as a forward pass reads it."""
    held = None if target.place.bias is None else target.place.bias.current()
    if held is None:
        return None
    flat = held.detach().flatten()
    return flat if target.place.site.matrix == "W_O" else flat[target.place.head_slice]


def units_of(target: Target, rows: Float[Tensor, "example component"]) -> Float[Tensor, "example unit"]:
    """What concerns the components asked about, added up in each unit."""
    if len(target.units) == target.components.n_components and all(unit == (i,) for i, unit in enumerate(target.units)):
        return rows
    return torch.stack([rows[:, list(unit)].sum(1) for unit in target.units], dim=1)


def _routes(question: Question) -> dict[Site, bool]:
    """Whether each matrix's gradient is better taken at its input: where that is narrower and its alone."""
    routes: dict[Site, bool] = {}
    for site, target in question.targets.items():
        if site.joint not in routes or site.head is None:
            place = target.place
            routes[site.joint] = place.d_in < place.d_out and not place.input.shared
    return routes


def _tapped(joint: Site, place: Place, at_input: bool, found: Backward, wanted: list) -> Temporary[None]:
    """Keep what passes at both ends of a matrix; the end where the gradient is wanted is put on `wanted`."""

    def on_input(x: Tensor) -> Tensor | None:
        start = x if x.requires_grad else x.detach().requires_grad_()
        alone = start.view_as(start) if x.requires_grad else start
        found.inputs[joint] = alone
        if at_input:
            wanted.append((found.input_gradients, joint, alone))
        return alone

    def on_output(y: Tensor) -> Tensor | None:
        kept = y.clone() if len(place.output.module._forward_hooks) > 1 else y
        found.outputs[joint] = kept
        if not at_input:
            wanted.append((found.output_gradients, joint, kept))
        return kept

    return place.tapped(at_input=on_input, at_output=on_output)
