"""The models that can be operated on, and where each keeps its matrices: the only module that knows.

`HookedTransformer` and `TransformerBridge` (TransformerLens 3.9 has both, 4.x the bridge only) are recognised by the
names of their classes, so that neither has to be imported.
"""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOptionalMemberAccess=false, reportReturnType=false, reportOperatorIssue=false, reportOptionalOperand=false

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar, final
from weakref import ref

import torch
from torch import Tensor, nn

from hooks.compiled import compiled_error
from hooks.ends import End, Hidden
from hooks.places import Layout, Place
from hooks.records import record_of
from hooks.shadows import Slot
from hooks.sites import MATRICES, Matrix, Site, SiteError

__all__ = ["BridgeHost", "HookedTransformerHost", "Host", "host_of"]

_SPLIT_INPUTS = ("use_split_qkv_input", "use_attn_in")
_READERS = {"W_Q": "query_input", "W_K": "key_input", "W_V": "value_input"}
_PROJECTIONS = dict(zip(MATRICES, ("q", "k", "v", "o", "in", "gate", "out"), strict=True))


class Host(ABC):
    """A model, seen as places that hold matrices; from `host_of`, one for each model.

    It remembers nothing about the model: modules, parameters and settings may change between two calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = ref(model)  # weak: the model's record holds the host, and must not keep the model alive

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        model = self._model()
        assert model is not None, "whoever asks a host about a model holds that model"
        return model

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self.model.blocks)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.model.cfg.d_model)

    @property
    def d_mlp(self) -> int:
        """The width of an MLP, or what is usual where the configuration does not say."""
        return int(getattr(self.model.cfg, "d_mlp", None) or 4 * self.d_model)

    @property
    def d_vocab(self) -> int:
        """How many tokens the model knows."""
        return int(self.model.cfg.d_vocab)

    @property
    def n_ctx(self) -> int | None:
        """How many positions the model reads at most; None where nothing says so."""
        return getattr(self.model.cfg, "n_ctx", None)

    @property
    def device(self) -> torch.device:
        """The device that the model's tokens go to."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's parameters."""
        return next(self.model.parameters()).dtype

    @property
    def every_site(self) -> list[Site]:
        """Every matrix that a model of so many layers may have, editable or not."""
        return [Site(layer, matrix) for layer in range(self.n_layers) for matrix in MATRICES]

    def joint_sites(self) -> list[Site]:
        """Every editable matrix of the model, joint over heads, in the order of the forward pass."""
        n_uses = self._n_uses()
        return [site for site in self.every_site if self.why_not(site, n_uses) is None]

    def place(self, site: Site) -> Place:
        """Where the matrix of `site` lives.

        Raises:
            SiteError: if this model has no such matrix, or has it in a form that cannot be edited; the text says which.
        """
        return self.places([site])[site]

    def places(self, sites: Iterable[Site]) -> dict[Site, Place]:
        """Where each of several matrices lives; the model is searched for shared modules once for all of them.

        Raises:
            SiteError: as `place`.
        """
        n_uses = self._n_uses()
        return {site: self._place(site, n_uses) for site in sites}

    def n_heads(self, matrix: Matrix) -> int:
        """How many heads the layer's matrix has: key-value heads for W_K and W_V."""
        cfg = self.model.cfg
        grouped = getattr(cfg, "n_key_value_heads", None) if matrix in ("W_K", "W_V") else None
        return grouped or cfg.n_heads

    def _place(self, site: Site, n_uses: Mapping[int, int]) -> Place:
        if site.layer >= self.n_layers:
            raise SiteError(
                f"no matrix is named '{site}': this model has {self.n_layers} layers, blocks.0 to "
                f"blocks.{self.n_layers - 1}. List all with surgery.sites(model)."
            )
        if reason := self.why_not(site.joint, n_uses):
            raise SiteError(f"'{site}' cannot be edited: {reason}. List what can with surgery.sites(model).")
        place = self._joint_place(site.joint)
        if site.head is None:
            return place
        if place.n_heads is None or site.head >= place.n_heads:
            heads = f"{place.n_heads} heads, 0 to {place.n_heads - 1}" if place.n_heads else "no heads"
            raise SiteError(f"no head is named '{site}': {site.joint} has {heads}. List all with surgery.sites(model).")
        return place.at_head(site.head)

    def why_not(self, site: Site, n_uses: Mapping[int, int] | None = None) -> str | None:
        """Why the model's matrix at `site` cannot be edited, or None if it can."""
        if reason := self._missing(site):
            return reason
        owner, weight = self._stored(site)
        if (self._n_uses() if n_uses is None else n_uses)[id(owner)] > 1:
            return (
                f"{site.prefix}.{site.part} is used in several places of this model, so that an edit in one would be "
                "an edit in all (give each place a copy: copy.deepcopy)"
            )
        return _no_floats(weight, site)

    def _n_uses(self) -> Counter[int]:
        """For each module that holds weights (by its id), in how many parts of the model it stands."""
        owners = {
            (site.layer, site.part if self._holds_a_part else site.matrix): id(self._stored(site)[0])
            for site in self.every_site
            if self._missing(site) is None
        }
        return Counter(owners.values())

    _holds_a_part: ClassVar[bool]
    """Whether one module holds all matrices of a layer's attention or MLP."""

    @abstractmethod
    def _missing(self, site: Site) -> str | None:
        """Why there is no parameter that holds the matrix at `site` alone, or None if there is."""

    @abstractmethod
    def _stored(self, site: Site) -> tuple[nn.Module, Tensor | None]:
        """The module that holds the matrix at `site`, and the parameter."""

    @abstractmethod
    def weight_state(self) -> str:
        """Whether the weights are raw, or were processed: which normalisation was folded into them."""

    @abstractmethod
    def _joint_place(self, site: Site) -> Place: ...


