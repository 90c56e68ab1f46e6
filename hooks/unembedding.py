"""Logits at chosen places alone, in a `with` block: the unembedding is often a third of the work of a model."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from hooks.temporary import Forward, Hook, Temporary

__all__ = ["nothing_unembedded", "unembedding_at", "unembedding_only"]


def unembedding_only(model: nn.Module, columns: tuple[int, ...] | None) -> Temporary[None]:
    """Compute logits at these positions only (None: at all), in their order."""
    return _unembedding(model, None if columns is None else lambda resid: resid[:, list(columns)])


def unembedding_at(model: nn.Module, row: Int[Tensor, " place"], pos: Int[Tensor, " place"]) -> Temporary[None]:
    """Compute logits at these places only, as if they were one sequence."""
    return _unembedding(model, lambda resid: resid[row, pos].unsqueeze(0))


def nothing_unembedded(model: nn.Module) -> Temporary[None]:
    """Skip the unembedding: the model returns logits of zero positions."""
    return _unembedding(model, lambda resid: resid[:, :0])


def _unembedding(model: nn.Module, choose: Callable[[Tensor], Tensor] | None) -> Temporary[None]:
    unembed = model.unembed
    assert isinstance(unembed, nn.Module)
    put: list[Hook | Forward] = []
    if choose is not None:

        def cut(_module: nn.Module, args: tuple) -> tuple:
            return (choose(args[0]), *args[1:])

        put.append(Hook(unembed, "input", cut))
    if _is_transformer_lens_own(unembed) and "forward" not in unembed.__dict__:
        put.append(Forward(unembed, _without_copy(unembed)))
    return Temporary(put)


def _is_transformer_lens_own(unembed: nn.Module) -> bool:
    kind = type(unembed)
    return kind.__module__ == "transformer_lens.components.unembed" and kind.__name__ == "Unembed"


def _without_copy(unembed: nn.Module) -> Callable[..., object]:
    """The same product up to rounding: HookedTransformer's copies all of W_U in every call (transformer-lens 3.9)."""

    def forward(residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        return unembed.hook_out(linear(unembed.hook_in(residual), unembed.W_U.T, unembed.b_U))  # type: ignore[operator, union-attr, arg-type]

    return forward
