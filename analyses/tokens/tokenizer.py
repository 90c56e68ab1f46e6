"""How a model's tokenizer spells a text, and which texts it cannot spell."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from hooks import host_of
from hooks.vocabulary import Tokenizer, prepends_bos, tokenizer_of

Ids: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a model reads: ids below `size`, at most `n_ctx` of them; a text begins with `bos`, if that is not None."""

    tokenizer: Tokenizer | None
    bos: int | None
    pad: int
    eos: int | None
    size: int
    n_ctx: int

    def decode(self, ids: Ids) -> str:
        """The text of the ids, or their numbers if there is no tokenizer."""
        return " ".join(map(str, ids)) if self.tokenizer is None else self.tokenizer.decode(list(ids))

    @property
    def only_appends(self) -> bool:
        """Whether a text never changes before its end when tokens are added to it.

        It may where a tokenizer tidies up: "do" and "n't" become one word.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        joins_words = type(getattr(backend, "decoder", None)).__name__ == "WordPiece"
        return not joins_words and not getattr(self.tokenizer, "clean_up_tokenization_spaces", False)


def vocabulary(model: nn.Module, *, prepend_bos: bool | None = None) -> Vocabulary:
    """What the model reads; texts begin with its beginning-of-sequence token if its configuration wants one.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: if `prepend_bos` is neither True, False nor None.
    """
    if prepend_bos not in (None, True, False):
        raise ValueError(f"prepend_bos={prepend_bos!r}: give True, False, or None for the model's own setting.")
    tokenizer, host = tokenizer_of(model), host_of(model)
    size = host.d_vocab
    wants_bos = prepends_bos(model) if prepend_bos is None else prepend_bos
    return Vocabulary(
        tokenizer=tokenizer,
        # Left out where the model has no embedding for it: a row then begins with the text.
        bos=_special(tokenizer, "bos", size) if wants_bos else None,
        # Padding is masked: any id that has an embedding will do.
        pad=_special(tokenizer, "pad", size) or 0,
        eos=_special(tokenizer, "eos", size),
        size=size,
        n_ctx=host.n_ctx or 2**31,  # no limit that any text reaches
    )


def text_ids(words: Vocabulary, text: str) -> Ids:
    """The ids of a plain text, without a beginning-of-sequence token.

    Raises:
        ValueError: if the model has no tokenizer, or one that refuses the text.
    """
    try:
        return Speller(words, [text]).ids(text)
    except Unspellable as reason:
        raise ValueError(
            f"this text cannot be read: {reason}. Give token ids, or set a tokenizer on the model."
        ) from None


class Unspellable(Exception):
    """Why a text cannot be read or said."""


class Speller:
    """The ids of strings; all texts known beforehand are tokenised in one call, which is many times faster."""

    def __init__(self, words: Vocabulary, texts: Iterable[str]) -> None:
        self.words = words
        self.unknown = _unknown(words.tokenizer)
        # The ids of each text, or the reason why it has none.
        self.spelled: dict[str, Ids | str] = {"": ()}
        if words.tokenizer is not None:
            # Without the empty text, of which some tokenizers make a token for the space that they put before it.
            self.spelled |= _spelled(words.tokenizer, [text for text in dict.fromkeys(texts) if text])

    def ids(self, text: str) -> Ids:
        """The ids of a text, without any special token that is not written in it.

        Raises:
            Unspellable: if there is no tokenizer, or it refuses.
        """
        tokenizer = self.words.tokenizer
        if text and tokenizer is None:
            raise Unspellable(f"the model has no tokenizer, so it reads token ids and not the text {text[:40]!r}")
        if text not in self.spelled and tokenizer is not None:
            self.spelled |= _spelled(tokenizer, [text])
        ids = self.spelled[text]
        if isinstance(ids, str):
            raise Unspellable(f"the tokenizer refuses {text[:40]!r}: {ids}")
        return ids

    def read(self, ids: Iterable[int]) -> str:
        """The text of the ids, as it stands there: without the tidying by which some tokenizers change words."""
        assert self.words.tokenizer is not None, "it gave the ids"
        return self.words.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def check(self, ids: Ids, text: str) -> Ids:
        """The ids, if they spell the whole text.

        Raises:
            Unspellable: if the tokenizer has no tokens for a part of the text.
        """
        if not ids:
            raise Unspellable(f"the tokenizer has no tokens for {text!r}")
        # A text may have the token written out: GPT-2's tokenizers call their end-of-text token unknown.
        unknown = next((token for token, id in self.unknown.items() if id in ids and token not in text), None)
        if unknown is not None:
            raise Unspellable(f"the tokenizer does not know a part of {text!r}, which becomes {unknown!r}")
        # Without an unknown token, a tokenizer may leave out in silence what it does not know.
        read = self.read(ids)
        if _bare(read) != _bare(text):
            raise Unspellable(f"the tokenizer has no tokens for a part of {text!r}, which it reads as {read!r}")
        return ids


def _spelled(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Ids | str]:
    """The ids of each text, or why it has none."""
    try:
        # Not verbose: it would warn of texts that are longer than the model reads, which items refuse by name.
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    except Exception as error:
        # A vocabulary without an unknown token raises a bare Exception for the whole list: ask for each text alone.
        if len(texts) == 1:
            return {texts[0]: str(error)}
        return {text: ids for single in texts for text, ids in _spelled(tokenizer, [single]).items()}
    return dict(zip(texts, map(tuple, rows), strict=True))


def _bare(text: str) -> str:
    """The text as it is compared: tokenizers add and drop spaces, and some normalise letters or make them lower case.

    Llama's write a space as ▁.
    """
    return "".join(unicodedata.normalize("NFKC", text).casefold().replace("▁", " ").split())


def _unknown(tokenizer: Tokenizer | None) -> dict[str, int]:
    """The tokens for what a tokenizer does not know: by its configuration, and by its model if that differs."""
    if tokenizer is None:
        return {}
    ids = {tokenizer.unk_token: tokenizer.unk_token_id}
    # The configuration of a fast tokenizer may name no unknown token where its model still has one.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    token = getattr(getattr(backend, "model", None), "unk_token", None)
    if backend is not None and token is not None:
        ids[token] = backend.token_to_id(token)
    return {token: id for token, id in ids.items() if token is not None and id is not None}


def _special(tokenizer: Tokenizer | None, name: Literal["bos", "eos", "pad"], size: int) -> int | None:
    """The id of a special token, if the model has an embedding for it and the vocabulary the token."""
    if tokenizer is None:
        return None
    token, id = getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")
    # TransformerLens gives every tokenizer these tokens; the id of one that the vocabulary lacks is the unknown one's.
    missing = id is not None and id == tokenizer.unk_token_id and token != tokenizer.unk_token
    return None if id is None or missing or not 0 <= id < size else id
