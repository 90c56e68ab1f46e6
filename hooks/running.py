"""Running a model, or only the part of it that a change can reach, for the logits that are wanted.

`run` runs all of it. `record` runs all of it too, and keeps what flows between the blocks; `rerun` starts from there at
one matrix: it skips what comes before, and computes the last MLP and the unembedding only where logits are read.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear

from hooks.hosts import host_of
from hooks.inputs import Inputs, Reads
from hooks.past import read_on
from hooks.places import Place
from hooks.recording import Recording, has_hooks, hidden, in_form_of, recorded, replayed
from hooks.sites import Site
from hooks.temporary import Forward, Hook, Temporary, together

__all__ = ["Added", "Logits", "arithmetic", "autograd", "nbytes", "record", "rerun", "reruns_reads_alone", "run"]

Logits = Float[Tensor, "*rows_or_reads d_vocab"]
"""`[read d_vocab]`, or `[row pos d_vocab]` of inputs that are read everywhere."""
Added = Callable[[Reads | None], Tensor]
"""What is added to a matrix's output: `[read 1 d_out]` where the reads run alone, else `[row pos d_out]`."""


def run(model: nn.Module, inputs: Inputs) -> Logits:
    """The logits of one pass through the whole model.

    Under hooks of the user, who may expect whole rows, all logits are computed before the wanted ones are taken.

    >>> from hooks.inputs import Inputs, Reads
    >>> run(model, Inputs(tokens)).shape
    torch.Size([3, 8, 40])
    >>> run(model, Inputs(tokens, reads=Reads(torch.tensor([0, 2]), torch.tensor([7, 5])))).shape
    torch.Size([2, 40])
    """
    reads = inputs.reads
    if reads is None or has_hooks(model):
        with _unembedding(model, None):
            logits = _forward(model, inputs)
        return logits if reads is None else reads.of(logits)
    with _unembedding(model, lambda resid: reads.of(resid).unsqueeze(0)):
        return _forward(model, inputs).flatten(0, 1)


def record(model: nn.Module, inputs: Inputs, sites: Iterable[Site] | None = None) -> tuple[Recording, Logits]:
    """A recording from which `rerun` can start at any of these sites (None: at any), and the logits of its pass."""
    with recorded(model, range(host_of(model).n_layers)) as everything:
        logits = run(model, inputs)
    if sites is None:
        return everything, logits
    # Of most outputs only the form is needed: a tensor, or a tuple of so many things.
    outputs = {
        key: in_form_of(output, hidden(output).new_empty(0))
        for key, output in everything.outputs.items()
        if key[1] != "attn"
    }
    kept = Recording(outputs=outputs)
    for site in sites:
        kept.resid_pre[site.layer] = everything.resid_pre[site.layer]
        if site.part == "mlp" and (site.layer, "attn") in everything.outputs:
            kept.outputs[site.layer, "attn"] = everything.outputs[site.layer, "attn"]
    return kept, logits


def rerun(
    model: nn.Module,
    inputs: Inputs,
    recording: Recording,
    site: Site,
    *,
    rows: Int[Tensor, " row"] | None = None,
    added: tuple[Place, Added] | None = None,
    taps: Temporary | None = None,
) -> Logits:
    """The logits as the model is now, if nothing before `site` has changed since the recording was made.

    Row r of the inputs is row `rows[r]` of the recording (None: row r). `added` changes the output of the matrix at its
    place, which is the one at `site`; `taps` are on the model during the pass, which then runs at every position.
    """
    rows = torch.arange(len(inputs)) if rows is None else rows
    # Another W_O needs attention to run; what is added to the output of W_O does not.
    known = site.part == "mlp" or added is not None
    if known and taps is None and reruns_reads_alone(model, inputs, site):
        if inputs.past is not None:
            inputs.past.skip(torch.ones_like(inputs.tokens) if inputs.mask is None else inputs.mask)
        return _from_reads(model, inputs, recording, site, rows, added)
    if added is None and taps is None and _last_mlp_can_wait(model, inputs, recording):
        reached = _last_attention(model, inputs, recording, site, rows)
        last = Site(host_of(model).n_layers - 1, "W_in")
        return _from_reads(model, inputs, reached, last, torch.arange(len(inputs)), None)
    change = None if added is None else _adding(added, None)
    with _changed(model, recording, site, rows, added and added[0], change), taps or nullcontext():
        return run(model, inputs)


def reruns_reads_alone(model: nn.Module, inputs: Inputs, site: Site) -> bool:
    """Whether nothing after the matrix at `site` mixes positions, so that `rerun` runs the reads by themselves."""
    last = site.layer == host_of(model).n_layers - 1
    mixes_nothing = site.matrix in ("W_O", "W_in", "W_gate", "W_out")
    return last and mixes_nothing and inputs.reads is not None and not has_hooks(model)


def nbytes(recording: Recording) -> int:
    """The memory that a recording holds, in bytes."""
    return sum(tensor.nbytes for tensor in (*recording.resid_pre.values(), *map(hidden, recording.outputs.values())))


@contextmanager
def arithmetic(differentiable: bool) -> Iterator[None]:
    """As `autograd`, with attention in the form that can be differentiated twice."""
    with autograd(differentiable), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def autograd(on: bool) -> Iterator[None]:
    """With or without a graph, whatever the caller's mode."""
    # The outer block changes nothing on the way in; on the way out it restores the mode where an interrupt strikes
    # within the exit of the inner one, which would leave autograd off for good.
    with (
        torch.set_grad_enabled(torch.is_grad_enabled()),
        torch.inference_mode(False),
        torch.set_grad_enabled(on),
    ):
        yield


