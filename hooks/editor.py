"""The weights of one model under edits: other tensors shown or written in their place, and taken back.

`show` lays a tensor over the stored one, and `hide` takes it away; `write` overwrites the parameter itself, and
`restore` puts the original back, bit for bit. While anything is edited, the model refuses to reprocess or reload its
weights, and a forward pass refuses to run after `.to()`.

An interrupt may strike at any line. Therefore every step is remembered before it is done and forgotten after it has
been undone, and undoing it again finishes the work.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks.hosts import host_of
from hooks.places import Place
from hooks.records import of_every_model, record_of
from hooks.shadows import EditedModelError, Shadow, Slot, check_fits, refuse_loading, refuse_moved_shadow
from hooks.temporary import remove_hooks

__all__ = ["Editor", "editor_of", "guard", "strip", "unguard"]

_REPROCESSING = (
    "enable_compatibility_mode",
    "load_and_process_state_dict",
    "load_state_dict",
    "process_weights",
    "process_weights_",
)


@dataclass(slots=True)
class Editor:
    """Every edited slot of one model. One per model, from `editor_of`."""

    _shadows: dict[tuple[int, str], Shadow] = field(default_factory=dict)
    _originals: dict[tuple[int, str], tuple[Slot, Tensor]] = field(default_factory=dict)

    def original(self, place: Place) -> Float[Tensor, "d_in d_out"]:
        """The matrix as it was before any edit, in the stored dtype (a view; do not change it)."""
        stored = self._unedited(place.slots[0])
        assert stored is not None
        return place.part_of(place.layout.to_matrix(stored))

    def current(self, place: Place) -> Float[Tensor, "d_in d_out"]:
        """The matrix as a forward pass reads it now."""
        shown = place.slots[0].current()
        assert shown is not None
        return place.part_of(place.layout.to_matrix(shown.detach()))

    def original_bias(self, slot: Slot) -> Tensor | None:
        """The bias as it was before any edit, None where the layer has none."""
        return self._unedited(slot)

    def show(self, slot: Slot, tensor: Tensor) -> None:
        """Lay `tensor` over the slot, in place of one laid earlier.

        Raises:
            ValueError: if it does not fit the slot; nothing is changed then.
        """
        if slot.key in self._shadows:
            self._shadows[slot.key].replace(tensor)
            return
        check_fits(slot, tensor)
        # Remembered before it is laid: an interrupt in between leaves a shadow that `hide` knows of.
        shadow = self._shadows[slot.key] = Shadow(slot, tensor)
        reader = _reader(slot)
        if refuse_moved_shadow not in reader._forward_pre_hooks.values():
            reader.register_forward_pre_hook(refuse_moved_shadow)
        if not _loading_hooks(slot.owner):
            slot.owner.register_load_state_dict_pre_hook(refuse_loading)
        shadow.install()  # last: once it lies there, everything that guards it is in place

    def is_shown(self, slot: Slot) -> bool:
        """Whether a tensor laid over the slot is still there (assigning a parameter removes it)."""
        return slot.key not in self._shadows or self._shadows[slot.key].is_in_place

    def is_strangers(self, slot: Slot) -> bool:
        """Whether a tensor lies over the slot that this editor did not lay, as in a deep copy of an edited model."""
        shown = slot.owner.__dict__.get(slot.name)
        return slot.mirrors is None and slot.key not in self._shadows and isinstance(shown, Tensor)

    def is_another_models(self, slot: Slot) -> bool:
        """Whether the editor of another model, which shares the module, has edited the slot."""
        return any(editor is not self and editor.has_edited(slot) for editor in of_every_model(Editor))

    def has_edited(self, slot: Slot) -> bool:
        """Whether this editor shows a tensor over the slot, or has written into it."""
        return slot.key in self._originals or (slot.key in self._shadows and self._shadows[slot.key].is_in_place)

    def hide(self, slot: Slot) -> None:
        """Take away the tensor that `show` laid over the slot, if there is one."""
        shadow = self._shadows.get(slot.key)
        if shadow is None:
            return
        shadow.remove()
        reader = _reader(slot)
        if not any(key != slot.key and _reader(other.slot) is reader for key, other in self._shadows.items()):
            remove_hooks(reader, "input", refuse_moved_shadow)
        if not any(key != slot.key and key[0] == slot.key[0] for key in self._shadows):
            _allow_loading(slot.owner)
        del self._shadows[slot.key]

    def write(self, new: Iterable[tuple[Slot, Tensor]]) -> None:
        """Overwrite parameters themselves, keeping the originals for `restore`.

        All originals are kept before the first is overwritten: two slots may share their memory.
        """
        pairs = list(new)
        for slot, tensor in pairs:
            check_fits(slot, tensor)
            parameter = slot.registered()
            if parameter is not None and slot.key not in self._originals:
                self._originals[slot.key] = slot, parameter.detach().clone()
        for slot, tensor in pairs:
            self._overwrite(slot, tensor)

    def restore(self, slot: Slot) -> None:
        """Put back the tensor that `write` overwrote, if there is one."""
        if slot.key in self._originals:
            self._overwrite(slot, self._originals[slot.key][1])
            del self._originals[slot.key]

    @property
    def is_idle(self) -> bool:
        """Whether nothing is edited."""
        return not self._shadows and not self._originals

    def _overwrite(self, slot: Slot, tensor: Tensor) -> None:
        """Change the stored tensor itself, in place, under any shadow."""
        stored = slot.registered()
        if slot.mirrors is not None:
            shadow = self._shadows.get(slot.key)
            stored = slot.current() if shadow is None else shadow.covered
        if stored is None:
            raise ValueError(f"{slot.label} holds no parameter to write to: use a temporary edit instead.")
        with torch.no_grad():
            stored.copy_(tensor)

    def _unedited(self, slot: Slot) -> Tensor | None:
        """The slot's tensor before shadows and written edits alike."""
        parameter = slot.registered()
        if slot.key in self._originals:
            original = self._originals[slot.key][1]
            return original if parameter is None else original.to(device=parameter.device, dtype=parameter.dtype)
        return None if parameter is None else parameter.detach()


