"""Moved to `analyses.tokens.items`; found here until its users import it from there."""

from analyses.tokens.items import Continuation, TokenisedItem, UnscorableItems, scorable, tokenise

__all__ = ["Continuation", "TokenisedItem", "UnscorableItems", "scorable", "tokenise"]
