"""What a model reads: its tokenizer, how many tokens there are, how many of them it reads, and where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn


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


@dataclass(frozen=True, slots=True)
class ModelVocabulary:
    """What the configuration of a model says of its input.

    Args:
        tokenizer: turns texts into ids; None for a model that reads ids only.
        d_vocab: how many token ids have an embedding.
        n_ctx: how many tokens the model reads; None if it does not say.
        default_prepend_bos: whether texts begin with the beginning-of-sequence token by default.
        device: where the model's input belongs.
    """

    tokenizer: Tokenizer | None
    d_vocab: int
    n_ctx: int | None
    default_prepend_bos: bool
    device: torch.device


def vocabulary_of(model: nn.Module) -> ModelVocabulary:
    """What the model reads.

    >>> from hooks.vocabulary import vocabulary_of
    >>> words = vocabulary_of(model)
    >>> words.d_vocab, words.n_ctx, words.tokenizer
    (40, 16, None)
    """
    cfg = model.cfg
    return ModelVocabulary(
        tokenizer=getattr(model, "tokenizer", None),
        d_vocab=int(cfg.d_vocab),  # type: ignore[arg-type]
        n_ctx=getattr(cfg, "n_ctx", None) or None,
        default_prepend_bos=bool(getattr(cfg, "default_prepend_bos", True)),
        device=next(model.parameters()).device,
    )
