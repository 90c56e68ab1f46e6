"""What an edit promises: by how much it could lower the loss, from one backward pass over a few items.

The gradient of the loss with respect to every singular value ranks the matrices (arXiv:2510.20800, where ∂L/∂s from 100
samples does). How the components' derivatives become one number is our own: `Σ max(0, (1 − γ_i) s_i ∂L/∂s_i)` over what
an edit takes away. To first order that is by how much the loss falls if only the components that do harm are removed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.laser._trials import Bench
from analyses.laser.candidates import Candidate
from analyses.metrics.of_tasks import ItemMetric, log_loss
from analyses.metrics.readings import Readings, log_probs, logsumexp_by
from analyses.prompts import Batch
from analyses.scoring import EncodedTask, Likeliest, StartsWith, outcome
from hooks import Place, Site, host_of
from hooks.running import autograd
from hooks.temporary import Temporary, together
from surgery import SVD, Basis, Decomposition, RandomizedSVD
from surgery.decompositions import decomposed
from surgery.edits import gains_on_all
from surgery.progress import progress_bar


class Promise(NamedTuple):
    """By how much a candidate could lower the loss, to first order, in nats.

    `most`: if of what the edit takes away only the components that do harm were removed. `net`: if all were.
    """

    most: float
    net: float


def known_promises(bench: Bench, candidates: Sequence[Candidate]) -> dict[Candidate, Promise]:
    """The promises, from the log where it has them."""
    log, names = bench.setup.log, {name: f"promises {name}" for name in Promise._fields}
    if any(key not in log for key in names.values()):
        computed = promises(bench, candidates)
        for name, key in names.items():
            log.put(key, {"numbers": {one.key: getattr(promise, name) for one, promise in computed.items()}})
    numbers = {name: log.get(key) or {} for name, key in names.items()}
    return {
        candidate: Promise(**{name: piece["numbers"][candidate.key] for name, piece in numbers.items()})
        for candidate in candidates
    }


def promises(bench: Bench, candidates: Sequence[Candidate]) -> dict[Candidate, Promise]:
    """By how much each candidate could lower the loss on the bench's items.

    The loss is the mean log-loss for answers, and −log of the right texts' share for choices and pairs.
    """
    setup = bench.setup
    gradients = _weight_gradients(bench, [candidate.site for candidate in candidates])
    by_basis: dict[Basis, list[Candidate]] = {}
    for candidate in candidates:
        # The components of an incomplete basis do not sum to the matrix: what is left out has to be looked up in SVD.
        basis = candidate.edit.basis if candidate.edit.basis.complete else SVD()
        by_basis.setdefault(basis, []).append(candidate)
    promised = {}
    for basis, alike in by_basis.items():
        sites = dict.fromkeys(candidate.site for candidate in alike)
        decompositions = decomposed(setup.model, sites, basis=basis, svds=setup.svds, progress=setup.progress)
        # ∂loss/∂γ_i = s_i u_iᵀ (∂loss/∂W) v_i
        slopes = {site: d.S * ((d.U.mT @ gradients[site].to(d.U)) * d.Vh).sum(1) for site, d in decompositions.items()}
        for candidate in alike:
            # Lowering γ_i by 1 − γ_i lowers the loss by (1 − γ_i) ∂loss/∂γ_i, to first order.
            falls = _removed(candidate, decompositions[candidate.site]) * slopes[candidate.site]
            promised[candidate] = Promise(float(falls.clamp_min(0).sum()), float(falls.sum()))
    return {candidate: promised[candidate] for candidate in candidates}


def _removed(candidate: Candidate, decomposition: Decomposition) -> Float[Tensor, " component"]:
    """How much of each component the candidate takes away: 1 − γ_i."""
    if decomposition.basis == candidate.edit.basis or candidate.edit.basis.leading:
        return 1 - gains_on_all(candidate.edit, decomposition)
    removed = torch.ones_like(decomposition.S)
    if isinstance(candidate.edit.basis, RandomizedSVD):  # which keeps about the leading components
        removed[: candidate.edit.basis.rank] = 0
    return removed


def _weight_gradients(bench: Bench, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "d_in d_out"]]:
    """The gradient of the loss by the matrix at every site, `∂loss/∂W = Σ_t x_tᵀ ∂loss/∂y_t`, in fp32 or better.

    The field `grad` of the parameters is left alone.
    """
    host, encoded = host_of(bench.setup.model), bench.encoded
    places = {site: host.place(site) for site in dict.fromkeys(sites)}
    # Heads of one matrix share its ends: each end is tapped once.
    joint = {site.joint: place for site, place in places.items()}
    weights = _loss_weights(bench).float()
    gradients: dict[Site, Tensor] = {}
    for batch in progress_bar("gradients", encoded.batches, progress=bench.setup.progress, unit="batch"):

        def loss(batch: Batch = batch) -> Float[Tensor, ""]:
            said = log_probs(bench.run(batch.inputs), batch.at, batch.target)
            return (said * weights[batch.index.cpu()].to(said.device)).sum()

        ends = _ends(joint, loss)
        for site, place in places.items():
            x, g = ends[site.joint]
            dtype = torch.promote_types(x.dtype, torch.float32)
            part = place.read_input(x).to(dtype).flatten(0, 1).mT @ place.read_output(g).to(dtype).flatten(0, 1)
            gradients[site] = gradients[site] + part if site in gradients else part
    return gradients


def _ends(places: Mapping[Site, Place], loss: Callable[[], Tensor]) -> dict[Site, tuple[Tensor, Tensor]]:
    """What flows into each matrix, and ∂loss/∂(what flows out of it): one pass forward and one back."""
    inputs: dict[Site, Tensor] = {}
    outputs: dict[Site, Tensor] = {}

    def taps(site: Site, place: Place) -> Temporary[None]:
        def on_input(x: Tensor) -> None:
            inputs[site] = x.detach()

        def on_output(y: Tensor) -> Tensor:
            # A leaf where the weights need no gradient; else a copy, since a view cannot be asked for its own.
            outputs[site] = y.clone() if y.requires_grad else y.detach().clone().requires_grad_()
            return outputs[site]

        return place.tapped(at_input=on_input, at_output=on_output)

    # The caller may be in inference mode, whose tensors take no part in a graph.
    with autograd(True):
        with together(*(taps(site, place) for site, place in places.items())):
            value = loss()
        # None where a matrix has no part in the loss.
        gradients = torch.autograd.grad(value, list(outputs.values()), allow_unused=True)
    return {
        site: (inputs[site], torch.zeros_like(y) if gradient is None else gradient)
        for (site, y), gradient in zip(outputs.items(), gradients, strict=True)
    }


def _loss_weights(bench: Bench) -> Float[Tensor, " target"]:
    """The gradient of the loss by the log-probability of each target.

    The loss has the gradient of the sum of the log-probabilities, each times its weight, and every batch adds its own
    terms to that sum: no graph has to outlive its batch.
    """
    encoded = bench.encoded
    table = encoded.continuations
    one_answer_each = len(encoded.task) == int((table.right & ~table.nested).sum())
    if one_answer_each and not isinstance(encoded.rule, Likeliest) and encoded.metric is None:
        values = torch.zeros(encoded.n_targets, dtype=torch.double)  # the loss is linear: any values do
    else:
        # Nothing has to be generated for the readings.
        read = replace(encoded, rule=StartsWith()) if encoded.rule.new_tokens else encoded
        with torch.no_grad():
            values = outcome(read, bench.run).readings.log_prob
    with autograd(True):
        values = values.clone().requires_grad_()
        return torch.autograd.grad(_mean_loss(encoded, values), values)[0]


def _mean_loss(encoded: EncodedTask, log_prob: Float[Tensor, " target"]) -> Float[Tensor, ""]:
    table, metric = encoded.continuations, encoded.metric
    nothing = torch.zeros_like(table.target)
    readings = Readings(log_prob, nothing, nothing)
    if isinstance(metric, ItemMetric) and metric.differentiable:
        values = metric.value(table, readings)
        return (-values if metric.higher_is_better else values).mean()
    if not isinstance(encoded.rule, Likeliest):
        return log_loss(table, readings).mean()
    values = encoded.rule.compared(table, log_prob)
    every, right = (logsumexp_by(values, table.item, keep, table.n_items) for keep in (table.right | True, table.right))
    return (every - right).mean()
