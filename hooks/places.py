"""One matrix in one model: where it is stored, in which orientation, which part is a head's, and its two ends."""

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hooks.ends import End, Hidden, OnActivation
from hooks.shadows import Slot
from hooks.sites import Site, SiteError
from hooks.temporary import Temporary

__all__ = ["Layout", "Place"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a stored tensor becomes the matrix of `y = x @ W`: an einops pattern and the sizes it needs.

    `pattern` reads stored -> matrix, for instance ``head d_model d_head -> d_model (head d_head)``.
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...] = ()

    def to_matrix(self, stored: Tensor) -> Tensor:
        """The tensor as the model reads it, as `[d_in, d_out]` (a view where the pattern allows)."""
        return rearrange(stored, self.pattern)

    def to_stored(self, matrix: Tensor) -> Tensor:
        """A `[d_in, d_out]` matrix as the model stores it."""
        stored, read = self.pattern.split(" -> ")
        return rearrange(matrix, f"{read} -> {stored}", **dict(self.sizes))


@dataclass(frozen=True, slots=True)
class Place:
    """Everything a host knows about one matrix, or about the part of it that belongs to one head.

    A forward pass reads the weight from the first of `slots`; the others are copies that must agree with it. `bias` is
    added to the output, None where this host adds nothing there.
    """

    site: Site
    slots: tuple[Slot, ...]
    layout: Layout
    d_in: int
    d_out: int
    n_heads: int | None
    input: End
    output: End
    bias: Slot | None

    @property
    def all_slots(self) -> tuple[Slot, ...]:
        """The slots of the weight, and of the bias where there is one."""
        return self.slots if self.bias is None else (*self.slots, self.bias)

    @property
    def device(self) -> torch.device:
        """Where the stored weight is, and where everything that is computed with it goes."""
        return _float_weight(self.slots[0]).device

    def matrix(self) -> Float[Tensor, "d_in d_out"]:
        """The registered weight in the one orientation used here, behind any edit; not a copy where a view will do.

        Raises:
            ValueError: if the stored weight is not a floating-point tensor.
        """
        return self.part_of(self.layout.to_matrix(_float_weight(self.slots[0])))

    def part_of(self, joint: Float[Tensor, "d_in_all d_out_all"]) -> Float[Tensor, "d_in d_out"]:
        """The part of the layer's whole matrix that belongs to this place: all of it, or one head's."""
        if self.site.head is None:
            return joint
        width = joint.shape[self._head_axis] // self._heads
        return joint.narrow(self._head_axis, self.site.head * width, width)

    def stored(self, joint: Float[Tensor, "d_in d_out"]) -> Tensor:
        """A whole matrix in the model's layout and dtype, on its device: cast once, here.

        Its memory is in the order of the stored weight's, so that the same arithmetic runs on it, to the last bit.
        """
        weight = _float_weight(self.slots[0])
        stored = self.layout.to_stored(joint.to(device=weight.device, dtype=weight.dtype)).reshape(weight.shape)
        return torch.empty_like(weight).copy_(stored)

    def at_head(self, head: int) -> "Place":
        """The place of one head of this matrix."""
        width = (self.d_in if self._head_axis == 0 else self.d_out) // self._heads
        shape = {"d_in": width} if self._head_axis == 0 else {"d_out": width}
        return replace(self, site=self.site.at_head(head), **shape)

    @property
    def joint(self) -> "Place":
        """The place of the whole matrix, of which this may be one head."""
        if self.site.head is None:
            return self
        whole = {"d_in": self.d_in * self._heads} if self._head_axis == 0 else {"d_out": self.d_out * self._heads}
        return replace(self, site=self.site.joint, **whole)

    @property
    def head_slice(self) -> slice:
        """The columns of `y` (W_Q, W_K, W_V) or of `x` (W_O) that belong to this head; all of them without one."""
        if self.site.head is None:
            return slice(None)
        width = self.d_in if self._head_axis == 0 else self.d_out
        return slice(self.site.head * width, (self.site.head + 1) * width)

    def read_input(self, activation: Tensor) -> Float[Tensor, "batch pos d_in"]:
        """The vectors that this matrix multiplies, from the activation at its input.

        Raises:
            SiteError: if every head has an input of its own (`use_split_qkv_input`, `use_attn_in`) and this site is
            joint.
        """
        if self.site.matrix == "W_O":
            return _flat(activation)[..., self.head_slice]
        if activation.ndim == 4:
            if self.site.head is None:
                raise SiteError(
                    f"{self.site} has no single input: the model gives every head an input of its own "
                    f"(use_split_qkv_input or use_attn_in). Name the heads, '{self.site}[*]', or switch that off."
                )
            return activation[:, :, self.site.head * activation.shape[2] // self._heads]
        return activation

    def read_output(self, activation: Tensor) -> Float[Tensor, "batch pos d_out"]:
        """This matrix's part of the activation at its output (for a head of W_O: the sum over heads)."""
        if self.site.matrix == "W_O":
            return activation
        return self._columns(activation)[..., self.head_slice]

    def add_to_output(self, activation: Tensor, change: Float[Tensor, "batch pos d_out"]) -> Tensor:
        """The activation with `change` added to this matrix's part of it, in a new tensor of the same dtype."""
        change = change.to(activation.dtype)
        if self.site.head is None or self.site.matrix == "W_O":
            return activation + change.reshape(activation.shape)
        flat = self._columns(activation).clone()
        flat[..., self.head_slice] += change
        return flat.view(activation.shape)

    def tapped(self, *, at_input: OnActivation | None = None, at_output: OnActivation | None = None) -> Temporary[None]:
        """Run functions on what passes at the ends of this matrix, in every forward pass inside the `with` block."""
        ends = ((self.input, at_input), (self.output, at_output))
        return Temporary([end.tap(function) for end, function in ends if function is not None])

    def hook_name(self, end: Literal["input", "output"], *, advice: str) -> str:
        """TransformerLens's name of the hook point at one end of this matrix; `advice` completes the refusal.

        Raises:
            SiteError: if this model, as it is set up now, shows that end at no hook point.
        """
        hook = (self.input if end == "input" else self.output).hook
        if isinstance(hook, Hidden):
            raise SiteError(f"the {end} of '{self.site}' is at no hook point of this model: {hook.reason}. {advice}")
        return hook

    def _columns(self, activation: Tensor) -> Tensor:
        flat = _flat(activation)
        expected = self.d_out * (1 if self.site.head is None else self._heads)
        if flat.shape[-1] != expected:
            raise SiteError(
                f"{self.site} has {expected} output columns, but the model shows {flat.shape[-1]} "
                "(ungroup_grouped_query_attention repeats key-value heads). Switch that off to work on activations."
            )
        return flat

    @property
    def _head_axis(self) -> int:
        return 0 if self.site.matrix == "W_O" else 1

    @property
    def _heads(self) -> int:
        if self.n_heads is None:
            raise SiteError(f"{self.site} has no heads: only attention matrices take a head index.")
        return self.n_heads


def _flat(activation: Tensor) -> Tensor:
    """`[batch pos head d_head]` as `[batch pos head*d_head]`; anything else as it is."""
    return activation.flatten(2) if activation.ndim == 4 else activation


def _float_weight(slot: Slot) -> Tensor:
    weight = slot.registered()
    if weight is None or not weight.dtype.is_floating_point or prod(weight.shape) == 0:
        stored = "nothing" if weight is None else f"{tuple(weight.shape)} of {weight.dtype}"
        raise ValueError(f"{slot.label} holds {stored}, not a floating-point weight: load the model unquantised.")
    return weight.detach()