@final
class HookedTransformerHost(Host):
    """TransformerLens's own implementation: one parameter per matrix, `[head, d_model, d_head]` in attention."""

    _holds_a_part = True

    def _missing(self, site: Site) -> str | None:
        block = self.model.blocks[site.layer]
        owner = getattr(block, site.part, None)
        if owner is None:
            return f"this model is attention-only, so {site.prefix} has no {site.part}"
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
            return End(block.mlp.hook_post, None, "last", f"{site.prefix}.mlp.hook_post")
        # The other matrices read the residual stream, through `ln1` or `ln2` where the model has them. TransformerLens
        # shows what a normalisation divides by its scale before its own gain and bias (`norm` below applies them).
        norm = getattr(block, "ln1" if site.part == "attn" else "ln2", None)
        hook = self._shown_input(site, norm)
        divided = isinstance(hook, str) and hook.endswith("hook_normalized") and "w" in norm._parameters
        argument = _READERS[site.matrix] if site.part == "attn" else 0
        shared = site.part == "mlp" and "W_gate" in block.mlp._parameters
        return End(getattr(block, site.part), argument, "last", hook, norm if divided else None, shared)

    def _shown_input(self, site: Site, norm: nn.Module | None) -> str | Hidden:
        """The hook point that shows what a matrix reads from the residual stream."""
        cfg = self.model.cfg
        if cfg.positional_embedding_type == "shortformer" and site.matrix in ("W_Q", "W_K"):
            return Hidden("positions are added after the normalisation")
        for flag in _SPLIT_INPUTS if site.part == "attn" else ():
            if getattr(cfg, flag, False):
                return Hidden(f"{flag} gives every head an input of its own")
        if not hasattr(norm, "hook_normalized"):  # without normalisation the stream itself is read
            if site.part == "mlp" and getattr(cfg, "use_hook_mlp_in", False):
                return Hidden("use_hook_mlp_in copies the input before the matrix reads it")
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
            if site.matrix == "W_O" and cfg.use_attn_result:
                hook = Hidden("use_attn_result shows the result of each head before they are summed")
            elif cfg.use_normalization_before_and_after or _is_post_norm(cfg):
                hook = Hidden(f"{name} lies after another normalisation")
            return End(getattr(block, site.part), None, "first", hook)
        name = f"hook_{site.matrix[-1].lower()}"
        if site.part == "mlp":
            gated_linear = site.matrix == "W_in" and hasattr(block.mlp, "hook_pre_linear")
            name = "hook_pre_linear" if gated_linear else "hook_pre"
        module = getattr(getattr(block, site.part), name)
        return End(module, None, "first", f"{site.prefix}.{site.part}.{name}")


