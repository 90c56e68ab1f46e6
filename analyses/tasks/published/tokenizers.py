"""How many tokens a text has, for filters that ask for that."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from surgery.arguments import shown


@runtime_checkable
class Encodes(Protocol):
    """A tokenizer with an `encode` that gives ids, such as those of transformers."""

    def encode(self, text: str, /, *, add_special_tokens: bool) -> Sequence[int]:
        """The ids of the text."""
        ...


Tokenizer: TypeAlias = Encodes | Callable[[str], Sequence[int]]
"""A tokenizer of transformers, or a function from a text to its ids."""


def check_tokenizer(tokenizer: object) -> None:
    """Refuse what is no tokenizer.

    Raises:
        TypeError: if it is neither one, nor a function, nor None.
    """
    if tokenizer is not None and not isinstance(tokenizer, Encodes) and not callable(tokenizer):
        raise TypeError(
            f"tokenizer={shown(tokenizer)}: give a tokenizer, such as model.tokenizer, or a function from a text to "
            "its ids."
        )


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of the text, without special tokens.

    A function's ids are taken as they are.
    """
    if isinstance(tokenizer, Encodes):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer(text))


def n_tokens_after(tokenizer: Tokenizer, prompt: str, text: str) -> int:
    """How many tokens the text has where it continues the prompt.

    By itself it may have more: some tokenizers put a space before every text.
    """
    return len(ids_of(tokenizer, prompt + text)) - len(ids_of(tokenizer, prompt))
