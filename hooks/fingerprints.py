"""Checksums that recognise a weight matrix: any change of the matrix changes it, and it is cheap."""

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["fingerprint", "parameter_fingerprints"]

_COLUMNS = 64
"""How many columns are hashed at a time: their copy, in the order of rows, then fits the processor's cache."""


def fingerprint(matrix: Float[Tensor, "d_in d_out"]) -> str:
    """32 hexadecimal digits that identify a matrix by its exact bits in their order, its shape and its dtype.

    It does not depend on how the matrix is laid out in memory, so the same weights give the same fingerprint in a
    HookedTransformer and in a TransformerBridge. It guards against mistakes, not against forgery.
    """
    digest = xxhash.xxh3_128(f"{tuple(matrix.shape)} {matrix.dtype}".encode())
    for columns in matrix.detach().cpu().split(_COLUMNS, dim=1):
        digest.update(columns.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parameter_fingerprints(model: nn.Module) -> list[str]:
    """The fingerprint of every parameter of numbers, each once, in the model's order."""
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    return [
        fingerprint(parameter.detach().reshape(1, -1))
        for parameter in parameters.values()
        if parameter.is_floating_point() and parameter.numel()
    ]
