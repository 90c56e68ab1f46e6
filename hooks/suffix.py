"""Logits at chosen places, from only the part of a model that comes after one matrix.

`record` runs the whole model on a batch and keeps what flows into some of its blocks; `rerun` starts from there, skips
what comes before, and in the last block computes the MLP and the unembedding at the chosen places alone. A place is a
row and a position, so batches may be ragged.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooks.hosts import host_of
from hooks.replay import Recording, Rows, has_hooks, hidden, recorded, replayed
from hooks.sites import Site
from hooks.temporary import Forward, Temporary
from hooks.unembedding import nothing_unembedded, unembedding_at, unembedding_only

__all__ = ["Passage", "nbytes", "record", "rerun", "run"]


@final
@dataclass(frozen=True, slots=True)
class Passage:
    """A padded batch, and the places of it whose logits are wanted; the mask is 1 at tokens and 0 at padding."""

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    row: Int[Tensor, " place"]
    pos: Int[Tensor, " place"]


def run(model: nn.Module, passage: Passage) -> Float[Tensor, "place d_vocab"]:
    """The logits at the places, by one pass through the whole model."""
    with unembedding_at(model, passage.row, passage.pos):
        return _logits(model, passage.tokens, passage.mask).flatten(0, 1)


def record(
    model: nn.Module, passage: Passage, sites: Iterable[Site]
) -> tuple[Recording, Float[Tensor, "place d_vocab"]]:
    """What `rerun` needs to start at any of these sites, and the logits of the pass that it was recorded in."""
    layers = range(host_of(model).n_layers)
    with recorded(model, layers) as everything:
        logits = run(model, passage)
    kept = Recording(outputs={key: _form(output) for key, output in everything.outputs.items() if key[1] != "attn"})
    for site in sites:
        kept.resid_pre[site.layer] = everything.resid_pre[site.layer]
        if site.part == "mlp" and (site.layer, "attn") in everything.outputs:
            kept.outputs[site.layer, "attn"] = everything.outputs[site.layer, "attn"]
    return kept, logits


def rerun(model: nn.Module, passage: Passage, recording: Recording, site: Site) -> Float[Tensor, "place d_vocab"]:
    """The logits at the places as the model is now, if nothing before `site`'s half of its block has changed since."""
    last = host_of(model).n_layers - 1
    if has_hooks(model) or (last, "mlp") not in recording.outputs:
        rows = Rows(torch.arange(len(passage.tokens)))
        with replayed(model, recording, site, rows):
            return run(model, passage)
    if site.layer == last and site.part == "mlp":
        return _last_mlp(model, passage, recording)
    return _last_mlp(model, passage, _last_attention(model, passage, recording, site))


def nbytes(recording: Recording) -> int:
    """The memory that a recording holds, in bytes."""
    return sum(tensor.nbytes for tensor in (*recording.resid_pre.values(), *map(hidden, recording.outputs.values())))


def _last_attention(model: nn.Module, passage: Passage, recording: Recording, site: Site) -> Recording:
    """What flows into the last block and what its attention makes of it."""
    last = host_of(model).n_layers - 1
    rows = Rows(torch.arange(len(passage.tokens)))
    with (
        replayed(model, recording, site, rows),
        _mlp_skipped(model.blocks[last].mlp, recording.outputs[last, "mlp"]),  # type: ignore[index, union-attr]
        recorded(model, range(last, last + 1)) as reached,
        nothing_unembedded(model),
    ):
        _logits(model, passage.tokens, passage.mask)
    outputs = {**recording.outputs, (last, "attn"): reached.outputs[last, "attn"]}
    return Recording({last: reached.resid_pre[last]}, outputs)


def _last_mlp(model: nn.Module, passage: Passage, recording: Recording) -> Float[Tensor, "place d_vocab"]:
    """The logits from the last block's input and attention; each place is a sequence, as nothing mixes positions."""
    last = host_of(model).n_layers - 1
    row, pos = passage.row, passage.pos
    outputs = dict(recording.outputs)
    attention = outputs[last, "attn"]
    taken = hidden(attention)[row, pos].unsqueeze(1)
    outputs[last, "attn"] = (taken, *attention[1:]) if isinstance(attention, tuple) else taken
    places = Recording({last: recording.resid_pre[last][row, pos].unsqueeze(1)}, outputs)
    tokens = passage.tokens[row, pos].unsqueeze(1)
    only = Rows(torch.arange(len(row)))
    with replayed(model, places, Site(last, "W_out"), only), unembedding_only(model, None):
        return _logits(model, tokens, torch.ones_like(tokens)).squeeze(1)


def _logits(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch2 pos2 d_vocab"]:
    return model(tokens, attention_mask=mask, return_type="logits")


def _mlp_skipped(mlp: nn.Module, recorded_output: object) -> Temporary[None]:
    """The MLP returns zeros, in the form in which it returned its output."""

    def forward(*args: object, **kwargs: object) -> object:
        given = args[0] if args else next(iter(kwargs.values()))
        zeros = torch.zeros_like(given)  # type: ignore[arg-type]
        return (zeros, *recorded_output[1:]) if isinstance(recorded_output, tuple) else zeros

    return Temporary([Forward(mlp, forward)])


def _form(output: object) -> object:
    """A stand-in for an output of which only the form is needed: a tensor, or a tuple of so many things."""
    empty = hidden(output).new_empty(0)
    return (empty, *output[1:]) if isinstance(output, tuple) else empty
