"""Texts and items as token ids of one model: what it reads, and what it can be asked.

Prompts, metrics and scoring stand on this; it knows tasks and nothing above them.
"""

from analyses.tokens.items import Continuation, TokenisedItem, UnscorableItems, scorable, tokenise
from analyses.tokens.tokenizer import Ids, Speller, Unspellable, Vocabulary, text_ids, vocabulary
from analyses.tokens.words import token_of

__all__ = [
    "Continuation",
    "Ids",
    "Speller",
    "TokenisedItem",
    "UnscorableItems",
    "Unspellable",
    "Vocabulary",
    "scorable",
    "text_ids",
    "token_of",
    "tokenise",
    "vocabulary",
]