@final
class BridgeHost(Host):
    """TransformerBridge: Hugging Face's own layers, wrapped; `[d_out, d_in]` in Linear, `[d_in, d_out]` in Conv1D."""

    _holds_a_part = False

    def _missing(self, site: Site) -> str | None:
        block = self.model.blocks[site.layer]
        container = block._modules.get(site.part)
        if container is None:
            return f"{site.prefix} has no {site.part}: it holds {', '.join(_bridges(block))}"
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
            adapter = " (merge an adapter into the weights first: merge_and_unload())" if "peft" in kind else ""
            return f"{name} is a {kind}, not a plain linear layer{adapter}"
        return None

    def _stored(self, site: Site) -> tuple[nn.Module, Tensor | None]:
        return (layer := self._layer(site)), layer.weight

    def weight_state(self) -> str:
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
        reader = container if getattr(container, "_use_processed_weights", False) else None
        weight, bias = (Slot(layer, name, f"{label}.{name}", reader) for name in ("weight", "bias"))
        slots = (weight,)
        # A forward pass reads the processed copy first; the wrapped layer's own weight has to agree with it.
        if f"_processed_{site.matrix}" in container.__dict__:  # gated MLPs of 3.9.0 in compatibility mode
            names = f"_processed_{site.matrix}", f"_processed_{site.matrix.replace('W_', 'b_')}"
            slots = (Slot(container, names[0], f"{site.prefix}.mlp.{names[0]}", reader, weight), weight)
            bias = Slot(container, names[1], f"{site.prefix}.mlp.{names[1]}", reader, bias)
        layout = Layout(_orientation(layer) or "")
        d_in, d_out = layout.to_matrix(slots[0].registered()).shape
        n_heads = self.n_heads(site.matrix) if site.part == "attn" else None
        return Place(site, slots, layout, d_in, d_out, n_heads, *self._ends(site, layer), bias)

    def _ends(self, site: Site, layer: nn.Module) -> tuple[End, End]:
        container = self.model.blocks[site.layer]._modules[site.part]
        projection = _PROJECTIONS[site.matrix]
        prefix = f"{site.prefix}.{site.part}.{projection}"
        bridge = container._modules[projection]
        if getattr(container, "_use_processed_weights", False):  # multiplies by hand, past the wrapped layers
            output = End(bridge.hook_out, None, "first", f"{prefix}.hook_out")
            if site.matrix == "W_out":
                return End(bridge.hook_in, None, "last", f"{prefix}.hook_in"), output
            return End(container.hook_in, None, "last", f"{site.prefix}.mlp.hook_in", shared=True), output
        reads, writes = f"{prefix}.hook_in", f"{prefix}.hook_out"
        for flag in (*_SPLIT_INPUTS, "use_attn_result") if site.part == "attn" else ():
            if getattr(self.model.cfg, flag, False):
                reads = writes = Hidden(f"{flag} bypasses {prefix}")
        return End(layer, 0, "last", reads), End(layer, None, "first", writes)


def host_of(model: nn.Module) -> Host:
    """The view of `model` that knows where its matrices are, the same one every time.

    Raises:
        TypeError: if the model is compiled, or neither a HookedTransformer nor a TransformerBridge.

    >>> from hooks import host_of
    >>> host_of(model).n_layers, host_of(model).d_vocab
    (2, 40)
    """
    return record_of(model).of(Host, lambda: _new_host(model))


def _new_host(model: nn.Module) -> Host:
    names = {cls.__name__ for cls in type(model).__mro__}
    if "OptimizedModule" in names:
        raise compiled_error(model)
    for name, host in (("HookedTransformer", HookedTransformerHost), ("TransformerBridge", BridgeHost)):
        if name in names:
            return host(model)
    raise TypeError(
        f"cannot operate on a {type(model).__name__}: a transformer_lens HookedTransformer or TransformerBridge is "
        "needed. Wrap a Hugging Face model with TransformerBridge.boot_transformers or build_bridge_from_module."
    )


def _is_post_norm(cfg: object) -> bool:
    """OLMo 2 and 3: `ln1` and `ln2` act on the outputs of attention and MLP."""
    return getattr(cfg, "original_architecture", None) in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


def _orientation(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.Linear):
        return "d_out d_in -> d_in d_out"
    return "d_in d_out -> d_in d_out" if type(layer).__name__ == "Conv1D" else None


def _no_floats(weight: Tensor | None, site: Site) -> str | None:
    if weight is not None and weight.is_meta:
        return (
            "its weight is on the meta device, which holds no numbers (offloaded to another device or to disk, or not "
            "loaded yet): load the whole model onto devices, without offloading"
        )
    if weight is None or not weight.dtype.is_floating_point or weight.ndim > 3:
        kind = "nothing" if weight is None else f"{weight.dtype} of shape {tuple(weight.shape)}".removeprefix("torch.")
        return f"its weight is stored as {kind} (quantised, or one tensor for many experts), not as a matrix of floats"
    if weight.ndim == 3 and site.part == "mlp":
        return f"its weight holds {weight.shape[0]} experts in one tensor"
    return None


def _bridges(container: nn.Module) -> list[str]:
    return [name for name, module in container._modules.items() if hasattr(module, "original_component")]
