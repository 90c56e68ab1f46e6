"""HookedTransformer: where it keeps each matrix, and what flows in and out of it there."""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOptionalMemberAccess=false, reportReturnType=false, reportOperatorIssue=false, reportOptionalOperand=false

from typing import final

from torch import Tensor, nn

from hooks.ends import End, Hidden
from hooks.host import SPLIT_INPUTS, Host
from hooks.places import Layout, Place
from hooks.shadows import Slot
from hooks.sites import MATRICES, Site

__all__ = ["HookedTransformerHost"]

# What attention calls its three inputs; the MLP and the other modules take theirs by position.
_READERS = {"W_Q": "query_input", "W_K": "key_input", "W_V": "value_input"}


@final
class HookedTransformerHost(Host):
    """TransformerLens's own implementation: one parameter per matrix, `[head, d_model, d_head]` in attention."""

    _holds_a_part = True

    def _missing(self, site: Site) -> str | None:
        block = self.model.blocks[site.layer]
        owner = getattr(block, site.part, None)
        if owner is None:
            return f"this model is attention-only, so {site.prefix} has no {site.part}"
        # `_parameters`, not attributes: grouped-query attention shows W_K and W_V as properties that repeat its `_W_K`
        # and `_W_V` for every query head. An edit of what is shown would be an edit of a copy.
        if self._stored_name(owner, site.matrix) not in owner._parameters:
            matrices = [name.lstrip("_") for name in owner._parameters if name.lstrip("_") in MATRICES]
            held = ", ".join(matrices) or f"no matrix of its own but {', '.join(owner._modules) or 'nothing'}"
            return f"{site.prefix}.{site.part} is a {type(owner).__name__}, which holds {held}"
        return None

    def _stored(self, site: Site) -> tuple[nn.Module, Tensor | None]:
        owner = getattr(self.model.blocks[site.layer], site.part)
        return owner, owner._parameters[self._stored_name(owner, site.matrix)]

    def weight_state(self) -> str:
        # Folding LayerNorm into the weights turns LN into LNPre and RMS into RMSPre.
        folded = (self.model.cfg.normalization_type or "").endswith("Pre")
        return "LayerNorm folded (LNPre or RMSPre)" if folded else "raw"

    def _stored_name(self, owner: nn.Module, matrix: str) -> str:
        return f"_{matrix}" if f"_{matrix}" in owner._parameters else matrix

    def _joint_place(self, site: Site) -> Place:
        owner = getattr(self.model.blocks[site.layer], site.part)
        name = self._stored_name(owner, site.matrix)
        stored = owner._parameters[name]
        layout, n_heads = Layout("d_in d_out -> d_in d_out"), None
        # The head axis becomes columns of W_Q, W_K and W_V, and rows of W_O: y = x W with the heads side by side.
        if site.matrix == "W_O":
            n_heads, d_head, _ = stored.shape
            layout = Layout("head d_head d_out -> (head d_head) d_out", (("head", n_heads), ("d_head", d_head)))
        elif site.part == "attn":
            n_heads, _, d_head = stored.shape
            layout = Layout("head d_in d_head -> d_in (head d_head)", (("head", n_heads), ("d_head", d_head)))
        d_in, d_out = layout.to_matrix(stored).shape
        slot = Slot(owner, name, f"{site.prefix}.{site.part}.{name}")
        reads, writes = self._input(site), self._output(site)
        return Place(site, (slot,), layout, d_in, d_out, n_heads, reads, writes, self._bias(site, owner, name))

    def _bias(self, site: Site, owner: nn.Module, name: str) -> Slot | None:
        bias = name.replace("W_", "b_")
        gated_input = site.matrix == "W_gate" or (site.matrix == "W_in" and "W_gate" in owner._parameters)
        if gated_input or bias not in owner._parameters:  # a gated MLP adds b_in after the product with the gate
            return None
        return Slot(owner, bias, f"{site.prefix}.{site.part}.{bias}")

    def _input(self, site: Site) -> End:
        block = self.model.blocks[site.layer]
        if site.matrix == "W_O":
            return End(block.attn.hook_z, None, "last", f"{site.prefix}.attn.hook_z")
        if site.matrix == "W_out":
            # A gated MLP multiplies activation and gate before this hook, so that W_out reads the product.
            return End(block.mlp.hook_post, None, "last", f"{site.prefix}.mlp.hook_post")
        # The other matrices read the residual stream, through `ln1` or `ln2` where the model has them. TransformerLens
        # shows what a normalisation divides by its scale before its own gain and bias (`norm` below applies them).
        norm = getattr(block, "ln1" if site.part == "attn" else "ln2", None)
        hook = self._shown_input(site, norm)
        divided = isinstance(hook, str) and hook.endswith("hook_normalized") and "w" in norm._parameters
        argument = _READERS[site.matrix] if site.part == "attn" else 0
        # Attention is handed its three inputs one by one. An MLP is handed one, which W_gate and W_in both read.
        shared = site.part == "mlp" and "W_gate" in block.mlp._parameters
        return End(getattr(block, site.part), argument, "last", hook, norm if divided else None, shared)

    def _shown_input(self, site: Site, norm: nn.Module | None) -> str | Hidden:
        """The hook point that shows what a matrix reads from the residual stream."""
        cfg = self.model.cfg
        # Shortformer adds positions to what queries and keys read, and not to the stream that a hook point shows.
        if cfg.positional_embedding_type == "shortformer" and site.matrix in ("W_Q", "W_K"):
            return Hidden("positions are added after the normalisation")
        for flag in SPLIT_INPUTS if site.part == "attn" else ():
            if getattr(cfg, flag, False):
                return Hidden(f"{flag} gives every head an input of its own")
        if not hasattr(norm, "hook_normalized"):  # without normalisation the stream itself is read
            if site.part == "mlp" and getattr(cfg, "use_hook_mlp_in", False):
                return Hidden("use_hook_mlp_in copies the input before the matrix reads it")
            # In a parallel block attention and MLP read the same stream, and there is no `hook_resid_mid`.
            before_attention = site.part == "attn" or cfg.parallel_attn_mlp
            return f"{site.prefix}.{'hook_resid_pre' if before_attention else 'hook_resid_mid'}"
        if _is_post_norm(cfg):
            return Hidden("this architecture normalises after the matrix, not before")
        return f"{site.prefix}.{'ln1' if site.part == 'attn' else 'ln2'}.hook_normalized"

    def _output(self, site: Site) -> End:
        block, cfg = self.model.blocks[site.layer], self.model.cfg
        if site.matrix in ("W_O", "W_out"):
            name = "hook_attn_out" if site.matrix == "W_O" else "hook_mlp_out"
            hook: str | Hidden = f"{site.prefix}.{name}"
            # What the module returns is the matrix's output in every case. Only the hook point of that name may show
            # something else.
            if site.matrix == "W_O" and cfg.use_attn_result:
                hook = Hidden("use_attn_result shows the result of each head before they are summed")
            elif cfg.use_normalization_before_and_after or _is_post_norm(cfg):
                hook = Hidden(f"{name} lies after another normalisation")
            return End(getattr(block, site.part), None, "first", hook)
        name = f"hook_{site.matrix[-1].lower()}"
        if site.part == "mlp":
            # `hook_pre` shows what the activation function reads: the gate's product where there is a gate.
            gated_linear = site.matrix == "W_in" and hasattr(block.mlp, "hook_pre_linear")
            name = "hook_pre_linear" if gated_linear else "hook_pre"
        module = getattr(getattr(block, site.part), name)
        return End(module, None, "first", f"{site.prefix}.{site.part}.{name}")


def _is_post_norm(cfg: object) -> bool:
    """OLMo 2 and 3: `ln1` and `ln2` act on the outputs of attention and MLP."""
    return getattr(cfg, "original_architecture", None) in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
