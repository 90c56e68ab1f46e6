"""Models that `torch.compile` has compiled: they read the weights they were compiled with, not what lies over them."""

import sys

from torch import nn

__all__ = ["compiled_error", "refresh_compiled", "refuse_compiled", "uncompiled"]


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that `torch.compile` wraps, or the model itself."""
    inner = model._orig_mod if type(model).__name__ == "OptimizedModule" else model
    assert isinstance(inner, nn.Module)
    return inner


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a model that was compiled in place.

    Raises:
        TypeError: if `model.compile()` was called.
    """
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise compiled_error(model)


def compiled_error(model: nn.Module) -> TypeError:
    """The refusal of a compiled model."""
    return TypeError(
        f"a compiled model ({type(model).__name__}) would ignore an edit that is laid over its weights. Write the edit "
        "into the weights of the model that was compiled, surgery.commit(model, spec), or apply it without compiling."
    )


def refresh_compiled() -> None:
    """Make `torch.compile` compile everything anew: a compiled graph holds the weights that it was made with.

    Compiled functions that contain a model cannot be found from the model, so all of them are dropped.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
