"""How a model's tokenizer spells a text, and what it cannot spell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import nn

Ids: TypeAlias = tuple[int, ...]


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a model's tokenizer; those of `transformers` have it."""

    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None
    unk_token: str | None
    unk_token_id: int | None
    is_fast: bool

    def __call__(
        self, text: list[str], *, add_special_tokens: bool, return_offsets_mapping: bool, verbose: bool
    ) -> Mapping[str, list]:
        """Ids and, of a fast tokenizer, the characters that each id stands for."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids."""
        ...


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a model reads: ids below `size`, at most `n_ctx` of them, beginning with `bos` where a text does."""

    tokenizer: Tokenizer | None
    bos: int | None
    pad: int
    eos: int | None
    size: int
    n_ctx: int

    def decode(self, ids: Ids) -> str:
        """The text of the ids, or their numbers if there is no tokenizer."""
        return " ".join(map(str, ids)) if self.tokenizer is None else self.tokenizer.decode(list(ids))


def vocabulary(model: nn.Module, *, prepend_bos: bool | None = None) -> Vocabulary:
    """What the model reads; texts begin with its beginning-of-sequence token if its configuration wants one.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.
    """
    if prepend_bos not in (None, True, False):
        raise ValueError(f"prepend_bos={prepend_bos!r}: give True, False, or None for the model's own setting.")
    cfg, tokenizer = model.cfg, getattr(model, "tokenizer", None)
    if prepend_bos is None:
        prepend_bos = bool(getattr(cfg, "default_prepend_bos", True))
    size = int(cfg.d_vocab)  # type: ignore[arg-type]
    return Vocabulary(
        tokenizer=tokenizer,
        bos=_special(tokenizer, "bos", size) if prepend_bos else None,
        # Padding is masked: any id that has an embedding will do.
        pad=_special(tokenizer, "pad", size) or 0,
        eos=_special(tokenizer, "eos", size),
        size=size,
        n_ctx=int(getattr(cfg, "n_ctx", None) or 2**31),
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
    """The ids of strings, and of which characters they are; every string is tokenised once, all in one call."""

    def __init__(self, words: Vocabulary, texts: Iterable[str]) -> None:
        self.words = words
        self.known: dict[str, tuple[Ids, list[tuple[int, int]] | None]] = {"": ((), [])}
        self.refused: dict[str, str] = {}
        self.unknown = _unknown(words.tokenizer)
        self.learn(texts)

    def learn(self, texts: Iterable[str]) -> None:
        """Tokenises the texts that are new."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known and text not in self.refused]
        tokenizer = self.words.tokenizer
        if not new or tokenizer is None:
            return
        fast = bool(tokenizer.is_fast)
        try:
            found = tokenizer(new, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        except Exception as error:
            # A vocabulary without an unknown token raises a bare Exception for the whole list: find out for which text.
            if len(new) == 1:
                self.refused[new[0]] = str(error)
            else:
                for text in new:
                    self.learn([text])
            return
        spans = found["offset_mapping"] if fast else [None] * len(new)
        for text, ids, span in zip(new, found["input_ids"], spans, strict=True):
            self.known[text] = (tuple(ids), span)

    def ids(self, text: str) -> Ids:
        """The ids of a text, without any special token that is not written in it.

        Raises:
            Unspellable: if there is no tokenizer, or it refuses.
        """
        if text and self.words.tokenizer is None:
            raise Unspellable(f"the model has no tokenizer, so it reads token ids and not the text {text[:40]!r}")
        self.learn([text])
        if text in self.refused:
            raise Unspellable(f"the tokenizer refuses {text[:40]!r}: {self.refused[text]}")
        return self.known[text][0]

    def begin(self, ids: Ids) -> Ids:
        """The ids of a text's beginning with the beginning-of-sequence token, if there is one, exactly once."""
        bos = self.words.bos
        return ids if bos is None or ids[:1] == (bos,) else (bos, *ids)

    def check(self, text: str, start: int) -> None:
        """Refuses a text if the tokenizer has no tokens for a part of it from `start` on."""
        _, spans = self.known[text]
        if spans is None:
            return
        covered = bytearray(len(text))
        for first, last in spans:
            covered[first:last] = b"\1" * (last - first)
        lost = next((at for at in range(start, len(text)) if not covered[at] and not text[at].isspace()), None)
        if lost is not None:
            raise Unspellable(f"the tokenizer has no token for {text[lost]!r} in {text[start:]!r}")


def _unknown(tokenizer: Tokenizer | None) -> dict[str, int]:
    """The tokens for what a tokenizer does not know: by its configuration, and by its model if that differs."""
    if tokenizer is None:
        return {}
    found = {tokenizer.unk_token: tokenizer.unk_token_id}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    token = getattr(getattr(backend, "model", None), "unk_token", None)
    if backend is not None and token is not None:
        found[token] = backend.token_to_id(token)
    return {token: id for token, id in found.items() if token is not None and id is not None}


def _special(tokenizer: Tokenizer | None, name: Literal["bos", "eos", "pad"], size: int) -> int | None:
    """The id of a special token, if the model has an embedding for it and the vocabulary the token."""
    if tokenizer is None:
        return None
    token, id = getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")
    # TransformerLens gives every tokenizer these tokens; the id of one that the vocabulary lacks is the unknown one's.
    missing = id is not None and id == tokenizer.unk_token_id and token != tokenizer.unk_token
    return None if id is None or missing or not 0 <= id < size else id
