"""What a weight matrix is recognised by: a checksum that any changed entry changes, cheap enough for every use."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(matrix: Float[Tensor, "d_in d_out"]) -> str:
    """32 hexadecimal digits that identify a matrix by its exact bits, its shape and its dtype.

    The bit patterns are summed as integers along rows and along columns, exactly and on the matrix's own device, and
    only these sums are hashed. It does not depend on how the matrix is laid out in memory, so the same weights give the
    same fingerprint in a HookedTransformer and in a TransformerBridge. It guards against mistakes, not against forgery.
    """
    bits = matrix.detach().view(_BITS[matrix.element_size()]).to(torch.int64)
    digest = hashlib.blake2b(f"{tuple(matrix.shape)} {matrix.dtype}".encode(), digest_size=16)
    for sums in (bits.sum(0), bits.sum(1)):
        digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()
