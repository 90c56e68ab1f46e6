"""Words as answers: the one token by which a model's tokenizer continues a text with them."""

from torch import nn

from analyses.tokens.items import after
from analyses.tokens.tokenizer import Ids, Speller, Unspellable, vocabulary
from surgery.arguments import shown

_BEFORE = ("\n", "a")
"""Texts before a word. A tokenizer may spell the word otherwise without one: some put a space before every text."""


def token_of(model: nn.Module, word: str) -> int:
    """The id of the token that continues a text by exactly this word, its leading space included.

    Raises:
        ValueError: if the model has no tokenizer, or spells the word with several tokens or not at all.
    """
    words = vocabulary(model)
    if words.tokenizer is None:
        raise ValueError(f"the model has no tokenizer, so the answer {word!r} has no id: give token ids.")
    spell = Speller(words, [word, *_BEFORE, *(text + word for text in _BEFORE)])
    ids = _spelled(spell, word)
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise ValueError(
            f"the model's tokenizer has no tokens that continue a text by exactly {word!r}: mind the space before a "
            "word, or give a token id."
        )
    tokens = ", ".join(repr(spell.read([id])) for id in ids[:8])
    space = "" if word.startswith(" ") else f" With a space before it, {' ' + word!r}, it is another word."
    raise ValueError(
        f"the answer {shown(word)} is {len(ids)} tokens of this model ({tokens}), and an answer is one token: give "
        f"another word, or the id of the token that decides.{space}"
    )


def _spelled(spell: Speller, word: str) -> Ids:
    """The ids that continue a text so that it reads as the text and the word; empty if there are none."""
    for text in _BEFORE:
        try:
            before, added = spell.ids(text), after(spell, text, "", word)
        except Unspellable:
            continue
        # Exactly the word: a lost or an extra space would make it another one.
        if word and before and spell.read([*before, *added]) == spell.read(before) + word:
            return added
    return ()
