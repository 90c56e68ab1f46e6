"""Logits at chosen places alone, in a `with` block: the unembedding is often a third of the work of a model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from hooks.replay import forward_replaced


@contextmanager
def unembedding_only(model: nn.Module, columns: tuple[int, ...] | None) -> Iterator[None]:
    """Compute logits at these positions only (None: at all), in their order."""
    with _unembedding(model, None if columns is None else lambda resid: resid[:, list(columns)]):
        yield


@contextmanager
def unembedding_at(model: nn.Module, row: Int[Tensor, " place"], pos: Int[Tensor, " place"]) -> Iterator[None]:
    """Compute logits at these places only, as if they were one sequence."""
    with _unembedding(model, lambda resid: resid[row, pos].unsqueeze(0)):
        yield


@contextmanager
def nothing_unembedded(model: nn.Module) -> Iterator[None]:
    """Compute no logits: there are none, at no position."""
    with _unembedding(model, lambda resid: resid[:, :0]):
        yield


@contextmanager
def _unembedding(model: nn.Module, choose: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    unembed = model.unembed
    assert isinstance(unembed, nn.Module)
    with ExitStack() as stack:
        if choose is not None:

            def cut(_module: nn.Module, args: tuple) -> tuple:
                return (choose(args[0]), *args[1:])

            stack.callback(unembed.register_forward_pre_hook(cut).remove)
        if _is_transformer_lens_own(unembed) and "forward" not in unembed.__dict__:
            stack.enter_context(forward_replaced(unembed, _without_copy(unembed)))
        yield


def _is_transformer_lens_own(unembed: nn.Module) -> bool:
    kind = type(unembed)
    return kind.__module__ == "transformer_lens.components.unembed" and kind.__name__ == "Unembed"


def _without_copy(unembed: nn.Module) -> Callable[..., object]:
    """The same product up to rounding: HookedTransformer's copies all of W_U in every call (transformer-lens 3.9)."""

    def forward(residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        return unembed.hook_out(linear(unembed.hook_in(residual), unembed.W_U.T, unembed.b_U))  # type: ignore[operator, union-attr, arg-type]

    return forward
