"""Which matrices promise something: the gradient of the loss with respect to every singular value, from one pass.

Source: arXiv:2510.20800, where ∂L/∂s from 100 samples ranks the matrices. How the components' derivatives
become one number is our own: `Σ max(0, (1 − γ_i) s_i ∂L/∂s_i)` over what an edit takes away. To first order that is
by how much the loss falls if only what does harm is removed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from hooks.suffix import Passage, run
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from analyses.laser.candidates import Candidate
from analyses.scoring import Batch, EncodedTask, Likeliest, log_probs, read
from hooks import Place, Site, host_of
from hooks.temporary import Temporary, together
from surgery import SVD, Basis, Decomposition, Decompositions, RandomizedSVD
from surgery.decompositions import decomposed


class Promise(NamedTuple):
    """What the gradient says of a candidate, in nats.

    `most` is by how much the loss would fall if of what the edit takes away only the harmful were removed; `net` by how
    much if all of it were. Both to first order.
    """

    most: float
    net: float


def promises(
    model: nn.Module,
    encoded: EncodedTask,
    wanted: Sequence[Candidate],
    *,
    svds: Decompositions | None = None,
    progress: bool = True,
) -> dict[Candidate, Promise]:
    """By how much each candidate could lower the loss on these items.

    The loss is the mean log-loss for answers, and −log of the right texts' share for choices and pairs.
    """
    gradients = weight_gradients(model, encoded, [one.site for one in wanted], progress=progress)
    bases = {}
    for basis in {_complete_basis(one) for one in wanted}:
        sites = dict.fromkeys(one.site for one in wanted if _complete_basis(one) == basis)
        bases[basis] = decomposed(model, sites, basis=basis, svds=svds, progress=progress)
    found, slopes = {}, {}
    for one in wanted:
        parts = bases[_complete_basis(one)][one.site]
        if (one.site, parts.basis) not in slopes:
            slopes[one.site, parts.basis] = _slopes(parts, gradients[one.site])
        falls = _removed(one, parts) * slopes[one.site, parts.basis]
        found[one] = Promise(float(falls.clamp_min(0).sum()), float(falls.sum()))
    return found


def weight_gradients(
    model: nn.Module, encoded: EncodedTask, sites: Sequence[Site], *, progress: bool = True
) -> dict[Site, Float[Tensor, "d_in d_out"]]:
    """∂loss/∂W at every site, from one forward and one backward pass that leaves the parameters' gradients alone."""
    weights = _loss_weights(model, encoded)
    host = host_of(model)
    places = {site: host.place(site) for site in dict.fromkeys(sites)}
    found: dict[Site, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        for batch in tqdm(encoded.batches, desc="gradients", unit="batch", delay=1, disable=not progress):
            with _tapped(places) as (inputs, outputs):
                logits = run(model, Passage(batch.tokens, batch.mask, batch.row, batch.pos))
                loss = _loss(logits, batch, weights)
            gradients = torch.autograd.grad(loss, list(outputs.values()), allow_unused=True)
            for (joint, y), g in zip(outputs.items(), gradients, strict=True):
                at_output = torch.zeros_like(y) if g is None else g
                for site, place in places.items():
                    if site.joint == joint:
                        part = _outer(place, inputs[joint].detach(), at_output)
                        found[site] = found[site] + part if site in found else part
    return found


def _loss(logits: Float[Tensor, "place d_vocab"], batch: Batch, weights: Float[Tensor, " target"]) -> Float[Tensor, ""]:
    return (log_probs(logits, batch) * weights.to(logits.device)[batch.index.to(logits.device)]).sum()


def _outer(place: Place, x: Tensor, g: Tensor) -> Float[Tensor, "d_in d_out"]:
    """`Σ_t x_tᵀ g_t`, in fp32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return place.read_input(x).to(dtype).flatten(0, 1).mT @ place.read_output(g).to(dtype).flatten(0, 1)


def _slopes(parts: Decomposition, gradient: Float[Tensor, "d_in d_out"]) -> Float[Tensor, " component"]:
    """`∂loss/∂γ_i = s_i u_iᵀ G v_i`."""
    return parts.S * ((parts.U.mT @ gradient.to(parts.U)) * parts.Vh).sum(1)


def _complete_basis(one: Candidate) -> Basis:
    return one.edit.basis if one.edit.basis.complete else SVD()


def _removed(one: Candidate, parts: Decomposition) -> Float[Tensor, " component"]:
    """How much of each component the candidate takes away."""
    if parts.basis == one.edit.basis:
        return 1 - one.edit.gains(parts).values
    removed = torch.ones_like(parts.S)
    if isinstance(one.edit.basis, RandomizedSVD):
        removed[: one.edit.basis.rank] = 0
    return removed


def _loss_weights(model: nn.Module, encoded: EncodedTask) -> Float[Tensor, " target"]:
    """∂loss/∂(each target's log-probability), of which the loss is a function: so batches need not share a graph."""
    table = encoded.continuations
    counted = table.right & ~table.nested
    alone = len(encoded.task) == int(counted.sum())
    if isinstance(encoded.rule, Likeliest) or not alone:
        with torch.no_grad():
            said = read(encoded, lambda batch: run(model, Passage(batch.tokens, batch.mask, batch.row, batch.pos)))
        values = said.log_prob
    else:
        values = torch.zeros(len(table.target), dtype=torch.double)
    with torch.inference_mode(False), torch.enable_grad():
        values = values.clone().requires_grad_()
        summed = torch.zeros(len(table.item), dtype=torch.double).index_add(0, table.target, values)
        (weights,) = torch.autograd.grad(_mean_loss(encoded, summed), values)
    return weights.float()


def _mean_loss(encoded: EncodedTask, summed: Float[Tensor, " continuation"]) -> Float[Tensor, ""]:
    table, n = encoded.continuations, len(encoded.task)
    if not isinstance(encoded.rule, Likeliest):
        right = _logsumexp(summed, table.item, table.right & ~table.nested, n)
        return (-right / table.length[table.first[:-1]]).mean()
    divisor = {"sequence": torch.ones_like(table.length), "token": table.length, "byte": table.n_bytes}
    values = summed / divisor[encoded.rule.per]
    everything = _logsumexp(values, table.item, torch.ones_like(table.right), n)
    return (everything - _logsumexp(values, table.item, table.right, n)).mean()


def _logsumexp(values: Tensor, item: Tensor, keep: Tensor, n: int) -> Float[Tensor, " item"]:
    chosen, owner = values[keep], item[keep]
    top = torch.full((n,), -torch.inf, dtype=values.dtype).scatter_reduce(0, owner, chosen.detach(), "amax")
    return torch.zeros(n, dtype=values.dtype).index_add(0, owner, (chosen - top[owner]).exp()).log() + top


def _tapped(places: dict[Site, Place]) -> Temporary[tuple[dict[Site, Tensor], dict[Site, Tensor]]]:
    """The inputs and outputs of all matrices in the forward pass inside, the outputs in a graph."""
    inputs: dict[Site, Tensor] = {}
    outputs: dict[Site, Tensor] = {}
    taps: list[Temporary] = []
    for joint, place in {site.joint: place for site, place in places.items()}.items():

        def on_input(x: Tensor, joint: Site = joint) -> None:
            inputs[joint] = x

        def on_output(y: Tensor, joint: Site = joint) -> Tensor:
            outputs[joint] = y.clone() if y.requires_grad else y.detach().clone().requires_grad_()
            return outputs[joint]

        taps.append(place.tapped(at_input=on_input, at_output=on_output))
    return Temporary(together(*taps).things, (inputs, outputs))
