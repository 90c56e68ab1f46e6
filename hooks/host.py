"""A kind of model that can be operated on, as every kind of it is seen: layers, sizes, and a place for each matrix."""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOptionalMemberAccess=false, reportReturnType=false, reportOperatorIssue=false, reportOptionalOperand=false

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar
from weakref import ref

import torch
from torch import Tensor, nn

from hooks.places import Place
from hooks.sites import MATRICES, Matrix, Site, SiteError

__all__ = ["SPLIT_INPUTS", "Host"]

SPLIT_INPUTS = ("use_split_qkv_input", "use_attn_in")
"""Settings of TransformerLens that give every head an input of its own, where a matrix otherwise has one."""


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
        # Counted, not read off the configuration: a model may have been cut to its first layers.
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
        """The device that the model's tokens go to.

        Raises:
            ValueError: if the embedding is on the meta device, so that nothing says where.
        """
        # Of the embedding, which is the first parameter. What the configuration says may be older than the last move.
        device = next(self.model.parameters()).device
        if device.type == "meta":
            raise ValueError(
                "the model's embedding is on the meta device, which holds no numbers (offloaded by accelerate to "
                "another device or to disk, or not loaded yet): load the model so that its embedding is on a device; "
                "matrices that stay offloaded cannot be edited or asked about."
            )
        return device

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
        # Once for all of them: the count walks through every module of the model.
        n_uses = self._n_uses()
        return {site: self._place(site, n_uses) for site in sites}

    def n_heads(self, matrix: Matrix) -> int:
        """How many heads the layer's matrix has: key-value heads for W_K and W_V."""
        cfg = self.model.cfg
        # Grouped-query attention: several query heads share a head of keys and values. None means as many as queries.
        grouped = getattr(cfg, "n_key_value_heads", None) if matrix in ("W_K", "W_V") else None
        return grouped or cfg.n_heads

    def _place(self, site: Site, n_uses: Mapping[int, int]) -> Place:
        if site.layer >= self.n_layers:
            raise SiteError(
                f"no matrix is named '{site}': this model has {self.n_layers} layers, blocks.0 to "
                f"blocks.{self.n_layers - 1}. List all with surgery.sites(model)."
            )
        # A head is a slice of the stored matrix, so that whatever forbids an edit forbids it of the whole.
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
        # A HookedTransformer's attention holds four matrices and is no shared module for that: it counts once a layer.
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


def _no_floats(weight: Tensor | None, site: Site) -> str | None:
    # Before the dtype: a weight on the meta device has one, and would pass for a matrix of floats.
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
