"""The models that can be operated on: which kind a given model is.

`HookedTransformer` and `TransformerBridge` (TransformerLens 3.9 has both, 4.x the bridge only) are recognised by the
names of their classes, so that neither has to be imported.
"""

from torch import nn

from hooks.bridge import BridgeHost
from hooks.compiled import compiled_error
from hooks.hooked_transformer import HookedTransformerHost
from hooks.host import Host
from hooks.records import record_of

__all__ = ["Host", "host_of"]


def host_of(model: nn.Module) -> Host:
    """The view of `model` that knows where its matrices are, the same one every time.

    Raises:
        TypeError: if the model is compiled, or neither a HookedTransformer nor a TransformerBridge.

    >>> from hooks import host_of
    >>> host_of(model).n_layers, host_of(model).d_vocab
    (2, 40)
    """
    return record_of(model).of(Host, lambda: _new_host(model))


def _new_host(model: nn.Module) -> Host:
    names = {cls.__name__ for cls in type(model).__mro__}
    if "OptimizedModule" in names:
        raise compiled_error(model)
    for name, host in (("HookedTransformer", HookedTransformerHost), ("TransformerBridge", BridgeHost)):
        if name in names:
            return host(model)
    raise TypeError(
        f"cannot operate on a {type(model).__name__}: a transformer_lens HookedTransformer or TransformerBridge is "
        "needed. Wrap a Hugging Face model with TransformerBridge.boot_transformers or build_bridge_from_module."
    )
