"""TransformerBridge: where it keeps each matrix, and what flows in and out of it there."""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOptionalMemberAccess=false, reportReturnType=false, reportOperatorIssue=false, reportOptionalOperand=false

from typing import final

from torch import Tensor, nn

from hooks.ends import End, Hidden
from hooks.host import SPLIT_INPUTS, Host
from hooks.places import Layout, Place
from hooks.shadows import Slot
from hooks.sites import MATRICES, Site

__all__ = ["BridgeHost"]

# What a bridge calls its wrapped layers, in every architecture.
_PROJECTIONS = dict(zip(MATRICES, ("q", "k", "v", "o", "in", "gate", "out"), strict=True))


@final
class BridgeHost(Host):
    """TransformerBridge: Hugging Face's own layers, wrapped; `[d_out, d_in]` in Linear, `[d_in, d_out]` in Conv1D."""

    _holds_a_part = False

    def _missing(self, site: Site) -> str | None:
        block = self.model.blocks[site.layer]
        container = block._modules.get(site.part)
        if container is None:
            return f"{site.prefix} has no {site.part}: it holds {', '.join(_bridges(block))}"
        # A mixture of experts has a router and a list of experts here, and no layers called in and out.
        if site.part == "mlp" and not {"in", "out"} <= set(_bridges(container)):
            return f"{site.prefix}.mlp is a {type(container).__name__}, whose weights are not one matrix per layer"
        layer = self._layer(site)
        if layer is None:
            held = [matrix for matrix, projection in _PROJECTIONS.items() if projection in _bridges(container)]
            what = ", ".join(held) or "no matrix that can be edited"
            return f"{site.prefix}.{site.part} is a {type(container).__name__}, which holds {what}"
        if _orientation(layer) is None:
            name = f"{site.prefix}.{site.part}.{_PROJECTIONS[site.matrix]}"
            kind = f"{type(layer).__module__}.{type(layer).__name__}"
            # An adapter adds a product of its own to the layer's: the layer's weight is not the whole matrix.
            adapter = " (merge an adapter into the weights first: merge_and_unload())" if "peft" in kind else ""
            return f"{name} is a {kind}, not a plain linear layer{adapter}"
        return None

    def _stored(self, site: Site) -> tuple[nn.Module, Tensor | None]:
        return (layer := self._layer(site)), layer.weight

    def weight_state(self) -> str:
        # Compatibility mode sets it when it folds LayerNorm or centres weights. Which of the two, it does not say.
        processed = getattr(self.model, "_weights_processed", False)
        return "processed (LayerNorm folded or weights centred)" if processed else "raw"

    def _layer(self, site: Site) -> nn.Module | None:
        """The wrapped Hugging Face layer (through `_modules`: `bridge.attn.W_Q` and its like are processed copies)."""
        container = self.model.blocks[site.layer]._modules[site.part]
        bridge = container._modules.get(_PROJECTIONS[site.matrix])
        return None if bridge is None else getattr(bridge, "original_component", None)

    def _joint_place(self, site: Site) -> Place:
        layer, container = self._layer(site), self.model.blocks[site.layer]._modules[site.part]
        assert layer is not None and container is not None
        projection = _PROJECTIONS[site.matrix]
        label = f"{site.prefix}.{site.part}.{projection}.original_component"
        # In compatibility mode some containers multiply by the layer's weight themselves. It is then the container's
        # forward pass that has to notice an edit which was left behind by a move to another device.
        reader = container if getattr(container, "_use_processed_weights", False) else None
        weight, bias = (Slot(layer, name, f"{label}.{name}", reader) for name in ("weight", "bias"))
        slots = (weight,)
        # A forward pass reads the processed copy first; the wrapped layer's own weight has to agree with it.
        if f"_processed_{site.matrix}" in container.__dict__:  # gated MLPs of 3.9.0 in compatibility mode
            names = f"_processed_{site.matrix}", f"_processed_{site.matrix.replace('W_', 'b_')}"
            slots = (Slot(container, names[0], f"{site.prefix}.mlp.{names[0]}", reader, weight), weight)
            bias = Slot(container, names[1], f"{site.prefix}.mlp.{names[1]}", reader, bias)
        # Also for attention: Hugging Face stores heads side by side, so that there is no head axis to move.
        layout = Layout(_orientation(layer) or "")
        d_in, d_out = layout.to_matrix(slots[0].registered()).shape
        n_heads = self.n_heads(site.matrix) if site.part == "attn" else None
        return Place(site, slots, layout, d_in, d_out, n_heads, *self._ends(site, layer), bias)

    def _ends(self, site: Site, layer: nn.Module) -> tuple[End, End]:
        container = self.model.blocks[site.layer]._modules[site.part]
        projection = _PROJECTIONS[site.matrix]
        prefix = f"{site.prefix}.{site.part}.{projection}"
        bridge = container._modules[projection]
        # Such a container multiplies by hand, past the wrapped layers, so that a hook on a layer would never fire. It
        # calls the hook points, which are modules too.
        if getattr(container, "_use_processed_weights", False):
            output = End(bridge.hook_out, None, "first", f"{prefix}.hook_out")
            if site.matrix == "W_out":
                return End(bridge.hook_in, None, "last", f"{prefix}.hook_in"), output
            return End(container.hook_in, None, "last", f"{site.prefix}.mlp.hook_in", shared=True), output
        reads, writes = f"{prefix}.hook_in", f"{prefix}.hook_out"
        for flag in (*SPLIT_INPUTS, "use_attn_result") if site.part == "attn" else ():
            if getattr(self.model.cfg, flag, False):
                reads = writes = Hidden(f"{flag} bypasses {prefix}")
        return End(layer, 0, "last", reads), End(layer, None, "first", writes)


def _orientation(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.Linear):
        return "d_out d_in -> d_in d_out"
    # By its name: transformers has moved GPT-2's Conv1D between modules.
    return "d_in d_out -> d_in d_out" if type(layer).__name__ == "Conv1D" else None


def _bridges(container: nn.Module) -> list[str]:
    return [name for name, module in container._modules.items() if hasattr(module, "original_component")]
