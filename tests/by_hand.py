"""Weight matrices read from and written to named parameters by hand: what the library's own knowledge is held against.

Shares no code with the library. Every matrix is `[d_in, d_out]`, of `y = x @ W + b`, in the model's dtype.
"""

import torch
from torch import Tensor, nn

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
_BRIDGE_NAMES = {"W_Q": "q", "W_K": "k", "W_V": "v", "W_O": "o", "W_in": "in", "W_gate": "gate", "W_out": "out"}


def matrix_names(kind: str) -> tuple[str, ...]:
    """What a layer of this kind of model has (see `models.build`), in the order of the forward pass."""
    if any(word in kind for word in ("mixtral", "experts", "attention-only")):
        return ATTENTION
    gated = any(word in kind for word in ("gated", "grouped", "post-norm", "llama", "mistral", "qwen2", "gemma2"))
    return (*ATTENTION, "W_in", "W_gate", "W_out") if gated else (*ATTENTION, "W_in", "W_out")


def head_count(kind: str, matrix: str) -> int:
    """4, or the 2 key-value heads of W_K and W_V under grouped-query attention."""
    grouped = any(word in kind for word in ("grouped", "llama", "mistral", "mixtral", "qwen2", "gemma2"))
    return 2 if grouped and matrix in ("W_K", "W_V") else 4


def addresses(kind: str, n_layers: int = 2) -> list[str]:
    """The addresses of all its matrices, in the order of the forward pass."""
    part = {**dict.fromkeys(ATTENTION, "attn"), "W_in": "mlp", "W_gate": "mlp", "W_out": "mlp"}
    return [f"blocks.{layer}.{part[name]}.{name}" for layer in range(n_layers) for name in matrix_names(kind)]


def split(address: str) -> tuple[int, str, int | None]:
    """Layer, matrix and head of an address such as blocks.1.attn.W_Q[3]."""
    _, layer, _, name = address.split(".")
    matrix, _, head = name.rstrip("]").partition("[")
    return int(layer), matrix, int(head) if head else None


def read(model: nn.Module, address: str) -> Tensor:
    """A copy of the matrix, or of a head's block of it."""
    layer, matrix, head = split(address)
    if _is_bridge(model):
        whole = _as_read(_bridged(model, layer, matrix), _weight(model, layer, matrix)).clone()
    else:
        whole = (
            torch.cat(list(p), dim=0 if matrix == "W_O" else 1) if (p := _hooked(model, layer, matrix)).ndim == 3 else p
        )
    whole = whole.detach().clone()
    return whole if head is None else _block(whole, matrix, head, model)


def write(model: nn.Module, address: str, W: Tensor) -> None:
    """Overwrite the matrix, or a head's block of it, inside the parameter, for good."""
    layer, matrix, head = split(address)
    if head is not None:
        whole = read(model, address.partition("[")[0])
        _block(whole, matrix, head, model).copy_(W)
        W = whole
    with torch.no_grad():
        if _is_bridge(model):
            weight = _weight(model, layer, matrix)
            _as_read(_bridged(model, layer, matrix), weight).copy_(W)
            return
        parameter = _hooked(model, layer, matrix)
        if parameter.ndim == 2:
            parameter.copy_(W)
            return
        for h, block in enumerate(parameter):
            width = block.shape[0 if matrix == "W_O" else 1]
            block.copy_(W[h * width : (h + 1) * width] if matrix == "W_O" else W[:, h * width : (h + 1) * width])


def bias(model: nn.Module, address: str) -> Tensor:
    """What the layer adds after the matrix, for a head of W_Q, W_K or W_V its part; zeros where it adds nothing."""
    layer, matrix, head = split(address)
    if _is_bridge(model):
        held = _processed(model, layer, matrix.replace("W_", "b_"))
        held = _bridged(model, layer, matrix).bias if held is None else held
        added = torch.zeros(read(model, address.partition("[")[0]).shape[1]) if held is None else held
    else:
        part = model.blocks[layer].attn if matrix in ATTENTION else model.blocks[layer].mlp
        name = matrix.replace("W_", "b_")
        silent = matrix in ("W_in", "W_gate") and "W_gate" in part._parameters
        added = None if silent else part._parameters.get(f"_{name}", part._parameters.get(name))
        added = torch.zeros(read(model, address.partition("[")[0]).shape[1]) if added is None else added.flatten()
    if head is None or matrix == "W_O":
        return added.detach()
    width = read(model, address).shape[1]
    return added.detach()[head * width : (head + 1) * width]


def low_rank(W: Tensor, rank: int) -> Tensor:
    """The nearest matrix of this rank, from torch's own SVD in fp64 (Eckart and Young)."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def regained(W: Tensor, gains: Tensor) -> Tensor:
    """The matrix with its singular values multiplied by these gains, in fp64."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return sum(float(g * s) * torch.outer(u, v) for g, s, u, v in zip(gains.double(), S, U.T, Vh, strict=True))


def _is_bridge(model: nn.Module) -> bool:
    return type(model).__name__ == "TransformerBridge"


def _bridged(model: nn.Module, layer: int, matrix: str) -> nn.Module:
    block = model.blocks[layer]
    part = block.attn if matrix in ATTENTION else block.mlp
    return getattr(part, _BRIDGE_NAMES[matrix]).original_component


def _processed(model: nn.Module, layer: int, name: str) -> Tensor | None:
    """Gated MLPs of 3.9.0 in compatibility mode keep what they multiply by as plain attributes."""
    return (
        None
        if "b_Q W_Q b_K W_K b_V W_V b_O W_O".find(name) >= 0
        else model.blocks[layer].mlp.__dict__.get(f"_processed_{name}")
    )


def _weight(model: nn.Module, layer: int, matrix: str) -> Tensor:
    processed = _processed(model, layer, matrix)
    return _bridged(model, layer, matrix).weight if processed is None else processed


def _as_read(layer: nn.Module, weight: Tensor) -> Tensor:
    return weight.T if isinstance(layer, nn.Linear) else weight


def _hooked(model: nn.Module, layer: int, matrix: str) -> Tensor:
    part = model.blocks[layer].attn if matrix in ATTENTION else model.blocks[layer].mlp
    return part._parameters[f"_{matrix}" if f"_{matrix}" in part._parameters else matrix]


def _block(whole: Tensor, matrix: str, head: int, model: nn.Module) -> Tensor:
    d_head = model.cfg.d_head
    return (
        whole[head * d_head : (head + 1) * d_head] if matrix == "W_O" else whole[:, head * d_head : (head + 1) * d_head]
    )
