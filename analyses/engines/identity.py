"""What tells one model from another: its weights, the edits in force on them, and how it was prepared."""

from hashlib import blake2b

from torch import nn

from hooks import host_of
from hooks.fingerprints import parameter_fingerprints
from hooks.recording import has_hooks
from hooks.vocabulary import prepends_bos
from surgery import active
from surgery.json_values import encode


def model_fingerprint(model: nn.Module) -> str:
    """32 hexadecimal digits for the weights as they are stored, and for the edits in force on them."""
    edits = [(str(change.site), encode(change.edit)) for operation in active(model) for change in operation.changes]
    return digest(repr((parameter_fingerprints(model), edits)))


def digest(text: str) -> str:
    """32 hexadecimal digits that stand for a text."""
    # Prompts from files may hold surrogates, which plain UTF-8 refuses.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def marks_of(model: nn.Module) -> dict[str, str]:
    """What two models have to have in common to give the same numbers, by name."""
    host = host_of(model)
    return {
        "weights or edits in force": model_fingerprint(model),
        "class": type(model).__name__,
        "dtype": str(host.dtype),
        "weight state": host.weight_state(),
        "hooks of its own": str(has_hooks(model)),
        "default_prepend_bos": str(prepends_bos(model)),
    }
