"""Words as answers: the one token by which a model's tokenizer continues a text with them."""

from torch import nn

from surgery.arguments import shown

_BEFORE = ("\n", "a")
"""Texts to continue: how a tokenizer spells a word by itself may differ, as where it puts a space before every text."""


def token_of(model: nn.Module, word: str) -> int:
    """The id of the token that continues a text by exactly this word, its leading space included.

    Raises:
        ValueError: if the model has no tokenizer, or spells the word with several tokens or not at all.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"the model has no tokenizer, so the answer {word!r} has no id: give token ids.")
    spelled = _spelled(tokenizer, word)
    if len(spelled) == 1:
        return spelled[0]
    if not spelled:
        raise ValueError(
            f"the model's tokenizer has no tokens that continue a text by exactly {word!r}: mind the space before a "
            "word, or give a token id."
        )
    parts = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(spelled[:8])))
    space = "" if word.startswith(" ") else f" With a space before it, {' ' + word!r}, it is another word."
    raise ValueError(
        f"the answer {shown(word)} is {len(spelled)} tokens of this model ({parts}), and an answer is one token: give "
        f"another word, or the id of the token that decides.{space}"
    )


def _spelled(tokenizer, word: str) -> list[int]:
    """The ids by which a text is continued so that it reads as the text and the word; empty if there are none."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def read(found: list[int]) -> str:
        return tokenizer.decode(found, clean_up_tokenization_spaces=False)

    if not word:
        return []
    for text in _BEFORE:
        try:
            before, both = ids(text), ids(text + word)
            after = both[len(before) :] if both[: len(before)] == before else ids(word)
        except Exception:  # a vocabulary without an unknown token raises a bare one
            continue
        if before and read([*before, *after]) == read(before) + word:
            return after
    return []
