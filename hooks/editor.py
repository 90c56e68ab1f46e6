"""The weights of one model under edits: what is shown instead of each matrix, and how the model is guarded meanwhile.

`show` lays a matrix over the stored one, `write` puts it into the parameter itself; `release` takes either back, bit
for bit. While anything is edited, the model refuses to reprocess its weights, and a forward pass refuses to run after
`.to()`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hooks.hosts import host_of
from hooks.places import Place
from hooks.slots import EditedModelError, Shadow, Slot, check_fits, refuse_moved_shadow

_REPROCESSING = ("enable_compatibility_mode", "process_weights", "process_weights_", "load_and_process_state_dict")


@dataclass(slots=True)
class Editor:
    """Every edited slot of one model. One per model, from `editor_of`."""

    _shadows: dict[tuple[int, str], Shadow] = field(default_factory=dict)
    _originals: dict[tuple[int, str], tuple[Slot, Tensor]] = field(default_factory=dict)
    _guards: dict[int, RemovableHandle] = field(default_factory=dict)

    def original(self, place: Place) -> Float[Tensor, "d_in d_out"]:
        """The matrix as it was before any edit, in the stored dtype (a view; do not change it)."""
        stored = self._before(place.slots[0])
        assert stored is not None
        return place.part_of(place.layout.to_matrix(stored))

    def current(self, place: Place) -> Float[Tensor, "d_in d_out"]:
        """The matrix as a forward pass reads it now."""
        held = place.slots[0].current()
        assert held is not None
        return place.part_of(place.layout.to_matrix(held.detach()))

    def original_bias(self, slot: Slot) -> Tensor | None:
        """The bias as it was before any edit, None where the layer has none."""
        return self._before(slot)

    def show(self, slot: Slot, tensor: Tensor) -> None:
        """Lay `tensor` over the slot, in place of one laid earlier.

        Raises:
            ValueError: if it does not fit the slot; nothing is changed then.
        """
        if slot.key in self._shadows:
            self._shadows[slot.key].replace(tensor)
            return
        check_fits(slot, tensor)
        shadow = Shadow(slot, tensor)
        shadow.install()
        self._shadows[slot.key] = shadow
        reader = _reader(slot)
        if id(reader) not in self._guards:
            self._guards[id(reader)] = reader.register_forward_pre_hook(refuse_moved_shadow)

    def is_shown(self, slot: Slot) -> bool:
        """Whether what was laid over the slot is still there (assigning a parameter throws it out)."""
        return slot.key not in self._shadows or self._shadows[slot.key].is_in_place

    def is_strangers(self, slot: Slot) -> bool:
        """Whether something lies over the slot that this editor did not lay, as in a deep copy of an edited model."""
        over = slot.owner.__dict__.get(slot.name)
        return slot.mirrors is None and slot.key not in self._shadows and isinstance(over, Tensor)

    def hide(self, slot: Slot) -> None:
        """Take back what `show` laid over the slot, if anything."""
        shadow = self._shadows.pop(slot.key, None)
        if shadow is None:
            return
        shadow.remove()
        reader = _reader(slot)
        if not any(_reader(other.slot) is reader for other in self._shadows.values()):
            self._guards.pop(id(reader)).remove()

    def write(self, new: Iterable[tuple[Slot, Tensor]]) -> None:
        """Overwrite parameters themselves, keeping the originals for `restore`.

        All originals are kept before the first is overwritten: two slots may share their memory.
        """
        pairs = list(new)
        for slot, tensor in pairs:
            check_fits(slot, tensor)
            held = slot.registered()
            if held is not None and slot.key not in self._originals:
                self._originals[slot.key] = slot, held.detach().clone()
        for slot, tensor in pairs:
            self._overwrite(slot, tensor)

    def restore(self, slot: Slot) -> None:
        """Put back what `write` overwrote, if anything."""
        kept = self._originals.pop(slot.key, None)
        if kept is not None:
            self._overwrite(slot, kept[1])

    @property
    def is_idle(self) -> bool:
        """Whether nothing is edited."""
        return not self._shadows and not self._originals

    def _overwrite(self, slot: Slot, tensor: Tensor) -> None:
        """Change the stored tensor itself, in place, under any shadow."""
        held = slot.registered()
        if slot.mirrors is not None:
            shadow = self._shadows.get(slot.key)
            held = slot.current() if shadow is None else shadow.covered
        if held is None:
            raise ValueError(f"{slot.label} holds no parameter to write to: use a temporary edit instead.")
        with torch.no_grad():
            held.copy_(tensor)

    def _before(self, slot: Slot) -> Tensor | None:
        """What the slot held before shadows and written edits alike."""
        held = slot.registered()
        if slot.key in self._originals:
            kept = self._originals[slot.key][1]
            return kept if held is None else kept.to(device=held.device, dtype=held.dtype)
        return None if held is None else held.detach()


_editors: WeakKeyDictionary[nn.Module, Editor] = WeakKeyDictionary()


def editor_of(model: nn.Module) -> Editor:
    """The editor of this model, the same one every time."""
    if model not in _editors:
        _editors[model] = Editor()
    return _editors[model]


def guard(model: nn.Module) -> None:
    """Make the model refuse, until `unguard`, whatever would rewrite its weights under an edit."""
    for name in _REPROCESSING:
        if hasattr(type(model), name) and name not in model.__dict__:
            object.__setattr__(model, name, partial(_refuse_reprocessing, name))


def unguard(model: nn.Module) -> None:
    """Let the model process its weights again."""
    for name in _REPROCESSING:
        held = model.__dict__.get(name)
        if isinstance(held, partial) and held.func is _refuse_reprocessing:
            object.__delattr__(model, name)


def strip(model: nn.Module) -> None:
    """Remove every shadow from a model that nobody remembers editing, such as a deep copy of an edited one."""
    host = host_of(model)
    for site in host.joint_sites():
        place = host.place(site)
        for slot in _slots(place):
            slot.strip()
            _remove_guards(_reader(slot))
    unguard(model)


def _slots(place: Place) -> Iterable[Slot]:
    return place.slots if place.bias is None else (*place.slots, place.bias)


def _reader(slot: Slot) -> nn.Module:
    return slot.owner if slot.reader is None else slot.reader


def _remove_guards(reader: nn.Module) -> None:
    hooks: dict[int, Callable] = reader._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is refuse_moved_shadow]:
        del hooks[key]


def _refuse_reprocessing(name: str, *_args: object, **_kwargs: object) -> NoReturn:
    raise EditedModelError(
        f"{name}() would rewrite the weights under an active edit, which was made for the weights as they are. "
        "Undo the edit first (operation.undo() or surgery.undo_all(model)), process the weights, and apply it again."
    )
