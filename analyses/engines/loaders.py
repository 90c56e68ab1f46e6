"""Functions that load a model, by name and with their arguments: what is sent in a model's place."""

from collections.abc import Callable
from importlib import import_module
from typing import final

from torch import nn

from surgery.arguments import shown

__all__ = ["Loader", "WorkerError"]


class WorkerError(RuntimeError):
    """Workers could not do the work: they hold another model, share one, failed, or died. The text says which."""


@final
class Loader:
    """A function that loads a model, by its importable name, and its arguments: what is sent in a model's place.

    The function is given itself or as `"package.module:function"`. Every worker has to be able to import it, so it
    stands in a module, not in a notebook or inside another function.

    Raises:
        ValueError: if the function cannot be found under its name.

    >>> engines.Loader("transformer_lens.model_bridge:TransformerBridge.boot_transformers", "gpt2")
    Loader('transformer_lens.model_bridge:TransformerBridge.boot_transformers', 'gpt2')
    """

    def __init__(self, function: str | Callable[..., nn.Module], /, *args: object, **kwargs: object) -> None:
        self.function = function if isinstance(function, str) else _name_of(function)
        self.args, self.kwargs = args, kwargs
        if self.function.count(":") != 1:
            raise ValueError(
                f"Loader({shown(function)}) names no function: give it as 'package.module:function', or the function."
            )

    def __call__(self) -> nn.Module:
        """The model, loaded anew.

        Raises:
            WorkerError: if the function cannot be imported here, or returns no model.
        """
        try:
            function = _found(self.function)
        except (ImportError, AttributeError) as error:
            raise WorkerError(
                f"{self!r} cannot be imported in a worker ({error}): put the function into a module that workers can "
                "import, and start them where they find it."
            ) from None
        model = function(*self.args, **self.kwargs)
        if not isinstance(model, nn.Module):
            raise WorkerError(f"{self!r} returned {shown(model)}, which is no model: return the model.")
        return model

    def __repr__(self) -> str:
        given = [repr(self.function), *map(repr, self.args)]
        return f"Loader({', '.join([*given, *(f'{name}={value!r}' for name, value in self.kwargs.items())])})"


def _name_of(function: Callable[..., nn.Module]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    text = f"{module}:{name}"
    try:
        if module is not None and name is not None and _found(text) == function:
            return text
    except (ImportError, AttributeError):
        pass
    raise ValueError(
        f"Loader({shown(function)}): there is no importable function '{text}'. Give a function of a module and its "
        "arguments, such as Loader(TransformerBridge.boot_transformers, 'gpt2')."
    )


def _found(text: str) -> Callable[..., object]:
    module, _, name = text.partition(":")
    value: object = import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value  # type: ignore[return-value]
