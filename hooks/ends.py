"""The two ends of a matrix as a forward pass sees them: its input and its output.

The activation at an end is read and changed by a torch hook on the module where it passes. At an input our hook runs
after every hook that is already there, so that it sees what the user has patched; at an output it runs before them, so
that the user patches what we made.
"""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from hooks.temporary import Hook

__all__ = ["End", "Hidden", "OnActivation", "is_of_an_end"]

OnActivation = Callable[[Tensor], Tensor | None]
"""What to do with an activation as it passes: return its replacement, or None to leave it."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """Stands for the name of a hook point where a model has none."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The activation at one end of a matrix: an argument of `module`, or (`argument` None) what it returns.

    `order` says whether our hook runs before (`first`) or after the user's. `hook` is TransformerLens's name of the
    hook point that shows the activation. `norm` is the normalisation whose gain and bias lie between that hook point
    and the matrix. `shared` inputs are read by another matrix too: the gradient there is not this matrix's alone.
    """

    module: nn.Module
    argument: int | str | None
    order: Literal["first", "last"]
    hook: str | Hidden
    norm: nn.Module | None = None
    shared: bool = False

    def from_hook(self, activation: Tensor) -> Tensor:
        """The activation at this end, from what the hook point shows (before a normalisation's own gain and bias)."""
        if self.norm is None:
            return activation
        scaled = activation * self.norm.w
        return scaled + self.norm.b if "b" in self.norm._parameters else scaled

    def tap(self, function: OnActivation) -> Hook:
        """A hook that runs `function` on the activation at every forward pass while it is on."""
        prepend = self.order == "first"
        match self.argument:
            case None:
                on_output = lambda _module, _args, output: function(output)  # noqa: E731
                return Hook(self.module, "output", on_output, prepend=prepend)
            case int(index):

                def on_positional(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
                    new = function(args[index])
                    return None if new is None else ((*args[:index], new, *args[index + 1 :]), kwargs)

                return Hook(self.module, "input", on_positional, with_kwargs=True, prepend=prepend)
            case str(key):

                def on_keyword(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
                    new = function(kwargs[key])
                    return None if new is None else (args, {**kwargs, key: new})

                return Hook(self.module, "input", on_keyword, with_kwargs=True, prepend=prepend)


def is_of_an_end(hook: object) -> bool:
    """Whether a torch hook on the model was made by `End.tap`: ours, not the user's."""
    return getattr(hook, "__module__", None) == __name__
