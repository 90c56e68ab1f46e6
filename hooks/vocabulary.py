"""How a model's own tokenizer turns texts into token ids."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor, nn

__all__ = ["Tokenizer", "prepends_bos", "token_ids", "tokenizer_of"]


@runtime_checkable
class Tokenizer(Protocol):
    """What the analyses need of a model's tokenizer; those of `transformers` have it."""

    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None
    unk_token: str | None
    unk_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool, verbose: bool) -> Mapping[str, list]:
        """The ids of each text, as `input_ids`."""
        ...

    def decode(self, token_ids: Sequence[int], *, clean_up_tokenization_spaces: bool | None = None) -> str:
        """The text of the ids."""
        ...


def tokenizer_of(model: nn.Module) -> Tokenizer | None:
    """The model's tokenizer; None for a model that reads token ids only."""
    return getattr(model, "tokenizer", None)


def prepends_bos(model: nn.Module) -> bool:
    """Whether texts begin with the beginning-of-sequence token, unless somebody says otherwise."""
    return bool(getattr(model.cfg, "default_prepend_bos", True))


def token_ids(model: nn.Module, text: str) -> Int[Tensor, " pos"]:
    """The text's ids as TransformerLens gives them, with the beginning-of-sequence token if the model wants one."""
    return model.to_tokens(text, truncate=False)[0]  # type: ignore[operator]