def editor_of(model: nn.Module) -> Editor:
    """The editor of this model, the same one every time."""
    return record_of(model).of(Editor)


def guard(model: nn.Module) -> None:
    """Make the model refuse, until `unguard`, every method that would rewrite its weights under an edit."""
    for module, name in _guarded(model):
        if name not in module.__dict__:
            object.__setattr__(module, name, partial(_refuse_reprocessing, name))


def unguard(model: nn.Module) -> None:
    """Let the model process and load its weights again."""
    for module, name in _guarded(model):
        method = module.__dict__.get(name)
        if isinstance(method, partial) and method.func is _refuse_reprocessing:
            object.__delattr__(module, name)


def strip(model: nn.Module) -> None:
    """Remove every shadow that no editor remembers, such as those on a deep copy of an edited model.

    A shadow of another model that shares the module stays.
    """
    unguard(model)
    marked = {id(module) for module in model.modules() if _is_marked(module)}
    if not marked:  # every shadow is laid after its module was marked, and a deep copy carries the marks along
        return
    host, editor = host_of(model), editor_of(model)
    for place in host.places(host.joint_sites()).values():
        for slot in place.all_slots:
            if marked & {id(slot.owner), id(_reader(slot))} and not editor.is_another_models(slot):
                slot.strip()
                remove_hooks(_reader(slot), "input", refuse_moved_shadow)
                _allow_loading(slot.owner)


def _is_marked(module: nn.Module) -> bool:
    """Whether the module may hold or read a shadow: it carries one of the hooks that `show` puts on."""
    return bool(_loading_hooks(module)) or refuse_moved_shadow in module._forward_pre_hooks.values()


def _reader(slot: Slot) -> nn.Module:
    return slot.owner if slot.reader is None else slot.reader


def _loading_hooks(owner: nn.Module) -> list[int]:
    hooks = owner._load_state_dict_pre_hooks
    return [key for key, hook in hooks.items() if getattr(hook, "hook", hook) is refuse_loading]


def _allow_loading(owner: nn.Module) -> None:
    for key in _loading_hooks(owner):
        owner._load_state_dict_pre_hooks.pop(key, None)


def _guarded(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The methods that would rewrite the weights: of the model, and of the one that a bridge wraps."""
    for module in (model, getattr(model, "original_model", None)):
        if isinstance(module, nn.Module):
            yield from ((module, name) for name in _REPROCESSING if hasattr(type(module), name))


def _refuse_reprocessing(name: str, *_args: object, **_kwargs: object) -> NoReturn:
    raise EditedModelError(
        f"{name}() would rewrite the weights under an active edit, which was made for the weights as they are. "
        "Undo the edit first (operation.undo() or surgery.undo_all(model)), rewrite the weights, and apply it again."
    )
