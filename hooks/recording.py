"""Recordings of what flows between the blocks of a model, and replaying them up to the matrix where a change begins.

Replaying works alike on HookedTransformer and TransformerBridge: it replaces the `forward` of whole modules (blocks,
attention, MLP) in their instance dictionaries for the length of a `with` block, and asks nothing of the model's own
loop.
"""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false, reportOptionalMemberAccess=false, reportReturnType=false

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from hooks.ends import is_of_an_end
from hooks.sites import Site
from hooks.temporary import Forward, Hook, Temporary

__all__ = ["Recording", "has_hooks", "hidden", "recorded", "replayed", "skipped"]

Part = Literal["block", "attn", "mlp"]


@dataclass(slots=True)
class Recording:
    """What flowed through the blocks in one forward pass: into each, and what each and its halves returned."""

    resid_pre: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[tuple[int, Part], object] = field(default_factory=dict)

    def output(self, layer: int, part: Part) -> Float[Tensor, "batch pos d_model"]:
        """The activation that a module returned, without what else it returned."""
        return hidden(self.outputs[layer, part])


def recorded(model: nn.Module, layers: range) -> Temporary[Recording]:
    """An empty recording, filled by the forward pass inside the `with` block; hooks that are active take part."""
    recording = Recording()
    put: list[Hook] = []
    for layer in layers:
        block = model.blocks[layer]

        def keep_input(_module: nn.Module, args: tuple, kwargs: dict, layer: int = layer) -> None:
            recording.resid_pre[layer] = _block_input(args, kwargs).detach()

        put.append(Hook(block, "input", keep_input, with_kwargs=True))
        for part, module in _parts(block).items():

            def keep_output(_m: nn.Module, _a: tuple, out: object, key: tuple[int, Part] = (layer, part)) -> None:
                recording.outputs[key] = _detached(out)

            put.append(Hook(module, "output", keep_output))
    return Temporary(put, recording)


def replayed(
    model: nn.Module,
    recording: Recording,
    site: Site,
    rows: Int[Tensor, " row"],
    *,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Temporary[None]:
    """Run only what lies after `site`'s input, on these rows of the recording, inside the `with` block.

    Blocks before the site's are skipped; inside its block, attention is skipped if the site is in the MLP. `change`
    gives a new output for the half that W_O or W_out ends, which is then not computed at all. Run the model on as many
    token rows as there are rows.
    """
    blocks = model.blocks
    block = blocks[site.layer]
    put: list[Hook | Forward] = []
    for layer in range(site.layer):
        put.append(skipped(blocks[layer], recording.outputs[layer, "block"]))
    feed = _feed(_rows_of(recording.resid_pre[site.layer], rows))
    put.append(Hook(block, "input", feed, with_kwargs=True, prepend=True))
    if site.part == "mlp" and (site.layer, "attn") in recording.outputs:
        put.append(_returning(_parts(block)["attn"], recording, (site.layer, "attn"), rows, None))
    if change is not None:
        put.append(_returning(_parts(block)[site.part], recording, (site.layer, site.part), rows, change))
    return Temporary(put)


def has_hooks(model: nn.Module) -> bool:
    """Whether somebody's hooks are on the model: they may expect the batch and positions they were written for."""
    points = model.hook_dict.values()
    found = (hook for point in points for hook in (*point._forward_hooks.values(), *point._backward_hooks.values()))
    return not all(is_of_an_end(hook) for hook in found)


def hidden(output: object) -> Tensor:
    """The activation in what a module returned: the tensor itself, or the first of a tuple."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def in_form_of(output: object, activation: Tensor) -> object:
    """The activation, in the form in which a module returned its output: a tensor, or the first of a tuple."""
    return (activation, *output[1:]) if isinstance(output, tuple) else activation


def _rows_of(activation: Float[Tensor, "batch pos d_model"], rows: Int[Tensor, " row"]) -> Tensor:
    return activation[rows.to(activation.device)]


def _parts(block: nn.Module) -> dict[Part, nn.Module]:
    modules: dict[Part, nn.Module | None] = {
        "block": block, "attn": block._modules.get("attn"), "mlp": block._modules.get("mlp")
    }  # fmt: skip
    return {part: module for part, module in modules.items() if module is not None}


def _block_input(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _feed(resid: Tensor) -> Callable[[nn.Module, tuple, dict], tuple[tuple, dict]]:
    def feed(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (resid, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": resid}

    return feed


def skipped(block: nn.Module, recorded_output: object) -> Forward:
    """The block hands its input on, in the form in which it returned its output."""

    def forward(*args: object, **kwargs: object) -> object:
        return in_form_of(recorded_output, _block_input(args, kwargs))

    return Forward(block, forward)


def _returning(
    module: nn.Module,
    recording: Recording,
    key: tuple[int, Part],
    rows: Int[Tensor, " row"],
    change: Callable[[Tensor], Tensor] | None,
) -> Forward:
    """The module returns what was recorded, changed, without computing anything."""
    output = recording.outputs[key]

    def forward(*_args: object, **_kwargs: object) -> object:
        taken = _rows_of(hidden(output), rows)
        if change is not None:
            taken = change(taken)
        return (taken, *(None for _ in output[1:])) if isinstance(output, tuple) else taken

    return Forward(module, forward)


def _detached(output: object) -> object:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, tuple):
        return tuple(_detached(item) for item in output)
    return output
