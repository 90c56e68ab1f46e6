"""A model's weights by TransformerLens's names, in one layout on both hosts: read, written, and the parameter itself.

`embed.W_E` is `[d_vocab, d_model]`, `pos_embed.W_pos` `[n_ctx, d_model]`, `unembed.W_U` `[d_model, d_vocab]`, and a
matrix of a block, such as `blocks.0.attn.W_K`, `[d_in, d_out]` over all heads. What is read and written are the
parameters: an edit in force lies over them and is neither seen nor changed.
"""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks.hosts import Host, host_of
from hooks.places import Layout
from hooks.sites import Site

__all__ = ["EMBED", "POSITIONS", "UNEMBED", "architecture", "parameters", "read", "write"]

EMBED, POSITIONS, UNEMBED = "embed.W_E", "pos_embed.W_pos", "unembed.W_U"

_AS_STORED, _TRANSPOSED = Layout("row column -> row column"), Layout("column row -> row column")


def parameters(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that store these matrices, in the host's own layout.

    Raises:
        SiteError: if a block has no such matrix, or has it in a form that cannot be edited.
        ValueError: if a name is neither that of a block's matrix nor one of the three outside the blocks.
    """
    host = host_of(model)
    return {name: _stored(host, name)[0] for name in names}


def read(model: nn.Module, names: Iterable[str]) -> dict[str, Float[Tensor, "row column"]]:
    """Copies of these matrices.

    >>> from hooks import weights
    >>> weights.read(model, ["unembed.W_U"])["unembed.W_U"].shape
    torch.Size([16, 40])

    Raises:
        SiteError, ValueError: as `parameters`.
    """
    host = host_of(model)
    stored = {name: _stored(host, name) for name in names}
    return {
        name: layout.to_matrix(parameter.detach()).clone(memory_format=torch.contiguous_format)
        for name, (parameter, layout) in stored.items()
    }


@torch.no_grad()
def write(model: nn.Module, matrices: Mapping[str, Float[Tensor, "row column"]]) -> None:
    """Copy the matrices into the model's parameters, cast to their dtypes.

    Raises:
        SiteError, ValueError: as `parameters`; nothing was written then.
    """
    host = host_of(model)
    stored = [(*_stored(host, name), matrix) for name, matrix in matrices.items()]
    for parameter, layout, matrix in stored:
        parameter.copy_(layout.to_stored(matrix))


def architecture(model: nn.Module) -> dict[str, int | str | None]:
    """Layers, heads, activation function and normalisation, by TransformerLens's names; None where it names none."""
    cfg = getattr(model, "cfg", None)
    return {name: getattr(cfg, name, None) for name in ("n_layers", "n_heads", "act_fn", "normalization_type")}


def _stored(host: Host, name: str) -> tuple[nn.Parameter, Layout]:
    """The parameter, and how it is read as the matrix."""
    if name.startswith("blocks."):
        place = host.place(Site.parse(name).joint)
        stored, layout = place.slots[0].registered(), place.layout
    elif name in (EMBED, POSITIONS, UNEMBED):
        module_name, matrix = name.split(".")
        module = getattr(host.model, module_name)
        stored, layout = module._parameters.get(matrix), _AS_STORED
        if stored is None:  # a bridge wraps torch's own layers, whose Linear keeps the unembedding as [d_out, d_in]
            stored, layout = module.original_component.weight, _TRANSPOSED if name == UNEMBED else _AS_STORED
    else:
        raise ValueError(
            f"name={name!r}: there are {EMBED}, {POSITIONS}, {UNEMBED} and the blocks' matrices, which "
            "surgery.sites(model) lists. Choose one of them."
        )
    assert isinstance(stored, nn.Parameter)
    return stored, layout
