"""The passes through a model that methods of attribution share: plain, with inputs kept, with a backward pass."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.attribution.question import Examples, Question, Target
from analyses.metrics import Metric
from hooks import Place, Site
from hooks.inputs import Inputs, Reads
from hooks.modes import check_trainable
from hooks.running import arithmetic, run
from hooks.temporary import Hook, Temporary, together
from surgery import SVD


def metric_of(question: Question, part: Examples, *, differentiable: bool = False) -> Float[Tensor, " example"]:
    """The metric on some examples, computing logits only where the metric reads them."""
    with arithmetic(differentiable):
        return part.measured(run(question.model, part.read))


def inputs_of(question: Question, inputs: Inputs) -> dict[Site, Float[Tensor, "row pos d_in"]]:
    """What every target multiplies on these rows, from one forward pass."""
    nothing = torch.empty(0, dtype=torch.long)
    with inputs_kept(question) as kept, arithmetic(False):
        run(question.model, inputs.read_at(Reads(nothing, nothing)))
    return kept()


def inputs_kept(question: Question) -> Temporary[Callable[[], dict[Site, Tensor]]]:
    """Keep the input of every target in the forward pass inside the `with` block; call what it gives to read them."""
    kept: dict[Site, Tensor] = {}

    def keeping(joint: Site, place: Place) -> Hook:
        def keep(x: Tensor) -> None:
            kept[joint] = x.detach()

        return place.input.tap(keep)

    taps = [keeping(joint, place) for joint, place in _joint_places(question).items()]
    return Temporary(
        taps, lambda: {site: target.place.read_input(kept[site.joint]) for site, target in question.targets.items()}
    )


@dataclass(slots=True)
class Backward:
    """Inputs, outputs and their gradients at every target, after one forward and one backward pass.

    `direct` says that scores may be read with other gains than were in force in the pass.
    """

    direct: bool
    values: Float[Tensor, " example"] = field(default_factory=lambda: torch.empty(0))
    inputs: dict[Site, Tensor] = field(default_factory=dict)
    outputs: dict[Site, Tensor] = field(default_factory=dict)
    input_gradients: dict[Site, Tensor] = field(default_factory=dict)
    output_gradients: dict[Site, Tensor] = field(default_factory=dict)

    def score(
        self, target: Target, reference: Tensor | None = None, *, constants: Tensor | None = None
    ) -> Float[Tensor, "row pos component"]:
        """`−s_i (x_t·u_i) (g_t·v_i)`, or `s_i ((x'_t − x_t)·u_i) (g_t·v_i)` from a reference input x'.

        Constants `c_i` stand for `x'·u_i` in the second.

        Each factor is taken from the smaller side of the matrix, `s (x·u) = (y − b)·v` and `s (g·v) = (∂m/∂x)·u`,
        unless `direct`: both hold with the gains in force only.
        """
        site, components = target.place.site, target.components
        dtype = components.S.dtype
        U, V = components.U, components.Vh.mT
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
        return ((read if constants is None else read + constants) * components.S) * g


def backward(question: Question, part: Examples, *, direct: bool = False) -> Backward:
    """One forward and one backward pass, without gradients of any parameter.

    Raises:
        ValueError: if the metric does not depend differentiably on the logits.
    """
    trace = traced(question, lambda: part.measured(run(question.model, part.read)), direct=direct)
    check_connected(question, trace.output)
    found = trace.pulled()
    found.values = trace.output.detach()
    return found


@dataclass(frozen=True, slots=True)
class Trace:
    """The graph of one forward pass, from what passes at every target to an output; from `traced`.

    `wanted` are the tensors of the graph at which a backward pass gives gradients, and where these go.
    """

    output: Tensor
    direct: bool
    inputs: dict[Site, Tensor]
    outputs: dict[Site, Tensor]
    wanted: list[tuple[Site, bool, Tensor]]

    def pulled(self, cotangent: Tensor | None = None, *, keep: bool = False) -> Backward:
        """The gradients of `cotangent · output` at every target (None: of the output's sum), by one backward pass.

        `keep` keeps the graph for another one.
        """
        seeds = torch.ones_like(self.output) if cotangent is None else cotangent
        tensors = [tensor for _, _, tensor in self.wanted]
        with arithmetic(True):
            gradients = torch.autograd.grad(self.output, tensors, seeds, allow_unused=True, retain_graph=keep)
        found = Backward(self.direct, inputs=self.inputs, outputs=self.outputs)
        for (joint, at_input, tensor), gradient in zip(self.wanted, gradients, strict=True):
            store = found.input_gradients if at_input else found.output_gradients
            store[joint] = torch.zeros_like(tensor) if gradient is None else gradient
        return found


def traced(question: Question, output: Callable[[], Tensor], *, direct: bool = False) -> Trace:
    """The graph of `output()`, which runs the model."""
    # Only singular vectors are orthogonal on both sides, which the shorter way to a score needs.
    direct = direct or question.basis != SVD()
    inputs: dict[Site, Tensor] = {}
    outputs: dict[Site, Tensor] = {}
    wanted: list[tuple[Site, bool, Tensor]] = []
    places = _joint_places(question)
    taps = (
        _tapped(joint, places[joint], narrow_input and not direct, inputs, outputs, wanted)
        for joint, narrow_input in _routes(question).items()
    )
    with together(*taps), arithmetic(True):
        return Trace(output(), direct, inputs, outputs, wanted)


def check_differentiable(question: Question) -> None:
    """Refuse a metric that has no useful gradient, and a model that has none at all.

    Raises:
        ValueError: naming the methods that do without.
    """
    metric: Metric = question.examples.metric
    if not metric.differentiable:
        raise ValueError(
            f"the metric {metric.name!r} is not differentiable, so no gradient can attribute it: use by_ablation or "
            "by_shapley, or a smooth metric such as log_prob or logit_difference."
        )
    check_trainable(question.model)


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
    bias = None if target.place.bias is None else target.place.bias.current()
    if bias is None:
        return None
    flat = bias.detach().flatten()
    return flat if target.place.site.matrix == "W_O" else flat[target.place.head_slice]


def units_of(target: Target, rows: Float[Tensor, "*row component"]) -> Float[Tensor, "*row unit"]:
    """What concerns the components asked about, added up in each unit."""
    if target.is_whole:
        return rows
    return torch.stack([rows[..., list(unit)].sum(-1) for unit in target.units], dim=-1)


def moved(
    target: Target, away: Float[Tensor, "row member"], constants: Float[Tensor, " component"] | None = None
) -> Temporary[None]:
    """Add `((x U − c) ⊙ (γ − 1) s) Vh` to the matrix's output, with `away` = γ − 1 of each row's own members.

    Members are the components of the target's units, one after the other; c are constants, 0 where there are none.
    """
    place, components = target.place, target.components
    members = slice(None) if target.is_whole else [i for unit in target.units for i in unit]
    U, S, Vh = components.U[:, members], components.S[members], components.Vh[members]
    inputs: list[Tensor] = []

    def read(x: Tensor) -> None:
        coordinates = place.read_input(x).to(S.dtype) @ U
        inputs[:] = [coordinates if constants is None else coordinates - constants[members]]

    def add(y: Tensor) -> Tensor:
        return place.add_to_output(y, (inputs.pop() * (away * S).unsqueeze(1)) @ Vh)

    return place.tapped(at_input=read, at_output=add)


def _joint_places(question: Question) -> dict[Site, Place]:
    """A place for each matrix that is asked about, whole or by its heads."""
    return {site.joint: target.place for site, target in question.targets.items()}


def _routes(question: Question) -> dict[Site, bool]:
    """Whether each matrix's gradient is better taken at its input: where that is narrower and its alone."""
    routes: dict[Site, bool] = {}
    for site, target in question.targets.items():
        if site.joint not in routes or site.head is None:
            place = target.place
            routes[site.joint] = place.d_in < place.d_out and not place.input.shared
    return routes


def _tapped(
    joint: Site,
    place: Place,
    at_input: bool,
    inputs: dict[Site, Tensor],
    outputs: dict[Site, Tensor],
    wanted: list[tuple[Site, bool, Tensor]],
) -> Temporary[None]:
    """Keep what passes at both ends of a matrix; the end where the gradient is wanted is put on `wanted`."""

    def on_input(x: Tensor) -> Tensor | None:
        start = x if x.requires_grad else x.detach().requires_grad_()
        # A view of its own: the gradient is then this matrix's, not that of all who read the tensor.
        alone = start.view_as(start) if x.requires_grad else start
        inputs[joint] = alone
        if at_input:
            wanted.append((joint, True, alone))
        return alone

    def on_output(y: Tensor) -> Tensor | None:
        # Hooks that come after ours may change the output in place.
        kept = y.clone() if len(place.output.module._forward_hooks) > 1 else y
        outputs[joint] = kept
        if not at_input:
            wanted.append((joint, False, kept))
        return kept

    return place.tapped(at_input=on_input, at_output=on_output)
