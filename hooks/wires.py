"""The two ends of a matrix as a forward pass sees them: its input and its output.

A wire is read and changed by a torch hook on the module where the activation passes. On an input, ours runs after every
hook that is already there, so that it sees what the user has patched; on an output it runs before them, so that the
user patches what we made.
"""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from hooks.temporary import Hook

Change = Callable[[Tensor], Tensor | None]
"""What to do with an activation as it passes: return its replacement, or None to leave it."""


@dataclass(frozen=True, slots=True)
class Wire:
    """An activation: an argument of `module`, or (`argument` None) what it returns.

    `name` is TransformerLens's name of the hook point that shows the same activation, None where there is none and then
    `hidden` says why. `norm` is the normalisation whose gain and bias lie between the hook point and the wire. `shared`
    inputs are read by another matrix too, so that the gradient at the wire is not this matrix's alone.
    """

    module: nn.Module
    argument: int | str | None
    order: Literal["first", "last"]
    name: str | None
    hidden: str = ""
    norm: nn.Module | None = None
    shared: bool = False

    def from_hook(self, activation: Tensor) -> Tensor:
        """The wire's activation, from what the hook point `name` shows (before a normalisation's own gain and bias)."""
        if self.norm is None:
            return activation
        scaled = activation * self.norm.w
        return scaled + self.norm.b if "b" in self.norm._parameters else scaled

    def tap(self, change: Change) -> Hook:
        """A hook that runs `change` on the activation at every forward pass while it is on."""
        prepend = self.order == "first"
        match self.argument:
            case None:
                on_output = lambda _module, _args, output: change(output)  # noqa: E731
                return Hook(self.module, "output", on_output, prepend=prepend)
            case int(index):

                def on_positional(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
                    new = change(args[index])
                    return None if new is None else ((*args[:index], new, *args[index + 1 :]), kwargs)

                return Hook(self.module, "input", on_positional, with_kwargs=True, prepend=prepend)
            case str(key):

                def on_keyword(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
                    new = change(kwargs[key])
                    return None if new is None else (args, {**kwargs, key: new})

                return Hook(self.module, "input", on_keyword, with_kwargs=True, prepend=prepend)


def is_of_a_wire(hook: object) -> bool:
    """Whether a torch hook on the model is a `Wire.tap`: ours, not the user's."""
    return getattr(hook, "__module__", None) == __name__