def _forward(model: nn.Module, inputs: Inputs) -> Float[Tensor, "row2 pos2 d_vocab"]:
    # Without a mask TransformerLens makes one of its own, from the padding side and the padding token.
    if inputs.past is not None:
        return read_on(model, inputs.tokens, inputs.mask, inputs.past)
    if inputs.mask is None:
        return model(inputs.tokens, return_type="logits")
    return model(inputs.tokens, attention_mask=inputs.mask.long(), return_type="logits")


def _changed(
    model: nn.Module,
    recording: Recording,
    site: Site,
    rows: Int[Tensor, " row"],
    place: Place | None,
    change: Callable[[Tensor], Tensor] | None,
) -> Temporary[None]:
    """Replay from `site` on, with the matrix's output changed on the way."""
    # W_O and W_out end their half of the block: the recorded output is changed, and the half not computed at all.
    if place is None or change is None or site.matrix in ("W_O", "W_out"):
        return replayed(model, recording, site, rows, change=change)
    return together(replayed(model, recording, site, rows), place.tapped(at_output=change))


def _adding(added: tuple[Place, Added], reads: Reads | None) -> Callable[[Tensor], Tensor]:
    place, amount = added
    return lambda activation: place.add_to_output(activation, amount(reads))


def _from_reads(
    model: nn.Module,
    inputs: Inputs,
    recording: Recording,
    site: Site,
    rows: Int[Tensor, " row"],
    added: tuple[Place, Added] | None,
) -> Float[Tensor, "read d_vocab"]:
    """The logits from a matrix of the last block behind which nothing mixes positions: each read is a row by itself."""
    assert inputs.reads is not None
    last, reads = host_of(model).n_layers - 1, inputs.reads
    at = Reads(rows.to(reads.row.device)[reads.row], reads.pos)
    outputs = dict(recording.outputs)
    for part in ("attn", "mlp"):
        output = outputs.get((last, part))
        if output is not None and hidden(output).ndim == 3:  # a stand-in for an output has no positions
            outputs[last, part] = in_form_of(output, at.of(hidden(output)).unsqueeze(1))
    single = Recording({last: at.of(recording.resid_pre[last]).unsqueeze(1)}, outputs)
    change = None if added is None else _adding(added, reads)
    each = torch.arange(len(reads.row))
    start = site if change is not None or site.part == "attn" else Site(last, "W_in")
    with _changed(model, single, start, each, added and added[0], change), _unembedding(model, None):
        return _forward(model, Inputs(reads.of(inputs.tokens).unsqueeze(1))).squeeze(1)


def _last_mlp_can_wait(model: nn.Module, inputs: Inputs, recording: Recording) -> bool:
    """Whether the last MLP is worth running at the reads alone, after attention has run everywhere."""
    last = host_of(model).n_layers - 1
    return inputs.reads is not None and not has_hooks(model) and (last, "mlp") in recording.outputs


def _last_attention(
    model: nn.Module, inputs: Inputs, recording: Recording, site: Site, rows: Int[Tensor, " row"]
) -> Recording:
    """What flows into the last block, and what its attention returns."""
    last = host_of(model).n_layers - 1
    with (
        replayed(model, recording, site, rows),
        _mlp_skipped(model.blocks[last].mlp, recording.outputs[last, "mlp"]),  # type: ignore[index, union-attr]
        recorded(model, range(last, last + 1)) as reached,
        _unembedding(model, lambda resid: resid[:, :0]),
    ):
        _forward(model, inputs)
    return Recording(
        {last: reached.resid_pre[last]}, {**recording.outputs, (last, "attn"): reached.outputs[last, "attn"]}
    )


def _mlp_skipped(mlp: nn.Module, recorded_output: object) -> Temporary[None]:
    """The MLP returns zeros, in the form in which it returned its output."""

    def forward(*args: object, **kwargs: object) -> object:
        activation = args[0] if args else next(iter(kwargs.values()))
        return in_form_of(recorded_output, torch.zeros_like(activation))  # type: ignore[arg-type]

    return Temporary([Forward(mlp, forward)])


def _unembedding(model: nn.Module, choose: Callable[[Tensor], Tensor] | None) -> Temporary[None]:
    """Unembed only what `choose` takes of the last residual: the unembedding is often a third of a model's work."""
    unembed = model.unembed
    assert isinstance(unembed, nn.Module)
    things: list[Hook | Forward] = []
    if choose is not None:
        things.append(Hook(unembed, "input", lambda _module, args: (choose(args[0]), *args[1:])))
    if _is_transformer_lens_own(unembed) and "forward" not in unembed.__dict__:
        things.append(Forward(unembed, _without_copy(unembed)))
    return Temporary(things)


def _is_transformer_lens_own(unembed: nn.Module) -> bool:
    kind = type(unembed)
    return kind.__module__ == "transformer_lens.components.unembed" and kind.__name__ == "Unembed"


def _without_copy(unembed: nn.Module) -> Callable[..., object]:
    """The same product up to rounding: HookedTransformer's copies all of W_U in every call (transformer-lens 3.9)."""

    def forward(residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        return unembed.hook_out(linear(unembed.hook_in(residual), unembed.W_U.T, unembed.b_U))  # type: ignore[operator, union-attr, arg-type]

    return forward
