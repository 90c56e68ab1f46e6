"""Where a tensor is stored, and how another one is put in its place and taken out again.

A *shadow* is an entry of the owning module's instance dictionary: Python finds it before the registered parameter of
the same name, so everything that reads the weight sees it, while `parameters()`, `state_dict()` and class names stay as
they are, and taking it out restores the model bit for bit.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

__all__ = ["EditedModelError", "Slot"]

_ABSENT = object()


class EditedModelError(RuntimeError):
    """The model was moved, cast or reprocessed while an edit was active."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The attribute `name` of the module `owner`, whose TransformerLens name is `label`.

    `reader` is the module whose forward pass reads it, where that is not the owner. `mirrors` is, for a plain attribute
    that repeats a parameter, the slot of that parameter.
    """

    owner: nn.Module
    name: str
    label: str
    reader: nn.Module | None = None
    mirrors: "Slot | None" = None

    @property
    def key(self) -> tuple[int, str]:
        """The same for two slots only if they are one and the same attribute."""
        return id(self.owner), self.name

    def current(self) -> Tensor | None:
        """The tensor that a forward pass reads now."""
        return getattr(self.owner, self.name)

    def registered(self) -> Tensor | None:
        """The parameter behind any shadow (the one that a plain attribute repeats)."""
        if self.mirrors is not None:
            return self.mirrors.registered()
        return self.owner._parameters[self.name]

    @property
    def memory(self) -> int | None:
        """The address of the parameter in memory, the same for two slots of one parameter."""
        return _memory(self.registered())

    def strip(self) -> None:
        """Take out any shadow that lies over this slot, whoever laid it."""
        shown = self.owner.__dict__.get(self.name)
        if self.mirrors is not None:
            parameter = self.registered()
            if _memory(shown) != _memory(parameter):
                object.__setattr__(self.owner, self.name, None if parameter is None else parameter.detach())
        elif isinstance(shown, Tensor):
            object.__delattr__(self.owner, self.name)


@dataclass(slots=True)
class Shadow:
    """A tensor laid over a slot; `remove` takes it out, whatever happened to the slot in between.

    Whichever line an exception strikes, calling `remove` again finishes the work.
    """

    slot: Slot
    tensor: Tensor
    _laid: tuple[Tensor, ...] = field(default=(), init=False, repr=False)
    """The tensors that may lie over the slot: during a replacement both the old and the new, else the one."""
    _previous: object = field(default=_ABSENT, init=False, repr=False)

    def install(self) -> None:
        """Lay the tensor over the slot."""
        self._previous = self.slot.owner.__dict__.get(self.slot.name, _ABSENT)
        self._laid = (self.tensor,)
        object.__setattr__(self.slot.owner, self.slot.name, self.tensor)

    @property
    def covered(self) -> Tensor | None:
        """The plain attribute beneath the shadow, on hosts that keep a weight as one; else None."""
        return self._previous if isinstance(self._previous, Tensor) else None

    @property
    def is_in_place(self) -> bool:
        """Whether the slot still shows this tensor (assigning a parameter to the slot removes a shadow)."""
        shown = self.slot.owner.__dict__.get(self.slot.name)
        return any(shown is tensor for tensor in self._laid)

    def replace(self, tensor: Tensor) -> None:
        """Show another tensor, unless the shadow has been removed by assigning a parameter to the slot."""
        if self.is_in_place:
            self._laid = (*self._laid, tensor)
            object.__setattr__(self.slot.owner, self.slot.name, tensor)
            self.tensor = tensor
            self._laid = (tensor,)

    def remove(self) -> None:
        """Restore the slot as it was before `install`."""
        if not self.is_in_place:
            return
        if self._previous is _ABSENT:
            object.__delattr__(self.slot.owner, self.slot.name)
        else:
            object.__setattr__(self.slot.owner, self.slot.name, self._previous)


def refuse_moved_shadow(module: nn.Module, args: object) -> None:
    """Forward pre-hook of every module that reads a shadow: `.to()` moves parameters, never shadows.

    Stateless and at module level, so that a deep copy or a pickle of an edited model carries it along.
    """
    for part in module.modules():
        for name, parameter in part._parameters.items():
            shadow = part.__dict__.get(name)
            if parameter is None or not isinstance(shadow, Tensor):
                continue
            if shadow.dtype != parameter.dtype or shadow.device != parameter.device:
                raise EditedModelError(
                    f"the model was moved or cast while an edit was active: {type(part).__name__}.{name} is now "
                    f"{_kind(parameter)}, its edited version {_kind(shadow)}. "
                    "Undo the edit first (operation.undo() or surgery.undo_all(model)), move the model, and apply it "
                    "again."
                )


def refuse_loading(module: nn.Module, *_args: object) -> None:
    """Load hook of every module that holds an edited weight: weights loaded beneath a shadow would not be seen."""
    raise EditedModelError(
        f"load_state_dict() would rewrite the weights of a {type(module).__name__} under an active edit, which "
        "was made for the weights as they are; modules before it have been loaded. Undo the edit first "
        "(operation.undo() or surgery.undo_all(model)), load the weights, and apply it again."
    )


def check_fits(slot: Slot, tensor: Tensor) -> None:
    """Refuse a tensor that cannot stand in for what the slot holds.

    Raises:
        ValueError: on another shape, dtype or device.
    """
    stored = slot.registered()
    if stored is None:  # a projection without a bias, where any vector of the right length may stand
        return
    if (tensor.shape, tensor.dtype, tensor.device) != (stored.shape, stored.dtype, stored.device):
        raise ValueError(
            f"cannot lay a tensor of shape {tuple(tensor.shape)}, {_kind(tensor)} over {slot.label}: it holds "
            f"{tuple(stored.shape)}, {_kind(stored)}. Reshape, cast or move the tensor first."
        )


def _memory(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
