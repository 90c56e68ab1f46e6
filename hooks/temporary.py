"""Hooks and forward passes of our own that are on a model for the length of a `with` block.

Everything comes off again whatever is raised, and whichever line an interrupt strikes: each removal is remembered
before the thing is put on, and does nothing where there is nothing to remove, so that it can be repeated. Python lets
nobody catch an interrupt before the first line of `__exit__`; `remove_left_behind` removes what such a one leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import current_thread
from types import TracebackType
from typing import Generic, Literal, TypeVar, final

from torch import nn

__all__ = ["Forward", "Hook", "Temporary", "remove_left_behind", "together"]

T = TypeVar("T")
_ABSENT = object()
_in_use: dict[int, "Temporary"] = {}


@final
@dataclass(slots=True)
class Hook:
    """A torch hook for a module: for its arguments (`input`) or for what it returns (`output`)."""

    module: nn.Module
    end: Literal["input", "output"]
    function: Callable[..., object]
    with_kwargs: bool = False
    prepend: bool = False

    def put_on(self) -> None:
        """Register the hook."""
        register = self.module.register_forward_pre_hook if self.end == "input" else self.module.register_forward_hook
        register(self.function, with_kwargs=self.with_kwargs, prepend=self.prepend)  # type: ignore[arg-type]

    def take_off(self) -> None:
        """Remove the hook, if it is there."""
        remove_hooks(self.module, self.end, self.function)


@final
@dataclass(slots=True)
class Forward:
    """A function that a module runs instead of its own forward pass, or of another function of its own."""

    module: nn.Module
    function: Callable[..., object]
    name: str = "forward"
    _previous: object = None

    def put_on(self) -> None:
        """Put the function in the module's instance dictionary, where Python finds it first."""
        self._previous = self.module.__dict__.get(self.name, _ABSENT)
        object.__setattr__(self.module, self.name, self.function)

    def take_off(self) -> None:
        """Put back the previous function, unless somebody has replaced ours since."""
        if self.module.__dict__.get(self.name) is not self.function:
            return
        if self._previous is _ABSENT:
            object.__delattr__(self.module, self.name)
        else:
            object.__setattr__(self.module, self.name, self._previous)


@final
class Temporary(Generic[T]):
    """Hooks and forward passes that are on their modules inside a `with` block; `as` gives `value`."""

    def __init__(self, things: Sequence[Hook | Forward], value: T = None) -> None:
        self.things = tuple(things)
        self.value = value
        self._thread = current_thread()

    def __enter__(self) -> T:
        try:
            self._thread = current_thread()
            if self.things:
                _in_use[id(self)] = self
            for thing in self.things:
                thing.put_on()
        except BaseException:
            self._take_off()
            raise
        return self.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._take_off()
        finally:  # an interrupt of the first call leaves the second to finish
            self._take_off()

    def _take_off(self) -> None:
        for thing in reversed(self.things):
            thing.take_off()
        _in_use.pop(id(self), None)

    def is_left_on(self, model: nn.Module) -> bool:
        """Whether this was put on a part of the model, by this thread or by one that has ended."""
        parts = set(map(id, model.modules()))
        elsewhere = self._thread is not current_thread() and self._thread.is_alive()
        return not elsewhere and any(id(thing.module) in parts for thing in self.things)


def together(*several: Temporary) -> Temporary[None]:
    """Several as one, put on in their order and taken off in the reverse order."""
    return Temporary([thing for temporary in several for thing in temporary.things])


def remove_left_behind(model: nn.Module) -> None:
    """Take off the model whatever an interrupt at the first line of an `__exit__` has left on it."""
    for temporary in list(_in_use.values()):
        if temporary.is_left_on(model):
            temporary.__exit__(None, None, None)


def remove_hooks(module: nn.Module, end: Literal["input", "output"], function: Callable[..., object]) -> None:
    """Remove a function from a module's forward hooks, wherever it stands among them."""
    pre = end == "input"
    hooks: dict[int, Callable] = module._forward_pre_hooks if pre else module._forward_hooks
    marks = module._forward_pre_hooks_with_kwargs if pre else module._forward_hooks_with_kwargs
    for key in [key for key, hook in hooks.items() if hook is function]:
        marks.pop(key, None)
        hooks.pop(key, None)
